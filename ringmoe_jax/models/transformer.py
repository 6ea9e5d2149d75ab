"""Pre-norm transformer blocks, stacked and scanned: ViT frames and SkySense's fusion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.models.layers import EPSILON, FeedForward, drop_path, layer_norm, linear
from ringmoe_jax.models.stack import scan, stack


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Geometry. Defaults are ViT-L, as in the released SkySense code.

    Attributes:
        width: D.
        depth: blocks, L.
        heads: K; divides `width`.
        hidden_ratio: F / D.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        drop_attention: whether it drops attention, too (ViT of timm, ours), or feed-forward branches alone (released
            SkySense code).
        remat: key of `stack.REMAT_POLICIES`.
        unroll: see `stack.scan`.
        exact_gelu: GELU by the error function (released SkySense code, timm), not by its usual approximation.
        epsilon: of layer norms; timm's ViT and SkySense++ have 1e-6.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    hidden_ratio: int = 4
    drop_path: float = 0.3
    drop_attention: bool = True
    remat: str = "none"
    unroll: bool = False
    exact_gelu: bool = False
    epsilon: float = EPSILON

    @property
    def blocks_above(self) -> dict[str, tuple[int, ...]]:
        """Blocks above each of a `Transformer`, see `ringmoe_jax.models.api.Model`."""
        return {"blocks": tuple(range(self.depth))[::-1]}


class SelfAttention(nnx.Module):
    """Multi-head self-attention over all tokens, with biases on queries, keys and values."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, *, dtype):
        self.heads = heads
        self.query, self.key, self.value, self.out = (linear(width, width, rngs, dtype=dtype) for _ in range(4))

    def __call__(self, x: jax.Array, visible: jax.Array | None) -> jax.Array:
        """[N, L, D] -> [N, L, D]; `visible` [N, L] bool says which tokens may be attended to, None: all."""
        q, k, v = (f(x).reshape(*x.shape[:2], self.heads, -1) for f in (self.query, self.key, self.value))
        mask = None if visible is None else visible[:, None, None, :]
        return self.out(jax.nn.dot_product_attention(q, k, v, mask=mask).reshape(x.shape))


class Block(nnx.Module):
    """x + attention(LN(x)), then x + feed_forward(LN(x)).

    Args:
        width: D.
        heads: attention heads.
        make_ffn: builds the feed-forward module from `rngs`, called as in `swin.SwinBlock`.
        epsilon: of both norms.
        drop_attention: see `TransformerConfig`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        make_ffn: Callable,
        rngs: nnx.Rngs,
        *,
        dtype,
        epsilon: float,
        drop_attention: bool = True,
    ):
        self.drop_attention = drop_attention
        self.attention_norm = layer_norm(width, rngs, dtype=dtype, epsilon=epsilon)
        self.attention = SelfAttention(width, heads, rngs, dtype=dtype)
        self.ffn_norm = layer_norm(width, rngs, dtype=dtype, epsilon=epsilon)
        self.ffn = make_ffn(rngs)

    def __call__(self, x: jax.Array, visible, slots, *, rate, key, train: bool, mesh):
        """[N, S, n, D] -> the same shape, and the feed-forward layer's statistics; attention over all S n tokens."""
        keys = (None, None) if key is None else jax.random.split(key)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        y = self.attention(self.attention_norm(tokens), visible)
        x = x + drop_path(y, rate, keys[0] if self.drop_attention else None).reshape(x.shape)
        y, collected = self.ffn(self.ffn_norm(x), slots, train=train, mesh=mesh)
        return x + drop_path(y, rate, keys[1]), collected


class Transformer(nnx.Module):
    """`config.depth` blocks without a final norm.

    Args:
        config: geometry.
        make_ffn: `make_ffn(width, rngs)` builds a block's feed-forward module.
        constrain: applied to the tokens at the borders of blocks, for example a sharding constraint.
    """

    def __init__(self, config: TransformerConfig, make_ffn: Callable, rngs: nnx.Rngs, *, constrain: Callable, dtype):
        self.config, self.constrain = config, constrain

        def make_block(rngs):
            ffn = lambda rngs: make_ffn(config.width, rngs)  # noqa: E731
            options = dict(dtype=dtype, epsilon=config.epsilon, drop_attention=config.drop_attention)
            return Block(config.width, config.heads, ffn, rngs, **options)

        self.blocks = stack(make_block, config.depth, rngs)

    def __call__(self, x: jax.Array, visible: jax.Array | None, slots, *, key, train: bool, mesh):
        """[N, S, n, D] and `visible` [N, S n] or None -> the same shape, and statistics stacked [L, ...]."""
        config = self.config
        if not train or config.drop_path == 0:
            key = None
        keys = None if key is None else jax.random.split(key, config.depth)

        def call(block, x, rate, key):
            x, collected = block(x, visible, slots, rate=rate, key=key, train=train, mesh=mesh)
            return self.constrain(x), collected

        x = self.constrain(x)
        layers = (jnp.linspace(0.0, config.drop_path, config.depth), keys)
        return scan(call, self.blocks, x, layers, config.remat, unroll=config.unroll)


def dense_transformer(config: TransformerConfig, rngs: nnx.Rngs, *, constrain: Callable, dtype) -> Transformer:
    """A `Transformer` whose feed-forward layers are dense, and as `config` says."""
    options = dict(dtype=dtype, exact=config.exact_gelu)
    make_ffn = lambda width, rngs: FeedForward(width, config.hidden_ratio * width, rngs, **options)  # noqa: E731
    return Transformer(config, make_ffn, rngs, constrain=constrain, dtype=dtype)
