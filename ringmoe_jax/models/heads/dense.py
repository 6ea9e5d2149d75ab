"""Heads that label every pixel: a decoder of the feature pyramid and a linear classifier of its pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.heads.base import HEADS, PIXEL_LOGITS, HeadConfig
from ringmoe_jax.models.layers import layer_norm, linear

POOLS = (1, 2, 3, 6)  # sides of UPerNet's pooled grids (PSPNet)
DEEP = 2  # the level that the auxiliary classifier reads: the third, or the last of fewer


@dataclasses.dataclass(frozen=True)
class DenseConfig:
    """A dense head whose decoder is a choice.

    Attributes:
        decoder: key of `DECODERS`, "fcn" or "upernet".
        channels: width of its maps.
        dropout: share of channels that are dropped before the classifier, 0 to below 1.
    """

    decoder: str = "fcn"
    channels: int = 256
    dropout: float = 0.1

    def __post_init__(self):
        if self.decoder not in DECODERS:
            raise ConfigError(f'head.decoder = "{self.decoder}" does not exist: {nearest(self.decoder, DECODERS)}')


@HEADS.register("fcn")
@dataclasses.dataclass(frozen=True)
class FcnConfig(HeadConfig):
    """`FcnDecoder` and a classifier.

    Attributes:
        channels: see `DenseConfig`.
        dropout: see `DenseConfig`.
    """

    channels: int = 256
    dropout: float = 0.1
    decoder: ClassVar[str] = "fcn"
    gives: ClassVar = {"logits": PIXEL_LOGITS}

    def build(self, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype) -> DenseHead:
        """See `HeadConfig`."""
        return DenseHead(self, widths, outputs, rngs, dtype=dtype)


@HEADS.register("upernet")
@dataclasses.dataclass(frozen=True)
class UPerNetConfig(HeadConfig):
    """`UPerNetDecoder` and a classifier, and another one close to the encoder. Defaults are those in common use.

    Attributes:
        channels: see `DenseConfig`.
        dropout: see `DenseConfig`.
        auxiliary: channels of the auxiliary FCN; 0 leaves it out.
    """

    channels: int = 512
    dropout: float = 0.1
    auxiliary: int = 256
    decoder: ClassVar[str] = "upernet"
    gives: ClassVar = {"logits": PIXEL_LOGITS}

    @property
    def deep_supervision(self) -> tuple[str, ...]:
        """See `HeadConfig`."""
        return ("auxiliary",) if self.auxiliary else ()

    def build(self, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype) -> UPerNet:
        """See `HeadConfig`."""
        return UPerNet(self, widths, outputs, rngs, dtype=dtype)


class DenseHead(nnx.Module):
    """Decoder, dropout of whole channels, linear classifier of pixels, bilinear enlargement of its logits.

    Call: levels and size -> {"logits": [N, H, W, C] float32}; see `ringmoe_jax.models.heads`.
    """

    def __init__(
        self,
        config: DenseConfig | FcnConfig | UPerNetConfig,
        widths: tuple[int, ...],
        outputs: int,
        rngs: nnx.Rngs,
        *,
        dtype,
    ):
        if config.channels < 1 or not 0 <= config.dropout < 1:
            raise ConfigError(
                f"head.channels = {config.channels}, head.dropout = {config.dropout}: wanted 1 or more, 0 to below 1"
            )
        self.decoder = DECODERS[config.decoder](config.channels, widths, rngs, dtype=dtype)
        self.dropout = nnx.Dropout(config.dropout, broadcast_dims=(1, 2))
        self.classify = linear(config.channels, outputs, rngs, dtype=dtype)

    def __call__(self, levels: tuple[jax.Array, ...], size: tuple[int, int], *, key, train: bool) -> dict:
        return {"logits": resize(self.coarse(levels, key=key, train=train), size)}

    def coarse(self, levels: tuple[jax.Array, ...], *, key, train: bool) -> jax.Array:
        """The logits on the grid of the finest level, [N, h, w, C] float32."""
        x = self.dropout(self.decoder(levels), deterministic=not train or key is None, rngs=key)
        return self.classify(x).astype(jnp.float32)


class UPerNet(DenseHead):
    """UPerNet (Xiao et al. 2018, arXiv 1807.10221) with an auxiliary FCN on the third level.

    The auxiliary classifier is that of the usual recipe (weight 0.4 in the loss), with the two convolutions of
    `FcnDecoder`. Where nothing reads its logits, the compiler leaves it out.
    Call: levels and size -> {"logits": [N, H, W, C] float32, "auxiliary": the same}.
    """

    def __init__(self, config: UPerNetConfig, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype):
        super().__init__(config, widths, outputs, rngs, dtype=dtype)
        small = FcnConfig(config.auxiliary, config.dropout)
        deep = widths[: DEEP + 1][-1:]
        self.auxiliary = DenseHead(small, deep, outputs, rngs, dtype=dtype) if config.auxiliary else None

    def __call__(self, levels: tuple[jax.Array, ...], size: tuple[int, int], *, key, train: bool) -> dict:
        keys = (None, None) if key is None else jax.random.split(key)
        predictions = super().__call__(levels, size, key=keys[0], train=train)
        if self.auxiliary:
            deep = self.auxiliary(levels[: DEEP + 1][-1:], size, key=keys[1], train=train)
            predictions["auxiliary"] = deep["logits"]
        return predictions


class FcnDecoder(nnx.Module):
    """All levels enlarged to the finest and concatenated, then two 3 x 3 convolutions (our choice).

    Call: levels [N, h_i, w_i, D_i], finest first -> [N, h_0, w_0, channels].
    """

    def __init__(self, channels: int, widths: Sequence[int], rngs: nnx.Rngs, *, dtype):
        self.first = ConvBlock(sum(widths), channels, 3, rngs, dtype=dtype)
        self.second = ConvBlock(channels, channels, 3, rngs, dtype=dtype)

    def __call__(self, levels: Sequence[jax.Array]) -> jax.Array:
        return self.second(self.first(_joined(levels)))


class UPerNetDecoder(nnx.Module):
    """Pyramid pooling of the coarsest level, a feature pyramid from there to the finest, and their fusion.

    Source: Xiao et al. 2018, the part for semantic segmentation.
    Call: levels [N, h_i, w_i, D_i], finest first -> [N, h_0, w_0, channels].
    """

    def __init__(self, channels: int, widths: Sequence[int], rngs: nnx.Rngs, *, dtype):
        *finer, last = widths

        def blocks(inputs, side):
            return nnx.List([ConvBlock(width, channels, side, rngs, dtype=dtype) for width in inputs])

        self.pooled = blocks([last] * len(POOLS), 1)
        self.context = ConvBlock(last + len(POOLS) * channels, channels, 3, rngs, dtype=dtype)
        self.lateral = blocks(finer, 1)
        self.smooth = blocks([channels] * len(finer), 3)
        self.fuse = ConvBlock(len(widths) * channels, channels, 3, rngs, dtype=dtype)

    def __call__(self, levels: Sequence[jax.Array]) -> jax.Array:
        *finer, last = levels
        pools = [block(average_pool(last, side)) for block, side in zip(self.pooled, POOLS, strict=True)]
        x = self.context(_joined([last, *pools]))
        maps = [x]
        for lateral, smooth, level in reversed(list(zip(self.lateral, self.smooth, finer, strict=True))):
            x = lateral(level) + resize(x, level.shape[1:3])
            maps.insert(0, smooth(x))
        return self.fuse(_joined(maps))


DECODERS = {"fcn": FcnDecoder, "upernet": UPerNetDecoder}


class ConvBlock(nnx.Module):
    """Convolution without bias that keeps the grid, layer norm over channels, ReLU.

    Call: [N, h, w, D] -> [N, h, w, C].
    """

    def __init__(self, inputs: int, outputs: int, side: int, rngs: nnx.Rngs, *, dtype):
        self.convolve = nnx.Conv(
            inputs,
            outputs,
            (side, side),
            use_bias=False,
            kernel_init=nnx.initializers.he_normal(),
            dtype=dtype,
            param_dtype=jnp.float32,
            rngs=rngs,
        )
        self.norm = layer_norm(outputs, rngs, dtype=dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(self.norm(self.convolve(x)))


def resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear resize of [N, h, w, C] to `size`, between pixel centres; smaller grids are antialiased."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")


def average_pool(x: jax.Array, side: int) -> jax.Array:
    """Means over side x side blocks that cover the grid, as even as whole pixels allow.

    Where `side` does not divide, blocks overlap by a pixel: block i spans rows floor(i h / side) to
    ceil((i + 1) h / side). Smaller grids have fewer blocks, one a pixel.
    [N, h, w, C] -> [N, min(side, h), min(side, w), C].
    """
    rows, columns = (_blocks(length, min(side, length)).astype(x.dtype) for length in x.shape[1:3])
    return jnp.einsum("ph,qw,nhwc->npqc", rows, columns, x)


def _blocks(length: int, count: int) -> np.ndarray:
    """Weights [count, length] of the means of `average_pool`."""
    first = np.arange(count) * length // count
    end = -(-(np.arange(count) + 1) * length // count)
    inside = (np.arange(length) >= first[:, None]) & (np.arange(length) < end[:, None])
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def _joined(levels: Sequence[jax.Array]) -> jax.Array:
    """All levels on the grid of the first, channels after channels."""
    return jnp.concatenate([resize(level, levels[0].shape[1:3]) for level in levels], axis=-1)
