"""Masks beside a user's own images: names, values and colours of classes, what is void, and what places lack."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import rasterio
from PIL import Image as Picture

from input_pipeline import folder
from input_pipeline.evaluation import EvalBatches
from input_pipeline.places import Report
from ringmoe_jax.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # pictures have no place
MASK = np.zeros((8, 8), np.uint8)
MASK[2:5, 1:7] = 1
STEMS = ("a", "b", "c d")


def geotiff(path, values, **options):
    """Writes [H, W] or [H, W, C] without a place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values[..., None] if values.ndim == 2 else values
    height, width, count = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=values.dtype, **options
    ) as file:
        file.write(values.transpose(2, 0, 1))


def picture(path, values, mode=None, palette=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Picture.fromarray(values, mode)
    if palette:
        image.putpalette(palette)
    image.save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Three pictures of 8 px, one with a space in its name, in lists; two classes."""
    for i, stem in enumerate(STEMS):
        pixels = np.random.default_rng(i).integers(1, 255, (8, 8, 3)).astype(np.uint8)
        picture(tmp_path / "in" / "rgb" / f"{stem}.png", pixels)
    (tmp_path / "in" / "train.txt").write_text("a.png\nc d\n")
    (tmp_path / "in" / "val.txt").write_bytes(b"\xef\xbb\xbfb\n")  # with a byte order mark
    (tmp_path / "in" / "classes.txt").write_text("background\nbuilding\n")
    return tmp_path / "in"


def prepared(root, **options):
    report = Report()
    meta = folder.prepare(root, root.parent / "out", tile=8, overwrite=True, report=report, **options)
    return meta, report


def stored(root, label="mask", sensors=("rgb",), split="train"):
    """The label of a split by the sample's first red pixel, so that the order does not matter."""
    (batch,) = EvalBatches(root.parent / "out", sensors, split=split, image_size=8, batch_size=8)
    return batch, batch["labels"][label][batch["real"]]


def masks(root, values, **options):
    for stem in STEMS:
        geotiff(root / "mask" / f"{stem}.tif", values, **options)


def same(found, wanted):
    for mask in found:
        np.testing.assert_array_equal(mask, wanted)


def test_masks_of_0_and_255(root):
    masks(root, MASK * 255)
    meta, report = prepared(root)
    same(stored(root)[1], MASK)
    assert 'mask: no file holds a 1, so 255 is taken for "building" and not for void' in report.lines(meta.labels)


def test_255_is_void_where_a_1_is_there(root):
    values = MASK.copy()
    values[0] = 255
    masks(root, values)
    meta, report = prepared(root)
    same(stored(root)[1], np.where(values == 255, -1, MASK.astype(int)))
    assert report.lines(meta.labels) == []
    assert meta.labels["mask"].description == "mask of the folder; void: 255, -1 and declared no-data"


@pytest.mark.parametrize(
    ("lines", "names", "colours"),
    [
        ("7,land\n9,sea\n", ("land", "sea"), ()),
        ("9,sea,#2060C0\n7,land,#10a020", ("sea", "land"), ("#2060C0", "#10a020")),
        (
            "# QGIS Generated Color Map Export File\nINTERPOLATION:DISCRETE\n7,16,160,32,255,land\n9,32,96,192,255,sea",
            ("land", "sea"),
            ("#10a020", "#2060c0"),
        ),
    ],
)
def test_values_and_colours_of_classes(root, lines, names, colours):
    (root / "classes.txt").write_text(lines)
    masks(root, np.where(MASK, 9, 7).astype(np.uint8))
    meta, _ = prepared(root)
    assert (meta.labels["mask"].names, meta.labels["mask"].colours) == (names, colours)
    same(stored(root)[1], MASK if names[1] == "sea" else 1 - MASK)
    written = json.loads((root.parent / "out" / "metadata.json").read_text())
    assert written["labels"]["mask"]["colours"] == list(colours)


def test_masks_in_colour(root):
    (root / "classes.txt").write_text("land,#10a020\nsea,#2060c0\n")
    masks(root, np.where(MASK[..., None], [32, 96, 192], [16, 160, 32]).astype(np.uint8))
    prepared(root)
    same(stored(root)[1], MASK)


def test_colours_of_a_palette(root):
    for stem in STEMS:
        picture(root / "mask" / f"{stem}.png", MASK, "P", palette=[0, 0, 0, 255, 16, 0])
    meta, _ = prepared(root)
    assert meta.labels["mask"].colours == ("#000000", "#ff1000")
    same(stored(root)[1], MASK)


def test_an_internal_mask_hides_what_nobody_labelled(root):
    seen = np.full((8, 8), 255, np.uint8)
    seen[6:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        masks(root, MASK)
        for stem in STEMS:
            with rasterio.open(root / "mask" / f"{stem}.tif", "r+") as file:
                file.write_mask(seen)
    prepared(root)
    same(stored(root)[1], np.where(seen, MASK.astype(int), -1))


def test_no_data_that_is_a_class_is_asked_about_once(root):
    (root / "classes.txt").write_text("nobody\nbuilding\nroad\n")
    masks(root, MASK, nodata=0)
    with pytest.raises(DataError, match='declares 0 as "no data", but it is the value of the class "nobody"'):
        prepared(root)
    prepared(root, ignored=())
    same(stored(root)[1], MASK)
    meta, _ = prepared(root, ignored=(0,))
    assert meta.labels["mask"].names == ("building", "road")
    assert meta.labels["mask"].description == "mask of the folder; void: 0"
    same(stored(root)[1], np.where(MASK, 0, -1))


@pytest.mark.parametrize("high", [1, 255])
def test_no_data_is_a_class_where_there_are_two(root, high):
    masks(root, MASK * high, nodata=0)
    meta, report = prepared(root)
    same(stored(root)[1], MASK)
    said = 'mask: files declare 0 as no data, but it is taken for "background" of two classes'
    assert said in report.lines(meta.labels)


def test_what_a_place_lacks_is_marked_and_counted(root):
    for stem in STEMS[:2]:
        geotiff(root / "dem" / f"{stem}.tif", np.full((8, 8), 3.5, np.float32))
    masks(root, MASK)
    (root / "mask" / "c d.tif").unlink()
    (root / "labels.csv").write_text("ID,class\na,town\n")
    meta, report = prepared(root, sensors=["dem", "rgb"])
    batch, found = stored(root, sensors=("dem", "rgb"))
    heights, shown = (batch["sensors"][name]["valid"][batch["real"]].all((1, 2, 3)) for name in ("dem", "rgb"))
    assert sorted(heights.tolist()) == [False, True]
    assert shown.all()
    np.testing.assert_array_equal(found[heights][0], MASK)
    assert (found[~heights] == -1).all()
    assert sorted(batch["labels"]["label"][batch["real"]].tolist()) == [-1, 0]
    assert report.lines(meta.labels) == [
        "labels.csv: its first row, ID,class, is taken for the titles of its columns",
        '1 of 3 places, "c d" among them, have no dem: stored as not observed',
        '2 of 3 places, "b" among them, are not in labels.csv: their label is unknown',
        '1 of 3 places, "c d" among them, are not in mask: their mask is unknown',
    ]


def test_companions_of_macos_are_no_images(root):
    masks(root, MASK)
    for kind in ("rgb", "mask"):
        (root / kind / "._a.png").write_bytes(b"\x00\x05\x16\x07")
    meta, report = prepared(root)
    assert "2 files named ._* are leftovers of macOS and no images: not read" in report.lines(meta.labels)
    assert len(stored(root)[1]) == 2


def test_images_in_a_folder_a_class(root):
    for stem, name in zip(STEMS, ("forest", "town", "forest"), strict=True):
        (root / "rgb" / name).mkdir(exist_ok=True)
        (root / "rgb" / f"{stem}.png").rename(root / "rgb" / name / f"{stem}.png")
    meta, _ = prepared(root)
    assert meta.labels["label"].names == ("forest", "town")
    assert stored(root, "label")[1].tolist() == [0, 0]
    assert stored(root, "label", split="validation")[1].tolist() == [1]
    (root / "rgb" / "town" / "a.png").write_bytes((root / "rgb" / "forest" / "a.png").read_bytes())
    with pytest.raises(DataError, match="have the same ID: rename or remove one"):
        prepared(root)


@pytest.mark.parametrize(
    ("height", "width", "count", "side"), [(120, 120, 5, 96), (300, 200, 5, 128), (40, 200, 1, 32)]
)
def test_tiles_fit_the_images_where_nobody_says_their_size(tmp_path, height, width, count, side):
    for i in range(count):
        picture(tmp_path / "in" / "rgb" / f"{i}.png", np.full((height, width, 3), 9, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        meta = folder.prepare(tmp_path / "in", tmp_path / "out")
    assert meta.sensors["rgb"].shape == (1, side, side)
    assert json.loads((tmp_path / "out" / "dataset_info.json").read_text())["splits"][-1]["name"] == "validation"


def test_turned_boxes_and_changes_say_so(root):
    path = root / "boxes" / "a.txt"
    path.parent.mkdir()
    for stem in STEMS:
        path.with_stem(stem).write_text("1 3 3 1 6 4 4 6 ship 0\n" if stem == "a" else "")
    meta, _ = prepared(root)
    assert meta.labels["boxes"].oriented
    (root / "rgb").rename(root / "rgb@1")
    (root / "rgb@2").mkdir()
    for stem in STEMS:
        (root / "rgb@2" / f"{stem}.png").write_bytes((root / "rgb@1" / f"{stem}.png").read_bytes())
        geotiff(root / "change" / f"{stem}.tif", MASK * 255)
        path.with_stem(stem).write_text("1 1 5 1 5 4 1 4 ship 0\n")
    meta, _ = prepared(root)
    assert {name: (info.change, info.oriented) for name, info in meta.labels.items()} == {
        "change": (True, False),
        "boxes": (False, False),
    }
    assert dataclasses.asdict(meta)["labels"]["change"]["names"] == ("unchanged", "changed")
