"""Boxes and tracks of whole scenes: each object once and whole, where it lies, and the same bytes after a kill."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import shapely
from affine import Affine
from pyarrow import parquet

from ringmoe_jax import sensors
from ringmoe_jax.deploy.predict import predict
from ringmoe_jax.deploy.windows import WindowModel
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.tasks.objects import Detection, Tracking
from ringmoe_jax.tasks.tracker import TrackerConfig
from tests.helpers.rasters import tif

NAMES = ("tree", "house")
SIZE = 32
COUNT = 40  # objects of a scene


def placed(rng, height=150, width=190, largest=12):
    """[n, 4] first row and column, rows and columns of objects that do not touch, no closer to a border than 12 px."""
    taken, found = np.zeros((height, width), bool), []
    while len(found) < COUNT:
        rows, columns = rng.integers(3, largest + 1, 2)
        y, x = rng.integers(12, height - 12 - rows), rng.integers(12, width - 12 - columns)
        if not taken[y - 1 : y + rows + 1, x - 1 : x + columns + 1].any():
            taken[y : y + rows, x : x + columns] = True
            found.append((y, x, rows, columns))
    return np.array(found)


def painted(objects, shape=(150, 190)):
    """[H, W, 1] heights: 1 + the object's number, 0.5 between objects."""
    pixels = np.full((*shape, 1), 0.5, np.float32)
    for i, (y, x, rows, columns) in enumerate(objects):
        pixels[y : y + rows, x : x + columns] = 1 + i
    return pixels


@jax.jit
def visible(images):
    """Boxes [B, COUNT, 5] of what [B, H, W] images show of every object, scores and classes; -1 where that is nothing.

    The less of the frame a box fills, the better its score: what is cut beats what is whole.
    """
    shown = images[:, None] == 1 + jnp.arange(COUNT, dtype=jnp.float32)[:, None, None]
    sides = []
    for axis in (2, 3):  # over rows: which columns
        line = shown.any(axis)
        index = jnp.arange(line.shape[-1])
        sides.append((jnp.where(line, index, SIZE).min(-1), jnp.where(line, index + 1, 0).max(-1)))
    (left, right), (top, bottom) = sides
    box = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top, jnp.zeros_like(left)]
    there = shown.any((2, 3))
    scores = jnp.where(there, 1 - (right - left) * (bottom - top) / SIZE**2, 0.0)
    classes = jnp.where(there, jnp.arange(COUNT) % 2, -1)
    return {"boxes": jnp.stack(box, -1).astype(jnp.float32), "scores": scores, "classes": classes}


def finder(task, dates=1, look=visible):
    """A model that finds what it sees."""

    def answer(batch):
        pixels = batch["sensors"]["dem"]["pixels"][..., 0]
        found = [look(pixels[:, date]) for date in range(dates)]
        return found[0] if dates == 1 else {name: jnp.stack([f[name] for f in found], 1) for name in found[0]}

    return WindowModel(
        sensors={"dem": sensors.get("dem")},
        dates={"dem": dates},
        complete=True,
        every_date=False,
        size=SIZE,
        output=task.maps[0],
        names=NAMES,
        colours=(),
        answer=answer,
        facts={"checkpoint": "runs/fake", "step": 1},
        objects=task,
    )


def read(path):
    return parquet.read_table(path).to_pydict()


def corners_of(table):
    """First row and column, rows and columns."""
    x, y, width, height = (np.array(table[name]) for name in ("x", "y", "width", "height"))
    return np.stack([y - height / 2, x - width / 2, height, width], -1)


