"""The simulator's truth: the same for a seed, and its maps, heights, boxes and tracks agree with each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.synthetic import grid
from input_pipeline.synthetic.scene import BUILDING, FOREST, LAND, ROAD, SHIP, VEHICLE, WATER, Scene, Track, draw
from ringmoe_jax.errors import ConfigError, DataError

FIELDS = ("classes", "heights", "bare", "tone", "time")
scenes = st.builds(
    lambda seed, gsd, dates: draw(seed, size=64, gsd=gsd, dates=dates),
    st.integers(0, 10_000),
    st.sampled_from([2.5, 5.0, 10.0]),
    st.integers(1, 3),
)


def test_a_seed_is_a_scene():
    first, again, other = (draw(seed, size=48, dates=2) for seed in ([3, 1], [3, 1], [3, 2]))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name), err_msg=name)
    for a, b in zip(first.tracks, again.tracks, strict=True):
        np.testing.assert_array_equal(a.x, b.x)
    assert (first.latitude, first.sun) == (again.latitude, again.sun)
    assert (first.classes != other.classes).mean() > 0.2


def test_landscapes_vary():
    drawn = [draw(seed, size=48) for seed in range(30)]
    assert len({scene.dominant for scene in drawn}) >= 3
    present = np.mean([scene.present for scene in drawn], 0)
    assert present.min() > 0.3, dict(zip(LAND, present, strict=True))


@given(scenes)
@settings(deadline=None, max_examples=10)
def test_maps_and_heights_agree(scene):
    assert scene.classes.min() >= 0
    assert scene.classes.max() < len(LAND)
    tall = np.isin(scene.classes, (BUILDING, FOREST))
    assert (scene.heights[tall] >= 2).all()
    assert not scene.heights[~tall].any()
    assert scene.heights.max(initial=0) < 40
    assert not (scene.heights[0] != scene.heights[-1])[~scene.change].any()  # what grows or falls changes its class
    assert scene.dates > 1 or not scene.change.any()
    assert ((scene.bare >= 0) & (scene.bare <= 1)).all()


@given(scenes)
@settings(deadline=None, max_examples=10)
def test_objects_stay_on_their_ground_and_apart(scene):
    for t in range(scene.dates):
        masks = scene.masks(t)
        assert masks.sum(0).max(initial=0) <= 1
        for track, mask in zip(scene.tracks, masks, strict=True):
            assert mask.sum() >= 2
            assert set(scene.classes[t][mask]) == {{VEHICLE: ROAD, SHIP: WATER}[track.kind]}
        seen = scene.material(t)
        np.testing.assert_array_equal(seen >= len(LAND), masks.any(0))
        np.testing.assert_array_equal(np.where(masks.any(0), 0, seen), np.where(masks.any(0), 0, scene.classes[t]))


@given(scenes)
@settings(deadline=None, max_examples=10)
def test_boxes_enclose_masks_and_tracks_move_at_their_speed(scene):
    for t in range(scene.dates):
        for mask, flat, turned in zip(scene.masks(t), scene.boxes(t), scene.boxes(t, oriented=True), strict=True):
            _, x, y, width, height, angle = flat
            window = mask[round(y - height / 2) : round(y + height / 2), round(x - width / 2) : round(x + width / 2)]
            assert angle == 0
            assert window.sum() == mask.sum()  # nothing is outside ...
            assert window[[0, -1]].any(1).all()  # ... and no edge can move in
            assert window[:, [0, -1]].any(0).all()
            _, x, y, length, width, angle = turned
            rows, columns = np.nonzero(mask)
            z = (columns + 0.5 - x + 1j * (rows + 0.5 - y)) * np.exp(-1j * angle)
            assert abs(z.real).max() <= length / 2 + 1e-4
            assert abs(z.imag).max() <= width / 2 + 1e-4
            assert -np.pi / 2 <= angle < np.pi / 2 + 1e-6
    for track in scene.tracks:
        steps = np.diff(track.x + 1j * track.y)
        np.testing.assert_allclose(steps, track.speed * np.exp(1j * track.heading), atol=1e-9)


def test_objects_are_drawn_where_they_can_be_seen():
    assert sum(t.kind == SHIP for seed in range(8) for t in draw(seed).tracks) >= 12
    assert sum(t.kind == VEHICLE for seed in range(8) for t in draw(seed).tracks) >= 40


def test_changes_happen_and_can_be_switched_off():
    changed = [draw(seed, size=64, dates=3) for seed in range(6)]
    assert all(0.002 < scene.change.mean() < 0.6 for scene in changed)
    assert sum(((s.classes[0] != BUILDING) & (s.classes[-1] == BUILDING)).any() for s in changed) >= 3
    assert not draw(0, size=64, dates=3, changes=0).change.any()


def test_a_rectangle_by_hand():
    # 4 m x 2 m around (3, 2) on a grid of 1 m: columns 1 to 4, rows 1 and 2
    (rows, columns), inside = grid.rectangle(3, 2, 0.0, 4, 2, 8, 1.0)
    assert (rows, columns) == (slice(1, 3), slice(1, 5))
    assert inside.all()
    _, upright = grid.rectangle(3, 3, np.pi / 2, 4, 2, 8, 1.0)
    assert upright.sum(0).max() == 4
    assert upright.sum() == 8
    assert not grid.rectangle(-20, 3, 0.3, 4, 2, 8, 1.0)[1].size


@given(st.floats(-4, 4), st.floats(5, 40), st.floats(5, 40), st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_rectangles_have_their_area(heading, length, width, shift):
    _, inside = grid.rectangle(40 + shift, 40 - shift, heading, length, width, 80, 1.0)
    assert abs(inside.sum() - length * width) <= length + width + 1  # a pixel along half of the border


def test_boxes_and_labels_by_hand():
    classes = np.full((2, 8, 8), WATER, np.int8)
    classes[1, :2] = FOREST
    track = Track(7, SHIP, np.array([10.0, 12.0]), np.array([5.0, 5.0]), np.pi, 6.0, 2.0, 2.0)
    zero = np.zeros(classes.shape, np.float32)
    scene = Scene(2.0, classes, zero, zero, zero + 1, (track,), np.arange(2, dtype=np.int32))
    # x 7 to 13 m and y 4 to 6 m: the centres at 7, 9, 11, 13 m of columns 3 to 6, and at 5 m of row 2
    np.testing.assert_allclose(scene.boxes(0), [[SHIP, 5, 2.5, 4, 1, 0]])
    np.testing.assert_allclose(scene.boxes(1, oriented=True), [[SHIP, 6, 2.5, 3, 1, 0]], atol=1e-6)
    assert scene.change.sum() == 16
    assert scene.dominant == WATER
    assert scene.present.nonzero()[0].tolist() == [WATER]


def test_cells():
    values = np.arange(16.0).reshape(4, 4)
    np.testing.assert_allclose(grid.average(values, 2), [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(grid.average(np.array([[1.0, 2, 5]] * 3), 2)[0], [1.5, 5])  # the last column repeats
    np.testing.assert_array_equal(grid.majority(np.array([[1, 1, 0, 2], [1, 2, 2, 0]]), 2), [[1, 0]])
    with pytest.raises(DataError, match=r"a map of \(3, 3\) px has no whole cells of 2 px"):
        grid.majority(np.zeros((3, 3), int), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size = 8: wanted 16 or more"),
        ({"dates": 0}, "dates = 0: wanted 1 or more"),
        ({"gsd": float("nan")}, "gsd = nan: wanted 0.001 or more"),
        ({"ships": -1}, "ships = -1: wanted 0 or more"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        draw(0, **options)
