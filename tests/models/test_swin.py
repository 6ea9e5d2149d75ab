"""Window attention and blocks against an independent re-computation in float64 NumPy, pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.models import attention, layers, swin
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


def test_drop_path_keeps_the_mean():
    x = jnp.ones((4000, 1))
    y = layers.drop_path(x, 0.25, jax.random.key(0))
    assert_allclose(np.unique(y), [0.0, 1 / 0.75], rtol=1e-6)
    assert_allclose(y.mean(), 1.0, atol=0.03)
    assert layers.drop_path(x, 0.25, None) is x
