"""The detector: shapes, points, what a new head says, and decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.heads import boxes
from ringmoe_jax.models.heads.detection import DetectionConfig, DetectionHead, decode

SMALL = dict(channels=8, depth=1, groups=2)


def make(widths=(4, 6), classes=3, **fields):
    return DetectionHead(DetectionConfig(**SMALL | fields), widths, classes, nnx.Rngs(0), dtype=jnp.float32)


def features(grids, widths=(4, 6), images=2):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(images, *grid, d)).astype(np.float32) for grid, d in zip(grids, widths, strict=True)]


@pytest.mark.parametrize(
    ("grids", "size", "fields", "cells"),
    [
        (((8, 8), (4, 4)), (32, 32), {}, 64 + 16),
        (((8, 8), (4, 4)), (32, 32), {"finer": 1, "rotated": True}, 256 + 64 + 16),
        (((6, 10), (3, 5)), (24, 40), {"coarser": 2}, 60 + 15 + 6 + 2),
        (((4, 4), (4, 4)), (32, 32), {"finer": 2, "coarser": 1}, 256 + 64 + 16 + 16 + 4),
    ],
)
def test_shapes(grids, size, fields, cells):
    found = jax.eval_shape(lambda: make(**fields)(features(grids), size))
    numbers = 6 if fields.get("rotated") else 4
    assert {name: (value.shape, value.dtype.name) for name, value in found.items()} == {
        "class": ((2, cells, 3), "float32"),
        "box": ((2, cells, 5), "float32"),
        "centreness": ((2, cells), "float32"),
        "points": ((cells, 3), "float32"),
        "raw": ((2, cells, numbers), "float32"),
    }
    assert jax.eval_shape(lambda p: decode(p, 300), found)[0].shape == (2, min(300, cells * 3), 5)


def test_points_are_centres_of_cells_level_by_level_and_row_by_row():
    points = np.asarray(jax.jit(lambda: make(finer=1)(features(((2, 3), (1, 2))), (8, 12))["points"])())
    assert_array_equal(np.unique(points[:, 2]), [2, 4, 8])
    assert_array_equal(points[:2], [[1, 1, 2], [3, 1, 2]])  # twice the finest level's resolution
    assert_array_equal(points[24:30], [[2, 2, 4], [6, 2, 4], [10, 2, 4], [2, 6, 4], [6, 6, 4], [10, 6, 4]])
    assert_array_equal(points[-2:], [[3, 4, 8], [9, 4, 8]])  # 1 x 2 cells; a stride is along the rows


def test_a_new_head_predicts_its_prior():
    found = jax.jit(lambda: make(rotated=True, prior=0.02)(features(((8, 8), (4, 4))), (32, 32)))()
    score = jax.nn.sigmoid(found["class"])
    assert_allclose(score.mean(), 0.02, rtol=0.2)
    side = found["box"][..., 2:4] / found["points"][:, 2:]
    assert_allclose(side.mean(axis=(0, 1)), (4, 4), rtol=0.1)
    assert_allclose(found["box"][..., 4].mean(), 0, atol=0.1)


def test_the_finest_level_sees_the_coarsest_one_and_images_do_not_meet():
    fine, coarse = features(((8, 8), (4, 4)))
    run = jax.jit(lambda coarse: make(finer=1)((fine, coarse), (32, 32))["class"])
    before, after = run(coarse), run(coarse + np.array([0, 1], np.float32)[:, None, None, None])
    assert_array_equal(before[0], after[0])
    assert (np.abs(before[1, :256] - after[1, :256]).max(axis=-1) > 0).all()


def test_decode_takes_the_best_first_and_marks_what_is_below_the_threshold():
    logit = lambda p: np.log(p) - np.log1p(-np.asarray(p))  # noqa: E731
    probability = np.array([[[0.9, 0.04], [0.25, 0.64], [0.01, 0.5]]])
    centreness = np.array([[0.4, 0.25, 0.0001]])
    rows = np.arange(15, dtype=np.float32).reshape(1, 3, 5)
    predictions = {"class": logit(probability), "centreness": logit(centreness), "box": rows}
    found, scores, classes = jax.jit(decode, static_argnums=(1, 2))(predictions, 4, 0.2)
    assert_allclose(scores, [[0.6, 0.4, 0.25, 0]], atol=1e-6)
    assert_array_equal(classes, [[0, 1, 0, -1]])
    assert_array_equal(found[0, :3], rows[0, [0, 1, 1]])
    assert decode(predictions, 2000)[1].shape == (1, 6)


def test_predictions_of_encoded_boxes_decode_to_them():
    truth = np.array([[20.0, 12, 9, 3, 0.5], [4, 5, 30, 2, -1.2]], np.float32)
    points = np.array([[18.0, 14, 4], [6, 6, 4]], np.float32)
    predictions = {
        "class": np.array([[[4.0, -4], [-4, 3]]]),
        "centreness": np.full((1, 2), 5.0),
        "box": boxes.decode(boxes.encode(truth, points), points)[None],
    }
    found, _, classes = decode(predictions, 2)
    assert_allclose(found[0], truth, rtol=1e-4, atol=1e-5)
    assert_array_equal(classes, [[0, 1]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 3}, "head.channels = 8 is not a multiple of head.groups = 3"),
        ({"finer": -1}, "head.finer = -1: wanted 0 or more"),
        ({"prior": 1.0}, "head.prior = 1.0: wanted more than 0 and less than 1"),
    ],
)
def test_bad_configs(fields, message):
    with pytest.raises(ConfigError, match=message):
        DetectionConfig(**SMALL | fields)
