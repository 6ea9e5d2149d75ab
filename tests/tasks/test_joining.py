"""Tiles that overlap count once: pixels, boxes and tracks of two tiles, by hand."""

import dataclasses

import numpy as np
import pytest

from ringmoe_jax import tasks
from ringmoe_jax.contracts import BOXES, MAP, TRACKS
from ringmoe_jax.tasks import SENSOR, Target
from ringmoe_jax.tasks.joining import Place, Scene, Tile
from ringmoe_jax.tasks.tracker import TrackerConfig

ALWAYS = np.array([True])
NAMES = ("a", "b")


def place(column, side, row=0, date=0, observed=ALWAYS):
    return Place(row, column, side, side, date, observed)


def values(task, target, scene, tiles):
    answers, truth = task.join(scene, iter(tiles))
    metric = task.scene_metric(target)
    task.add(metric, answers["model"], truth)
    assert len(metric) == 1
    return metric, {name: x[0] for name, x in metric.values(np.ones((1, 1))).items()}


def test_a_pixel_of_two_tiles_counts_once_with_the_answer_of_the_deeper_one():
    """Two tiles of 4 x 4 every 2 columns. The first says 1 everywhere, the second 0; the truth is 0 in columns 0 to 2
    and 1 behind. Of the columns 2 and 3, which both show, column 2 is deeper in the first, column 3 in the second in
    the inner rows; in the outer rows both are at the rim, and the first tile came first."""
    truth = np.tile([0, 0, 0, 1, 1, 1], (4, 1))
    tiles = [
        Tile(place(0, 4), {"model": {"classes": np.ones((4, 4), np.int16)}}, truth[:, :4]),
        Tile(place(2, 4), {"model": {"classes": np.zeros((4, 4), np.int16)}}, truth[:, 2:]),
    ]
    task, target = tasks.Segmentation(target="map"), Target("map", MAP, NAMES, "rgb")
    answers, joined = task.join(Scene(4, 6), tiles)
    np.testing.assert_array_equal(joined, truth)
    wanted = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]])
    np.testing.assert_array_equal(answers["model"]["classes"], wanted)
    metric, found = values(task, target, Scene(4, 6), tiles)
    assert metric.confusion().sum() == 24  # pixels of the scene, not the 32 of the tiles
    assert found["OA"] == pytest.approx(2 / 24)


def test_what_no_tile_shows_is_void_and_unknown():
    one = Tile(place(3, 2), {"model": {"classes": np.ones((2, 2), np.int16)}}, np.ones((2, 2), np.int32))
    _, truth = tasks.Segmentation(target="map").join(Scene(2, 5), [one])
    np.testing.assert_array_equal(truth, np.tile([-1, -1, -1, 1, 1], (2, 1)))
    high = Tile(place(1, 1), {"model": {"height": np.float32([[7]])}}, (np.float32([[5]]), np.array([[True]])))
    task, target = tasks.Height(target="ndsm"), Target("ndsm", SENSOR, (), "ndsm")
    assert values(task, target, Scene(1, 3), [high])[1]["MAE"] == 2


def found(*boxes):
    """Boxes with descending scores, all of class 0, behind them a row that is not used."""
    rows = np.array([*boxes, [1, 1, 1, 1, 0]], np.float32)
    scores = np.linspace(0.9, 0.5, len(rows)).astype(np.float32)
    return {"boxes": rows, "scores": scores, "classes": np.array([0] * len(boxes) + [-1])}


def test_a_box_of_two_tiles_counts_once():
    """One object in the overlap of two tiles of 10 px every 6: both find it. Another is in the second alone."""
    objects = np.array([[0, 8, 5, 2, 2, 0], [0, 14, 5, 2, 2, 0], [0, 40, 5, 2, 2, 0]], np.float32)
    tiles = [
        Tile(place(0, 10), {"model": found([8, 5, 2, 2, 0])}, None),
        Tile(place(6, 10), {"model": found([2, 5, 2, 2, 0], [8, 5, 2, 2, 0])}, None),
    ]
    task, target = tasks.Detection(target="boxes"), Target("boxes", BOXES, NAMES, "rgb")
    metric, scores = values(task, target, Scene(10, 16, objects), tiles)
    assert metric.table()["boxes"].tolist() == [2, 0]  # what no tile shows was not asked for
    assert metric.table()["detections"].tolist() == [2, 0]
    assert scores["AP50"] == pytest.approx(1.0)


