"""Physics-informed reconstruction of single-look complex SAR: total power instead of pixels.

The span, P = sum over polarisations of |S|^2, is the same in every polarimetric basis (paper, SAR-L1
objective), and unlike the real and imaginary parts it carries no random speckle phase.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.objectives import radar
from ringmoe_jax.objectives.base import Reconstruction, register
from ringmoe_jax.sensors import Sensor

IMAGE, TILE = LIMITS = ("image", "tile")


@register("total_power")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TotalPower(Reconstruction):
    """Mean squared error of the clipped, min-max scaled span on hidden pixels, the faithful form.

    P = clip(span, 0, clip), scaled to 0..1 by the smallest and largest valid value.
    Source: paper (SAR-L1 objective); clip at 1 and scaling from the released code, which has this loss in the file of
    one modality and a masked L1 of re and im (`masked_l1`) in that of all. Assumes a calibrated product,
    |S|^2 = sigma0; for an uncalibrated one set `clip` to a high percentile of its power.

    Attributes:
        clip: largest power that counts, in the square of the pixels' unit (linear sigma0).
        limits: of which pixels the smallest and largest value are: "image", those that are shown (ours), so that
            every target fills 0..1; or "tile", all of the stored tile, before the crop (released code), so that a dark
            crop stays dark; with `data.tile_power`.
    """

    clip: float = 1.0
    limits: str = IMAGE
    head: ClassVar[str] = "span"

    def __post_init__(self):
        if self.limits not in LIMITS:
            raise ConfigError(f'{type(self).__name__}: limits = "{self.limits}": {nearest(self.limits, LIMITS)}')

    def channels(self, sensor: Sensor) -> int:
        radar.require(sensor, who=type(self).__name__, complex_only=True)
        return 1

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        entry = batch["sensors"][self.sensor]
        span = radar.span(entry["pixels"])
        valid = entry["valid"][..., None] & jnp.isfinite(span)
        power = jnp.clip(span, 0.0, self.clip)
        low, high = self._limits(entry, power, valid)
        scale = jnp.where(high > low, high - low, 1.0)
        return jnp.where(valid, (power - jnp.where(valid, low, 0.0)) / scale, jnp.nan)

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.square(prediction - target)

    def _limits(self, entry: Mapping, power: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Smallest and largest power, [B, T, 1, 1, 1] each."""
        if self.limits == IMAGE:
            over_image = dict(axis=(2, 3, 4), keepdims=True)
            low = jnp.min(jnp.where(valid, power, jnp.inf), **over_image)
            return low, jnp.max(jnp.where(valid, power, -jnp.inf), **over_image)
        if "power" not in entry:
            raise ConfigError(
                f'objectives: total_power of "{self.sensor}" has limits = "tile", and batches do not hold the power of '
                'tiles: set data.tile_power = True, or limits = "image"'
            )
        limits = jnp.clip(entry["power"], 0.0, self.clip)[:, :, None, None, None]
        return limits[..., 0], limits[..., 1]


@register("log_total_power")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogTotalPower(TotalPower):
    """Mean squared error of the span in standardised decibels (our choice).

    Speckle multiplies power, so in decibels it has the same variance everywhere and bright targets do not
    dominate. Decibels are relative to the sensor's mean power (its statistics: zero mean, one global scale),
    so calibrated and uncalibrated products train alike. The minimiser is the conditional mean of log power,
    which lies below the log of the mean power by a constant that depends on the number of looks. `clip` and `limits`
    are not looked at.

    Attributes:
        mean_db: subtracted from the relative power, dB; -10 log10(e) Euler's constant = -2.5 is the mean of
            single-look speckle.
        std_db: divides it, dB; single-look speckle alone has 5.6 dB.
        floor: smallest relative power that counts.
    """

    mean_db: float = -2.5
    std_db: float = 6.0
    floor: float = 1e-4
    head: ClassVar[str] = "log_span"

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        standardised = outputs["standardised"][self.sensor]
        power = jnp.maximum(radar.span(standardised) / standardised.shape[-1], self.floor)
        return (10.0 * jnp.log10(power) - self.mean_db) / self.std_db
