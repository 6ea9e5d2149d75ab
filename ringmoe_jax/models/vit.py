"""Vision transformer for single frames of a time series (released SkySense code)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.layers import TRUNCATED_NORMAL
from ringmoe_jax.models.transformer import TransformerConfig, dense_transformer


def antialiased(table: jax.Array, height: int, width: int) -> jax.Array:
    """[h, w, D] -> [height, width, D] by Keys' cubic (a = -0.5), widened where the table shrinks."""
    return jax.image.resize(table, (height, width, table.shape[-1]), "cubic")


def sampled(table: jax.Array, height: int, width: int) -> jax.Array:
    """[h, w, D] -> [height, width, D] by a cubic of a = -0.75 at the new centres, without looking farther."""
    rows, columns = (_cubic(old, new) for old, new in zip(table.shape[:2], (height, width), strict=True))
    return jnp.einsum("yh,xw,hwd->yxd", rows, columns, table)


RESIZES = {"antialiased": antialiased, "sampled": sampled}


def _cubic(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """[new, old] weights of the four neighbours of every new centre; the border repeats (PyTorch's "bicubic")."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    first, weights = np.floor(centres).astype(int), np.zeros((new, old))
    for tap in range(-1, 3):
        x = np.abs(centres - first - tap)
        near, far = ((a + 2) * x - (a + 3)) * x * x + 1, a * (((x - 5) * x + 8) * x - 4)
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(x <= 1, near, far))
    return weights.astype(np.float32)


class VisionTransformer(nnx.Module):
    """Patch embedding, class token, learned positions, pre-norm blocks, no final norm.

    Positions are resized where the grid is not the one they were made for. The class token takes part in attention
    and is dropped from the output.

    Args:
        embed: patch embedding; those of timm and SkySense have no norm.
        grid: tokens along a side that positions are made for.
        config: geometry of the blocks, whose feed-forward layers are dense.
        constrain: see `transformer.Transformer`.
        resize: of positions: "antialiased" (timm's way, and ours) or "sampled" (released SkySense code).
    """

    def __init__(
        self,
        embed: nnx.Module,
        grid: int,
        config: TransformerConfig,
        rngs: nnx.Rngs,
        *,
        constrain: Callable,
        dtype,
        resize: str = "antialiased",
    ):
        if resize not in RESIZES:
            raise ConfigError(f'positions cannot be resized by "{resize}": {nearest(resize, RESIZES)}')
        self.grid, self.resize, self.embed = grid, RESIZES[resize], embed
        self.class_token = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (config.width,), jnp.float32))
        self.positions = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (1 + grid * grid, config.width), jnp.float32))
        self.transformer = dense_transformer(config, rngs, constrain=constrain, dtype=dtype)

    def __call__(self, frames: jax.Array, *told, key, train: bool, mesh) -> jax.Array:
        """[..., H, W, C] standardised pixels, and what `embed` is told -> [..., H / patch, W / patch, D]."""
        x = self.embed(frames, *told)
        *lead, h, w, width = x.shape
        x = x.reshape(-1, h * w, width) + self._positions(h, w).astype(x.dtype)
        first = (self.class_token[...] + self.positions[...][0]).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, width)), x], axis=1)
        x, _ = self.transformer(x[:, None], None, (0,), key=key, train=train, mesh=mesh)
        return x[:, 0, 1:].reshape(*lead, h, w, width)

    def _positions(self, h: int, w: int) -> jax.Array:
        """[h w, D] float32."""
        table = self.positions[...][1:]
        if (h, w) == (self.grid, self.grid):
            return table
        table = table.reshape(self.grid, self.grid, -1)
        return self.resize(table, h, w).reshape(h * w, -1)
