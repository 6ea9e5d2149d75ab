"""Galileo's encoder (Tseng et al. 2025, arXiv 2502.09356): groups of channels as tokens of one transformer.

Every group of channels (Sentinel-1; of Sentinel-2 the visible bands, red edge, two near infrareds and short-wave
infrared; NDVI), patch and date is a token; all attend to all. Geometry: the published configuration and weights. Of the
published groups those are here that images feed: elevation, land cover, weather, night lights and population are not.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ringmoe_jax.contracts import FUSED, mean_of_cells, valid_cells
from ringmoe_jax.errors import ConfigError
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
from ringmoe_jax.models.vit import antialiased
from ringmoe_jax.sensors import Sensor, Statistics

METRES = 10.0  # of a pixel, to which positions in space are relative


@MODELS.register("galileo")
@dataclasses.dataclass(frozen=True)
class GalileoConfig(GroupConfig):
    """Geometry, beside that of `GroupConfig`. Defaults are the published Nano model.

    Attributes:
        patch: side of a patch in pixels, 1 to `base_patch`.
        base_patch: side of the patches that kernels are stored for; they are resampled to `patch`.
        gsd: metres of a pixel, for positions in space.
    """

    title: ClassVar[str] = "Galileo"
    blocks: TransformerConfig = TransformerConfig(128, 4, 8, drop_path=0.1, exact_gelu=True)
    patch: int = 4
    base_patch: int = 8
    gsd: float = METRES

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.patch <= self.base_patch:
            raise ConfigError(f"model.patch = {self.patch}: wanted 1 to model.base_patch = {self.base_patch}")

    def build(self, sensors=None, statistics=None, heads=None, mesh=None) -> Model:
        """See `ModelConfig`; outputs["fused"] is the mean of all tokens of a patch, of all sensors and dates.

        Raises:
            ConfigError: a sensor has the bands of no group; there are no decoders.
        """
        return self._build(Galileo, sensors, statistics, heads)


class Galileo(nnx.Module):
    """See the module's text; `GalileoConfig.build` gives the pure functions."""

    def __init__(
        self,
        config: GalileoConfig,
        sensors: Mapping[str, Sensor],
        statistics: Mapping[str, Statistics],
        rngs: nnx.Rngs,
    ):
        self.config, self.sensors, self.statistics = config, dict(sensors), dict(statistics)
        width, area = config.blocks.width, config.base_patch**2
        options = dict(constrain=lambda x: x, dtype=config.dtype)
        sizes = {name: area * channels(name) for name in GROUPS}
        self.embed = nnx.Dict({k: linear(n, width, rngs, dtype=config.dtype) for k, n in sizes.items()})
        self.channels = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (len(GROUPS), width // 4), jnp.float32))
        self.place = linear(3, width, rngs, dtype=config.dtype)
        self.place_channel = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (width // 4,), jnp.float32))
        self.transformer = dense_transformer(config.blocks, rngs, **options)
        self.norm = layer_norm(width, rngs, dtype=config.dtype, epsilon=config.blocks.epsilon)

    def __call__(self, batch: Mapping, *, key: jax.Array | None, train: bool) -> dict:
        entries, images = observed(batch, self.sensors, self.statistics, self.config, self.config.patch)
        maps = {name: self._tokens(name, entry, images[name]) for name, entry in entries.items()}
        cells = {n: valid_cells(entries[n]["valid"], x.shape[2:4])[..., None] for n, x in maps.items()}
        seen = {n: jnp.broadcast_to(cells[n], x.shape[:-1]) for n, x in maps.items()}
        x = jnp.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps.values()], axis=1)
        visible = jnp.concatenate([s.reshape(len(s), -1) for s in seen.values()], axis=1)
        if self.config.location:
            place, known = self._place(next(iter(entries.values())))
            x, visible = jnp.concatenate([x, place], axis=1), jnp.concatenate([visible, known], axis=1)
        x, _ = self.transformer(x[:, None], visible, (0,), key=key, train=train, mesh=None)
        sizes = [math.prod(tokens.shape[1:-1]) for tokens in maps.values()]
        parts = jnp.split(self.norm(x[:, 0]), np.cumsum(sizes), axis=1)
        groups = {n: part.reshape(maps[n].shape) for n, part in zip(maps, parts, strict=False)}
        stages = {name: (x.mean(axis=4),) for name, x in groups.items()}
        outputs = described(entries, images, stages, self.sensors, self.statistics)
        # [B, T of all sensors and groups, h, w, D]: a patch's tokens side by side
        tokens = jnp.concatenate([_dates(x) for x in groups.values()], axis=1)
        seen = jnp.concatenate([_dates(s[..., None])[..., 0] for s in seen.values()], axis=1)
        outputs["pooled"][FUSED] = mean_of_cells(tokens, seen)
        total = jnp.maximum(seen.sum(axis=1), 1)[..., None]
        return outputs | {FUSED: jnp.where(seen[..., None], tokens, 0).sum(axis=1) / total.astype(tokens.dtype)}

    def _tokens(self, name: str, entry: Mapping, image: jax.Array) -> jax.Array:
        """[B, T, h, w, groups, D]: the embedded groups of a sensor with what says which, when and where they are."""
        config, sensor = self.config, self.sensors[name]
        # mean +- two standard deviations are 0 and 1 (published configuration)
        x = grouped(entry, 0.5 + image / 4, sensor, self._embed)
        _, dates, h, w, _, width = x.shape
        part = width // 4
        when = sines(np.arange(dates), part)[:, None, None, None]
        where = positions(h, w, config.patch * config.gsd / METRES, part)[:, :, None]
        return coded(x, self.channels[...][rows(sensor)], when, months(entry, dates, part), where)

    def _embed(self, group: str, values: jax.Array) -> jax.Array:
        """[B, T, H, W, c] -> [B, T, h, w, D] by a kernel that is resampled to the patch."""
        config, layer = self.config, self.embed[group]
        base, p, c = config.base_patch, config.patch, values.shape[-1]
        kernel = layer.kernel[...].reshape(base * base, c, -1)
        kernel = jnp.einsum("pb,bcd->pcd", kernel_matrix(base, p), kernel).astype(config.dtype)
        b, t, height, width, _ = values.shape
        x = values.astype(config.dtype).reshape(b, t, height // p, p, width // p, p, c).swapaxes(3, 4)
        x = x.reshape(b, t, height // p, width // p, p * p, c)
        return jnp.einsum("bthwpc,pcd->bthwd", x, kernel) + layer.bias[...].astype(config.dtype)

    def _place(self, entry: Mapping) -> tuple[jax.Array, jax.Array]:
        """A token [B, 1, D] of the place on the unit sphere, and [B, 1] whether it is known."""
        point, known = on_sphere(entry)
        code = jnp.pad(self.place_channel[...], (0, 3 * self.config.blocks.width // 4))
        return (self.place(point) + code.astype(self.config.dtype))[:, None], known


def _dates(x: jax.Array) -> jax.Array:
    """[B, T, h, w, groups, D] -> [B, T groups, h, w, D]."""
    x = jnp.moveaxis(x, 4, 2)
    return x.reshape(len(x), -1, *x.shape[3:])


def sines(position: np.ndarray, width: int) -> np.ndarray:
    """[...] -> [..., width]: sines, then cosines, of frequencies 10000^(-i / (2 width)) (published code)."""
    frequencies = 10000.0 ** -(np.arange(width // 2) / width / 2)
    angles = np.asarray(position, np.float64)[..., None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def positions(height: int, width: int, scale: float, channels: int) -> np.ndarray:
    """[h, w, channels]: half of it says the column, half the row, in units of 10 m; `scale` of them are a patch."""
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.concatenate([sines(scale * axis, channels // 2) for axis in (column, row)], axis=-1)


@functools.cache
def kernel_matrix(base: int, patch: int) -> np.ndarray:
    """[patch^2, base^2] float32 that resamples kernels, so that resized patches keep their products.

    The pseudo-inverse of resizing patches (FlexiViT, Beyer et al. 2023).
    """
    if base == patch:
        return np.eye(base * base, dtype=np.float32)
    with jax.ensure_compile_time_eval():
        basis = jnp.eye(base * base).reshape(base, base, base * base)
        resized = np.asarray(antialiased(basis, patch, patch), np.float64).reshape(patch * patch, base * base)
    return np.linalg.pinv(resized.T).astype(np.float32)
