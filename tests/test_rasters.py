"""What image files say of themselves: obeyed, noted or refused in one line, as in docs/reliability.md."""

import os
import types

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image as Picture
from rasterio.enums import ColorInterp

from input_pipeline import folder_images, folder_masks
from input_pipeline.layouts import annotations
from input_pipeline.places import Report
from ringmoe_jax import geo, sensors
from ringmoe_jax.errors import DataError
from tests.helpers.rasters import tif

NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)


def frame(path, sensor="rgb"):
    return folder_images.read([path], sensors.get(sensor))


def refused(function, *arguments) -> str:
    with pytest.raises(DataError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def changed(path, pixels, change, **options):
    tif(path, pixels, **options)
    with rasterio.open(path, "r+") as file:
        change(file)
    return path


# Colours and masks ----------------------------------------------------------------------------------------------------


def test_transparency_is_a_mask_and_no_band(tmp_path):
    pixels = NOISE.copy()
    pixels[..., 3] = 255
    pixels[:4, :, 3] = 0
    Picture.fromarray(pixels).save(tmp_path / "a.png")
    got = frame(tmp_path / "a.png")
    np.testing.assert_array_equal(got.pixels, pixels[..., :3])
    np.testing.assert_array_equal(got.valid, pixels[..., 3] > 0)


def test_a_fourth_band_that_gdal_calls_transparency_is_near_infrared(tmp_path):
    pixels = NOISE.copy()
    pixels[0, 0, 3] = 0
    tif(tmp_path / "a.tif", pixels)
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.colorinterp[3] == ColorInterp.alpha
    got = frame(tmp_path / "a.tif", "rgbn")
    np.testing.assert_array_equal(got.pixels, pixels)
    assert got.valid.all()
    assert got.notes == ("call their last band transparency: taken for a band",)


def test_colours_order_bands(tmp_path):
    def blue_first(file):
        file.colorinterp = (ColorInterp.blue, ColorInterp.green, ColorInterp.red)

    path = changed(tmp_path / "a.tif", NOISE[..., :3], blue_first)
    np.testing.assert_array_equal(frame(path).pixels, NOISE[..., 2::-1])


def test_colours_that_are_no_bands_are_refused(tmp_path):
    Picture.fromarray(NOISE[..., :3]).convert("P").save(tmp_path / "a.png")
    assert "holds a palette: expand it" in refused(frame, tmp_path / "a.png")
    Picture.fromarray(NOISE[..., :3]).convert("CMYK").save(tmp_path / "a.tif")  # GDAL makes it red, green, blue
    assert 'gives 3 channels without names, "rgbn" has 4' in refused(frame, tmp_path / "a.tif", "rgbn")
    assert frame(tmp_path / "a.tif").valid.all()

    def cyan_first(file):
        file.colorinterp = (ColorInterp.cyan, ColorInterp.magenta, ColorInterp.yellow)

    path = changed(tmp_path / "b.tif", NOISE[..., :3], cyan_first)
    assert "holds the colours cyan, magenta, yellow" in refused(frame, path)


def test_black_of_one_band_is_a_colour_and_black_of_all_is_no_data(tmp_path):
    pixels = np.maximum(NOISE[..., :3], 1)
    pixels[0, 0], pixels[0, 1] = 0, (0, 9, 9)
    tif(tmp_path / "a.tif", pixels, nodata=0)
    assert (~frame(tmp_path / "a.tif").valid).nonzero() == (np.array([0]), np.array([0]))


def test_a_stated_range_is_obeyed(tmp_path):
    heights = np.linspace(0, 30, 256, dtype=np.float32).reshape(16, 16, 1)
    path = changed(tmp_path / "a.tif", heights, lambda file: file.update_tags(valid_min="5", valid_max="20"))
    np.testing.assert_array_equal(frame(path, "ndsm").valid, ((heights >= 5) & (heights <= 20))[..., 0])


def test_scale_of_heights_is_obeyed_and_one_that_loses_steps_refused(tmp_path):
    decimetres = np.arange(256, dtype=np.int16).reshape(16, 16, 1)

    def tenths(file):
        file.scales = (0.1,)

    got = frame(changed(tmp_path / "a.tif", decimetres, tenths), "ndsm")
    np.testing.assert_allclose(got.pixels, decimetres * np.float32(0.1), rtol=1e-6)

    def fine(file):
        file.scales = (1e-5,) * 3

    assert "too fine for" in refused(frame, changed(tmp_path / "b.tif", NOISE[..., :3], fine))


# Files ----------------------------------------------------------------------------------------------------------------


def test_several_pages_and_turned_pictures_are_refused(tmp_path):
    first, second = (Picture.fromarray(NOISE[..., :3]) for _ in range(2))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    assert "has 2 pages: wanted one image a file" in refused(frame, tmp_path / "a.tif")
    exif = Picture.Exif()
    exif[0x0112] = 6
    first.save(tmp_path / "a.jpg", exif=exif)
    assert "shown turned (EXIF orientation 6)" in refused(frame, tmp_path / "a.jpg")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "npy"])
def test_files_that_are_cut_off_are_refused(tmp_path, ending, share):
    path = tmp_path / f"a.{ending}"
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if ending == "npy":
        np.save(path, pixels)
    elif ending == "tif":
        tif(path, pixels)
    else:
        Picture.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "cannot be read" in refused(frame, path)


