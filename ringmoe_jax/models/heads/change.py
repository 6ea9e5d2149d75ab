"""Heads that say what changed between two dates, which one encoder saw each on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.heads.base import HEADS, PIXEL_LOGITS, HeadConfig
from ringmoe_jax.models.heads.dense import DenseConfig, DenseHead, FcnConfig, FcnDecoder
from ringmoe_jax.models.layers import TRUNCATED_NORMAL, Mlp, layer_norm, linear
from ringmoe_jax.models.stack import scan, stack


class ChangeDenseConfig(DenseConfig, HeadConfig):
    """As `DenseConfig`; see `ChangeDense`."""

    gives: ClassVar = {"logits": PIXEL_LOGITS}
    pairs: ClassVar[bool] = True


@HEADS.register("change_difference")
@dataclasses.dataclass(frozen=True)
class ChangeDifferenceConfig(ChangeDenseConfig):
    """As `DenseConfig`."""

    def build(self, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype) -> ChangeDense:
        """See `HeadConfig`."""
        return ChangeDense(DenseHead(self, widths, outputs, rngs, dtype=dtype), _difference)


@HEADS.register("change_concat")
@dataclasses.dataclass(frozen=True)
class ChangeConcatConfig(ChangeDenseConfig):
    """As `DenseConfig`."""

    def build(self, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype) -> ChangeDense:
        """See `HeadConfig`."""
        head = DenseHead(self, tuple(2 * width for width in widths), outputs, rngs, dtype=dtype)
        return ChangeDense(head, _side_by_side)


class ChangeDense(nnx.Module):
    """A dense head on what becomes of the two dates' features, level by level.

    "change_difference" looks at their absolute difference (as FC-Siam-diff, Daudt et al. 2018), which cannot tell
    before from after: exchanging the dates changes nothing. "change_concat" looks at both side by side (FC-Siam-conc of
    the same paper): it knows which came first, what was there before, and radar's growing darker from its growing
    brighter.
    Call: levels [N, 2, h_i, w_i, D_i] and size -> {"logits": [N, H, W, C] float32}.

    Args:
        head: reads what `join` gives.
        join: [N, 2, h, w, D] -> [N, h, w, D'].

    Raises:
        DataError: when called with levels that have not two dates.
    """

    def __init__(self, head: DenseHead, join: Callable[[jax.Array], jax.Array]):
        self.head, self.join = head, join

    def __call__(self, levels: tuple[jax.Array, ...], size: tuple[int, int], *, key, train: bool) -> dict:
        _check_dates(levels)
        return self.head(tuple(self.join(x) for x in levels), size, key=key, train=train)


def _difference(x: jax.Array) -> jax.Array:
    return jnp.abs(x[:, 1] - x[:, 0])


def _side_by_side(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x[:, 0], x[:, 1]], axis=-1)


@HEADS.register("change_transformer")
@dataclasses.dataclass(frozen=True)
class ChangeTransformerConfig(HeadConfig):
    """Geometry. Tokens, depths and heads are the paper's; it has 32 channels and heads of 64.

    Attributes:
        channels: C of the maps and tokens, a multiple of `heads`.
        tokens: semantic tokens of a date.
        encoder_depth: blocks over the tokens of both dates.
        decoder_depth: blocks in which the pixels of a date look at its tokens.
        heads: attention heads.
        dropout: share of channels that are dropped before the classifier, 0 to below 1.
    """

    gives: ClassVar = {"logits": PIXEL_LOGITS}
    pairs: ClassVar[bool] = True
    channels: int = 64
    tokens: int = 4
    encoder_depth: int = 1
    decoder_depth: int = 8
    heads: int = 8
    dropout: float = 0.1

    def __post_init__(self):
        if min(self.tokens, self.encoder_depth, self.decoder_depth, self.heads) < 1:
            raise ConfigError("head.tokens, encoder_depth, decoder_depth and heads: wanted at least 1 of each")
        if self.channels % self.heads:
            raise ConfigError(f"head.channels = {self.channels} is no multiple of head.heads = {self.heads}")

    def build(self, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype) -> ChangeTransformer:
        """See `HeadConfig`."""
        return ChangeTransformer(self, widths, outputs, rngs, dtype=dtype)


class ChangeTransformer(nnx.Module):
    """Bitemporal image transformer, BIT (Chen, Qi and Shi 2021, arXiv 2103.00208, section III).

    Each date's map is summed up in a few tokens by spatial attention; a transformer relates the tokens of both dates;
    the pixels of each date then read them by cross-attention, with one set of weights for both dates. The absolute
    difference goes to a small FCN. Beyond the paper: the map is `FcnDecoder`'s of any number of levels, and all is
    computed on the finest level's grid, so that logits are enlarged and not features. Positions of the tokens tell
    before from after.
    Call: levels [N, 2, h_i, w_i, D_i] and size -> {"logits": [N, H, W, C] float32}.

    Raises:
        DataError: when called with levels that have not two dates.
    """

    def __init__(
        self,
        config: ChangeTransformerConfig,
        widths: tuple[int, ...],
        outputs: int,
        rngs: nnx.Rngs,
        *,
        dtype,
    ):
        channels, heads = config.channels, config.heads
        make_block = lambda rngs: AttentionBlock(channels, heads, rngs, dtype=dtype)  # noqa: E731
        self.reduce = FcnDecoder(channels, widths, rngs, dtype=dtype)
        self.attend = linear(channels, config.tokens, rngs, dtype=dtype)
        self.positions = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (2 * config.tokens, channels), jnp.float32))
        self.encoder = stack(make_block, config.encoder_depth, rngs)
        self.decoder = stack(make_block, config.decoder_depth, rngs)
        self.head = DenseHead(FcnConfig(channels, config.dropout), (channels,), outputs, rngs, dtype=dtype)

    def __call__(self, levels: tuple[jax.Array, ...], size: tuple[int, int], *, key, train: bool) -> dict:
        _check_dates(levels)
        maps = self.reduce([x.reshape(-1, *x.shape[2:]) for x in levels])  # dates are rows: [2 N, h, w, C]
        rows, height, width, channels = maps.shape
        pixels = maps.reshape(rows, height * width, channels)
        tokens = self._tokens(pixels).reshape(rows // 2, -1, channels)
        tokens = tokens + self.positions[...].astype(tokens.dtype)
        tokens, _ = scan(lambda block, x: (block(x, x), None), self.encoder, tokens, (), "none")
        tokens = tokens.reshape(rows, -1, channels)
        pixels, _ = scan(lambda block, x: (block(x, tokens), None), self.decoder, pixels, (), "none")
        refined = pixels.reshape(rows // 2, 2, height, width, channels)
        return self.head((jnp.abs(refined[:, 1] - refined[:, 0]),), size, key=key, train=train)

    def _tokens(self, pixels: jax.Array) -> jax.Array:
        """[R, P, C] -> [R, tokens, C]: means over the pixels, each token with its own weights (section III-B)."""
        weights = jax.nn.softmax(self.attend(pixels).astype(jnp.float32), axis=1)
        return jnp.einsum("rpt,rpc->rtc", weights.astype(pixels.dtype), pixels)


class AttentionBlock(nnx.Module):
    """x + attention(LN(x), LN(context)), then x + MLP(LN(x)), with F = 2 D.

    Call: [N, P, D] and [N, L, D] -> [N, P, D].
    """

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, *, dtype):
        self.heads = heads
        self.attention_norm, self.mlp_norm = (layer_norm(width, rngs, dtype=dtype) for _ in range(2))
        self.query, self.key, self.value, self.out = (linear(width, width, rngs, dtype=dtype) for _ in range(4))
        self.mlp = Mlp(width, 2 * width, rngs, dtype=dtype)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        split = lambda y: y.reshape(*y.shape[:2], self.heads, -1)  # noqa: E731
        seen = self.attention_norm(context)
        q, k, v = self.query(self.attention_norm(x)), self.key(seen), self.value(seen)
        read = jax.nn.dot_product_attention(split(q), split(k), split(v))
        x = x + self.out(read.reshape(x.shape))
        return x + self.mlp(self.mlp_norm(x))


def _check_dates(levels: tuple[jax.Array, ...]) -> None:
    for level in levels:
        if level.ndim != 5 or level.shape[1] != 2:
            raise DataError(
                f"a change head compares two dates: a level has shape {tuple(level.shape)}, wanted [N, 2, h, w, D]"
            )
