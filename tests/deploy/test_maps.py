"""Drafts that survive being killed, GeoTIFFs that are cloud-optimised, and GeoParquet as its specification says."""

import json

import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from pyarrow import parquet
from rasterio.crs import CRS

from ringmoe_jax.deploy import maps
from ringmoe_jax.deploy.maps import Draft, Layers
from ringmoe_jax.errors import DataError
from ringmoe_jax.geo import Grid

SETTINGS = {"checkpoint": "runs/seg", "step": 7}


def grid(height, width, crs="EPSG:32633"):
    return Grid(crs and CRS.from_string(crs), Affine(80, 0, 500_000, 0, -80, 5_000_000), height, width)


def draft(out, values):
    drafted = Draft(out, SETTINGS, values.shape[1], values.shape[2], values.dtype.name)
    drafted.append(values)
    return drafted


def test_a_draft_keeps_what_its_journal_counts(tmp_path):
    rows = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    first = Draft(tmp_path / "map.tif", SETTINGS, 3, 2, "float32")
    first.append(rows[:1])
    first.append(rows[1:1])  # a strip may finish no row
    with (tmp_path / "map.tif.draft" / "pixels").open("ab") as file:
        file.write(b"killed while writing")
    with pytest.raises(DataError, match="is being written by another process"):
        Draft(tmp_path / "map.tif", SETTINGS, 3, 2, "float32")
    with first:  # however it ends, and whoever still holds the object
        pass
    again = Draft(tmp_path / "map.tif", SETTINGS, 3, 2, "float32")
    assert again.strips == 2
    again.append(rows[1:])
    np.testing.assert_array_equal(again.read(0, 9), rows)
    np.testing.assert_array_equal(again.read(2, 1), rows[2:3])


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(bytes(24))])
def test_rows_that_are_not_what_was_written_are_made_again(tmp_path, damage):
    Draft(tmp_path / "map.tif", SETTINGS, 3, 2, "float32").append(np.ones((1, 3, 2), np.float32))
    damage(tmp_path / "map.tif.draft" / "pixels")
    again = Draft(tmp_path / "map.tif", SETTINGS, 3, 2, "float32")
    assert (again.strips, len(again.read(0, 9))) == (0, 0)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": 3}'])
def test_a_damaged_journal_is_one_line(tmp_path, text):
    Draft(tmp_path / "map.tif", SETTINGS, 3, 2, "float32")
    (tmp_path / "map.tif.draft" / "journal.json").write_text(text)
    with pytest.raises(DataError, match="delete the folder"):
        Draft(tmp_path / "map.tif", SETTINGS, 3, 2, "float32")


def test_a_folder_that_is_no_draft_stays(tmp_path):
    (tmp_path / "map.tif.draft").mkdir()
    (tmp_path / "map.tif.draft" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="holds no draft of a map"):
        Draft(tmp_path / "map.tif", SETTINGS, 3, 2, "float32")
    assert (tmp_path / "map.tif.draft" / "thesis.txt").exists()


def test_a_draft_of_another_command_stays(tmp_path):
    Draft(tmp_path / "map.tif", SETTINGS, 3, 2, "float32")
    with pytest.raises(DataError, match=r"was begun with step = 7, this command says 8: .*delete the folder"):
        Draft(tmp_path / "map.tif", SETTINGS | {"step": 8}, 3, 2, "float32")
    with pytest.raises(DataError, match="cannot be written"):
        Draft(tmp_path / "nowhere" / "map.tif", SETTINGS, 3, 2, "float32")


def test_a_file_in_the_way(tmp_path):
    out = tmp_path / "map.tif"
    assert not maps.is_finished(out, SETTINGS)
    out.write_text("notes")
    with pytest.raises(DataError, match=r"map\.tif is there already, from another command: delete it"):
        maps.is_finished(out, SETTINGS)
    with pytest.raises(DataError, match="does not exist: make the folder"):
        maps.is_finished(tmp_path / "nowhere" / "map.tif", SETTINGS)


def offset(file, what, band=1, level=None):
    """Byte position of an IFD or of the first block's data; level counts overviews from 0."""
    return int(file.get_tag_item(what, "TIFF", band, ovr=level))


