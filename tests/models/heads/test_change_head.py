"""Change heads: symmetry in the dates, the transformer's parts against NumPy, and that they can learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.heads.change import AttentionBlock, ChangeTransformerConfig
from tests.helpers.tiny_heads import FOUR, ONE, SIZE, build, fit, pyramid, with_another_second_row

BIT = dict(channels=8, heads=2, decoder_depth=2)
CASES = [
    ("change_difference", dict(channels=8)),
    ("change_difference", dict(decoder="upernet", channels=8)),
    ("change_transformer", BIT),
    ("change_concat", dict(channels=8)),
]
IDS = ["difference", "difference-upernet", "transformer", "concat"]
every_head = pytest.mark.parametrize(("name", "fields"), CASES, ids=IDS)


def exchanged(levels):
    return tuple(level[:, ::-1] for level in levels)


@every_head
@pytest.mark.parametrize("case", [ONE, FOUR], ids=["one", "four"])
def test_any_levels_any_grid_any_classes(name, fields, case):
    params, apply = build(name, case["widths"], 5, **fields)
    levels = pyramid(**case, dates=(2,))
    logits = apply(params, levels)["logits"]
    assert logits.shape == (2, *SIZE, 5)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()
    other = apply(params, with_another_second_row(levels))["logits"]
    assert_allclose(other[0], logits[0], rtol=1e-5, atol=1e-6)
    swapped = apply(params, exchanged(levels))["logits"]
    if name == "change_difference":
        assert_array_equal(swapped, logits)
    else:
        assert np.abs(swapped - logits).max() > 1e-6  # positions of tokens or features tell before from after ...
    if name == "change_transformer":
        params["positions"] = np.zeros_like(params["positions"])
        pair = (apply(params, x)["logits"] for x in (levels, exchanged(levels)))
        assert_allclose(*pair, rtol=1e-4, atol=1e-5)  # ... and nothing else does


@pytest.mark.parametrize(("name", "fields"), CASES[:3], ids=IDS[:3])
def test_two_equal_dates_look_alike_whatever_they_show(name, fields):
    params, apply = build(name, ONE["widths"], 2, **fields)
    if name == "change_transformer":
        params["positions"] = np.zeros_like(params["positions"])
    shown, other = (np.repeat(pyramid(**ONE, seed=seed)[0][:, None], 2, axis=1) for seed in (0, 1))
    assert_allclose(apply(params, [shown])["logits"], apply(params, [other])["logits"], rtol=1e-5, atol=1e-6)
    changed = shown.copy()
    changed[:, 1, 1, 2] += 1
    assert np.abs(apply(params, [changed])["logits"] - apply(params, [shown])["logits"]).max() > 1e-3


def norm(layer, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * layer["scale"] + layer["bias"]


def dense(layer, x):
    return x @ np.float64(layer["kernel"]) + layer["bias"]


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def attention_block(p, x, context, heads):
    """One image: [P, D] and [L, D] -> [P, D]."""
    seen = norm(p["attention_norm"], context)
    q, k, v = dense(p["query"], norm(p["attention_norm"], x)), dense(p["key"], seen), dense(p["value"], seen)
    parts = zip(*(np.split(y, heads, axis=1) for y in (q, k, v)), strict=True)
    read = [softmax(a @ b.T / np.sqrt(a.shape[1]), 1) @ c for a, b, c in parts]
    x = x + dense(p["out"], np.concatenate(read, axis=1))
    h = dense(p["mlp"]["wi"], norm(p["mlp_norm"], x))
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return x + dense(p["mlp"]["wo"], gelu)


def random_like(params, rng):
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.5, params)


@pytest.mark.slow
def test_attention_block_against_numpy():
    rng = np.random.default_rng(0)
    graph, state = nnx.split(AttentionBlock(8, 2, nnx.Rngs(0), dtype=jnp.float32))
    params = random_like(nnx.to_pure_dict(state), rng)
    nnx.replace_by_pure_dict(state, params)
    x, context = rng.normal(size=(1, 6, 8)), rng.normal(size=(1, 3, 8))
    got = nnx.merge(graph, state)(jnp.float32(x), jnp.float32(context))
    assert_allclose(got[0], attention_block(params, x[0], context[0], 2), rtol=1e-3, atol=1e-3)


def test_the_transformer_against_numpy():
    """From the reduced maps to the difference: tokens, encoder over both dates, decoder of each date."""
    rng = np.random.default_rng(0)
    params, apply = build("change_transformer", (8,), 8, **BIT, dropout=0.0, tokens=3)
    params = random_like(params, rng)
    # convolutions that copy their input, so that what the transformer gets and gives is known
    for block in ("reduce", "head"):
        for layer in params[block].values() if block == "reduce" else params[block]["decoder"].values():
            layer["convolve"]["kernel"] = np.zeros((3, 3, 8, 8), np.float32)
            layer["convolve"]["kernel"][1, 1] = np.eye(8)
            layer["norm"] = {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)}
    params["head"]["classify"] = {"kernel": np.eye(8, dtype=np.float32), "bias": np.zeros(8, np.float32)}
    copied = lambda x: np.maximum(norm({"scale": 1, "bias": 0}, x), 0)  # noqa: E731

    (level,) = pyramid((8,), ((2, 3),), rows=1, dates=(2,))
    maps = copied(copied(np.float64(level[0]))).reshape(2, 6, 8)
    tokens = np.concatenate([softmax(dense(params["attend"], x), 0).T @ x for x in maps]) + params["positions"]
    layers = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
    tokens = attention_block(layers(params["encoder"], 0), tokens, tokens, 2)
    refined = []
    for x, own in zip(maps, np.split(tokens, 2), strict=True):
        for i in range(2):
            x = attention_block(layers(params["decoder"], i), x, own, 2)
        refined.append(x)
    wanted = copied(copied(np.abs(refined[1] - refined[0]))).reshape(2, 3, 8)
    got = apply(params, (level,), None, False, (2, 3))["logits"][0]
    assert_allclose(got, wanted, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), CASES[0:3:2], ids=IDS[0:3:2])
def test_learns_what_changed_by_heart(name, fields):
    params, apply = build(name, (6,), 2, **fields, dropout=0.0)
    levels = pyramid((6,), ((5, 5),), rows=4, dates=(2,))
    y = np.random.default_rng(0).integers(0, 2, (4, 5, 5))
    levels[0][:, 1] = np.where(y[..., None] == 1, levels[0][:, 1], levels[0][:, 0])
    at_grid = lambda p, x: apply(p, x, None, False, (5, 5))  # noqa: E731

    def nats(predictions):
        return -jnp.take_along_axis(jax.nn.log_softmax(predictions["logits"]), y[..., None], -1).mean()

    losses = fit(at_grid, params, levels, nats, 60, 2e-2)
    assert losses[0] > 0.5
    assert losses[-1] < 0.05


def test_only_a_head_that_sees_both_dates_learns_what_grew_and_what_shrank():
    """Features rise at some places and fall at the others; the best that a difference can do is to guess: ln 2."""
    rng = np.random.default_rng(0)
    before, rises = rng.normal(size=(4, 5, 5, 8)).astype(np.float32), rng.integers(2, size=(4, 5, 5))
    levels = [np.stack([before, before + np.where(rises, 1, -1)[..., None].astype(np.float32)], axis=1)]
    ends = {}
    for name in ("change_concat", "change_difference"):
        params, apply = build(name, (8,), 2, channels=8, dropout=0.0)
        at_grid = lambda p, x, apply=apply: apply(p, x, None, False, (5, 5))  # noqa: E731

        def nats(predictions):
            return -jnp.take_along_axis(jax.nn.log_softmax(predictions["logits"]), rises[..., None], -1).mean()

        ends[name] = fit(at_grid, params, levels, nats, 60, 2e-2)[-1]
    assert ends["change_concat"] < 0.1
    assert ends["change_difference"] > 0.5


@pytest.mark.parametrize("name", ["change_difference", "change_transformer", "change_concat"])
@pytest.mark.parametrize("dates", [(), (1,), (3,)])
def test_two_dates_are_wanted(name, dates):
    params, apply = build(name, (8,), 2, channels=8)
    with pytest.raises(DataError, match=r"compares two dates.*wanted \[N, 2, h, w, D\]"):
        apply(params, pyramid((8,), ((2, 2),), dates=dates))


def test_values_out_of_range():
    with pytest.raises(ConfigError, match=r"head.channels = 30 is no multiple of head.heads = 8"):
        ChangeTransformerConfig(channels=30)
    with pytest.raises(ConfigError, match="at least 1"):
        ChangeTransformerConfig(tokens=0)
