"""Likelihood of polarimetric covariances: complex Wishart (Goodman 1963; Lee and Pottier 2009)."""

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


def wishart_nats(sample: jax.Array, sigma: jax.Array, looks: float) -> jax.Array:
    """-ln p(C) of the covariance C of n looks whose mean is Sigma.

    p(C) = n^(n p) |C|^(n - p) exp(-n tr(Sigma^-1 C)) / (Gamma_p(n) |Sigma|^n),
    Gamma_p(n) = pi^(p (p - 1) / 2) Gamma(n) ... Gamma(n - p + 1).

    Args:
        sample: [..., p, p] complex64, Hermitian and positive definite.
        sigma: [..., p, p] complex64, Hermitian and positive definite.
        looks: n >= p, the number of independent looks in C.

    Returns:
        [...] float32, nats.

    Raises:
        ConfigError: fewer looks than polarisations: C is singular and has no density.
    """
    p = sample.shape[-1]
    if not p <= looks < np.inf:
        raise ConfigError(f"looks = {looks}: the covariance of {p} polarisations needs at least {p} to be invertible")
    log_gamma = p * (p - 1) / 2 * np.log(np.pi) + sum(gammaln(jnp.float32(looks - i)) for i in range(p))
    trace = jnp.trace(jnp.linalg.solve(sigma, sample), axis1=-2, axis2=-1).real
    log_det = lambda m: jnp.linalg.slogdet(m)[1]  # noqa: E731
    return looks * (trace + log_det(sigma)) - (looks - p) * log_det(sample) - looks * p * np.log(looks) + log_gamma


@register("wishart")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Wishart(Likelihood):
    """Complex Wishart negative log-likelihood of the covariance of window x window hidden single-look pixels.

    The loss is tr(Sigma^-1 C) + ln|Sigma|, the likelihood without the terms of the data alone and divided by
    the n = window^2 looks. Plus p ln(pi) that is the mean -ln p of the n pixels as circular complex Gaussian
    vectors, so it needs neither n >= p nor independent pixels. Assumes one Sigma in a window, and takes the mean
    of the decoder's outputs there. Sigma^-1 = U^H D^2 U with U unit lower triangular and D = diag(exp(x)):
    positive definite for every output, and nothing is inverted. In nats a pixel, powers relative to the
    sensor's mean. Windows with a visible or no-data pixel, or without power, add nothing. The noise parameter
    that is fitted for comparisons is a factor of Sigma. Parameterisation: our choice.

    Attributes:
        window: side of the square of looks, in pixels.
        reciprocal: take HV = VH, 3 x 3 instead of 4 x 4 (quad-pol only), see `radar.reciprocal`.
    """

    window: int = 4
    reciprocal: bool = False
    noises: ClassVar[tuple[float, ...]] = tuple(float(x) for x in np.geomspace(0.05, 20.0, 64))  # of Sigma

    def __post_init__(self):
        radar.require(sensor_table.get(self.sensor), who="Wishart", complex_only=True)
        if self.window < 1:
            raise ConfigError(f"window = {self.window}: wanted at least 1 pixel")

    @property
    def head(self) -> str:
        """Decoder output."""
        return "reciprocal_covariance" if self.reciprocal else "covariance"

    @property
    def footprint(self) -> int:
        return self.window

    @property
    def comparable(self) -> bool:
        return not self.reciprocal  # what it says of HV - VH is not a density

    def channels(self, sensor: Sensor) -> int:
        """p^2 real numbers make a covariance of p polarisations."""
        if self.reciprocal:
            radar.require_quad(sensor, who="Wishart with reciprocal = True")
        return (3 if self.reciprocal else len(radar.polarisations(sensor))) ** 2

    def grid(self, mask: jax.Array) -> jax.Array:
        return radar.windows(mask[..., None], self.window).all(axis=(-2, -1))

    def prediction(self, outputs: Mapping) -> jax.Array:
        """[B, T, h, w, p^2]: ln D, then the real and imaginary parts of U below its diagonal."""
        return radar.bounded(radar.windows(super().prediction(outputs), self.window).mean(axis=-2))

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        """C relative to the mean power, [B, T, h, w, p^2]: its diagonal, then real and imaginary parts below it."""
        s = radar.as_complex(batch["sensors"][self.sensor]["pixels"]) / np.sqrt(self._mean(outputs))
        c = radar.covariance(radar.windows(radar.reciprocal(s) if self.reciprocal else s, self.window))
        packed = pack(c)
        power = packed[..., : c.shape[-1]].sum(axis=-1, keepdims=True)
        return jnp.where(power > 0, packed, jnp.nan)

    def _mean(self, outputs: Mapping) -> float:
        return radar.mean_power(outputs["sensors"][self.sensor], outputs["statistics"][self.sensor]).mean()

    def constant(self, target: jax.Array) -> jax.Array:
        """The outputs that say Sigma = C, with eigenvalues of at least a thousandth of its mean power."""
        p = int(target.shape[-1] ** 0.5)
        powers, vectors = jnp.linalg.eigh(unpack(target))  # an entry-wise median may have powers below 0
        powers = jnp.maximum(powers, 1e-3 * target[..., :p].mean(axis=-1, keepdims=True))
        lower = jnp.linalg.cholesky((vectors * powers[..., None, :]) @ jnp.swapaxes(vectors, -1, -2).conj())
        inverse = jnp.linalg.inv(lower)
        scale = jnp.diagonal(inverse, axis1=-2, axis2=-1).real
        return pack(inverse / scale[..., None]).at[..., :p].set(jnp.log(scale))

    def picture(self, outputs: Mapping, batch: Mapping) -> tuple[jax.Array, jax.Array]:
        """Total power, dB of the sensor's mean."""
        spans = (
            jnp.trace(c, axis1=-2, axis2=-1).real[..., None]
            for c in (sigma_of(self.prediction(outputs)), unpack(self.target(outputs, batch)))
        )
        return tuple(map(radar.decibels, spans))

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        c = unpack(target)
        log_d, u = _factors(prediction)
        power = jnp.einsum("...ij,...jk,...ik->...i", u, c, u.conj()).real  # of the decorrelated channels U s
        return jnp.sum(jnp.exp(2 * log_d) * power - 2 * log_d, axis=-1, keepdims=True)

    def nats(self, prediction: jax.Array, target: jax.Array, noise: jax.Array) -> jax.Array:
        p = int(target.shape[-1] ** 0.5)
        return self.penalty(prediction.at[..., :p].add(-jnp.log(noise) / 2), target)

    def change_of_unit(self, outputs: Mapping, target: jax.Array) -> jax.Array:
        return jnp.full_like(target[..., :1], int(target.shape[-1] ** 0.5) * np.log(np.pi * self._mean(outputs)))


