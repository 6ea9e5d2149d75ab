import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.synthetic import scene
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.evaluate.metrics.tracking import TrackingMetric
from ringmoe_jax.tasks.tracker import Motion, TrackerConfig, track

WPAFB = Path(__file__).parents[3] / "shared/data/tracking/wpafb2009_aoi02/tracks.csv"
BOTH = pytest.mark.parametrize("distance", ["iou", "centre"])


def frame(*objects):
    """Detections of 6 x 4 pixels from (x, y), (x, y, score) or (x, y, score, class)."""
    rows = np.array([(*o, *(0.9, 0)[len(o) - 2 :]) for o in objects], np.float64).reshape(-1, 4)
    boxes = np.column_stack([rows[:, :2], np.tile([6.0, 4.0, 0.0], (len(rows), 1))])
    return boxes, rows[:, 2], rows[:, 3].astype(int)


def paths(rows):
    """{track: [(date, x, y), ...]}, rounded to whole pixels."""
    return {
        int(number): [(int(r[7]), round(float(r[1])), round(float(r[2]))) for r in rows[rows[:, 6] == number]]
        for number in np.unique(rows[:, 6])
    }


@BOTH
def test_two_objects_that_cross_keep_their_identities(distance):
    # One goes right and one left along lines 2 pixels apart; at date 3 they pass each other.
    frames = [frame((2 * t, 0), (12 - 2 * t, 2)) for t in range(7)]
    rows = track(frames, TrackerConfig(distance=distance, speed=3.0, jitter=0.1, acceleration=0.1))
    assert paths(rows) == {
        0: [(t, 2 * t, 0) for t in range(7)],
        1: [(t, 12 - 2 * t, 2) for t in range(7)],
    }


def test_objects_that_move_further_than_their_size_need_the_distance_of_centres():
    frames = [frame((15 * t, 0)) for t in range(4)]
    assert not len(track(frames, TrackerConfig()))
    assert paths(track(frames, TrackerConfig(distance="centre"))) == {0: [(t, 15 * t, 0) for t in range(4)]}


def test_a_column_that_moves_on_by_one_place_is_not_taken_for_one_that_stands():
    # From frame 0 to 1 each vehicle comes within 2 pixels of where the next one was: only frame 2 tells.
    gaps = np.array([0, 18, 34, 54, 71, 90])
    rows = track([frame(*((x + 16 * t, 0) for x in gaps)) for t in range(4)], TrackerConfig(distance="centre"))
    assert paths(rows) == {i: [(t, x + 16 * t, 0) for t in range(4)] for i, x in enumerate(gaps)}


