"""Swin blocks in SwinV2's residual-post-norm order, stacked and scanned."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.models.attention import WindowAttention
from ringmoe_jax.models.layers import drop_path, layer_norm

REMAT_POLICIES = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class SwinBlock(nnx.Module):
    """x + LN(attention(x)), then x + LN(feed_forward(x)) (released RingMoE code: res-post-norm).

    Both norms start at zero gain, so that a new block is the identity (released SwinV2 code).

    Args:
        width: D.
        heads: attention heads.
        window: side of an attention window, in tokens.
        make_ffn: builds the feed-forward module from `rngs`; it is called as
            `ffn(x [B, S, n, D], slots, train=, mesh=) -> (x, {group: Statistics})`.
    """

    def __init__(self, width: int, heads: int, window: int, make_ffn: Callable, rngs: nnx.Rngs, *, cosine: bool, dtype):
        self.attention = WindowAttention(width, heads, window, rngs, cosine=cosine, dtype=dtype)
        self.attention_norm = layer_norm(width, rngs, dtype=dtype, scale=0.0)
        self.ffn = make_ffn(rngs)
        self.ffn_norm = layer_norm(width, rngs, dtype=dtype, scale=0.0)

    def __call__(self, x: jax.Array, shifted, slots, *, rate, key, train: bool, mesh):
        """[B, S, h, w, D] -> the same shape, and the feed-forward layer's statistics."""
        batch, slot_count, height, width, depth = x.shape
        keys = (None, None) if key is None else jax.random.split(key)
        y = self.attention(x.reshape(-1, height, width, depth), shifted)
        x = x + drop_path(self.attention_norm(y), rate, keys[0]).reshape(x.shape)
        y, collected = self.ffn(x.reshape(batch, slot_count, height * width, depth), slots, train=train, mesh=mesh)
        y = self.ffn_norm(y).reshape(-1, height, width, depth)
        return x + drop_path(y, rate, keys[1]).reshape(x.shape), collected


class SwinStage(nnx.Module):
    """`depth` blocks of one resolution. Parameters are stacked [depth, ...] and scanned.

    Odd blocks shift their windows by half a window, unless one window covers the grid.
    Compile time does not grow with `depth`.
    """

    def __init__(self, depth: int, grid: int, window: int, make_block: Callable, rngs: nnx.Rngs):
        self.depth, self.shifts = depth, grid > window
        self.blocks = nnx.vmap(lambda key: make_block(nnx.Rngs(key)))(jax.random.split(rngs.params(), depth))

    def __call__(self, x: jax.Array, slots, *, rates, key, train: bool, mesh, remat: str):
        """[B, S, h, w, D] and `rates` [depth] -> the same shape and statistics stacked [depth, ...]."""
        graph, stacked = nnx.split(self.blocks)
        keys = None if key is None else jax.random.split(key, self.depth)
        odd = jnp.arange(self.depth) % 2 == 1

        def body(x, layer):
            params, odd, rate, key = layer
            block = nnx.merge(graph, params)
            return block(x, odd if self.shifts else False, slots, rate=rate, key=key, train=train, mesh=mesh)

        if remat != "none":
            body = jax.checkpoint(body, prevent_cse=False, policy=REMAT_POLICIES[remat])
        return jax.lax.scan(body, x, (stacked, odd, rates, keys))
