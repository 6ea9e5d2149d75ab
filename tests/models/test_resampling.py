"""Position tables at another image size: closed forms, what stays, and what is refused."""

import jax
import numpy as np
import pytest

from ringmoe_jax import models, sensors
from ringmoe_jax.errors import DataError
from ringmoe_jax.models.resampling import fitted
from tests.helpers import tiny


def offsets(window):
    """Relative row and column of every entry of a table, [(2 w - 1)^2, 2]."""
    steps = np.linspace(-1, 1, 2 * window - 1)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)


@pytest.mark.parametrize(("old", "new"), [(3, 5), (5, 3), (2, 7)])
def test_a_table_is_resampled_over_both_offsets(old, new):
    """A plane over the offsets stays one in the middle; the entry of no offset, the middle one, keeps its value."""
    plane = lambda window: (offsets(window) @ [2.0, -1.0])[None, :, None] + np.arange(4.0)  # noqa: E731
    got = fitted(plane(old).astype(np.float32), (1, (2 * new - 1) ** 2, 4), "encoder/x/relative_position_bias")
    side = 2 * new - 1
    square = got.reshape(side, side, 4)
    np.testing.assert_allclose(square[new - 1, new - 1], np.arange(4), atol=1e-5)
    assert (np.diff(square[..., 0], axis=0) >= -1e-5).all()
    assert (np.diff(square[..., 0], axis=1) <= 1e-5).all()


def test_a_class_token_keeps_its_position():
    table = np.random.default_rng(0).normal(size=(1 + 16, 3)).astype(np.float32)
    got = fitted(table, (1 + 4, 3), "positions")
    np.testing.assert_array_equal(got[0], table[0])
    assert got.shape == (5, 3)


def test_what_fits_is_not_touched():
    table = np.ones((2, 9, 4), np.float32)
    assert fitted(table, (2, 9, 4), "relative_position_bias") is table


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        ("encoder/kernel", (9, 4), (25, 4)),
        ("relative_position_bias", (9, 4), (25, 8)),
        ("relative_position_bias", (9, 4), (24, 4)),
        ("relative_position_bias", (2, 9, 4), (3, 25, 4)),
        ("positions", (16, 4), (5, 4)),
    ],
)
def test_other_shapes_are_refused_in_one_line(where, old, new):
    with pytest.raises(DataError, match=rf"checkpoint's {where} is .* the model wants") as error:
        fitted(np.zeros(old, np.float32), new, where)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "side"), [("ringmoe", 8), ("ringmoe", 32), ("skysense", 4), ("skysense", 16)])
def test_every_parameter_of_every_model_finds_its_shape(name, side):
    """Of shapes alone: a model of another image size takes all parameters of the checkpoint, tables resampled."""
    config = dict(ringmoe=tiny.RINGMOE | dict(window=4), skysense=tiny.SKYSENSE)[name]
    table = sensors.resolve(config["sensors"])
    build = lambda values: models.build(values, sensors=table, statistics={})  # noqa: E731
    size = dict(image_size=side) if "image_size" in config else dict(frame_size=side)
    old, new = build(config).shapes(), build(config | size).shapes()
    paths = jax.tree_util.tree_leaves_with_path(old)
    changed = 0
    for (path, before), after in zip(paths, jax.tree.leaves(new), strict=True):
        where = "/".join(str(key.key) for key in path)
        assert fitted(np.ones(before.shape, np.float32), after.shape, where).shape == after.shape
        changed += before.shape != after.shape
    assert changed