@BOTH
def test_a_missed_detection_keeps_the_identity(distance):
    frames = [frame((2 * t, 0)) for t in range(7)]
    frames[3] = frame()
    rows = track(frames, TrackerConfig(distance=distance, speed=4.0))
    assert set(rows[:, 6]) == {0}
    assert list(rows[:, 7]) == [0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize(("lost", "count"), [(1, 2), (2, 1)])
def test_a_track_is_lost_after_the_buffer(lost, count):
    frames = [frame((0, 0)), frame((0, 0)), frame(), frame(), frame((0, 0)), frame((0, 0))]
    assert len(paths(track(frames, TrackerConfig(lost=lost)))) == count


@BOTH
def test_weak_detections_carry_a_track_but_start_none(distance):
    frames = [frame((t, 0, 0.9 if t != 2 else 0.3), (50 + t, 0, 0.3)) for t in range(5)]
    rows = track(frames, TrackerConfig(distance=distance))
    assert paths(rows) == {0: [(t, t, 0) for t in range(5)]}
    assert list(track(frames, TrackerConfig(distance=distance, low=0.6))[:, 7]) == [0, 1, 3, 4]


def test_strong_detections_come_first():
    # The weak one overlaps more, and would win if both stages were one.
    frames = [frame((0, 0)), frame((0, 0)), frame((0.0, 0, 0.3), (1.5, 0, 0.9))]
    assert track(frames, TrackerConfig(jitter=0.01))[-1, 1] == pytest.approx(1.5, abs=0.01)


def test_between_birth_and_high_a_detection_only_continues():
    frames = [frame((0, 0, 0.9), (50, 0, 0.65))] + [frame((0, 0, 0.65), (50, 0, 0.65))] * 2
    assert {x for path in paths(track(frames, TrackerConfig())).values() for _, x, _ in path} == {0}


def test_a_track_needs_its_least_number_of_detections():
    frames = [frame((0, 0), (50, 0)), frame((0, 0)), frame((0, 0), (50, 0))]
    assert len(paths(track(frames, TrackerConfig(hits=2)))) == 1
    assert len(paths(track(frames, TrackerConfig(hits=1)))) == 2


def test_classes_do_not_mix():
    frames = [frame((0, 0, 0.9, 0)), frame((0, 0, 0.9, 1)), frame((0, 0, 0.9, 0)), frame((0, 0, 0.9, 1))]
    rows = track(frames, TrackerConfig(hits=1))
    assert len(np.unique(rows[:, [0, 6]], axis=0)) == len(np.unique(rows[:, 6]))


@BOTH
def test_nothing_in_nothing_out(distance):
    config = TrackerConfig(distance=distance)
    for frames in ([], [frame()] * 3, [frame((0, 0, 0.9, -1))] * 3):
        rows = track(frames, config)
        assert rows.shape == (0, 8)
        assert rows.dtype == np.float32


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["iou", "centre"]))
def test_the_order_of_detections_does_not_matter(seed, distance):
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(4):
        boxes = np.column_stack([rng.integers(0, 12, (8, 2)), rng.integers(2, 5, (8, 2)), rng.integers(0, 2, 8)])
        frames.append((boxes.astype(np.float64), rng.integers(1, 11, 8) / 10, rng.integers(-1, 2, 8)))
    orders = [rng.permutation(8) for _ in frames]
    shuffled = [tuple(x[order] for x in of) for of, order in zip(frames, orders, strict=True)]
    config = TrackerConfig(distance=distance, hits=1)
    rows = track(frames, config)
    np.testing.assert_array_equal(rows, track(shuffled, config))
    assert len(np.unique(rows[:, 6:], axis=0)) == len(rows)  # a track is at one place at a time


def test_without_prior_and_noise_of_motion_the_filter_is_the_line_of_least_squares():
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(6, 3, 2))
    motion = Motion.start(seen[0], jitter=0.7, speed=1e5)
    for measured in seen[1:]:
        motion = motion.predicted(acceleration=0.0).updated(measured, jitter=0.7)
    design = np.column_stack([np.ones(6), np.arange(6) - 5.0])
    line, *_ = np.linalg.lstsq(design, seen.reshape(6, -1), rcond=None)
    np.testing.assert_allclose(motion.position, line[0].reshape(3, 2), atol=1e-6)
    np.testing.assert_allclose(motion.velocity, line[1].reshape(3, 2), atol=1e-6)
    np.testing.assert_allclose(motion.covariance[0], 0.49 * np.linalg.inv(design.T @ design), atol=1e-6)


def test_with_noise_of_motion_the_filter_is_the_best_linear_estimate():
    # The state at date 3 given detections at 0, 1 and 3, from the joint Gaussian of everything.
    jitter, speed, acceleration = 0.5, 3.0, 0.8
    seen = {0: 1.0, 1: 2.5, 3: 9.0}
    noise = np.diag([jitter**2, speed**2] + [acceleration**2] * 3 + [jitter**2] * 2)
    states = [np.eye(2, 7)]  # position and velocity less the first detection, as combinations of the noises
    for date in range(3):
        step = np.array([[1.0, 1.0], [0.0, 1.0]]) @ states[-1]
        states.append(step + np.outer([0.5, 1.0], np.eye(7)[2 + date]))
    measured = np.stack([states[1][0] + np.eye(7)[5], states[3][0] + np.eye(7)[6]])
    gain = states[3] @ noise @ measured.T @ np.linalg.inv(measured @ noise @ measured.T)
    mean = np.array([seen[0], 0]) + gain @ (np.array([seen[1], seen[3]]) - seen[0])
    covariance = (states[3] - gain @ measured) @ noise @ states[3].T

    motion = Motion.start(np.full((1, 2), seen[0]), jitter, speed)
    for date in (1, 2, 3):
        motion = motion.predicted(acceleration)
        if date in seen:
            motion = motion.updated(np.full((1, 2), seen[date]), jitter)
    np.testing.assert_allclose([motion.position[0, 0], motion.velocity[0, 1]], mean)
    np.testing.assert_allclose(motion.covariance[0], covariance)


