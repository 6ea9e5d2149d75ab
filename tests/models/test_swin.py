"""Window attention and blocks against an independent re-computation in float64 NumPy, pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.models import attention, layers, swin, transformer
from tests.helpers.parameters import stirred_module

H = W = 8
WINDOW, HEADS, D = 4, 2, 6


def reference_attention(params, x, shift, cosine):
    """[H, W, D] float64. Loops over query pixels and finds each one's window by its shifted coordinates."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def linear(name, v):
        return v @ p[name]["kernel"] + p[name].get("bias", 0.0)

    q, k, v = (linear(n, x).reshape(H, W, HEADS, -1) for n in ("query", "key", "value"))
    if cosine:
        q, k = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (q, k))
    out = np.zeros((H, W, D))

    def region(i):  # window number along one axis, and whether the pixel came around the border
        moved = (i - shift) % H
        return moved // WINDOW, i < shift

    for i in range(H):
        for j in range(W):
            mates = [(a, b) for a in range(H) for b in range(W) if (region(a), region(b)) == (region(i), region(j))]
            for head in range(HEADS):
                scores = []
                for a, b in mates:
                    # Offsets within the window: undo the shift on both.
                    di = ((i - shift) % H) - ((a - shift) % H)
                    dj = ((j - shift) % W) - ((b - shift) % W)
                    dot = q[i, j, head] @ k[a, b, head]
                    if cosine:
                        scale = np.exp(np.minimum(p["logit_scale"][head], np.log(100.0)))
                        point = np.asarray([di, dj], float) / (WINDOW - 1) * 8
                        point = np.sign(point) * np.log2(np.abs(point) + 1) / 3.0
                        hidden = np.maximum(linear("position_in", point), 0)
                        bias = 16 / (1 + np.exp(-linear("position_out", hidden)[head]))
                    else:
                        scale = (D / HEADS) ** -0.5
                        row = (di + WINDOW - 1) * (2 * WINDOW - 1) + dj + WINDOW - 1
                        bias = p["relative_position_bias"][row, head]
                    scores.append(dot * scale + bias)
                weights = np.exp(scores - np.max(scores))
                weights /= weights.sum()
                size = D // HEADS
                out[i, j, head * size : (head + 1) * size] = sum(
                    w * v[a, b, head] for w, (a, b) in zip(weights, mates, strict=True)
                )
    return linear("out", out)


def randomised(make, seed=0):
    """The module and its parameters: redrawn with unit scale so that a mistake cannot hide behind 0.02."""
    return stirred_module(lambda: make(nnx.Rngs(0)), seed, 0.5)


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_window_attention(cosine, shifted):
    options = dict(cosine=cosine, dtype=jnp.float32)
    module, params = randomised(lambda rngs: attention.WindowAttention(D, HEADS, WINDOW, rngs, **options))
    x = np.random.default_rng(0).normal(size=(2, H, W, D))
    x32 = jnp.asarray(x, jnp.float32)
    known, traced = jax.jit(lambda x: module(x, shifted))(x32), jax.jit(module)(x32, shifted)
    for i, got in enumerate(known):
        reference = reference_attention(params, x[i], WINDOW // 2 if shifted else 0, cosine)
        assert_allclose(got, reference, rtol=1e-4, atol=1e-4)
    assert_allclose(traced, known, rtol=1e-5, atol=1e-5)


def test_block_is_residual_post_norm():
    class Ffn(nnx.Module):
        def __init__(self, rngs):
            self.mlp = layers.Mlp(D, 4 * D, rngs, dtype=jnp.float32)

        def __call__(self, x, slots, *, train, mesh):
            return self.mlp(x), {}

    make = lambda rngs: swin.SwinBlock(D, HEADS, WINDOW, Ffn, rngs, cosine=False, dtype=jnp.float32)  # noqa: E731
    block, params = randomised(make, seed=3)
    x = np.random.default_rng(1).normal(size=(1, 1, H, W, D))
    how = dict(rate=0.0, key=None, train=True, mesh=None)
    got, _ = jax.jit(lambda x: block(x, True, (0,), **how))(jnp.asarray(x, jnp.float32))

    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(name, v):
        centred = v - v.mean(axis=-1, keepdims=True)
        return centred / np.sqrt(centred.var(axis=-1, keepdims=True) + 1e-5) * p[name]["scale"] + p[name]["bias"]

    def gelu(v):
        return 0.5 * v * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))

    y = x[0, 0] + norm("attention_norm", reference_attention(params["attention"], x[0, 0], 2, False))
    mlp = p["ffn"]["mlp"]
    hidden = gelu(y @ mlp["wi"]["kernel"] + mlp["wi"]["bias"])
    y = y + norm("ffn_norm", hidden @ mlp["wo"]["kernel"] + mlp["wo"]["bias"])
    assert_allclose(got[0, 0], y, rtol=2e-4, atol=2e-4)


def test_patches_and_merging_keep_neighbours_together():
    """A linear layer sees its patch as rows, columns, channels; checked by an einsum of a convolution."""
    image = np.random.default_rng(0).normal(size=(8, 8, 3))
    stem, params = randomised(lambda rngs: layers.PatchEmbed(3, 4, 5, rngs, dtype=jnp.float32))
    kernel = np.asarray(params["project"]["kernel"], np.float64).reshape(4, 4, 3, 5)
    by_hand = np.stack(
        [
            [np.einsum("abc,abcd->d", image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4], kernel) for j in range(2)]
            for i in range(2)
        ]
    )
    assert_allclose(stem.project(_patches(image, 4)) - params["project"]["bias"], by_hand, rtol=1e-4, atol=1e-4)
    assert stem(jnp.asarray(image, jnp.float32)).shape == (2, 2, 5)
    merge, _ = randomised(lambda rngs: layers.PatchMerging(3, rngs, dtype=jnp.float32))
    assert merge(jnp.asarray(image, jnp.float32)).shape == (4, 4, 6)
    moved = image.copy()
    moved[2, 3] += 1.0  # belongs to the merged token (1, 1) and to no other
    changed = np.any(np.asarray(merge(jnp.asarray(image)) != merge(jnp.asarray(moved))), axis=-1)
    assert_array_equal(np.argwhere(changed), [[1, 1]])


