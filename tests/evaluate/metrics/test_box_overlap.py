import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics import boxes as geometry

SQUARE = np.array([[0, 0, 2, 2, 0.0]])


def drawn(generator, count, extent=40.0):
    sides = generator.uniform(1, 20, (count, 2))
    return np.column_stack([generator.uniform(0, extent, (count, 2)), sides, generator.uniform(-4, 4, count)])


def test_corners_go_around_the_box_from_the_x_axis_towards_the_y_axis():
    np.testing.assert_allclose(geometry.corners([[5, 3, 4, 2, 0]])[0], [[3, 2], [7, 2], [7, 4], [3, 4]])
    np.testing.assert_allclose(geometry.corners([[5, 3, 4, 2, np.pi / 2]])[0], [[6, 1], [6, 5], [4, 5], [4, 1]])
    np.testing.assert_array_equal(geometry.corners([[5, 3, 4, 2]]), geometry.corners([[5, 3, 4, 2, 0]]))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([0, 0, 2, 2, 0], 1),
        ([1, 0, 2, 2, 0], 2 / 6),
        ([2, 0, 2, 2, 0], 0),  # they touch
        ([9, 0, 2, 2, 0], 0),
        ([0, 0, 1, 1, 0], 1 / 4),  # inside
        ([0, 0, 0, 0, 0], 0),
    ],
)
def test_both_overlaps_by_hand_for_upright_boxes(other, expected):
    assert geometry.iou(SQUARE, [other])[0, 0] == expected
    assert geometry.rotated_iou(SQUARE, [other])[0, 0] == pytest.approx(expected, abs=1e-15)


@given(st.floats(0.01, np.pi / 4))
def test_a_square_turned_about_its_centre(angle):
    # What they share is a polygon around a circle: all its sides touch the circle of radius 1.
    shared = 8 * (np.tan(angle / 2) + np.tan((np.pi / 2 - angle) / 2)) / 2
    for turned in (angle, -angle, angle + np.pi / 2, np.pi - angle):
        overlap = geometry.rotated_iou(SQUARE, [[0, 0, 2, 2, turned]])[0, 0]
        assert overlap == pytest.approx(shared / (8 - shared), abs=1e-12)


