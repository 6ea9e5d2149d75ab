"""Heads that label a whole image: a pooled feature, an optional hidden layer, a linear layer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.heads.base import HEADS, IMAGE_LOGITS, HeadConfig
from ringmoe_jax.models.layers import linear

POOLS = ("mean", "max", "attention")


@HEADS.register("linear")
@dataclasses.dataclass(frozen=True)
class LinearConfig(HeadConfig):
    """A linear layer on pooled features.

    Attributes:
        pool: over the positions of the last level: "mean" (how much of something there is), "max" (whether there is
            any), or "attention", see `AttentionPool`.
        dropout: share of features that are dropped before the last layer, 0 to below 1.
    """

    pool: str = "mean"
    dropout: float = 0.0
    hidden: ClassVar[int] = 0
    gives: ClassVar = {"logits": IMAGE_LOGITS}

    def __post_init__(self):
        if self.pool not in POOLS:
            raise ConfigError(f'head.pool = "{self.pool}" does not exist: {nearest(self.pool, POOLS)}')
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"head.dropout = {self.dropout}: wanted 0 to below 1")

    def build(self, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype) -> PooledHead:
        """See `HeadConfig`."""
        return PooledHead(self, widths, outputs, rngs, dtype=dtype)


@HEADS.register("mlp")
@dataclasses.dataclass(frozen=True)
class MlpConfig(LinearConfig):
    """As `LinearConfig`, with a hidden layer and GELU in between.

    Attributes:
        hidden: its units, at least 1.
    """

    hidden: int = 512

    def __post_init__(self):
        super().__post_init__()
        if self.hidden < 1:
            raise ConfigError(f'head.hidden = {self.hidden}: wanted at least 1; without a hidden layer it is "linear"')


class PooledHead(nnx.Module):
    """Call: levels and size -> {"logits": [N, C] float32}, of the last level alone; see `ringmoe_jax.models.heads`."""

    def __init__(self, config: LinearConfig, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype):
        width = widths[-1]
        pools = {"mean": lambda x: x.mean(axis=(1, 2)), "max": lambda x: x.max(axis=(1, 2))}
        self.pool = pools.get(config.pool) or AttentionPool(width)
        self.hidden = linear(width, config.hidden, rngs, dtype=dtype) if config.hidden else None
        self.dropout = nnx.Dropout(config.dropout)
        self.classify = linear(config.hidden or width, outputs, rngs, dtype=dtype)

    def __call__(self, levels: tuple[jax.Array, ...], size: tuple[int, int], *, key, train: bool) -> dict:
        x = self.pool(levels[-1].astype(jnp.float32))
        if self.hidden:
            x = jax.nn.gelu(self.hidden(x))
        x = self.dropout(x, deterministic=not train or key is None, rngs=key)
        return {"logits": self.classify(x).astype(jnp.float32)}


class AttentionPool(nnx.Module):
    """Mean over positions weighted by softmax(x . q / sqrt(D)) with one learned query q.

    Attention pooling as in Ilse et al. 2018 (arXiv 1802.04712), with the feature itself as key and value (our choice).
    The query starts at 0, so training starts from the plain mean.
    Call: [N, h, w, D] float32 -> [N, D].
    """

    def __init__(self, width: int):
        self.query = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        scores = x @ self.query[...] * x.shape[-1] ** -0.5
        return jnp.einsum("np,npd->nd", jax.nn.softmax(scores, axis=-1), x)