def _patches(image, p):
    n = image.shape[0] // p
    return jnp.asarray([[image[p * i : p * i + p, p * j : p * j + p].reshape(-1) for j in range(n)] for i in range(n)])


def test_decoder_puts_each_token_on_its_own_square():
    decoder, _ = randomised(lambda rngs: layers.PixelDecoder(D, 4, 2, rngs, dtype=jnp.float32))
    tokens = np.random.default_rng(0).normal(size=(2, 2, D)).astype(np.float32)
    moved = tokens.copy()
    moved[1, 0] += 1.0
    changed = np.any(np.asarray(decoder(jnp.asarray(tokens)) != decoder(jnp.asarray(moved))), axis=-1)
    assert changed[4:, :4].all()
    assert changed.sum() == 16


@pytest.mark.parametrize("before", [False, True])
def test_a_dropped_branch_leaves_nothing_or_the_bias_of_its_norm(before):
    ffn = lambda rngs: layers.FeedForward(D, D, rngs, dtype=jnp.float32)  # noqa: E731
    options = dict(cosine=False, dtype=jnp.float32, drop_before_norm=before)
    block = swin.SwinBlock(D, HEADS, WINDOW, ffn, nnx.Rngs(0), **options)
    block.attention_norm.bias[...], block.ffn_norm.bias[...] = jnp.full(D, 2.0), jnp.full(D, 0.5)
    x = jax.random.normal(jax.random.key(0), (2, 1, H, W, D))
    y, _ = block(x, False, (0,), rate=1.0, key=jax.random.key(1), train=True, mesh=None)
    assert_allclose(y, x + (2.5 if before else 0.0), rtol=1e-6)


@pytest.mark.slow
def test_attention_is_dropped_or_stays():
    x = jax.random.normal(jax.random.key(0), (2, 1, 3, D))
    ffn = lambda rngs: layers.FeedForward(D, D, rngs, dtype=jnp.float32)  # noqa: E731
    for dropped in (True, False):
        options = dict(dtype=jnp.float32, epsilon=1e-5, drop_attention=dropped)
        block = transformer.Block(D, HEADS, ffn, nnx.Rngs(0), **options)
        y, _ = block(x, None, (0,), rate=1.0, key=jax.random.key(1), train=True, mesh=None)
        added = 0.0 if dropped else block.attention(block.attention_norm(x[:, 0]), None)[:, None]
        assert_allclose(y, x + added, rtol=1e-5, atol=1e-6)
        assert dropped or np.abs(added).max() > 0


def test_kernels_start_normal_or_as_the_framework_leaves_them():
    decoder = lambda kernel: layers.PixelDecoder(64, 8, 4, nnx.Rngs(0), dtype=jnp.float32, kernel=kernel).project  # noqa: E731
    ours, theirs = decoder("normal"), decoder("uniform")
    assert_allclose(np.std(ours.kernel[...]), 0.0176, rtol=0.02)  # 0.02, cut off at two of it
    assert not np.any(ours.bias[...])
    for values in (theirs.kernel[...], theirs.bias[...]):
        assert np.abs(values).max() <= 1 / 8
        assert_allclose(np.std(values), 1 / 8 / np.sqrt(3), rtol=0.1)


@pytest.mark.slow
def test_epsilons_and_gains_are_those_of_the_config():
    """On nearly equal tokens, whose spread is that of the epsilon: LN(x) = (x - mean) / sqrt(variance + epsilon)."""
    config = swin.SwinConfig(D, (1, 1), 4, 2, D, False, norm_gain=1.0, epsilon=1e-6, merge_epsilon=1e-4)
    ffn = lambda width, rngs, layer: layers.FeedForward(width, width, rngs, dtype=jnp.float32)  # noqa: E731
    pyramid = swin.SwinPyramid(config, ffn, nnx.Rngs(0), constrain=lambda x: x, dtype=jnp.float32)
    x = np.float32(1e-2 * np.random.default_rng(0).standard_normal(2 * D))
    for norm, epsilon in (
        (pyramid.merges["merge0"].norm, 1e-4),
        (pyramid.stages["stage1"].blocks["run0"].attention_norm, 1e-6),
        (pyramid.stages["stage1"].blocks["run0"].ffn_norm, 1e-6),
    ):
        assert norm.epsilon == epsilon
        assert_allclose(norm.scale[...], 1.0)
    got = pyramid.merges["merge0"].norm(jnp.asarray(x))
    assert_allclose(got, (x - x.mean()) / np.sqrt(x.astype(np.float64).var() + 1e-4), rtol=1e-4, atol=1e-5)


def test_drop_path_keeps_the_mean():
    x = jnp.ones((4000, 1))
    y = layers.drop_path(x, 0.25, jax.random.key(0))
    assert_allclose(np.unique(y), [0.0, 1 / 0.75], rtol=1e-6)
    assert_allclose(y.mean(), 1.0, atol=0.03)
    assert layers.drop_path(x, 0.25, None) is x
