"""Masked reconstruction of a sensor's standardised bands: plain, and weighted by the bands' noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.base import Likelihood, Reconstruction, find, register
from ringmoe_jax.sensors import Sensor

SCALES = tuple(float(s) for s in np.geomspace(0.02, 10.0, 64))  # standard deviations of a band


@register("masked_l1")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedL1(Likelihood):
    """L = sum(mask |x - x_hat|) / sum(mask) / C on standardised pixels, without per-patch normalisation.

    Source: released RingMoE code (SimMIM). Assumes independent Laplacian errors of equal scale b in every
    standardised band: -ln p = |x - x_hat| / b + ln(2 b). Without unit. No-data pixels add nothing.
    """

    noises: ClassVar[tuple[float, ...]] = SCALES

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        return outputs["standardised"][self.sensor]

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.abs(prediction - target)

    def nats(self, prediction: jax.Array, target: jax.Array, noise: jax.Array) -> jax.Array:
        return self.penalty(prediction, target) / noise + jnp.log(2 * noise)

    def change_of_unit(self, outputs: Mapping, target: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.log(jnp.asarray(outputs["statistics"][self.sensor].std)), target.shape)


@register("masked_l2")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedL2(MaskedL1):
    """L = sum(mask (x - x_hat)^2) / sum(mask) / C on standardised pixels (MAE without per-patch normalisation).

    Assumes independent normal errors of equal standard deviation s in every standardised band:
    -ln p = (x - x_hat)^2 / (2 s^2) + ln(2 pi s^2) / 2. Without unit. No-data pixels add nothing.
    """

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.square(prediction - target)

    def nats(self, prediction: jax.Array, target: jax.Array, noise: jax.Array) -> jax.Array:
        return self.penalty(prediction, target) / (2 * noise**2) + jnp.log(2 * jnp.pi * noise**2) / 2


@register("noise_weighted")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseWeighted(Reconstruction):
    """L1 in the sensor's unit, each band divided by its radiometric noise: quiet bands count more.

    L = sum_b w_b |x_b - x_hat_b| / C on standardised pixels, w_b = (s_b / n_b) / mean(s / n), with s_b the
    standard deviation of the band's scenes and n_b that of its noise, so that an error of one standard
    deviation in all bands costs 1, as in `masked_l1`. Assumes noise that is independent of the signal; n_b is
    the lower bound of what a model can reach. Source: our choice. No-data pixels add nothing.

    Attributes:
        noise: standard deviation of the noise by band, in the sensor's unit; default: the sensor table's.
    """

    noise: tuple[float, ...] = ()

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        self.noise_of(find(self, sensors))
        return super().heads(sensors)

    def noise_of(self, sensor: Sensor) -> tuple[float, ...]:
        """n_b; raises `ConfigError` where the table does not know it or the values are unusable."""
        values = self.noise or tuple(band.noise for band in sensor.bands)
        if None in values:
            raise ConfigError(f'NoiseWeighted: the table knows no noise of "{sensor.name}": give `noise`, one a band')
        if len(values) != sensor.channels or not all(0 < v < np.inf for v in values):
            raise ConfigError(f"NoiseWeighted: noise = {values}, wanted {sensor.channels} values > 0 in {sensor.unit}")
        return values

    def weights(self, outputs: Mapping) -> jax.Array:
        """w_b, [C] float32."""
        noise = np.asarray(self.noise_of(outputs["sensors"][self.sensor]))
        ratio = np.asarray(outputs["statistics"][self.sensor].std) / noise
        return jnp.asarray(ratio / ratio.mean(), jnp.float32)

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        return outputs["standardised"][self.sensor] * self.weights(outputs)

    def prediction(self, outputs: Mapping) -> jax.Array:
        return super().prediction(outputs) * self.weights(outputs)

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.abs(prediction - target)