def test_a_cross_and_a_half_covered_diamond():
    cross = geometry.rotated_iou([[3, 3, 10, 2, 0.3]], [[3, 3, 10, 2, 0.3 + np.pi / 2]])[0, 0]
    assert cross == pytest.approx(4 / 36)
    # The square around x >= 0 holds half of the diamond of diagonal 2: area 1 of 2, and the square has 16.
    diamond = geometry.rotated_iou([[2, 0, 4, 4, 0]], [[0, 0, 2**0.5, 2**0.5, np.pi / 4]])[0, 0]
    assert diamond == pytest.approx(1 / 17)
    # Rounded to an upright box, the diamond is the square of side 2 around it.
    assert geometry.iou([[2, 0, 4, 4, 0]], [[0, 0, 2**0.5, 2**0.5, np.pi / 4]])[0, 0] == pytest.approx(2 / 18)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_rotated_overlap_is_symmetric_and_unchanged_by_a_common_motion(seed):
    generator = np.random.default_rng(seed)
    a, b = drawn(generator, 4), drawn(generator, 5)
    overlap = geometry.rotated_iou(a, b)
    assert (overlap >= 0).all()
    assert (overlap <= 1).all()
    np.testing.assert_allclose(geometry.rotated_iou(b, a), overlap.T, atol=1e-9)
    np.testing.assert_allclose(np.diag(geometry.rotated_iou(a, a)), 1, rtol=1e-9)
    angle, shift = generator.uniform(-3, 3), generator.uniform(-9, 9, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = [np.column_stack([c[:, :2] @ turn.T + shift, c[:, 2:4], c[:, 4] + angle]) for c in (a, b)]
    np.testing.assert_allclose(geometry.rotated_iou(*moved), overlap, atol=1e-9)
    swapped = np.column_stack([b[:, :2], b[:, [3, 2]], b[:, 4] + np.pi / 2])  # the same boxes, sides exchanged
    np.testing.assert_allclose(geometry.rotated_iou(a, swapped), overlap, atol=1e-9)


def test_rotated_overlap_agrees_with_counting_points():
    a, b = np.array([[10, 10, 12, 6, 0.4]]), np.array([[13, 11, 5, 14, 1.0]])
    x, y = np.meshgrid(np.linspace(0, 25, 1001), np.linspace(0, 25, 1001))

    def inside(box):
        along = (x - box[0]) * np.cos(box[4]) + (y - box[1]) * np.sin(box[4])
        across = (y - box[1]) * np.cos(box[4]) - (x - box[0]) * np.sin(box[4])
        return (abs(along) <= box[2] / 2) & (abs(across) <= box[3] / 2)

    both = inside(a[0]), inside(b[0])
    counted = (both[0] & both[1]).sum() / (both[0] | both[1]).sum()
    assert geometry.rotated_iou(a, b)[0, 0] == pytest.approx(counted, abs=2e-3)


def test_upright_overlap_equals_pycocotools():
    generator = np.random.default_rng(0)
    a, b = (drawn(generator, n)[:, :4] for n in (30, 20))
    edges = [np.column_stack([c[:, :2] - c[:, 2:] / 2, c[:, 2:]]) for c in (a, b)]
    np.testing.assert_allclose(geometry.iou(a, b), coco.iou(*edges, [0] * 20), atol=1e-12)


def test_no_boxes():
    none = np.zeros((0, 5))
    assert geometry.iou(none, SQUARE).shape == geometry.rotated_iou(none, SQUARE).shape == (0, 1)
    assert geometry.nms(none, np.zeros(0), np.zeros(0, int), 0.5, rotated=True).tolist() == []


def test_suppression_by_hand():
    # 1 overlaps 0 by a third, 2 overlaps 1 by a third but not 0; 3 is as 0, of another class.
    boxes = np.array([[0, 0, 2, 2, 0], [1, 0, 2, 2, 0], [2, 0, 2, 2, 0], [0, 0, 2, 2, 0.0]])
    scores, classes = np.array([0.9, 0.8, 0.7, 0.95]), np.array([0, 0, 0, 1])
    for rotated in (False, True):
        assert geometry.nms(boxes, scores, classes, 0.3, rotated).tolist() == [3, 0, 2]
        assert geometry.nms(boxes, scores, classes, 0.4, rotated).tolist() == [3, 0, 1, 2]
    assert geometry.nms(boxes[[0, 0]], np.ones(2), np.zeros(2, int), 0.5, rotated=False).tolist() == [0]  # a tie
    cross = np.array([[0, 0, 10, 1, 0.8], [0, 0, 10, 1, -0.8]])  # around them, the same upright box
    assert len(geometry.nms(cross, np.ones(2), np.zeros(2, int), 0.5, rotated=True)) == 2
    assert len(geometry.nms(cross, np.ones(2), np.zeros(2, int), 0.5, rotated=False)) == 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_suppression_keeps_no_two_alike_and_drops_none_without_a_reason(seed, rotated):
    generator = np.random.default_rng(seed)
    boxes, scores, classes = drawn(generator, 30), generator.random(30), generator.integers(2, size=30)
    kept = geometry.nms(boxes, scores, classes, 0.2, rotated)
    assert (np.diff(scores[kept]) <= 0).all()
    overlap = geometry.rotated_iou(boxes, boxes) if rotated else geometry.iou(boxes, boxes)
    rival = (overlap > 0.2) & (classes[:, None] == classes) & (scores[:, None] < scores)  # [worse, better]
    stays = np.isin(np.arange(30), kept)
    np.testing.assert_array_equal(rival[:, kept].any(axis=1), ~stays)


@pytest.mark.parametrize(
    ("boxes", "scores", "message"),
    [
        ([[0, 0, 1, 1, 0]], [np.nan], "a score is nan"),
        ([[0, 0, np.nan, 1, 0]], [1.0], "a box's number is nan"),
        ([[0, 0, -1, 1, 0]], [1.0], "a side of -1 pixels"),
        ([[0, 0, 1]], [1.0], r"shape \(1, 3\)"),
        ([[0, 0, 1, 1, 0]], [1.0, 2.0], r"wanted \(1,\)"),
    ],
)
def test_boxes_that_cannot_be_used_are_an_error(boxes, scores, message):
    with pytest.raises(DataError, match=message):
        geometry.nms(boxes, np.array(scores), np.zeros(len(scores), int), 0.5, rotated=True)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_suppression_from_top_to_bottom_keeps_what_it_keeps_at_once(seed, rotated):
    """Boxes of bands of 10 px, each of which has nothing above its first row, given band by band."""
    generator = np.random.default_rng(seed)
    boxes, scores = drawn(generator, 60, 80.0), generator.integers(0, 20, 60) / 20  # with ties
    classes = generator.integers(0, 2, 60)
    top = geometry.limits(boxes)[0][:, 1]
    order = np.argsort(top // 10, kind="stable")
    boxes, scores, classes, top = boxes[order], scores[order], classes[order], top[order]
    whole, parts = geometry.Suppression(0.2, rotated), []
    for band in range(-4, 9):
        mine = top // 10 == band
        frontier = 10.0 * (band + 1) if band < 8 else np.inf
        parts.append(whole.decided(boxes[mine], scores[mine], classes[mine], frontier))
    found = [np.concatenate(part) for part in zip(*parts, strict=True)]
    kept = geometry.nms(boxes, scores, classes, 0.2, rotated)
    rank = np.lexsort(found[0].T)
    again = np.lexsort(boxes[kept].T)
    for each, wanted in zip(found, (boxes[kept], scores[kept], classes[kept]), strict=True):
        np.testing.assert_array_equal(each[rank], wanted[again])
    assert sum(len(part[0]) for part in parts[:-1]) > 0  # decided before the end
