"""Linear and MLP heads against NumPy; what they look at; dropout."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.heads.pooled import AttentionPool, LinearConfig, MlpConfig
from tests.helpers.tiny_heads import FOUR, ONE, build, fit, pyramid


def gelu(x):
    """JAX's default, the approximation by tanh."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def dense(layer, x):
    return x @ np.float64(layer["kernel"]) + layer["bias"]


@pytest.mark.parametrize("pool", ["mean", "max", "attention"])
@pytest.mark.parametrize("name", ["linear", "mlp"])
@pytest.mark.parametrize("case", [ONE, FOUR], ids=["one", "four"])
def test_heads_against_numpy(name, pool, case):
    params, apply = build(name, case["widths"], 3, pool=pool, **({"hidden": 16} if name == "mlp" else {}))
    levels = pyramid(**case)
    last = levels[-1].reshape(2, -1, case["widths"][-1])
    weights = np.full(last.shape[:2], 1 / last.shape[1])
    if pool == "attention":
        params["pool"]["query"] = np.linspace(-2, 3, last.shape[-1], dtype=np.float32)
        scores = np.exp(last @ params["pool"]["query"] / np.sqrt(last.shape[-1]))
        weights = scores / scores.sum(axis=1, keepdims=True)
    pooled = last.max(axis=1) if pool == "max" else np.einsum("np,npd->nd", weights, np.float64(last))
    hidden = gelu(dense(params["hidden"], pooled)) if name == "mlp" else pooled
    got = apply(params, levels)["logits"]
    assert got.dtype == np.float32
    assert_allclose(got, dense(params["classify"], hidden), rtol=1e-3, atol=1e-5)


def test_attention_starts_as_the_mean():
    assert not AttentionPool(6).query[...].any()


def test_only_the_last_level_counts():
    params, apply = build("linear", FOUR["widths"], 3)
    *finer, last = pyramid(**FOUR)
    other = [level + 1 for level in finer]
    assert_allclose(apply(params, (*finer, last))["logits"], apply(params, (*other, last))["logits"])


def test_dropout_needs_training_and_a_key():
    params, apply = build("mlp", ONE["widths"], 3, hidden=32, dropout=0.5)
    levels, keys = pyramid(**ONE), jax.random.split(jax.random.key(0))
    still = apply(params, levels)["logits"]
    assert_allclose(apply(params, levels, keys[0])["logits"], still)
    assert_allclose(apply(params, levels, None, True)["logits"], still)
    first, second = (np.asarray(apply(params, levels, key, True)["logits"]) for key in keys)
    assert np.abs(first - still).max() > 1e-4
    assert np.abs(first - second).max() > 1e-4


def test_parameters_are_counted_by_hand():
    count = lambda name, **fields: sum(x.size for x in jax.tree.leaves(build(name, (4, 6), 3, **fields)[0]))  # noqa: E731
    assert count("linear") == 6 * 3 + 3
    assert count("linear", pool="attention") == 6 * 3 + 3 + 6
    assert count("mlp", hidden=5) == 6 * 5 + 5 + 5 * 3 + 3


def test_learns_four_images_by_heart():
    y = np.array([0, 1, 2, 0])
    params, apply = build("mlp", ONE["widths"], 3, hidden=16)
    nats = lambda out: -jax.nn.log_softmax(out["logits"])[np.arange(4), y].mean()  # noqa: E731
    losses = fit(apply, params, pyramid(**ONE, rows=4), nats, 80, 5e-2)
    assert losses[0] > 0.9 * np.log(3)
    assert losses[-1] < 0.02


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (LinearConfig, {"pool": "sum"}, 'head.pool = "sum" does not exist'),
        (LinearConfig, {"dropout": 1.0}, "head.dropout = 1.0"),
        (MlpConfig, {"hidden": 0}, "head.hidden = 0"),
        (MlpConfig, {"pool": "meen"}, 'did you mean "mean"'),
    ],
)
def test_values_out_of_range(config, fields, message):
    with pytest.raises(ConfigError, match=message):
        config(**fields)
