"""Presto's encoder (Tseng et al. 2023, arXiv 2304.14065): the series of a single pixel, groups of channels as tokens.

Every group of channels and date is a token, and so is the place; all tokens of a pixel attend to each other, and none
to other pixels. Geometry: the published configuration and weights. Of the published groups those are here that images
feed: weather, elevation and land cover are not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ringmoe_jax.contracts import FUSED, mean_of_cells
from ringmoe_jax.models.api import MODELS, Model
from ringmoe_jax.models.channel_groups import (
    GROUPS,
    GroupConfig,
    channels,
    coded,
    grouped,
    months,
    observed,
    on_sphere,
    rows,
)
from ringmoe_jax.models.layers import TRUNCATED_NORMAL, layer_norm, linear
from ringmoe_jax.models.transformer import TransformerConfig, dense_transformer
from ringmoe_jax.models.vision import described
from ringmoe_jax.sensors import Sensor, Statistics


@MODELS.register("presto")
@dataclasses.dataclass(frozen=True)
class PrestoConfig(GroupConfig):
    """Geometry, see `GroupConfig`. Defaults are the published model, which is always told the `location`.

    Dates are months that follow each other (published data), the n-th of each sensor side by side.
    """

    title: ClassVar[str] = "Presto"
    units: ClassVar[tuple[str, ...]] = ("dB (sigma0)", "reflectance")  # published shifts and divisors are of these
    blocks: TransformerConfig = TransformerConfig(128, 2, 8, drop_path=0.0, exact_gelu=True)

    def build(self, sensors=None, statistics=None, heads=None, mesh=None) -> Model:
        """See `ModelConfig`; outputs["fused"] is a pixel's mean token with a norm after it, of all sensors and dates.

        Raises:
            ConfigError: a sensor has the bands of no group, or another unit; there are no decoders.
        """
        return self._build(Presto, sensors, statistics, heads)


class Presto(nnx.Module):
    """See the module's text; `PrestoConfig.build` gives the pure functions."""

    def __init__(
        self,
        config: PrestoConfig,
        sensors: Mapping[str, Sensor],
        statistics: Mapping[str, Statistics],
        rngs: nnx.Rngs,
    ):
        self.config, self.sensors, self.statistics = config, dict(sensors), dict(statistics)
        width = config.blocks.width
        self.embed = nnx.Dict({name: linear(channels(name), width, rngs, dtype=config.dtype) for name in GROUPS})
        self.channels = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (len(GROUPS), width // 4), jnp.float32))
        self.place = linear(3, width, rngs, dtype=config.dtype)
        self.transformer = dense_transformer(config.blocks, rngs, constrain=lambda x: x, dtype=config.dtype)
        self.norm = layer_norm(width, rngs, dtype=config.dtype, epsilon=config.blocks.epsilon)

    def __call__(self, batch: Mapping, *, key: jax.Array | None, train: bool) -> dict:
        entries, images = observed(batch, self.sensors, self.statistics, self.config, patch=1)
        maps = {name: self._tokens(name, entry, images[name]) for name, entry in entries.items()}
        seen = {n: jnp.broadcast_to(entries[n]["valid"][..., None], x.shape[:-1]) for n, x in maps.items()}
        series, visible = (jnp.concatenate([*map(_series, of.values())], axis=3) for of in (maps, seen))
        place = on_sphere(next(iter(entries.values()))) if self.config.location else None
        tokens, fused = self._mixed(series, visible, place, key=key, train=train)
        lengths = [x.shape[1] * x.shape[4] for x in maps.values()]
        parts = dict(zip(maps, jnp.split(tokens, np.cumsum(lengths)[:-1], axis=3), strict=True))
        stages = {name: (_means(part, maps[name].shape[1]),) for name, part in parts.items()}
        outputs = described(entries, images, stages, self.sensors, self.statistics)
        outputs["pooled"][FUSED] = mean_of_cells(fused[:, None], visible.any(axis=3)[:, None])
        return outputs | {FUSED: fused}

    def _mixed(self, series, visible, place, *, key, train: bool) -> tuple[jax.Array, jax.Array]:
        """Tokens [B, H, W, n, D] after attention within each pixel, and their means [B, H, W, D]; both normed.

        Args:
            series: [B, H, W, n, D].
            visible: [B, H, W, n] bool.
            place: see `on_sphere`, its token is one of every pixel; or None.
        """
        *pixels, number, width = series.shape
        x, visible = series.reshape(-1, number, width), visible.reshape(-1, number)
        if place is not None:
            of_pixels = lambda x: jnp.repeat(x, math.prod(pixels[1:]), axis=0)  # noqa: E731
            point, known = place
            x = jnp.concatenate([x, of_pixels(self.place(point)[:, None])], axis=1)
            visible = jnp.concatenate([visible, of_pixels(known)], axis=1)
        x, _ = self.transformer(x[:, None], visible, (0,), key=key, train=train, mesh=None)
        x = x[:, 0]
        total = jnp.maximum(visible.sum(axis=1), 1)[:, None]
        mean = jnp.where(visible[..., None], x, 0).sum(axis=1) / total.astype(x.dtype)
        return self.norm(x[:, :number]).reshape(*pixels, number, width), self.norm(mean).reshape(*pixels, width)

    def _tokens(self, name: str, entry: Mapping, image: jax.Array) -> jax.Array:
        """[B, T, H, W, groups, D]: the embedded groups of a sensor with what says when they are, and which."""
        sensor = self.sensors[name]
        x = grouped(entry, image.astype(self.config.dtype), sensor, lambda group, values: self.embed[group](values))
        dates, width = x.shape[1], x.shape[-1]
        when = sines(dates, width // 2)[:, None, None, None]
        return coded(x, months(entry, dates, width // 4), self.channels[...][rows(sensor)], when)


def _series(x: jax.Array) -> jax.Array:
    """[B, T, H, W, groups, ...] -> [B, H, W, T groups, ...]."""
    x = jnp.moveaxis(x, 1, 3)
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])


def _means(x: jax.Array, dates: int) -> jax.Array:
    """[B, H, W, T groups, D] -> [B, T, H, W, D], over groups."""
    return jnp.moveaxis(x.reshape(*x.shape[:3], dates, -1, x.shape[-1]).mean(axis=4), 3, 1)


def sines(dates: int, width: int) -> np.ndarray:
    """[dates, width] float32: sines and cosines in turn, of frequencies 1000^(-2 i / width) (published code)."""
    angles = np.arange(dates)[:, None] * 1000.0 ** -(2 * np.arange(width // 2) / width)
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(dates, width).astype(np.float32)