@pytest.mark.parametrize("overlap", [0.5, 0.7])
def test_every_object_is_found_once_and_whole(overlap, tmp_path):
    objects = placed(np.random.default_rng(0))
    tif(tmp_path / "scene.tif", painted(objects))
    done = predict(
        finder(Detection(target="b")), {"dem": [tmp_path / "scene.tif"]}, tmp_path / "a.parquet", overlap=overlap
    )
    table = read(tmp_path / "a.parquet")
    assert done.found == len(table["x"]) == COUNT
    found = corners_of(table)
    order = np.lexsort(found.T)
    wanted = np.lexsort(objects.T)
    np.testing.assert_array_equal(found[order], objects[wanted])
    assert [table["class"][i] for i in order] == [NAMES[i % 2] for i in wanted]
    assert all(0 < score <= 1 for score in table["score"])
    shapes = shapely.from_wkb(table["geometry"])
    transform = Affine(10, 0, 500_000, 0, -10, 5_000_000)
    for shape, (y, x, rows, columns) in zip(shapes, found, strict=True):
        (west, north), (east, south) = transform @ (x, y), transform @ (x + columns, y + rows)
        assert shape.bounds == (west, south, east, north)
        assert shape.exterior.is_ccw
    metadata = parquet.read_schema(tmp_path / "a.parquet").metadata
    assert json.loads(metadata[b"geo"])["columns"]["geometry"]["crs"]["id"]["code"] == 32633


def test_what_was_not_observed_holds_no_object(tmp_path):
    objects = placed(np.random.default_rng(1))
    pixels = painted(objects)
    y, x, rows, columns = objects[0]
    pixels[y : y + rows, x : x + columns] = np.nan
    tif(tmp_path / "scene.tif", pixels)
    done = predict(finder(Detection(target="b")), {"dem": [tmp_path / "scene.tif"]}, tmp_path / "a.parquet")
    assert done.found == COUNT - 1


def test_an_object_wider_than_what_windows_share_is_found_where_it_lies_deepest(tmp_path):
    """28 of 32 pixels, every 16 of which a window begins: no window sees it whole, and fragments at borders go."""
    objects = np.array([[40, 50, 6, 28]])
    tif(tmp_path / "scene.tif", painted(objects, (100, 130)))
    done = predict(finder(Detection(target="b")), {"dem": [tmp_path / "scene.tif"]}, tmp_path / "a.parquet")
    found = corners_of(read(tmp_path / "a.parquet"))
    assert done.found == 1
    assert found[0, 3] > 16


class Killed(Exception):
    """What ends a run half-way."""


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    tif(tmp_path / "scene.tif", painted(placed(np.random.default_rng(2))))
    left = [10**9]

    def look(images):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return visible(images)

    model, files = finder(Detection(target="b"), look=look), {"dem": [tmp_path / "scene.tif"]}
    predict(model, files, tmp_path / "whole.parquet", batch=24)
    left[0] = 3
    with pytest.raises(Killed):
        predict(model, files, tmp_path / "parts.parquet", batch=24)
    left[0] = 10**9
    done = predict(model, files, tmp_path / "parts.parquet", batch=24)
    assert done.resumed > 0
    assert (tmp_path / "parts.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_tracks_run_through_the_dates(tmp_path):
    """Objects move by 2 rows a date; a tracker that wants two hits gives each one track of three boxes."""
    objects = placed(np.random.default_rng(3))
    dates = [objects + np.array([2 * date, 0, 0, 0]) for date in range(3)]
    paths = [tif(tmp_path / f"{i}.tif", painted(at)) or tmp_path / f"{i}.tif" for i, at in enumerate(dates)]
    task = Tracking(target="t", tracker=TrackerConfig(distance="centre", speed=2.0))
    done = predict(finder(task, dates=3), {"dem": paths}, tmp_path / "a.parquet")
    table = read(tmp_path / "a.parquet")
    assert done.found == 3 * COUNT
    assert set(table["track"]) == set(range(COUNT))
    assert "score" not in table
    first = {t: y for t, d, y in zip(table["track"], table["date"], table["y"], strict=True) if d == 0}
    last = {t: y for t, d, y in zip(table["track"], table["date"], table["y"], strict=True) if d == 2}
    moved = np.array([last[t] - first[t] for t in range(COUNT)])
    assert (abs(moved - 4) < 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(out="map.tif"), r"map\.tif: boxes are written as GeoParquet: give an --out that ends with \.parquet"),
        (dict(out="map.parquet", form="cog"), r'--format "cog": boxes are written as GeoParquet'),
    ],
)
def test_one_clear_line(change, message, tmp_path):
    tif(tmp_path / "scene.tif", np.zeros((20, 20, 1), np.float32))
    with pytest.raises(ConfigError, match=message):
        predict(
            finder(Detection(target="b")), {"dem": [tmp_path / "scene.tif"]}, tmp_path / change["out"],
            form=change.get("form", ""),
        )  # fmt: skip
