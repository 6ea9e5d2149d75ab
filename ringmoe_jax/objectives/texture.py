"""Speckle over ground whose own power varies from pixel to pixel: the product model with inverse-Gamma texture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from ringmoe_jax.objectives import radar
from ringmoe_jax.objectives.base import register
from ringmoe_jax.objectives.speckle import Speckle
from ringmoe_jax.sensors import Sensor

SPREAD = 4.0  # the shape nu lies in 1 + e^-4..1 + e^4 = 1.02..56
MODERATE = 3.0  # nu of trivial predictors (our choice)


def textured_nats(intensity: jax.Array, mean: jax.Array, shape: jax.Array, looks: float) -> jax.Array:
    """-ln p of the L-look intensities of P polarisations that share one texture, in nats.

    I_p = tau x_p, x_p of Gamma(L) with mean lambda_p, tau of inverse Gamma(nu) with mean 1:

        p(I) = Gamma(nu + P L) (nu - 1)^nu / Gamma(nu) / (nu - 1 + L sum I_p / lambda_p)^(nu + P L)
               prod_p L^L I_p^(L - 1) / (Gamma(L) lambda_p^L)

    Args:
        intensity: [..., P] > 0.
        mean: [..., P] > 0, lambda.
        shape: [..., 1] > 1, nu; texture has the variance 1 / (nu - 2) where nu > 2, and none where it is infinite.
        looks: L > 0.

    Returns:
        [..., 1].
    """
    total = shape + intensity.shape[-1] * looks
    ratio = jnp.sum(intensity / mean, axis=-1, keepdims=True)
    own = looks * (jnp.log(mean) - jnp.log(looks)) + gammaln(looks) - (looks - 1) * jnp.log(intensity)
    shared = gammaln(shape) - gammaln(total) + total * jnp.log1p(looks * ratio / (shape - 1))
    return shared + (total - shape) * jnp.log(shape - 1) + jnp.sum(own, axis=-1, keepdims=True)


@register("textured_speckle")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TexturedSpeckle(Speckle):
    """Negative log-likelihood of speckle over textured ground: G0, heavy-tailed where the ground is heterogeneous.

    Towns, ships and forest edges return powers that no smooth prediction meets; under `speckle` and
    `complex_gaussian` one bright scatterer then costs I / lambda nats, here only the logarithm of it. Texture
    multiplies all polarisations of a pixel alike. The decoder predicts ln lambda of each polarisation relative to
    the sensor's mean power, and ln(nu - 1): how heterogeneous it believes the ground, or how unsure it is. For
    complex sensors it is a complex multivariate t density with independent polarisations. In nats a pixel. The
    noise parameter that is fitted for comparisons is a factor of lambda. Sources: Frery, Mueller, Yanasse and
    Sant'Anna 1997 (G0); predicting nu, our choice. No-data pixels, and powers that are not above 0, add nothing.
    """

    head: ClassVar[str] = "textured_power"
    noises: ClassVar[tuple[float, ...]] = tuple(float(x) for x in np.geomspace(0.05, 20.0, 64))  # of lambda

    def channels(self, sensor: Sensor) -> int:
        return len(radar.polarisations(sensor)) + 1

    def prediction(self, outputs: Mapping) -> jax.Array:
        """lambda, [B, T, H, W, P] linear power, and behind it nu > 1."""
        raw = outputs["heads"][self.sensor][self.head]
        mean = radar.mean_power(outputs["sensors"][self.sensor], outputs["statistics"][self.sensor])
        power = jnp.asarray(mean, jnp.float32) * jnp.exp(radar.bounded(raw[..., :-1]))
        return jnp.concatenate([power, 1 + jnp.exp(radar.bounded(raw[..., -1:], SPREAD))], axis=-1)

    def constant(self, target: jax.Array) -> jax.Array:
        return jnp.concatenate([target, jnp.full_like(target[..., :1], MODERATE)], axis=-1)

    def picture(self, outputs: Mapping, batch: Mapping) -> tuple[jax.Array, jax.Array]:
        return radar.decibels(self.prediction(outputs)[..., :-1]), radar.decibels(self.target(outputs, batch))

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return self.nats(prediction, target, 1.0)

    def nats(self, prediction: jax.Array, target: jax.Array, noise: jax.Array | float) -> jax.Array:
        return textured_nats(target, noise * prediction[..., :-1], prediction[..., -1:], self.looks)