def test_pipes_and_huge_images_end_in_a_line(tmp_path):
    for name in ("z.npy", "z.tif"):
        os.mkfifo(tmp_path / name)
        assert "is no file" in refused(frame, tmp_path / name)
    path = tmp_path / "huge.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=10**5, height=10**5, count=3, dtype="uint8", sparse_ok=True, bigtiff="yes"
    ):
        pass
    assert "has 100000 x 100000 px: images are read whole, at most 536,870,912 px" in refused(frame, path)


def test_two_masks_of_one_name_are_refused(tmp_path):
    (tmp_path / "mask").mkdir()
    for ending in ("png", "tif"):
        Picture.fromarray(NOISE[..., 0]).save(tmp_path / "mask" / f"a.{ending}")
    assert "have the same ID" in refused(folder_masks.mask_files, tmp_path / "mask")


# Places ---------------------------------------------------------------------------------------------------------------


def test_a_grid_in_feet_and_in_degrees_knows_its_metres():
    feet = geo.Grid(rasterio.crs.CRS.from_epsg(2263), Affine(1, 0, 980_000, 0, -1, 200_000), 10, 10)  # US survey feet
    assert feet.gsd == pytest.approx(1200 / 3937)
    degrees = geo.Grid(rasterio.crs.CRS.from_epsg(4326), Affine(1e-4, 0, 15, 0, -1e-4, 60), 10, 10)
    assert degrees.gsd == pytest.approx(1e-4 * geo.METRES * np.sqrt(0.5), rel=1e-3)  # cos 60 degrees is a half
    assert geo.Grid.nowhere(3, 4).gsd is None


def test_places_across_the_antimeridian_are_near():
    crs, step = rasterio.crs.CRS.from_epsg(4326), 1e-5
    west = geo.Grid(crs, Affine(step, 0, -180, 0, -step, 0), 10, 10)
    east = geo.Grid(crs, Affine(step, 0, 180, 0, -step, 0), 10, 10)
    assert west.distance(east) == pytest.approx(0, abs=1e-6)
    assert geo.latitude_longitude(crs, Affine(1, 0, 190, 0, -1, 10), 0, 0) == pytest.approx((10, -170))


def test_a_local_system_has_no_place():
    local = rasterio.crs.CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    grid = geo.Grid(local, Affine(1, 0, 0, 0, -1, 0), 4, 4)
    assert np.isnan(grid.locations([0], [0])).all()
    assert np.isnan(grid.distance(geo.Grid(rasterio.crs.CRS.from_epsg(4326), grid.transform, 4, 4)))


def test_tables_of_another_proj_are_named(monkeypatch):
    def broken(*_):
        raise rasterio.errors.CRSError("proj.db contains DATABASE.LAYOUT.VERSION.MINOR = 2")

    monkeypatch.setattr(geo, "to_crs", broken)
    monkeypatch.setattr(rasterio.crs, "CRS", types.SimpleNamespace(from_epsg=broken))
    assert "PROJ_DATA or PROJ_LIB names the tables of another" in refused(geo.places, "EPSG:32633", [0.0], [0.0])


def test_rounding_errors_of_a_transform_are_no_other_grid():
    crs = rasterio.crs.CRS.from_epsg(32633)
    one = geo.Grid(crs, Affine(10, 0, 5e5, 0, -10, 5e6), 100, 100)
    other = geo.Grid(crs, Affine(10, 0, 5e5 + 1e-4, 0, -10, 5e6), 100, 100)
    assert one.apart(other) == pytest.approx(1e-5, rel=1e-3)


# Annotations ----------------------------------------------------------------------------------------------------------

BOMB = """<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "declares a document type"),
        ("<annotation>" + "<a>" * 100 + "</a>" * 100 + "</annotation>", "is nested deeper than 64 elements"),
    ],
)
def test_hostile_xml_is_refused_at_once(tmp_path, text, message):
    (tmp_path / "a.xml").write_text(text)
    assert message in refused(annotations.voc, [tmp_path / "a.xml"])


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        '{"images": 3, "annotations": [], "categories": []}',
        '{"images": [{"id": [], "file_name": "a"}], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [[1]], "categories": []}',
        '{"images": [{"id": 1, "file_name": "a", "height": "x", "width": 1}], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [{"image_id": {}, "category_id": 1, "bbox": []}], "categories": []}',
    ],
)
def test_odd_coco_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert "a.json" in refused(annotations.coco, tmp_path / "a.json")


def test_boxes_of_a_named_size_stay(tmp_path):
    (tmp_path / "a.xml").write_text(
        "<annotation><size><width>8</width><height>4</height></size><object><name>x</name><bndbox><xmin>1</xmin>"
        "<ymin>1</ymin><xmax>4</xmax><ymax>2</ymax></bndbox></object></annotation>"
    )
    found, report = annotations.voc([tmp_path / "a.xml"]), Report()
    assert found.sizes == {"a": (4, 8)}
    assert found.on("a", (4, 8), report).tolist() == [[0, 2, 1, 4, 2, 0]]
    assert found.on("a", (8, 16), report).tolist() == [[0, 4, 2, 8, 4, 0]]
    assert report.lines({}) == [
        "1 files, a among them, have another size than their objects say, 2 times as large: scaled"
    ]
