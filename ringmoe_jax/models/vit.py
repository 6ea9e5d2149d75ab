"""Vision transformer for single frames of a time series (released SkySense code)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.models.layers import TRUNCATED_NORMAL, PatchEmbed
from ringmoe_jax.models.transformer import Transformer, TransformerConfig


class VisionTransformer(nnx.Module):
    """Patch embedding without norm, class token, learned positions, pre-norm blocks, no final norm.

    Positions are resized (bicubic) where the grid is not the one they were made for. The class token takes part
    in attention and is dropped from the output.

    Args:
        channels: C of a frame.
        patch: side of a patch in pixels.
        grid: tokens along a side that positions are made for.
        config: geometry of the blocks.
        make_ffn: see `transformer.Transformer`.
        constrain: see there.
    """

    def __init__(
        self,
        channels: int,
        patch: int,
        grid: int,
        config: TransformerConfig,
        make_ffn: Callable,
        rngs: nnx.Rngs,
        *,
        constrain: Callable,
        dtype,
    ):
        self.grid = grid
        self.embed = PatchEmbed(channels, patch, config.width, rngs, dtype=dtype, norm=False)
        self.class_token = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (config.width,), jnp.float32))
        self.positions = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (1 + grid * grid, config.width), jnp.float32))
        self.transformer = Transformer(config, make_ffn, rngs, constrain=constrain, dtype=dtype)

    def __call__(self, frames: jax.Array, *, key, train: bool, mesh) -> jax.Array:
        """[N, H, W, C] standardised pixels -> [N, H / patch, W / patch, D]."""
        x = self.embed(frames)
        number, h, w, width = x.shape
        x = x.reshape(number, h * w, width) + self._positions(h, w).astype(x.dtype)
        first = (self.class_token[...] + self.positions[...][0]).astype(x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(first, (number, 1, width)), x], axis=1)
        x, _ = self.transformer(x[:, None], None, (0,), key=key, train=train, mesh=mesh)
        return x[:, 0, 1:].reshape(number, h, w, width)

    def _positions(self, h: int, w: int) -> jax.Array:
        """[h w, D] float32."""
        table = self.positions[...][1:]
        if (h, w) == (self.grid, self.grid):
            return table
        table = table.reshape(self.grid, self.grid, -1)
        return jax.image.resize(table, (h, w, table.shape[-1]), "cubic").reshape(h * w, -1)
