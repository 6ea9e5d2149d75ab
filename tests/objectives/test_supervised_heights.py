"""Objectives about heights: closed forms by hand, no-data pixels, gradients, and sums over micro-batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.objectives import BinChamfer, HeightRegression

KINDS = ("l1", "smooth_l1", "silog")


def batch_of(truth, valid=None):
    """A batch whose nDSM [N, H, W] is the last of two dates."""
    truth = np.float32(truth)
    valid = np.ones(truth.shape, bool) if valid is None else valid
    pixels = np.stack([np.full_like(truth, 99), truth], axis=1)[..., None]
    return {"sensors": {"ndsm": {"pixels": pixels, "valid": np.stack([np.zeros_like(valid), valid], axis=1)}}}


@functools.lru_cache
def compiled(term, output):
    def run(x, batch):
        value, weight, metrics = term({"predictions": {output: x}}, batch)
        return value, (weight, metrics)

    return jax.jit(jax.value_and_grad(run, has_aux=True))


def evaluate(term, x, batch):
    """Value, weight, metrics and gradient of the value by the prediction."""
    output = "bins" if isinstance(term, BinChamfer) else "height"
    (value, (weight, metrics)), gradient = compiled(term, output)(np.float32(x), batch)
    return float(value), float(weight), {k: float(v) for k, v in metrics.items()}, np.asarray(gradient)


def mean(term, x, batch):
    value, weight, *_ = evaluate(term, x, batch)
    return value / weight


def scene(seed=0, rows=3):
    rng = np.random.default_rng(seed)
    truth = np.maximum(rng.normal(3, 6, (rows, 4, 5)), 0)
    return truth + rng.normal(0, 2, truth.shape), truth, rng.random(truth.shape) < 0.7


def test_by_hand():
    predicted, truth = np.array([[[2.0, 0.0, 5.0]]]), np.array([[[1.5, 0.0, 9.0]]])
    batch = batch_of(truth)
    assert_allclose(mean(HeightRegression(kind="l1"), predicted, batch), 4.5 / 3, rtol=1e-6)
    assert_allclose(mean(HeightRegression(beta=1.0), predicted, batch), (0.125 + 0 + 3.5) / 3, rtol=1e-6)
    assert_allclose(mean(HeightRegression(beta=8.0), predicted, batch), (0.25 + 16) / 16 / 3, rtol=1e-6)
    g = np.log([3 / 2.5, 1, 6 / 10])
    wanted = np.sqrt((g**2).mean() - 0.85 * g.mean() ** 2)
    assert_allclose(mean(HeightRegression(kind="silog"), predicted, batch), wanted, rtol=1e-5)
    metrics = evaluate(HeightRegression(kind="silog"), predicted, batch)[2]
    assert_allclose(metrics["mae"], 1.5, rtol=1e-6)


def test_silog_forgives_a_common_factor_of_high_things():
    """With focus = 1 and an offset that is small beside the heights, all 20 % too high costs nothing."""
    truth = np.linspace(10, 60, 12).reshape(1, 3, 4)
    strict, lax = (HeightRegression(kind="silog", offset=1e-3, focus=focus) for focus in (0.0, 1.0))
    assert_allclose(mean(strict, 1.2 * truth, batch_of(truth)), np.log(1.2), rtol=1e-3)
    assert mean(lax, 1.2 * truth, batch_of(truth)) < 2e-3


def test_silog_is_finite_where_heights_are_0_below_0_or_right():
    truth = np.array([[[0.0, 0.0, 3.0]]])
    term = HeightRegression(kind="silog")
    for predicted in (truth, np.zeros_like(truth), -truth):
        value, _, _, gradient = evaluate(term, predicted, batch_of(truth))
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    assert evaluate(term, truth, batch_of(truth))[0] == 0
    below = evaluate(term, [[[-1.0, 0.0, 3.0]]], batch_of(truth))[3]
    assert below[0, 0, 0] < 0  # heights below ground are drawn up


@pytest.mark.parametrize("kind", KINDS)
def test_no_data_adds_nothing(kind):
    predicted, truth, valid = scene()
    valid[2] = False
    term = HeightRegression(kind=kind)
    truth[~valid] = np.nan  # not even where it was called valid
    value, weight, metrics, gradient = evaluate(term, predicted, batch_of(truth, valid))
    assert weight == (2 if kind == "silog" else valid.sum())
    assert_allclose(metrics["valid"], valid.mean(), rtol=1e-6)
    assert_array_equal(gradient[~valid], 0)
    assert (gradient[valid] != 0).all()
    assert_allclose(evaluate(term, predicted, batch_of(truth))[:2], (value, weight), rtol=1e-6)
    assert_allclose(evaluate(term, np.where(valid, predicted, -50), batch_of(truth, valid))[0], value, rtol=1e-6)


@pytest.mark.parametrize("term", [*(HeightRegression(kind=kind) for kind in KINDS), BinChamfer(points=6)], ids=str)
def test_sums_of_micro_batches_are_those_of_the_batch(term):
    predicted, truth, valid = scene()
    valid[1] = False
    x = np.sort(predicted[:, 0], axis=-1) if isinstance(term, BinChamfer) else predicted
    whole = evaluate(term, x, batch_of(truth, valid))
    parts = [evaluate(term, x[i : i + 1], batch_of(truth[i : i + 1], valid[i : i + 1])) for i in range(3)]
    assert_allclose(np.sum([part[:2] for part in parts], axis=0), whole[:2], rtol=1e-5)
    assert_allclose(np.concatenate([part[3] for part in parts]), whole[3], rtol=1e-5, atol=1e-7)
    assert np.isfinite(whole[3]).all()


@pytest.mark.parametrize("term", [HeightRegression(kind="silog"), BinChamfer()], ids=["silog", "bin_chamfer"])
def test_gradients_against_finite_differences(term):
    predicted, truth, valid = scene(rows=2)
    name, x = ("bins", predicted[:, 0] + 4) if isinstance(term, BinChamfer) else ("height", predicted)
    run = jax.jit(lambda x: term({"predictions": {name: x}}, batch_of(truth, valid))[0])
    check_grads(run, (jnp.asarray(x, jnp.float32),), order=1, modes=["rev"], atol=1e-2, rtol=1e-2, eps=1e-2)


def test_bin_chamfer_by_hand():
    truth, valid = np.array([[[2.0, 4.0], [4.0, 50.0]]]), np.array([[[True, True], [True, False]]])
    centres = np.array([[1.0, 10.0]])
    to_bins, to_heights = (1 + 9 + 9) / 3, (1 + 36) / 2
    value, weight, _, gradient = evaluate(BinChamfer(), centres, batch_of(truth, valid))
    assert weight == 1
    assert_allclose(value, to_bins + to_heights, rtol=1e-6)
    assert_allclose(gradient, [[(-2 - 6 - 6) / 3 - 2 / 2, 12 / 2]], rtol=1e-5)
    assert evaluate(BinChamfer(), [[2.0, 4.0]], batch_of(truth, valid))[0] == 0


def test_bin_chamfer_takes_a_regular_grid_of_large_images():
    truth = np.arange(64.0).reshape(1, 8, 8)
    centres = np.array([[0.0, 20.0]])
    small = truth[:, ::2, ::2]
    assert_allclose(
        mean(BinChamfer(points=16), centres, batch_of(truth)), mean(BinChamfer(), centres, batch_of(small)), rtol=1e-6
    )


def test_what_is_missing_or_does_not_fit_is_said():
    outputs, batch = {"predictions": {"height": np.zeros((1, 4, 4))}}, batch_of(np.zeros((1, 3, 3)))
    with pytest.raises(DataError, match=r'"ndsm" is \[1, 3, 3\], predictions are \[1, 4, 4\]'):
        HeightRegression()(outputs, batch)
    with pytest.raises(DataError, match='no sensor "ndms": did you mean "ndsm"'):
        HeightRegression(sensor="ndms")(outputs, batch)
    with pytest.raises(ConfigError, match=r'the head gives no "bins": \(known: height\)'):
        BinChamfer()(outputs, batch)
    with pytest.raises(ConfigError, match='kind = "l3"'):
        HeightRegression(kind="l3")
    with pytest.raises(ConfigError, match="beta"):
        HeightRegression(beta=0.0)
    with pytest.raises(ConfigError, match="points"):
        BinChamfer(points=0)