def test_a_box_that_a_border_cuts_is_scored_whole():
    """The object's centre lies in the first tile alone, whose border hides a third of it."""
    objects = np.array([[0, 8, 5, 6, 4, 0]], np.float32)
    task, target = tasks.Detection(target="boxes"), Target("boxes", BOXES, NAMES, "rgb")
    tile = Tile(place(0, 10), {"model": found([7.5, 5, 5, 4, 0])}, None)  # all that can be seen: an overlap of 20 / 24
    scores = values(task, target, Scene(10, 20, objects), [tile])[1]
    assert scores["AP50"] == 1
    assert scores["AP"] == pytest.approx(0.7)  # overlaps of 0.50 to 0.80 of the ten


@pytest.mark.parametrize(("rotated", "wanted"), [(False, 1), (True, 2)])
def test_boxes_of_two_tiles_suppress_each_other_as_those_of_one(rotated, wanted):
    """Two crossing bars, whose upright boxes are the same."""
    tiles = [
        Tile(place(column, 10), {"model": found([5 - column, 5, 8, 1, turn])}, None)
        for column, turn in enumerate((np.pi / 4, -np.pi / 4))
    ]
    task = tasks.Detection(target="boxes", rotated=rotated)
    metric, _ = values(task, Target("boxes", BOXES, NAMES, "rgb"), Scene(10, 11, np.zeros((0, 6))), tiles)
    assert metric.table()["detections"].tolist() == [wanted, 0]


def test_a_limit_of_detections_holds_in_every_tile():
    task, target = tasks.Detection(target="boxes", scored=2), Target("boxes", BOXES, NAMES, "rgb")
    many = found(*[[2 + 3 * i, 5, 2, 2, 0] for i in range(3)])
    tiles = [Tile(place(10 * i, 10), {"model": many}, None) for i in range(2)]
    metric, _ = values(task, target, Scene(10, 20, np.zeros((0, 6))), tiles)
    assert metric.table()["detections"].tolist() == [4, 0]


def series(dates, column=0):
    """An object that moves by 1 px a date, at 5 px on date 0, as a tile that begins at `column` finds it."""
    boxes = np.array([[[5 + t - column, 5, 6, 6, 0]] for t in dates], np.float32)
    return {"boxes": boxes, "scores": np.full((len(dates), 1), 0.9), "classes": np.zeros((len(dates), 1), int)}


def test_tracks_run_through_all_windows_of_a_series():
    """Five dates in windows of three: the last one has no third date, on which the model speaks all the same."""
    task = tasks.Tracking(target="tracks", tracker=TrackerConfig(hits=1))
    target = Target("tracks", TRACKS, NAMES, "rgb", dates=3)
    objects = np.array([[0, 5 + t, 5, 6, 6, 0, 7, t] for t in range(5)], np.float32)
    tiles = [
        Tile(place(0, 20, observed=np.ones(3, bool)), {"model": series([0, 1, 2])}, None),
        Tile(place(0, 20, date=3, observed=np.array([True, True, False])), {"model": series([3, 4, 9])}, None),
    ]
    _, scores = values(task, target, Scene(20, 20, objects), tiles)
    assert scores["MOTA"] == 1
    assert scores["IDF1"] == pytest.approx(1.0)  # one track, where windows by themselves give two
    beside = [
        Tile(dataclasses.replace(tile.place, column=4), {"model": series(dates, 4)}, None)
        for tile, dates in zip(tiles, ([0, 1, 2], [3, 4, 9]), strict=True)
    ]
    _, scores = values(task, target, Scene(20, 24, objects), [*tiles, *beside])
    assert (scores["MOTA"], scores["FP"]) == (1, 0)  # tiles side by side find it twice; it counts once
