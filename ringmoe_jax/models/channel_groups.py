"""Groups of channels as tokens, and what tells where and when they were seen: what Galileo and Presto share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.contracts import FUSED, NO_TIME, month, standardise, validate
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.api import Model, ModelConfig, chosen_sensors, from_module
from ringmoe_jax.models.depth import prefixed
from ringmoe_jax.models.transformer import TransformerConfig
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
JUNE = 5  # month of images without a date (Galileo's published code)


def fed(sensor: Sensor) -> dict[str, list[int]]:
    """The groups that a sensor feeds, in their order, and where their bands lie in it."""
    places = {key: i for i, band in enumerate(sensor.bands) for key in (band.name, band.alias) if key}
    return {name: [places[b] for b in bands] for name, bands in GROUPS.items() if places.keys() >= set(bands)}


def channels(group: str) -> int:
    """Numbers that a pixel of a group holds."""
    return 1 if group == INDEX else len(GROUPS[group])


@dataclasses.dataclass(frozen=True)
class GroupConfig(ModelConfig):
    """What such models share.

    Attributes:
        units: of the sensors that they take; () is any.
        sensors: of one place, on one grid. A sensor feeds every group of `GROUPS` whose bands it has.
        blocks: geometry of the transformer.
        dates: that have a position in time, at most.
        location: whether a token says where the place is, when that is known; off by default, so that features say
            what is seen: probes of tiles of one place look labels up otherwise.
        dtype: "float32" or "bfloat16" for activations.
    """

    units: ClassVar[tuple[str, ...]] = ()
    sensors: tuple[str, ...] = ("s1_grd", "s2_10")
    blocks: TransformerConfig = TransformerConfig(128, 4, 8, exact_gelu=True)
    dates: int = 24
    location: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        super().__post_init__()
        if self.blocks.width % 16:
            raise ConfigError(f"model.blocks.width = {self.blocks.width}: wanted a multiple of 16")

    def _build(self, make: Callable, sensors, statistics, heads) -> Model:
        """A model of `make(config, sensors, statistics, rngs)`."""
        if heads:
            raise ConfigError(f"{self.title} has no decoders, but objectives ask for some of {', '.join(heads)}")
        table, values = chosen_sensors(self.sensors, sensors, statistics)
        for name, sensor in table.items():
            if self.units and sensor.unit not in self.units:
                raise ConfigError(
                    f'model.sensors has "{name}" in {sensor.unit}: {self.title} takes {" or ".join(self.units)}'
                )
            if not fed(sensor):
                raise ConfigError(f'model.sensors has "{name}" with the bands {", ".join(sensor.band_names)}: wanted '
                                  f"those of one of {', '.join(GROUPS)}")  # fmt: skip
        above = prefixed("transformer", self.blocks.blocks_above, 0) | {"": self.blocks.depth, "norm": 0}
        streams = dict.fromkeys((*table, FUSED), self.blocks.width)
        return from_module(lambda rngs: make(self, table, values, rngs), streams, above)


def observed(
    batch: Mapping, sensors: Mapping[str, Sensor], statistics: Mapping[str, Statistics], config: GroupConfig, patch: int
) -> tuple[dict, dict]:
    """The entries of a batch that a model knows, and their standardised images.

    Raises:
        DataError: images are not of one grid of patches, or have more dates than positions.
    """
    validate(batch, sensors)
    entries = {name: batch["sensors"][name] for name in sensors if name in batch["sensors"]}
    shapes = {name: entry["pixels"].shape[:4] for name, entry in entries.items()}
    for name, (_, dates, height, width) in shapes.items():
        if height % patch or width % patch:
            raise DataError(f'sensor "{name}": images are {height} x {width} pixels, wanted multiples of {patch}')
        if dates > config.dates:
            raise DataError(f'sensor "{name}" has {dates} dates, {config.title} takes {config.dates}: set frames')
    if len({(shape[0], *shape[2:]) for shape in shapes.values()}) > 1:
        listed = ", ".join(f"{n} {b} of {h} x {w}" for n, (b, _, h, w) in shapes.items())
        raise DataError(f"sensors do not show the same places on one grid: {listed} pixels")
    return entries, {n: standardise(e["pixels"], e["valid"], statistics[n]) for n, e in entries.items()}


def grouped(entry: Mapping, image: jax.Array, sensor: Sensor, embed: Callable) -> jax.Array:
    """[B, T, h, w, groups, D]: every group that a sensor feeds by `embed(group, values [B, T, H, W, c])`."""
    values = {
        group: ndvi(entry, bands) if group == INDEX else image[..., bands] for group, bands in fed(sensor).items()
    }
    return jnp.stack([embed(group, x) for group, x in values.items()], axis=4)


def rows(sensor: Sensor) -> np.ndarray:
    """Of a table with a row for every group, those that a sensor feeds."""
    return np.array([list(GROUPS).index(group) for group in fed(sensor)])


def coded(x: jax.Array, *codes: jax.Array | np.ndarray) -> jax.Array:
    """Tokens [B, T, h, w, groups, D] with codes added, which stand side by side in D and are broadcast elsewhere."""
    spread = [jnp.broadcast_to(code, (*x.shape[:-1], code.shape[-1])) for code in codes]
    return x + jnp.concatenate(spread, axis=-1).astype(x.dtype)


def ndvi(entry: Mapping, bands: list[int]) -> jax.Array:
    """[B, T, H, W, 1] normalised difference of near infrared and red; 0 where both are 0, or not observed."""
    near, red = (jnp.where(entry["valid"], entry["pixels"][..., band], 0) for band in bands)
    total = near + red
    return jnp.where(total == 0, 0, (near - red) / jnp.where(total == 0, 1, total))[..., None]


def months(entry: Mapping, dates: int, width: int) -> jax.Array:
    """[B, T, 1, 1, 1, width] float32: sine and cosine of the month's angle, each repeated."""
    unknown = jnp.full((len(entry["pixels"]), dates), NO_TIME)
    time = entry.get("time", unknown)
    angle = jnp.where(time == NO_TIME, JUNE, month(time)) * (2 * np.pi / 12)
    code = jnp.repeat(jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1), width // 2, axis=-1)
    return code[:, :, None, None, None]


def on_sphere(entry: Mapping) -> tuple[jax.Array, jax.Array]:
    """[B, 3] on the unit sphere, and [B, 1] bool whether the place is known."""
    unknown = jnp.full((len(entry["pixels"]), 2), jnp.nan)
    location = jnp.deg2rad(entry.get("location", unknown))
    known = ~jnp.isnan(location).any(axis=1, keepdims=True)
    latitude, longitude = jnp.where(known, location, 0).T
    point = jnp.cos(latitude) * jnp.cos(longitude), jnp.cos(latitude) * jnp.sin(longitude), jnp.sin(latitude)
    return jnp.stack(point, axis=-1), known