def sigma_of(prediction: jax.Array) -> jax.Array:
    """Sigma [..., p, p] complex64 of the outputs [..., p^2] of `Wishart.prediction`."""
    log_d, u = _factors(prediction)
    inverse = jnp.linalg.inv(jnp.exp(log_d)[..., None] * u)
    return inverse @ jnp.swapaxes(inverse, -1, -2).conj()


def _factors(prediction: jax.Array) -> tuple[jax.Array, jax.Array]:
    """ln D [..., p] and U [..., p, p]."""
    p = int(prediction.shape[-1] ** 0.5)
    return prediction[..., :p], unpack(prediction.at[..., :p].set(1.0), hermitian=False)


def pack(matrix: jax.Array) -> jax.Array:
    """[..., p, p] complex -> [..., p^2] float32: real diagonal, then re and im of what lies below it."""
    rows, columns = np.tril_indices(matrix.shape[-1], -1)
    below = matrix[..., rows, columns]
    return jnp.concatenate([jnp.diagonal(matrix, axis1=-2, axis2=-1).real, below.real, below.imag], axis=-1)


def unpack(values: jax.Array, *, hermitian: bool = True) -> jax.Array:
    """Inverse of `pack`: Hermitian, or lower triangular."""
    p = int(values.shape[-1] ** 0.5)
    rows, columns = np.tril_indices(p, -1)
    below = jax.lax.complex(*jnp.split(values[..., p:], 2, axis=-1))
    matrix = jnp.zeros((*values.shape[:-1], p, p), jnp.complex64).at[..., rows, columns].set(below)
    diagonal = values[..., :p, None] * jnp.eye(p)
    return matrix + diagonal + (jnp.swapaxes(matrix, -1, -2).conj() if hermitian else 0)
