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

from ringmoe_jax.contracts import FUSED, NO_TIME, mean_of_cells, month, standardise, valid_cells, validate
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.api import MODELS, Model, ModelConfig, chosen_sensors, from_module
from ringmoe_jax.models.depth import prefixed
from ringmoe_jax.models.layers import TRUNCATED_NORMAL, layer_norm, linear
from ringmoe_jax.models.transformer import TransformerConfig, dense_transformer
from ringmoe_jax.models.vision import described
from ringmoe_jax.models.vit import antialiased
from ringmoe_jax.sensors import Sensor, Statistics

INDEX = "NDVI"  # the group that is computed, not observed
GROUPS = {  # the published channel groups, in their order: bands by name, or by STAC common name
    "S1": ("VV", "VH"),
    "S2_RGB": ("blue", "green", "red"),
    "S2_Red_Edge": ("rededge071", "rededge075", "rededge078"),
    "S2_NIR_10m": ("nir",),
    "S2_NIR_20m": ("nir08",),
    "S2_SWIR": ("swir16", "swir22"),
    INDEX: ("nir", "red"),
}
JUNE = 5  # month of images without a date (published code)
METRES = 10.0  # of a pixel, to which positions in space are relative


@MODELS.register("galileo")
@dataclasses.dataclass(frozen=True)
class GalileoConfig(ModelConfig):
    """Geometry. Defaults are the published Nano model.

    Attributes:
        sensors: of one place, on one grid. A sensor feeds every group of `GROUPS` whose bands it has.
        patch: side of a patch in pixels, 1 to `base_patch`.
        base_patch: side of the patches that kernels are stored for; they are resampled to `patch`.
        gsd: metres of a pixel, for positions in space.
        blocks: geometry of the transformer.
        dates: that have a position in time, at most.
        location: whether a token says where the place is, when that is known; off by default, so that features say
            what is seen.
        dtype: "float32" or "bfloat16" for activations.
    """

    title: ClassVar[str] = "Galileo"
    sensors: tuple[str, ...] = ("s1_grd", "s2_10")
    patch: int = 4
    base_patch: int = 8
    gsd: float = METRES
    blocks: TransformerConfig = TransformerConfig(128, 4, 8, drop_path=0.1, exact_gelu=True)
    dates: int = 24
    location: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.patch <= self.base_patch:
            raise ConfigError(f"model.patch = {self.patch}: wanted 1 to model.base_patch = {self.base_patch}")
        if self.blocks.width % 16:
            raise ConfigError(f"model.blocks.width = {self.blocks.width}: wanted a multiple of 16")

    def build(self, sensors=None, statistics=None, heads=None, mesh=None) -> Model:
        """See `ModelConfig`; outputs["fused"] is the mean of all tokens of a patch, of all sensors and dates.

        Raises:
            ConfigError: a sensor has the bands of no group; there are no decoders.
        """
        if heads:
            raise ConfigError(f"Galileo has no decoders, but objectives ask for some of {', '.join(heads)}")
        table, values = chosen_sensors(self.sensors, sensors, statistics)
        for name, sensor in table.items():
            if not fed(sensor):
                raise ConfigError(f'model.sensors has "{name}" with the bands {", ".join(sensor.band_names)}: wanted '
                                  f"those of one of {', '.join(GROUPS)}")  # fmt: skip
        above = prefixed("transformer", self.blocks.blocks_above, 0) | {"": self.blocks.depth, "norm": 0}
        streams = dict.fromkeys((*table, FUSED), self.blocks.width)
        return from_module(functools.partial(Galileo, self, table, values), streams, above)


