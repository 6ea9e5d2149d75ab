"""Projection heads against NumPy, and what their norms do and do not look at."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ringmoe_jax.models import projection

ROWS = np.random.default_rng(0).normal(3.0, 0.01, (12, 5)).astype(np.float32)  # small and nearly alike
WEIGHT = (np.arange(12) % 4 > 0).astype(np.float32)


def gelu(x):
    """JAX's default, the approximation by tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def over_rows(x, weight):
    used = x[weight > 0]
    return (x - used.mean(0)) / used.std(0)


def reference(params, rows, weight, norm, outputs):
    dense = lambda layer, x: x @ np.float64(layer["kernel"]) + layer["bias"]  # noqa: E731
    step = (lambda x: over_rows(x, weight)) if norm == "batch" else (lambda x: x)
    x = rows.astype(np.float64)
    x = step(x) if norm == "batch" else (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    x = gelu(step(dense(params["first"], x)))
    if not outputs:
        return dense(params["last"], x)
    x = dense(params["last"], gelu(step(dense(params["middle"], x))))
    directions = params["directions"] / np.linalg.norm(params["directions"], axis=0)
    return x / np.linalg.norm(x, axis=1, keepdims=True) @ directions


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("outputs", [7, 0])
def test_heads_against_numpy(norm, outputs):
    head = projection.build(5, 16, 4, outputs, norm)
    params = jax.device_get(head.init(jax.random.key(0)))
    apply = jax.jit(head.apply)
    got = np.asarray(apply(params, (ROWS, WEIGHT)))
    used = WEIGHT > 0
    wanted = reference(params, ROWS, WEIGHT, norm, outputs)
    assert_allclose(got[used], wanted[used], rtol=2e-3, atol=2e-3)
    assert got.shape == (12, outputs or 4)

    other = ROWS.copy()
    other[~used] = 1e3  # rows without weight are not looked at
    assert_allclose(apply(params, (other, WEIGHT))[used], got[used], rtol=1e-5, atol=1e-6)
    other = ROWS.copy()
    other[1] += np.linspace(0, 1, 5)
    moved = np.abs(np.asarray(apply(params, (other, WEIGHT))) - got)[2]
    assert (moved.max() > 1e-2) == (norm == "batch")


def test_batch_norm_tells_apart_what_is_nearly_alike():
    spread = {}
    for norm in ("batch", "layer"):
        rows = np.full((64, 5), [1.0, -2.0, 3.0, 0.5, 2.0]) + np.random.default_rng(1).normal(0, 1e-3, (64, 5))
        head = projection.build(5, 32, 16, 8, norm)
        cosines = np.asarray(jax.jit(head.apply)(head.init(jax.random.key(0)), (rows.astype(np.float32), np.ones(64))))
        spread[norm] = cosines.std(axis=0).mean()
    assert spread["batch"] > 20 * spread["layer"]


@pytest.mark.slow
def test_equal_rows_and_no_rows_stay_finite():
    head = projection.build(5, 16, 4, 7, "batch")
    params = head.init(jax.random.key(0))
    for rows, weight in ((np.ones((6, 5), np.float32), np.ones(6)), (ROWS, np.zeros(12))):
        value, gradient = jax.value_and_grad(lambda p, r=rows, w=weight: head.apply(p, (r, w)).sum())(params)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
