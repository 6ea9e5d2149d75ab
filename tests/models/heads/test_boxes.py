"""Boxes: closed forms, exact overlap by polygons, and what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from ringmoe_jax.evaluate.metrics import boxes as exact
from ringmoe_jax.models.heads import boxes

SEEDS = st.integers(0, 2**32 - 1)


def drawn(seed, count=16):
    """Boxes of any angle and shape around the middle of 64 px, and points with strides of 1 to 32 px."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(0.5), np.log(100), (count, 2)))
    angle = rng.uniform(-np.pi / 2, np.pi / 2, (count, 1))
    rows = np.concatenate([rng.uniform(20, 44, (count, 2)), sides, angle], axis=1)
    points = np.concatenate([rng.uniform(0, 64, (count, 2)), 2.0 ** rng.integers(0, 6, (count, 1))], axis=1)
    return rows.astype(np.float32), points.astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_decode_is_the_inverse_of_encode(seed):
    rows, points = drawn(seed)
    raw = boxes.encode(rows, points)
    assert raw.shape == (16, boxes.ROTATED)
    assert_allclose(boxes.decode(raw, points), rows, rtol=1e-4, atol=1e-4)
    upright = boxes.decode(raw[:, : boxes.UPRIGHT], points)
    assert_allclose(upright, np.where(np.arange(5) == 4, 0, rows), rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_a_turn_by_pi_changes_nothing(seed):
    rows, points = drawn(seed)
    turned = rows + np.float32(np.pi) * (np.arange(5) == 4)
    assert_allclose(boxes.encode(turned, points), boxes.encode(rows, points), atol=1e-5)
    assert_allclose(boxes.hellinger(rows, turned), 0, atol=2e-3)


def test_nothing_jumps_at_the_end_of_the_range():
    ends = np.array([[0, 0, 9, 3, np.pi / 2 - 1e-3], [0, 0, 9, 3, -np.pi / 2 + 1e-3]], np.float32)
    raw = boxes.encode(ends, np.array([0, 0, 1], np.float32))
    assert_allclose(raw[0], raw[1], atol=0.005)


def test_numbers_by_hand():
    box, point = np.array([10.0, 6.0, 8.0, 2.0, np.pi / 4]), np.array([12.0, 2.0, 4.0])
    assert_allclose(boxes.encode(box, point), [-0.5, 1, np.log(2), np.log(0.5), 0, 1], atol=1e-6)
    assert_allclose(boxes.upright(box), [10, 6, 10 / 2**0.5, 10 / 2**0.5, 0], rtol=1e-6)
    assert_allclose(boxes.local(box, np.array([11.0, 7.0])), (2**0.5, 0), atol=1e-6)
    assert_allclose(boxes.local(box, np.array([9.0, 7.0])), (0, 2**0.5), atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=SEEDS)
def test_other_forms_of_a_box_cover_the_same_ground(seed):
    rows, _ = drawn(seed)
    same = np.asarray(boxes.longest_first(rows))
    assert (same[:, 2] >= same[:, 3]).all()
    assert (np.abs(same[:, 4]) <= np.pi / 2 + 1e-6).all()
    overlap = np.diag(exact.rotated_iou(rows, same))
    assert_allclose(overlap, 1, atol=1e-3)
    corners = exact.corners(rows)
    around = np.concatenate([(corners.max(1) + corners.min(1)) / 2, np.ptp(corners, axis=1)], axis=1)
    assert_allclose(boxes.upright(rows)[:, :4], around, rtol=1e-4, atol=1e-3)


def test_giou_by_hand():
    a = np.array([2.0, 2, 4, 4, 0])  # 0..4
    cases = {
        (2, 2, 4, 4): 1,
        (4, 2, 4, 4): 8 / 24,  # half overlaps, nothing around is empty
        (4, 4, 4, 4): 4 / 28 - 8 / 36,
        (10, 2, 4, 4): 0 - 16 / 48,  # 8..12
        (2, 2, 2, 1): 2 / 16,
    }
    for other, wanted in cases.items():
        assert_allclose(boxes.giou(a, np.array([*other, 0.0])), wanted, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=SEEDS)
def test_hellinger_is_that_of_the_gaussians(seed):
    a, _ = drawn(seed)
    b, _ = drawn(seed + 1)

    def covariance(box):
        c, s = np.cos(np.float64(box[4])), np.sin(np.float64(box[4]))
        turn = np.array([[c, -s], [s, c]])
        return turn @ np.diag(np.float64(box[2:4]) ** 2 / 12) @ turn.T

    for i, (p, q) in enumerate(zip(a, b, strict=True)):
        mean, apart = (covariance(p) + covariance(q)) / 2, np.float64(p[:2]) - q[:2]
        distance = apart @ np.linalg.solve(mean, apart) / 8
        distance += np.log(np.linalg.det(mean) ** 2 / np.linalg.det(covariance(p)) / np.linalg.det(covariance(q))) / 4
        wanted = np.sqrt(-np.expm1(-distance))
        assert_allclose(boxes.hellinger(a, b)[i], wanted, atol=2e-3)
        assert_allclose(boxes.hellinger(b, a)[i], wanted, atol=2e-3)


def test_thin_boxes_are_as_far_from_themselves_as_others():
    for angle in np.linspace(-1.5, 1.5, 7, dtype=np.float32):
        thin = jnp.array([300.0, 200.0, 400.0, 0.5, angle])
        assert_allclose(boxes.hellinger(thin, thin), 0, atol=1e-6)
        value, slope = jax.value_and_grad(boxes.hellinger)(thin, thin.at[4].add(0.01))
        assert_allclose(value, (1 - (4 / (4 + 800**2 * 1e-4)) ** 0.5) ** 0.5, atol=2e-3)  # w / h = 800, sin = 0.01
        assert np.isfinite(slope).all()


def test_squares_have_no_angle_for_the_distance_and_a_vanishing_one_no_gradient():
    square = jnp.array([5.0, 5.0, 4.0, 4.0, 0.0])
    assert_allclose(boxes.hellinger(square, square.at[4].set(0.7)), 0, atol=1e-6)
    slope = jax.grad(lambda raw: boxes.decode(raw, jnp.array([0.0, 0, 4])).sum())(jnp.zeros(6))
    assert_allclose(slope, [4, 4, 4, 4, 0, 0])


@pytest.mark.parametrize("change", [(0, 1.0), (1, -2.0), (2, 3.0), (3, 2.0), (4, 0.4)])
def test_distances_grow_with_the_error(change):
    column, step = change
    box = jnp.array([5.0, 5.0, 12.0, 4.0, 0.3])
    values = [float(boxes.hellinger(box, box.at[column].add(k * step))) for k in (0, 0.25, 0.5, 1)]
    assert_allclose(values[0], 0, atol=1e-6)
    assert values == sorted(values)
    assert values[-1] < 1
    if column < 4:
        values = [float(boxes.giou(box, box.at[column].add(k * step))) for k in (0, 0.25, 0.5, 1)]
        assert_allclose(values[0], 1, atol=1e-6)
        assert values == sorted(values, reverse=True)