def test_a_rectangle_keeps_its_sides_when_width_and_height_change_places():
    def upright(turned):
        return np.array([[0, 0, 4, 20, np.pi / 2] if turned else [0, 0, 20, 4, 0]]), np.ones(1), np.zeros(1)

    rows = track([upright(False), upright(True), upright(False)], TrackerConfig())
    np.testing.assert_allclose(rows[:, 3:6], [[20, 4, 0], [4, 20, np.pi / 2], [20, 4, 0]], atol=1e-6)


def score(truth, rows, **options):
    metric = TrackingMetric(**options)
    metric.add(truth, rows)
    return {name: float(value[0]) for name, value in metric.values(np.ones((1, 1))).items()}


@pytest.mark.slow
def test_simulated_scenes_with_missed_and_false_detections():
    rng = np.random.default_rng(0)
    metric = TrackingMetric(rotated=True)
    for seed in range(12):
        truth, frames = [], []
        drawn = scene.draw(seed, dates=5, vehicles=12, ships=6)
        for date in range(5):
            boxes = drawn.boxes(date, oriented=True)
            truth.append(np.column_stack([boxes, [t.number for t in drawn.tracks], np.full(len(boxes), date)]))
            boxes = boxes[rng.random(len(boxes)) >= 0.1]
            false = np.column_stack([rng.integers(0, 2, 2), rng.uniform(0, 128, (2, 2)), [[8, 2, 0]] * 2])
            boxes = np.concatenate([boxes, false])
            boxes[:, 1:3] += rng.normal(0, 0.2, (len(boxes), 2))
            boxes[:, 3:5] *= rng.normal(1, 0.05, (len(boxes), 2))
            frames.append((boxes[:, 1:], np.full(len(boxes), 0.9), boxes[:, 0].astype(int)))
        config = TrackerConfig(distance="centre", jitter=0.3, speed=5.0, acceleration=0.5)
        metric.add(np.concatenate(truth), track(frames, config))
    scores = {name: float(value[0]) for name, value in metric.values(np.ones((1, 12))).items()}
    # A tenth of the boxes is missing, so that 0.9 is out of reach.
    assert scores["MOTA"] > 0.77
    assert scores["IDF1"] > 0.87
    assert scores["ID switches"] <= 12


def test_real_vehicles():
    if not WPAFB.exists():
        pytest.skip(f"{WPAFB} is absent")
    with WPAFB.open() as file:
        table = np.array([[float(row[name]) for name in ("frame", "id", "x", "y")] for row in csv.DictReader(file)])
    size = np.tile([6.0, 6.0, 0.0], (len(table), 1))
    truth = np.column_stack([np.zeros(len(table)), table[:, 2:], size, table[:, 1], table[:, 0] - 101])
    dates = [truth[truth[:, 7] == date] for date in range(5)]
    frames = [(of[:, 1:6], np.ones(len(of)), np.zeros(len(of), int)) for of in dates]
    scores = score(truth, track(frames, TrackerConfig(distance="centre")), distance=3.0)
    assert scores["ID switches"] == 0
    assert scores["IDF1"] > 0.99
    # Four vehicles are in one frame only, too few for a track.
    assert scores["MOTA"] == pytest.approx(1 - 4 / 498)


def test_errors_say_what_is_wrong():
    with pytest.raises(ConfigError, match='did you mean "centre"'):
        TrackerConfig(distance="center")
    with pytest.raises(ConfigError, match="low <= high"):
        TrackerConfig(low=0.8)
    for name, value in (("gate", 0), ("jitter", 0), ("lost", -1), ("hits", 0), ("overlap", 0), ("speed", float("nan"))):
        with pytest.raises(ConfigError, match=name):
            TrackerConfig(**{name: value})
    boxes, scores, classes = frame((0, 0))
    for wrong in ((boxes[:, :3], scores, classes), (boxes, scores[:0], classes), (boxes, scores, classes[:0])):
        with pytest.raises(DataError, match="date 1"):
            track([frame(), wrong], TrackerConfig())
    with pytest.raises(DataError, match="date 0"):
        track([(boxes * np.nan, scores, classes)], TrackerConfig())
