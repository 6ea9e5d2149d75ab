"""FCOS: assignment by hand and by brute force, losses in NumPy, what is best, and what must add nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import objectives
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.heads import boxes
from ringmoe_jax.objectives import fcos

UNUSED = [-1.0] * 6


def grid(side, stride):
    """[side^2, 3] points, row by row."""
    y, x = np.meshgrid(*2 * [(np.arange(side) + 0.5) * stride], indexing="ij")
    return np.stack([x, y, np.full_like(x, stride)], axis=-1).reshape(-1, 3).astype(np.float32)


GRID = grid(4, 4)  # x and y are 2, 6, 10, 14
LEVELS = np.concatenate([GRID, grid(2, 8)])
ASSIGN = jax.jit(fcos.assign)


def assigned(rows, points=GRID, radius=1.5, span=16.0):
    rows = np.array(rows, np.float32)
    return np.asarray(ASSIGN(rows[:, 0], rows[:, 1:], points, radius=radius, span=span))


def test_a_grid_by_hand():
    rows = [UNUSED, [0, 6, 6, 8, 8, 0], [1, 10, 6, 4, 4, 0], [0, 12.5, 12.5, 1, 1, 0]]
    assert_array_equal(
        assigned(rows).reshape(4, 4),
        [
            [1, 1, 1, -1],
            [1, 1, 2, -1],  # the smaller object has the point that both cover
            [1, 1, 1, -1],
            [-1, -1, -1, 3],  # covers no point
        ],
    )


def test_rotated_objects_and_the_radius():
    row = [[0, 8, 8, 20, 2, np.pi / 4]]
    assert_array_equal(np.flatnonzero(assigned(row) == 0), [5, 10])
    assert_array_equal(np.flatnonzero(assigned(row, radius=3.0) == 0), [0, 5, 10, 15])
    other = [[0, 8.1, 7.9, 20, 2, -np.pi / 4]]
    assert_array_equal(np.flatnonzero(assigned(other) == 0), [6, 9])
    beside = [[0, 8.1, 8.2, 20, 2, -np.pi / 4]]
    assert_array_equal(np.flatnonzero(assigned(beside) == 0), [6, 9, 10])  # 10 is the nearest, although outside


def test_levels_by_the_longer_side():
    for side, first in ((8, True), (8.1, False), (100, False), (0.1, True)):
        owner = assigned([[0, 6, 6, 1, side, 0]], LEVELS, span=2.0) == 0
        assert owner[:16].any() == first
        assert owner[16:].any() != first


def test_the_nearest_point_is_not_taken_away():
    wide, square = [0, 8.5, 6, 9, 1.5, 0], [1, 6, 6, 4, 4, 0]
    assert_array_equal(assigned([wide, square])[4:8], [-1, 1, 0, -1])
    both = [[0, 6, 6, 2, 2, 0], [0, 7, 6, 1, 1, 0]]  # in one cell: the smaller has it
    assert_array_equal(np.flatnonzero(assigned(both) >= 0), [5])
    assert assigned(both)[5] == 1


def drawn(seed, count=5):
    """Rows of objects, some of them not used, on an image of 16 px."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate(
        [
            rng.integers(-1, 2, (count, 1)),
            rng.uniform(0, 16, (count, 2)),
            np.exp(rng.uniform(np.log(0.3), np.log(14), (count, 2))),
            rng.uniform(-np.pi / 2, np.pi / 2, (count, 1)),
        ],
        axis=1,
    )
    return np.where(rows[:, :1] >= 0, rows, UNUSED).astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1))