@pytest.mark.parametrize("bands", [1, 40])
def test_maps_are_cloud_optimised(tmp_path, bands):
    """The rules of rio-cogeo: tiled, overviews, headers from the largest level down and first, data after them."""
    height, width = (600, 900) if bands == 1 else (150, 200)
    values = np.random.default_rng(0).normal(size=(height, width, bands)).astype(np.float32)
    values[:50] = np.nan
    names = tuple(f"embedding_{i}" for i in range(bands))
    out = tmp_path / "map.tif"
    drafted = draft(out, values)
    maps.write_cog(drafted, out, grid(height, width), Layers(names, "float32", np.nan, tags={"task": "embeddings"}))
    with rasterio.open(out) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.profile["tiled"]
        assert file.descriptions == names
        assert np.isnan(file.nodata)
        assert file.block_shapes[0] == ((512, 512) if bands == 1 else (128, 128))
        levels = [None, *range(len(file.overviews(1)))]
        assert len(levels) > 1
        headers = [offset(file, "IFD_OFFSET", level=level) for level in levels]
        data = [offset(file, "BLOCK_OFFSET_0_0", level=level) for level in levels]
        assert headers == sorted(headers)
        assert data == sorted(data, reverse=True)
        assert headers[-1] < data[-1]
        np.testing.assert_array_equal(file.read(), values.transpose(2, 0, 1))
        assert (file.crs, file.transform) == (grid(height, width).crs, grid(height, width).transform)
        assert file.tags()["task"] == "embeddings"
    assert maps.is_finished(out, SETTINGS)
    with pytest.raises(DataError, match="from another command"):
        maps.is_finished(out, SETTINGS | {"step": 8})
    drafted.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif"]


def test_classes_have_colours_names_and_an_overview_of_classes(tmp_path):
    values = np.zeros((600, 600, 1), np.uint8)
    values[:, 200:] = 2
    values[:100] = 255
    colours = np.array([[0, 0, 255], [0, 255, 0], [255, 0, 0]])
    out = tmp_path / "map.tif"
    layers = Layers(("classes",), "uint8", 255, colours, {"CLASS_0": "water", "CLASS_2": "road"})
    maps.write_cog(draft(out, values), out, grid(600, 600), layers)
    with rasterio.open(out) as file:
        assert file.colormap(1)[2] == (255, 0, 0, 255)
        assert file.nodata == 255
        assert file.tags()["CLASS_2"] == "road"
        assert set(np.unique(file.read(1, out_shape=(150, 150)))) == {0, 2, 255}


@pytest.mark.parametrize("crs", ["EPSG:32633", None])
def test_geoparquet(tmp_path, crs):
    values = np.random.default_rng(0).normal(size=(5, 7, 4)).astype(np.float32)
    values[..., -1] = 1
    values[2, 3, -1], values[4, 6, -1] = 0, 0.25
    out = tmp_path / "tokens.parquet"
    assert maps.write_geoparquet(draft(out, values), out, grid(5, 7, crs), {"task": "embeddings"}) == 1
    table = parquet.read_table(out)
    geo = json.loads(table.schema.metadata[b"geo"])
    column = geo["columns"][geo["primary_column"]]
    assert geo["version"] == "1.1.0"
    assert geo["primary_column"] == "geometry"
    assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
    assert column["bbox"] == [500_000, 5_000_000 - 400, 500_560, 5_000_000]
    assert column["crs"]["id"] == {"authority": "EPSG", "code": 32633} if crs else column["crs"] is None
    cells = shapely.from_wkb(table["geometry"].to_numpy())
    assert shapely.is_ccw(shapely.get_exterior_ring(cells)).all()
    rows, columns = table["row"].to_numpy(), table["column"].to_numpy()
    want = shapely.box(
        500_000 + 80 * columns, 5_000_000 - 80 * rows - 80, 500_080 + 80 * columns, 5_000_000 - 80 * rows
    )
    assert shapely.equals(cells, want).all()
    assert len(cells) == 34
    np.testing.assert_array_equal(np.array(table["embedding"].to_pylist(), np.float32), values[rows, columns, :3])
    assert table["valid"].to_pylist()[-1] == 0.25
    assert maps.is_finished(out, SETTINGS)
