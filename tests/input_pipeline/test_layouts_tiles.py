"""Tiles of whole images: grids, padding, maps, boxes and tracks, and what is reported."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline.layouts import tiles
from input_pipeline.layouts.tiles import Scene
from input_pipeline.places import Report
from input_pipeline.schema import (
    BOXES,
    CLASSES,
    MAP,
    MULTILABEL,
    TRACKS,
    UNLABELLED,
    VALUE,
    Image,
    LabelInfo,
    SensorInfo,
)
from ringmoe_jax import sensors
from ringmoe_jax.errors import DataError

NAMES = ("a", "b", "c")


def infos(side=4, **more):
    """Tiles of `side` pixels of rgb; more sensors with their own side."""
    return {
        name: SensorInfo.of(sensors.get(name), (1, size, size), 1.0) for name, size in ({"rgb": side} | more).items()
    }


def scene(height=6, width=10, labels=None, **images):
    """rgb whose red holds the row and whose green the column."""
    rows, columns = np.indices((height, width), np.uint8)
    rgb = np.stack([rows, columns, 0 * rows], -1)[None]
    return Scene("scene", {"rgb": Image(rgb)} | images, labels or {})


def boxes(count, *rows):
    info = LabelInfo(BOXES, NAMES, "made up", "rgb", count)
    return {"boxes": info}, {"boxes": np.array(rows, np.float32).reshape(-1, 6)}


def used(sample, name="boxes"):
    rows = sample.labels[name]
    return [tuple(row) for row in rows[rows[:, 0] != UNLABELLED].tolist()]


def test_tiles_cover_the_image_and_the_last_one_moves_inward():
    assert tiles.grid((6, 10), (4, 4)) == [(0, 0), (0, 4), (0, 6), (2, 0), (2, 4), (2, 6)]
    assert tiles.grid((8, 4), (4, 4)) == [(0, 0), (4, 0)]
    assert tiles.grid((4, 10), (4, 4), 3) == [(0, 0), (0, 3), (0, 6)]
    assert tiles.grid((4, 12), (4, 4), 5) == [(0, 0), (0, 5)]  # gaps were asked for: nothing moves
    assert tiles.grid((2, 3), (4, 4)) == [(0, 0)]
    assert tiles.middle((9, 3), (4, 4)) == [(2, 0)]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_a_grid_without_gaps_leaves_no_pixel_out(height, width, tile, stride):
    corners = tiles.grid((height, width), (tile, tile), min(stride, tile))
    covered = np.zeros((height, width), bool)
    for top, left in corners:
        assert top + tile <= max(height, tile)
        assert left + tile <= max(width, tile)
        covered[top : top + tile, left : left + tile] = True
    assert covered.all()
    assert len(set(corners)) == len(corners)


def test_pixels_masks_and_names():
    labels = {"map": LabelInfo(MAP, NAMES, "made up", "rgb")}
    mask = np.arange(60).reshape(6, 10) % 3
    samples = list(tiles.cut(scene(labels={"map": mask}), infos(), labels))
    assert [sample.id for sample in samples][:3] == ["scene/0/0", "scene/4/0", "scene/6/0"]
    last = samples[-1]
    assert last.images["rgb"].pixels[0, :, :, :2].reshape(-1, 2).tolist() == [
        [row, column] for row in range(2, 6) for column in range(6, 10)
    ]
    np.testing.assert_array_equal(last.labels["map"], mask[2:6, 6:10])
    assert last.images["rgb"].valid.all()


def test_a_small_image_is_padded_at_right_and_bottom():
    labels = {"map": LabelInfo(MAP, NAMES, "made up", "rgb")}
    (sample,) = tiles.cut(scene(2, 3, {"map": np.ones((2, 3), int)}), infos(), labels)
    inside = np.zeros((4, 4), bool)
    inside[:2, :3] = True
    np.testing.assert_array_equal(sample.images["rgb"].valid[0], inside)
    np.testing.assert_array_equal(sample.labels["map"], np.where(inside, 1, UNLABELLED))
    assert (sample.images["rgb"].pixels[0][~inside] == 0).all()


def test_sensors_of_other_gsd_and_places():
    coarse = np.arange(15, dtype=np.float32).reshape(1, 3, 5, 1)
    both = scene(dem=Image(coarse, coarse[..., 0] != 0, np.array([7])))
    both = Scene(both.id, both.images, {}, lambda row, column: (row, column))
    samples = {s.id: s for s in tiles.cut(both, infos(4, dem=2), {})}
    last = samples["scene/6/2"]
    assert last.images["dem"].pixels[0, ..., 0].tolist() == [[8, 9], [13, 14]]
    assert not samples["scene/0/0"].images["dem"].valid[0, 0, 0]
    assert last.images["dem"].time.tolist() == [7]
    assert (last.latitude, last.longitude) == (4, 8)
    with pytest.raises(DataError, match=r'column 3 is no whole pixel of "dem"'):
        list(tiles.cut(both, infos(4, dem=2), {}, stride=3))
    with pytest.raises(DataError, match=r"dem has 3 x 5 px where rgb has 6 x 10, wanted 1\.5 x 2\.5"):
        list(tiles.cut(both, infos(4, dem=1), {}))


def test_boxes_go_where_their_centre_is_and_are_clipped():
    labels, rows = boxes(3, (0, 3, 2, 4, 2, 0), (1, 9, 5, 4, 4, 0), (2, 4.5, 1, 1, 2, 0.5))
    report = Report()
    samples = {s.id: s for s in tiles.cut(scene(labels=rows), infos(), labels, report=report)}
    assert samples["scene/0/0"].labels["boxes"].shape == (3, 6)
    assert used(samples["scene/0/0"]) == [(0, 2.5, 2, 3, 2, 0)]  # 1..5 cut off at 4
    assert used(samples["scene/4/0"]) == [(2, 0.5, 1, 1, 2, 0.5)]  # oriented: whole, though it begins left of 4
    # The second box covers 7..11 x 3..7, of which the image shows 7..10 x 3..6: centre 8.5, 4.5.
    assert used(samples["scene/6/2"]) == [(1, 2.5, 2.5, 3, 3, 0)]
    # Tiles overlap where they moved inward: the box is in both, cut off at 8 in one of them.
    assert used(samples["scene/4/2"]) == []
    assert report.lines(labels) == []


def test_tracks_keep_who_and_when():
    labels = {"tracks": LabelInfo(TRACKS, NAMES, "made up", "rgb", 2)}
    rows = np.array([(0, 2, 1, 2, 2, 0, 17, 0), (0, 6, 1, 2, 2, 0, 17, 3)], np.float32)
    samples = {s.id: s for s in tiles.cut(scene(labels={"tracks": rows}), infos(), labels)}
    assert used(samples["scene/0/0"], "tracks") == [(0, 2, 1, 2, 2, 0, 17, 0)]
    assert used(samples["scene/4/0"], "tracks") == [(0, 2, 1, 2, 2, 0, 17, 3)]
    assert (samples["scene/0/0"].labels["tracks"][1] == UNLABELLED).all()


def test_what_is_left_out_is_counted():
    flat, wrong, beside = (0, 1, 1, 0, 2, 0), (0, 1, 1, float("nan"), 2, 0), (0, 20, 1, 2, 2, 0)
    labels, rows = boxes(2, flat, wrong, beside, (0, 10.5, 1, 2, 2, 0.3), (1, 4.5, 1, 1, 1, 0))
    report = Report()
    found = [row for s in tiles.cut(scene(4, 10, rows), infos(), labels, stride=5, report=report) for row in used(s)]
    assert found == []
    assert report.lines(labels) == [
        "2 boxes of 1 images had no area: left out",
        "1 boxes of 1 images lay between tiles: left out",
        "2 boxes of 1 images lay outside the image: left out",
    ]


def test_errors_name_the_scene_and_both_sides():
    def refused(labels, values, **options):
        with pytest.raises(DataError) as error:
            list(tiles.cut(scene(labels=values), infos(), labels, **options))
        return str(error.value)

    maps = {"map": LabelInfo(MAP, NAMES, "made up", "rgb")}
    assert '"scene": the rgb image has 6 x 10 px, its mask "map" 6 x 9' in refused(maps, {"map": np.zeros((6, 9))})
    assert "holds the class 3, wanted -1 (unknown) to 2 (c)" in refused(maps, {"map": np.full((6, 10), 3)})
    labels, rows = boxes(1, (0, 1, 1, 1, 1, 0), (0, 2, 2, 1, 1, 0))
    assert "tile at row 0, column 0 holds 2 objects, the data set has room for 1" in refused(labels, rows)
    labels, rows = boxes(1, (7, 1, 1, 1, 1, 0))
    assert '"boxes" holds the class 7' in refused(labels, rows)
    with pytest.raises(DataError, match="has no image"):
        list(tiles.cut(Scene("empty", {}), infos(), {}))


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 12), st.floats(0.5, 9), st.floats(0.5, 9)), max_size=12))
def test_no_box_is_lost_and_room_is_just_enough(given_boxes):
    rows = np.array([(0, x, y, w, h, 0) for x, y, w, h in given_boxes], np.float32).reshape(-1, 6)
    room = tiles.most(rows, (12, 20), (4, 4))
    labels, _ = boxes(max(room, 1))
    report = Report()
    samples = list(tiles.cut(scene(12, 20, {"boxes": rows}), infos(), labels, report=report))
    counts = [len(used(sample)) for sample in samples]
    assert max(counts) == room  # tiles do not overlap here
    assert sum(counts) + sum(sum(c.values()) for c in report.left_out.values()) == len(rows)
    for sample in samples:
        for _, x, y, w, h, _ in used(sample):
            assert min(x - w / 2, y - h / 2) >= -1e-5
            assert max(x + w / 2, y + h / 2) <= 4 + 1e-5


def test_classes_without_training_samples_are_named():
    labels = {
        "kind": LabelInfo(CLASSES, NAMES, "made up"),
        "several": LabelInfo(MULTILABEL, NAMES, "made up"),
        "map": LabelInfo(MAP, NAMES, "made up", "rgb"),
        "share": LabelInfo(VALUE, ("mean",), "made up"),
    }
    values = {"kind": 1, "several": np.array([1, 0, 1]), "map": np.full((4, 4), UNLABELLED), "share": [0.5]}
    report = Report()
    samples = list(report.watch(tiles.cut(scene(4, 4, values), infos(), labels), labels))
    assert samples[0].labels["kind"] == 1
    assert report.lines(labels) == [
        "kind: no sample of the training split holds a, c",
        "several: no sample of the training split holds b",
        "map: no sample of the training split holds a, b, c",
    ]