def test_assignment_by_brute_force(seed):
    rows, radius, span = drawn(seed), 1.0, 1.6
    used = [i for i in range(len(rows)) if rows[i, 0] >= 0]
    level = {i: 4 if max(rows[i, 3:5]) <= span * 4 else 8 for i in used}
    area = lambda i: rows[i, 3] * rows[i, 4]  # noqa: E731
    distance = lambda i: np.where(LEVELS[:, 2] == level[i], np.hypot(*(LEVELS[:, :2] - rows[i, 1:3]).T), np.inf)  # noqa: E731
    wanted = np.full(len(LEVELS), -1)
    for a, (x, y, stride) in enumerate(LEVELS):
        claims = []
        for i in used:
            dx, dy, c, s = x - rows[i, 1], y - rows[i, 2], np.cos(rows[i, 5]), np.sin(rows[i, 5])
            offsets = np.abs([c * dx + s * dy, c * dy - s * dx])
            nearest = distance(i).argmin() == a
            if stride == level[i] and (nearest or (offsets <= np.minimum(rows[i, 3:5] / 2, radius * stride)).all()):
                claims.append((not nearest, area(i), i))
        if claims:
            wanted[a] = min(claims)[-1]
    assert_array_equal(assigned(rows, LEVELS, radius, span), wanted)


