"""Where, when and how fine an image is, as vectors that are added to its tokens; each may be unknown.

Places are encoded by sines and cosines of their coordinates on the unit sphere, which know no edge at 180 degrees and
no poles (after Mac Aodha et al. 2019, who wrap longitudes); dates by those of the day of the year and its double, and
the year; scale by those of the logarithm of the metres between pixels (Scale-MAE, Reed et al. 2023, scales positions
instead; Copernicus-FM, Wang et al. 2025, adds all three to the tokens, as here). Projections start at zero, so that a
model begins as one that knows nothing of them. Waves and their number: our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.bands import GSD_PERIODS
from ringmoe_jax.contracts import NO_TIME, day_of_year
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.sensors import Sensor

OCTAVES = 4  # of the waves along each axis of the sphere; the shortest is a quarter of the Earth's radius, 1,600 km
YEAR = 365.2425  # days
LOCATION, DATE, SCALE = KINDS = ("location", "date", "scale")


@dataclasses.dataclass(frozen=True)
class MetadataConfig:
    """Which of them a model is told.

    Attributes:
        location: latitude and longitude.
        date: day of the year, and year.
        scale: metres between pixels: "gsd" of the batch, else the sensor's finest.
        dropout: chance that each of them is withheld from a training image, so that it can do without.
    """

    location: bool = True
    date: bool = True
    scale: bool = True
    dropout: float = 0.2

    def __post_init__(self):
        if not self.kinds:
            raise ConfigError("model.metadata tells nothing: set location, date or scale, or metadata = None")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.metadata.dropout = {self.dropout}: wanted at least 0 and below 1")

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is told."""
        return tuple(kind for kind in KINDS if getattr(self, kind))


class Metadata(nnx.Module):
    """What is known of images, to be added to their tokens.

    Call: one sensor's entry of a batch, its `Sensor`, and a key that withholds some, or None -> [B, T, D]; of what is
    unknown it holds nothing.
    """

    def __init__(self, config: MetadataConfig, width: int, rngs: nnx.Rngs):
        self.config = config
        widths = {LOCATION: 6 * OCTAVES, DATE: 5, SCALE: 2 * len(GSD_PERIODS)}
        zeros = nnx.initializers.zeros_init()
        make = lambda kind: nnx.Linear(widths[kind], width, kernel_init=zeros, param_dtype=jnp.float32, rngs=rngs)  # noqa: E731
        self.project = nnx.Dict({kind: make(kind) for kind in config.kinds})

    def __call__(self, entry: Mapping, sensor: Sensor, key: jax.Array | None) -> jax.Array:
        batch, dates = entry["pixels"].shape[:2]
        of = {LOCATION: _location, DATE: _date, SCALE: _scale}
        keys = [None] * len(KINDS) if key is None else jax.random.split(key, len(KINDS))
        total = 0.0
        for kind, draw in zip(KINDS, keys, strict=True):
            if kind not in self.config.kinds:
                continue
            waves, known = of[kind](entry, sensor)
            if draw is not None and self.config.dropout:
                known &= jax.random.bernoulli(draw, 1 - self.config.dropout, (batch, 1))
            total += jnp.where(known[..., None], self.project[kind](waves), 0)
        return jnp.broadcast_to(total, (batch, dates, total.shape[-1]))


def _location(entry: Mapping, sensor: Sensor) -> tuple[jax.Array, jax.Array]:
    """[B, 1, waves] and whether it is known, [B, 1]."""
    place = entry.get("location", jnp.full((len(entry["pixels"]), 2), jnp.nan))[:, None]
    known = (jnp.abs(place) <= jnp.asarray([90.0, 360.0])).all(axis=-1)
    latitude, longitude = jnp.moveaxis(jnp.deg2rad(jnp.where(known[..., None], place, 0.0)), -1, 0)
    level = jnp.cos(latitude)
    sphere = jnp.stack([level * jnp.cos(longitude), level * jnp.sin(longitude), jnp.sin(latitude)], axis=-1)
    phase = (sphere[..., None] * jnp.pi * 2.0 ** jnp.arange(OCTAVES)).reshape(*known.shape, -1)
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1), known


def _date(entry: Mapping, sensor: Sensor) -> tuple[jax.Array, jax.Array]:
    """[B, T, waves] and whether it is known, [B, T]."""
    time = entry.get("time", jnp.full(entry["pixels"].shape[:2], NO_TIME))
    known = time != NO_TIME
    time = jnp.where(known, time, 0)
    phase = day_of_year(time)[..., None] * (2 * jnp.pi / YEAR) * jnp.asarray([1.0, 2.0])
    decades = (time / YEAR - 50)[..., None] / 10  # since 2020
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase), decades], axis=-1), known


def _scale(entry: Mapping, sensor: Sensor) -> tuple[jax.Array, jax.Array]:
    """[B, 1, waves] and whether it is known, [B, 1]."""
    metres = entry.get("gsd", jnp.full((len(entry["pixels"]),), sensor.gsd))[:, None]
    known = (metres > 0) & jnp.isfinite(metres)
    phase = jnp.log(jnp.where(known, metres, 1.0))[..., None] * (2 * jnp.pi / jnp.asarray(GSD_PERIODS))
    return jnp.concatenate([jnp.cos(phase), jnp.sin(phase)], axis=-1), known
