"""Speckle likelihoods: fully developed speckle multiplies the power lambda that a scene returns (Goodman 1976).

One model with four faces, chosen by the sensor's unit. They are one density under a change of variable, so
their gradients by lambda are the same:

    intensity     Gamma            p(I) = L^L I^(L-1) exp(-L I / lambda) / (Gamma(L) lambda^L)
    dB            Fisher-Tippett   the density of 10 log10 I (of a log-gamma variable, where L is not 1)
    amplitude     Nakagami         the density of sqrt(I); Rayleigh where L = 1
    complex       circular normal  L = 1: p(s) = exp(-|s|^2 / lambda) / (pi lambda)

The minimiser is the conditional mean power in every unit, while L1 and L2 losses in dB or amplitude find a
value below it, by a factor that depends on L.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives import radar
from ringmoe_jax.objectives.base import Likelihood, register
from ringmoe_jax.sensors import Sensor


def gamma_nats(intensity: jax.Array, mean: jax.Array, looks: float | jax.Array) -> jax.Array:
    """-ln p(I) of an L-look intensity > 0 whose mean is > 0, in nats; any broadcastable shapes."""
    looks = jnp.asarray(looks, jnp.float32)
    scaled = looks * (intensity / mean + jnp.log(mean) - jnp.log(looks))
    return scaled + gammaln(looks) - (looks - 1) * jnp.log(intensity)


@register("speckle")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Speckle(Likelihood):
    """Negative log-likelihood of L-look speckle: Gamma, Fisher-Tippett, Nakagami or Rayleigh by the sensor's unit.

    The decoder predicts ln lambda relative to the sensor's mean power. Assumes cells without a dominant
    scatterer, homogeneous over the looks, and independent polarisations. The loss is that of the intensity, in
    nats a band. Sources: Goodman 1976; Ulaby, Kouyate, Brisco and Williams 1986 (textures and L looks). No-data
    pixels, and powers that are not above 0, add nothing.

    Attributes:
        looks: L > 0, the shape of the density; default: the sensor's. `evaluate.looks.estimate` measures it.
    """

    looks: float | None = None
    head: ClassVar[str] = "power"
    noises: ClassVar[tuple[float, ...]] = tuple(float(x) for x in np.geomspace(0.1, 50.0, 64))  # looks

    def __post_init__(self):
        sensor = sensor_table.get(self.sensor)
        radar.require(sensor, who=type(self).__name__)
        if self.looks is None:
            object.__setattr__(self, "looks", float(sensor.looks))
        radar.check_looks(self.looks)

    def channels(self, sensor: Sensor) -> int:
        return len(radar.polarisations(sensor))

    def prediction(self, outputs: Mapping) -> jax.Array:
        """lambda, [B, T, H, W, P] linear power."""
        return radar.predicted_power(outputs, self.sensor)

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        """I, [B, T, H, W, P] linear power."""
        power = radar.intensity(outputs["sensors"][self.sensor], batch["sensors"][self.sensor]["pixels"])
        return jnp.where(power > 0, power, jnp.nan)

    def picture(self, outputs: Mapping, batch: Mapping) -> tuple[jax.Array, jax.Array]:
        return radar.decibels(self.prediction(outputs)), radar.decibels(self.target(outputs, batch))

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return gamma_nats(target, prediction, self.looks)

    def nats(self, prediction: jax.Array, target: jax.Array, noise: jax.Array) -> jax.Array:
        return gamma_nats(target, prediction, noise)

    def change_of_unit(self, outputs: Mapping, target: jax.Array) -> jax.Array:
        match outputs["sensors"][self.sensor].resampling:
            case sensor_table.DECIBEL:  # dI / d dB = I / 4.34
                return jnp.log(radar.DB / target)
            case sensor_table.AMPLITUDE:  # dI / dA = 2 sqrt(I)
                return -jnp.log(4 * target) / 2
            case sensor_table.COMPLEX:  # a uniform phase: p(s) = p(I) / pi
                return jnp.full_like(target, np.log(np.pi))
        return jnp.zeros_like(target)


@register("complex_gaussian")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ComplexGaussian(Speckle):
    """Circular complex Gaussian negative log-likelihood of hidden single-look pixels, given predicted powers.

    -ln p(s) = sum_p |s_p|^2 / lambda_p + ln(pi lambda_p); the constants ln(pi) and ln|s|^2 are left out of the
    loss. Polarisations are independent in the chosen basis; `wishart` also learns their correlation. The noise
    parameter that is fitted for comparisons is a factor of lambda. Source: Goodman 1976.

    Attributes:
        basis: "lexicographic" (HH, HV, VH, VV as stored) or "pauli" (quad-pol only), see `radar.pauli`.
    """

    basis: str = "lexicographic"
    noises: ClassVar[tuple[float, ...]] = tuple(float(x) for x in np.geomspace(0.05, 20.0, 64))  # of lambda

    def __post_init__(self):
        super().__post_init__()
        radar.require(sensor_table.get(self.sensor), who=type(self).__name__, complex_only=True)
        if self.looks != 1:
            raise ConfigError(f"looks = {self.looks}: a single-look complex pixel has 1; multilook with `wishart`")
        if self.basis not in radar.HEADS:
            raise ConfigError(f'basis = "{self.basis}": wanted one of {", ".join(radar.HEADS)}')

    @property
    def head(self) -> str:
        """Decoder output of the basis."""
        return radar.HEADS[self.basis]

    def channels(self, sensor: Sensor) -> int:
        if self.basis == "pauli":
            radar.require_quad(sensor, who=type(self).__name__)
        return super().channels(sensor)

    def prediction(self, outputs: Mapping) -> jax.Array:
        return radar.predicted_power(outputs, self.sensor, self.basis)

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        s = radar.as_complex(batch["sensors"][self.sensor]["pixels"])
        power = jnp.square(jnp.abs(radar.pauli(s) if self.basis == "pauli" else s))
        return jnp.where(power > 0, power, jnp.nan)

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return target / prediction + jnp.log(prediction)

    def nats(self, prediction: jax.Array, target: jax.Array, noise: jax.Array) -> jax.Array:
        return self.penalty(noise * prediction, target)