def predictions(rows, points=GRID, classes=2, seed=0, rotated=True):
    """Of a poor detector, near the truth."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(len(rows), len(points), 6 if rotated else 4)).astype(np.float32)
    draw = lambda *shape: rng.normal(size=(len(rows), len(points), *shape)).astype(np.float32)  # noqa: E731
    return complete({"class": draw(classes), "centreness": draw(), "raw": raw}, points)


def complete(said, points=GRID):
    return said | {"points": jnp.asarray(points), "box": boxes.decode(jnp.asarray(said["raw"]), jnp.asarray(points))}


def perfect(rows, points=GRID):
    """What says the truth of rows [N, n, 6] exactly; all objects in the long-side-first form."""
    owner = np.stack([assigned(r, points) for r in rows])
    of = np.take_along_axis(rows, np.maximum(owner, 0)[..., None], axis=1)
    right = (owner >= 0)[..., None] & (of[..., :1] == np.arange(2))
    box = np.where((owner >= 0)[..., None], of[..., 1:], 1).astype(np.float32)
    target = np.clip(np.asarray(fcos.centreness(box, points)), 1e-6, 1 - 1e-6)
    said = {"class": np.where(right, 20.0, -20.0), "centreness": np.log(target / (1 - target))}
    return complete(said | {"raw": np.asarray(boxes.encode(box, points))}, points), owner


def term(**fields):
    return objectives.build({"a": {"name": "fcos", "label": "boxes"} | fields})["a"]


@jax.jit
def compiled(said, rows):
    return term()({"predictions": said}, {"labels": {"boxes": rows}})


OBJECTS = np.array([[[0, 6, 6, 8, 7, 0.2], [1, 12.5, 12.5, 1, 0.5, 1.0], UNUSED]], np.float32)


def test_perfect_predictions_have_no_loss_but_the_entropy_of_the_centreness():
    said, owner = perfect(OBJECTS)
    value, weight, metrics = compiled(said, OBJECTS)
    assert weight == (owner >= 0).sum()
    logits = np.asarray(said["centreness"])[owner >= 0]
    target = 1 / (1 + np.exp(-logits))
    entropy = -(target * np.log(target) + (1 - target) * np.log1p(-target)).mean()
    wanted = {"class": 0, "box": 0, "centreness": entropy, "unassigned": 0}
    assert {k: pytest.approx(v, abs=1e-4) for k, v in wanted.items()} == {k: float(v) for k, v in metrics.items()}
    assert_allclose(value, weight * metrics["centreness"], rtol=1e-3)


@pytest.mark.parametrize("part", ["class", "raw", "centreness"])
def test_everything_else_is_worse(part):
    said, owner = perfect(OBJECTS)
    best = compiled(said, OBJECTS)[0]
    for seed in range(4):
        noise = 3 * np.random.default_rng(seed).normal(size=said[part].shape).astype(np.float32)
        worse = complete(said | {part: said[part] + (noise if part != "class" else -21 * np.sign(said[part]))})
        assert compiled(worse, OBJECTS)[0] > best + 0.1
    if part != "class":  # is not asked where no point answers
        background = (owner < 0).reshape(owner.shape + (1,) * (said[part].ndim - 2))
        assert_allclose(compiled(complete(said | {part: said[part] + 9 * background}), OBJECTS)[0], best, rtol=1e-6)


def test_terms_in_numpy():
    rows = np.stack([drawn(0), drawn(5)])
    rows = np.concatenate([rows[..., :1], boxes.longest_first(rows[..., 1:])], axis=-1)
    rows = np.where(rows[..., :1] >= 0, rows, -1).astype(np.float32)
    said = predictions(rows)
    value, weight, metrics = compiled(said, rows)
    owner = np.stack([assigned(r) for r in rows])
    sums = dict.fromkeys(("class", "box", "centreness"), 0.0)
    for n, a in np.ndindex(owner.shape):
        row = rows[n, owner[n, a]] if owner[n, a] >= 0 else None
        for c, logit in enumerate(np.asarray(said["class"], np.float64)[n, a]):
            p = 1 / (1 + np.exp(-logit))
            right = row is not None and row[0] == c
            sums["class"] -= 0.25 * (1 - p) ** 2 * np.log(p) if right else 0.75 * p**2 * np.log(1 - p)
        if row is None:
            continue
        box, raw = said["box"][n, a], np.asarray(said["raw"])[n, a]
        turn = (raw[4] - np.cos(2 * row[5])) ** 2 + (raw[5] - np.sin(2 * row[5])) ** 2
        sums["box"] += float(boxes.hellinger(box, row[1:])) + (1 - row[4] / row[3]) * turn
        u, v = (abs(float(x)) for x in boxes.local(row[1:], GRID[a]))
        (w, h), p = np.maximum(row[3:5] / 2, 4), 1 / (1 + np.exp(-np.float64(said["centreness"][n, a])))
        t = np.sqrt((w - u) / (w + u) * (h - v) / (h + v))
        sums["centreness"] -= t * np.log(p) + (1 - t) * np.log(1 - p)
    assert weight == (owner >= 0).sum()
    for name, wanted in sums.items():
        assert_allclose(metrics[name] * weight, wanted, rtol=1e-4)
    assert_allclose(value, sum(sums.values()), rtol=1e-4)


def test_upright_heads_learn_the_boxes_around_rotated_objects():
    rows = np.stack([drawn(1), drawn(2)])
    around = np.concatenate([rows[..., :1], boxes.upright(rows[..., 1:])], axis=-1)
    said = predictions(rows, rotated=False)
    assert_allclose(compiled(said, rows)[0], compiled(said, around)[0], rtol=1e-5)
    owner = np.stack([assigned(r) for r in around])
    wanted = sum(
        1 - float(boxes.giou(said["box"][n, a], around[n, owner[n, a], 1:])) for n, a in np.argwhere(owner >= 0)
    )
    assert_allclose(compiled(said, rows)[2]["box"] * compiled(said, rows)[1], wanted, rtol=1e-4)


def test_tracks_are_the_boxes_of_each_date():
    frames = np.stack([drawn(seed) for seed in (1, 2, 3, 4)])  # two samples of two dates
    behind = [np.tile([9.0, date], (5, 1)) for date in (0, 1)]  # track and date
    told = [np.concatenate([rows, behind[i % 2]], axis=1) for i, rows in enumerate(frames)]
    tracks = np.stack([np.concatenate([told[1], told[0]]), np.concatenate(told[2:])]).astype(np.float32)
    said = predictions(frames)
    for ours, wanted in zip(compiled(said, tracks)[:2], compiled(said, frames)[:2], strict=True):
        assert_allclose(ours, wanted, rtol=1e-5)


def test_the_same_rectangle_written_otherwise_is_the_same_truth():
    rows = np.stack([drawn(3)])
    other = rows[..., [0, 1, 2, 4, 3, 5]] + np.float32(np.pi / 2) * (np.arange(6) == 5)
    said = predictions(rows)
    assert_allclose(compiled(said, rows)[0], compiled(said, other)[0], rtol=1e-4)


@pytest.mark.parametrize("rotated", [True, False])
def test_no_object_leaves_the_background_and_finite_gradients(rotated):
    nothing = np.full((1, 3, 6), -1, np.float32)
    point_like = np.array([[[0, 5, 5, 0, 0, 0], UNUSED, UNUSED]], np.float32)
    said = predictions(nothing, rotated=rotated)
    value, weight, metrics = compiled(said, nothing)
    assert weight == 1
    assert_allclose(value, metrics["class"])
    assert metrics["box"] == metrics["centreness"] == metrics["unassigned"] == 0

    @jax.jit
    def slopes(raw, logits, centre, rows):
        loss = lambda raw, logits, centre: compiled(  # noqa: E731
            complete({"raw": raw, "class": logits, "centreness": centre}), rows
        )[0]
        return jax.grad(loss, argnums=(0, 1, 2))(raw, logits, centre)

    for rows in (nothing, point_like):
        for slope in slopes(said["raw"], said["class"], said["centreness"], rows):
            assert np.isfinite(slope).all()


def test_gradients_vanish_at_the_truth():
    said, _ = perfect(OBJECTS)
    slopes = jax.jit(jax.grad(lambda raw: compiled(complete(said | {"raw": raw}), OBJECTS)[0]))
    slope, far = slopes(said["raw"]), slopes(said["raw"] + 0.3)
    assert np.abs(slope).max() < 0.02 < np.abs(far).max()


def test_unassigned_counts_objects_without_a_point():
    rows = np.array([[[0, 6, 6, 2, 2, 0], [0, 7, 6, 1, 1, 0], [1, 13, 13, 2, 2, 0], UNUSED]], np.float32)
    assert_allclose(compiled(predictions(rows), rows)[2]["unassigned"], 1 / 3)


def test_centreness():
    at = lambda box, x, y: float(fcos.centreness(jnp.array(box), jnp.array([x, y, 4.0])))  # noqa: E731
    box = [10.0, 10, 24, 16, 0]  # -2..22, 2..18
    assert_allclose(at(box, 10, 10), 1)
    assert_allclose(at(box, 16, 10), (6 / 18) ** 0.5, rtol=1e-6)
    assert_allclose(at(box, 16, 6), (6 / 18 * 4 / 12) ** 0.5, rtol=1e-6)
    assert_allclose(at([10.0, 10, 16, 24, np.pi / 2], 16, 6), (6 / 18 * 4 / 12) ** 0.5, rtol=1e-5)
    assert_allclose(at([10.0, 10, 1, 1, 0], 12, 12), 2 / 6, rtol=1e-6)  # beside the object, at the cell's corner
    assert at(box, 22, 10) == at(box, 40, 10) == 0


def test_weights_scale_the_terms():
    said, rows = predictions(OBJECTS), OBJECTS
    _, weight, metrics = compiled(said, rows)
    weighted = term(class_weight=2.0, box_weight=0.5, centreness_weight=0.0)
    value = jax.jit(weighted)({"predictions": said}, {"labels": {"boxes": rows}})[0]
    assert_allclose(value, weight * (2 * metrics["class"] + 0.5 * metrics["box"]), rtol=1e-5)


def test_errors():
    with pytest.raises(DataError, match='holds no label "boxes": did you mean "box"'):
        term()({"predictions": {}}, {"labels": {"box": 0}})
    with pytest.raises(ConfigError, match=r"radius = 0.0, span = 16.0.*wanted radius and span > 0"):
        term(radius=0.0)
