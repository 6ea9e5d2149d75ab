"""The height head: closed forms, ranges, the regression beside the bins, and that it can learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.heads.height import HeightConfig
from tests.helpers.tiny_heads import FOUR, ONE, SIZE, build, fit, pyramid, with_another_second_row


def even(params):
    """Parameters of a head that says the same of all bins."""
    return jax.tree.map(np.zeros_like, params)


def test_even_bins_and_pixels_by_hand():
    params, apply = build("height", ONE["widths"], 1, channels=8, bins=5, max_height=40.0)
    predictions = apply(even(params), pyramid(**ONE))
    assert_allclose(predictions["bins"], np.tile([4, 12, 20, 28, 36], (2, 1)), rtol=1e-6)
    assert_allclose(predictions["height"], np.full((2, *SIZE), 20), rtol=1e-6)


def test_the_regression_is_in_units_of_a_mean_bin_and_added():
    params, apply = build("height", ONE["widths"], 1, channels=8, bins=5, max_height=40.0, residual=True)
    params = even(params)
    params["head"]["classify"]["bias"][-1] = -3.5
    assert_allclose(apply(params, pyramid(**ONE))["height"], np.full((2, *SIZE), 20 - 3.5 * 8), rtol=1e-5)


def test_uneven_bins_by_hand():
    params, apply = build("height", ONE["widths"], 1, channels=8, bins=3, max_height=10.0)
    params = even(params)
    params["shares"]["bias"] = np.log([1, 3, 6]).astype(np.float32)  # widths 1, 3, 6 m
    params["head"]["classify"]["bias"] = np.log([2, 1, 1]).astype(np.float32)
    predictions = apply(params, pyramid(**ONE))
    assert_allclose(predictions["bins"][0], [0.5, 2.5, 7], rtol=1e-5)
    assert_allclose(predictions["height"], np.full((2, *SIZE), 0.5 * 0.5 + 0.25 * 2.5 + 0.25 * 7), rtol=1e-5)


@pytest.mark.parametrize(("decoder", "case"), [("upernet", ONE), ("fcn", FOUR)], ids=["one", "four"])
def test_any_levels_any_grid_and_ranges(decoder, case):
    params, apply = build("height", case["widths"], 1, decoder=decoder, channels=8, bins=16, max_height=60.0)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32), params)
    levels = pyramid(**case)
    predictions = apply(params, levels)
    height, bins = np.asarray(predictions["height"]), np.asarray(predictions["bins"])
    assert height.shape == (2, *SIZE)
    assert bins.shape == (2, 16)
    assert height.dtype == bins.dtype == np.float32
    assert ((height >= 0) & (height <= 60)).all()
    assert height.std() > 0.1
    assert (np.diff(bins) > -1e-4).all()  # rounding of 60 m
    assert ((bins > 0) & (bins < 60)).all()
    assert np.abs(bins[0] - bins[1]).max() > 0.1  # every image has its own
    other = apply(params, with_another_second_row(levels))
    assert_allclose(other["height"][0], height[0], rtol=1e-5, atol=1e-4)
    assert_allclose(other["bins"][0], bins[0], rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("residual", [False, True])
def test_learns_four_images_by_heart(residual):
    params, apply = build("height", (6,), 1, channels=16, bins=8, max_height=40.0, residual=residual, dropout=0.0)
    truth = np.random.default_rng(0).uniform(0, 30, (4, 5, 5)).astype(np.float32)
    at_grid = lambda p, x: apply(p, x, None, False, (5, 5))  # noqa: E731
    losses = fit(at_grid, params, pyramid((6,), ((5, 5),), rows=4), lambda o: jnp.abs(o["height"] - truth).mean(), 150)
    assert losses[0] > 6
    assert losses[-1] < 0.8


def test_values_out_of_range():
    with pytest.raises(ConfigError, match=r"head.bins = 1"):
        HeightConfig(bins=1)
    with pytest.raises(ConfigError, match=r"max_height = 0.0"):
        HeightConfig(max_height=0.0)
    with pytest.raises(ConfigError, match="one output, got outputs = 2"):
        build("height", (6,), 2)
