"""A target from which most speckle has been averaged away, for SAR of any unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives import radar
from ringmoe_jax.objectives.base import Reconstruction, register
from ringmoe_jax.sensors import Sensor


def box_mean(x: jax.Array, valid: jax.Array, side: int) -> jax.Array:
    """Mean over the valid pixels of the square of `side` pixels around each pixel; NaN where there are none.

    Args:
        x: [..., H, W, K]; values that are not valid may be anything.
        valid: [..., H, W] bool.
        side: odd.
    """
    total = lambda v: lax.reduce_window(  # noqa: E731
        v, 0.0, lax.add, (1,) * (v.ndim - 3) + (side, side, 1), (1,) * v.ndim, "SAME"
    )
    count = total(valid[..., None].astype(jnp.float32))
    return jnp.where(count > 0, total(jnp.where(valid[..., None], x, 0.0)) / jnp.maximum(count, 1), jnp.nan)


def lee(power: jax.Array, valid: jax.Array, side: int, looks: float) -> jax.Array:
    """Lee's filter: the local mean where the image is homogeneous, the pixel itself where it is not.

    m + k (I - m), k = Var(R) / Var(I) with Var(R) = (Var(I) - m^2 / L) / (1 + 1 / L), at least 0. Source: Lee
    1980, in the form of Lee and Pottier 2009.

    Args:
        power: [..., H, W, P] linear intensity.
        valid: [..., H, W] bool.
        side: of the window, odd.
        looks: L of the image.
    """
    mean = box_mean(power, valid, side)
    variance = box_mean(jnp.square(power), valid, side) - jnp.square(mean)
    scene = jnp.maximum(variance - jnp.square(mean) / looks, 0.0) / (1 + 1 / looks)
    gain = jnp.clip(scene / jnp.maximum(variance, 1e-30), 0.0, 1.0)
    return mean + gain * (power - mean)


@register("multilooked")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Multilooked(Reconstruction):
    """Mean squared error to the filtered intensity in standardised decibels on hidden pixels.

    The target is averaged over neighbours, so it has more looks and less speckle than a pixel, at the price of
    resolution; neighbours may lie beyond the hidden cell. Decibels are relative to the sensor's mean power.
    Assumes windows that are homogeneous (boxcar) or vary beyond speckle only at structures (Lee). No-data pixels
    neither count nor are averaged. Source: our choice; the filter is Lee 1980.

    Attributes:
        filter: "boxcar" or "lee".
        window: side of the filter's square, odd, in pixels.
        std_db: divides decibels.
    """

    filter: str = "boxcar"
    window: int = 5
    std_db: float = 6.0
    head: ClassVar[str] = "multilooked"

    def __post_init__(self):
        if self.filter not in ("boxcar", "lee"):
            raise ConfigError(f'filter = "{self.filter}": wanted "boxcar" or "lee"')
        if self.window < 3 or self.window % 2 == 0:
            raise ConfigError(f"window = {self.window}: wanted an odd number of pixels >= 3")

    def channels(self, sensor: Sensor) -> int:
        radar.require(sensor, who=type(self).__name__)
        return len(radar.polarisations(sensor))

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        sensor, entry = outputs["sensors"][self.sensor], batch["sensors"][self.sensor]
        power = radar.intensity(sensor, entry["pixels"])
        valid = entry["valid"] & jnp.isfinite(power).all(axis=-1)
        smooth = (
            box_mean(power, valid, self.window)
            if self.filter == "boxcar"
            else lee(power, valid, self.window, sensor.looks)
        )
        mean = jnp.asarray(radar.mean_power(sensor, outputs["statistics"][self.sensor]), jnp.float32)
        return jnp.where(valid[..., None] & (smooth > 0), radar.decibels(smooth / mean) / self.std_db, jnp.nan)

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.square(prediction - target)
