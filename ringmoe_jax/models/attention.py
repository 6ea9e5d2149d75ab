"""Window attention of Swin and SwinV2."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ringmoe_jax.models.layers import TRUNCATED_NORMAL, linear, unit


def relative_position_index(window: int) -> np.ndarray:
    """Row of the relative-position table for each query and key of a window.

    Returns:
        [window^2, window^2] int in 0..(2 window - 1)^2 - 1.
    """
    row, column = np.divmod(np.arange(window * window), window)
    d_row = row[:, None] - row[None, :] + window - 1
    d_column = column[:, None] - column[None, :] + window - 1
    return d_row * (2 * window - 1) + d_column


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Which pairs of a cyclically shifted window were neighbours before the shift (Swin, Fig. 4).

    Returns:
        [windows, window^2, window^2] bool, True where attention is allowed.
    """

    def regions(size):  # 0 | 1 | 2: untouched, last whole window's head, wrapped tail
        return np.searchsorted([size - window, size - shift], np.arange(size), side="right")

    region = regions(height)[:, None] * 3 + regions(width)[None, :]
    region = region.reshape(height // window, window, width // window, window).swapaxes(1, 2)
    region = region.reshape(-1, window * window)
    return region[:, :, None] == region[:, None, :]


def log_coordinates(window: int) -> np.ndarray:
    """Log-spaced relative coordinates in -1..1 for the continuous position bias (SwinV2, Eq. 4).

    Returns:
        [(2 window - 1)^2, 2] float32.
    """
    offset = np.arange(-(window - 1), window, dtype=np.float32) / max(window - 1, 1) * 8
    scaled = np.sign(offset) * np.log2(np.abs(offset) + 1) / np.log2(8)
    return np.stack(np.meshgrid(scaled, scaled, indexing="ij"), axis=-1).reshape(-1, 2)


class WindowAttention(nnx.Module):
    """Multi-head self-attention within non-overlapping windows.

    With `cosine` False: scaled dot product and a learned relative-position table, as in Swin and in
    the released RingMoE code. With `cosine` True: SwinV2's cosine attention with a learned log scale
    (at most 100) and a position bias from a small MLP over log-spaced coordinates; the key
    projection then has no bias.

    Args:
        width: D, a multiple of `heads`.
        heads: K heads.
        window: side of a full window, in tokens.
    """

    def __init__(self, width: int, heads: int, window: int, rngs: nnx.Rngs, *, cosine: bool, dtype):
        self.heads, self.window, self.cosine = heads, window, cosine
        self.query = linear(width, width, rngs, dtype=dtype)
        self.key = linear(width, width, rngs, dtype=dtype, bias=not cosine)
        self.value = linear(width, width, rngs, dtype=dtype)
        self.out = linear(width, width, rngs, dtype=dtype)
        if cosine:
            self.logit_scale = nnx.Param(jnp.full((heads,), np.log(10.0), jnp.float32))
            self.position_in = linear(2, 512, rngs, dtype=jnp.float32)
            self.position_out = linear(512, heads, rngs, dtype=jnp.float32, bias=False)
        else:
            table = TRUNCATED_NORMAL(rngs.params(), ((2 * window - 1) ** 2, heads), jnp.float32)
            self.relative_position_bias = nnx.Param(table)

    def __call__(self, x: jax.Array, shifted: jax.Array | bool = False) -> jax.Array:
        """[B, h, w, D] -> [B, h, w, D].

        Windows shrink to a grid that is smaller than they are; a smaller window takes its position bias from the same
        offsets of the full one, so parameters do not depend on the grid. A grid that they do not tile is filled up
        with zeros below and on the right, which take part in attention (released SkySense code).

        `shifted` moves the windows by half a window, cyclically. It may be traced, so that shifted and plain
        blocks share one compiled body; the constant False leaves the shift out of the program.
        """
        batch, rows, columns, depth = x.shape
        window = min(self.window, rows, columns)
        x = jnp.pad(x, [(0, 0), (0, -rows % window), (0, -columns % window), (0, 0)])
        height, width = x.shape[1:3]
        shift = window // 2 if shifted is not False else 0
        if shift:
            x = jax.lax.cond(shifted, lambda y: jnp.roll(y, (-shift, -shift), axis=(1, 2)), lambda y: y, x)
        x = _windows(x, window)  # [B, n, window^2, D]
        q, k, v = (jnp.reshape(f(x), (*x.shape[:3], self.heads, -1)) for f in (self.query, self.key, self.value))
        if self.cosine:
            q, k = unit(q), unit(k)
            scale = jnp.exp(jnp.minimum(self.logit_scale[...], np.log(100.0)))
        else:
            scale = jnp.full((self.heads,), q.shape[-1] ** -0.5)
        scores = jnp.einsum("bnqkd,bnskd->bnkqs", q, k).astype(jnp.float32)
        scores = scores * scale[:, None, None] + self._position_bias(window)
        if shift:
            neighbours = shift_mask(height, width, window, shift)[:, None]
            scores = jnp.where(neighbours | ~jnp.asarray(shifted), scores, -1e9)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        x = self.out(jnp.einsum("bnkqs,bnskd->bnqkd", weights, v).reshape(x.shape))
        x = x.reshape(batch, height // window, width // window, window, window, depth)
        x = x.swapaxes(2, 3).reshape(batch, height, width, depth)
        if shift:
            x = jax.lax.cond(shifted, lambda y: jnp.roll(y, (shift, shift), axis=(1, 2)), lambda y: y, x)
        return x[:, :rows, :columns]

    def _position_bias(self, window: int) -> jax.Array:
        """[K, window^2, window^2] float32, for windows up to the full one."""
        if self.cosine:
            table = self.position_out(jax.nn.relu(self.position_in(log_coordinates(self.window))))
            table = 16 * jax.nn.sigmoid(table)
        else:
            table = self.relative_position_bias[...]
        corner = (np.arange(window)[:, None] * self.window + np.arange(window)).reshape(-1)
        return jnp.moveaxis(table[relative_position_index(self.window)[np.ix_(corner, corner)]], -1, 0)


def _windows(x: jax.Array, window: int) -> jax.Array:
    """[B, h, w, D] -> [B, windows, window^2, D]."""
    batch, height, width, depth = x.shape
    x = x.reshape(batch, height // window, window, width // window, window, depth).swapaxes(2, 3)
    return x.reshape(batch, -1, window * window, depth)