def fed(sensor: Sensor) -> dict[str, list[int]]:
    """The groups that a sensor feeds, in their order, and where their bands lie in it."""
    places = {key: i for i, band in enumerate(sensor.bands) for key in (band.name, band.alias) if key}
    groups = {name: [places[b] for b in bands] for name, bands in GROUPS.items() if places.keys() >= set(bands)}
    return groups


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
        counts = {name: 1 if name == INDEX else len(bands) for name, bands in GROUPS.items()}
        self.embed = nnx.Dict({k: linear(area * n, width, rngs, dtype=config.dtype) for k, n in counts.items()})
        self.channels = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (len(GROUPS), width // 4), jnp.float32))
        self.place = linear(3, width, rngs, dtype=config.dtype)
        self.place_channel = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (width // 4,), jnp.float32))
        self.transformer = dense_transformer(config.blocks, rngs, **options)
        self.norm = layer_norm(width, rngs, dtype=config.dtype, epsilon=config.blocks.epsilon)

    def __call__(self, batch: Mapping, *, key: jax.Array | None, train: bool) -> dict:
        validate(batch, self.sensors)
        entries = {name: batch["sensors"][name] for name in self.sensors if name in batch["sensors"]}
        self._check(entries)
        images = {n: standardise(e["pixels"], e["valid"], self.statistics[n]) for n, e in entries.items()}
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

    def _check(self, entries: Mapping) -> None:
        """Raises a `DataError` unless all images are of one grid of patches and have no more dates than positions."""
        shapes, patch = {name: entry["pixels"].shape[:4] for name, entry in entries.items()}, self.config.patch
        for name, (_, dates, height, width) in shapes.items():
            if height % patch or width % patch:
                raise DataError(f'sensor "{name}": images are {height} x {width} pixels, wanted multiples of {patch}')
            if dates > self.config.dates:
                raise DataError(f'sensor "{name}" has {dates} dates, Galileo takes {self.config.dates}: set frames')
        if len({(shape[0], *shape[2:]) for shape in shapes.values()}) > 1:
            listed = ", ".join(f"{n} {b} of {h} x {w}" for n, (b, _, h, w) in shapes.items())
            raise DataError(f"sensors do not show the same places on one grid: {listed} pixels")

    def _tokens(self, name: str, entry: Mapping, image: jax.Array) -> jax.Array:
        """[B, T, h, w, groups, D]: the embedded groups of a sensor with what says which, when and where they are."""
        config, found = self.config, fed(self.sensors[name])
        values = 0.5 + image / 4  # mean +- two standard deviations are 0 and 1 (published configuration)
        embedded = [
            self._embed(group, ndvi(entry, bands) if group == INDEX else values[..., bands])
            for group, bands in found.items()
        ]
        x = jnp.stack(embedded, axis=4)
        _, dates, h, w, _, width = x.shape
        part = width // 4
        channel = self.channels[...][np.array([list(GROUPS).index(group) for group in found])]
        when = sines(np.arange(dates), part)[:, None, None, None]
        where = positions(h, w, config.patch * config.gsd / METRES, part)[:, :, None]
        parts = (channel, when, months(entry, dates, part)[:, :, None, None, None], where)
        spread = [jnp.broadcast_to(code, (*x.shape[:-1], part)) for code in parts]
        return x + jnp.concatenate(spread, axis=-1).astype(x.dtype)

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
        unknown = jnp.full((len(entry["pixels"]), 2), jnp.nan)
        location = jnp.deg2rad(entry.get("location", unknown))
        known = ~jnp.isnan(location).any(axis=1, keepdims=True)
        latitude, longitude = jnp.where(known, location, 0).T
        point = jnp.cos(latitude) * jnp.cos(longitude), jnp.cos(latitude) * jnp.sin(longitude), jnp.sin(latitude)
        code = jnp.pad(self.place_channel[...], (0, 3 * self.config.blocks.width // 4))
        return (self.place(jnp.stack(point, axis=-1)) + code.astype(self.config.dtype))[:, None], known


def _dates(x: jax.Array) -> jax.Array:
    """[B, T, h, w, groups, D] -> [B, T groups, h, w, D]."""
    x = jnp.moveaxis(x, 4, 2)
    return x.reshape(len(x), -1, *x.shape[3:])


def ndvi(entry: Mapping, bands: list[int]) -> jax.Array:
    """[B, T, H, W, 1] normalised difference of near infrared and red; 0 where both are 0, or not observed."""
    near, red = (jnp.where(entry["valid"], entry["pixels"][..., band], 0) for band in bands)
    total = near + red
    return jnp.where(total == 0, 0, (near - red) / jnp.where(total == 0, 1, total))[..., None]


def sines(position: np.ndarray, width: int) -> np.ndarray:
    """[...] -> [..., width]: sines, then cosines, of frequencies 10000^(-i / (2 width)) (published code)."""
    frequencies = 10000.0 ** -(np.arange(width // 2) / width / 2)
    angles = np.asarray(position, np.float64)[..., None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def positions(height: int, width: int, scale: float, channels: int) -> np.ndarray:
    """[h, w, channels]: half of it says the column, half the row, in units of 10 m; `scale` of them are a patch."""
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.concatenate([sines(scale * axis, channels // 2) for axis in (column, row)], axis=-1)


def months(entry: Mapping, dates: int, width: int) -> jax.Array:
    """[B, T, width] float32: sine and cosine of the month's angle, each repeated."""
    unknown = jnp.full((len(entry["pixels"]), dates), NO_TIME)
    time = entry.get("time", unknown)
    angle = jnp.where(time == NO_TIME, JUNE, month(time)) * (2 * np.pi / 12)
    return jnp.repeat(jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1), width // 2, axis=-1)


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
