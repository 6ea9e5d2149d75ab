"""What the SAR objectives share: power of a product in any unit, polarimetry, and positive parameters.

Complex sensors hold re, im pairs of P polarisations, |S|^2 = sigma0; the others one band a polarisation, in
dB, amplitude (sqrt of sigma0) or intensity (sigma0). Everything here turns them into linear intensities.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.sensors import AMPLITUDE, COMPLEX, DECIBEL, Sensor, Statistics

LIMIT = 12.0  # predicted powers lie within e^12 = 52 dB of the sensor's mean power
DB = 10.0 / np.log(10.0)  # dB of a factor e
QUAD = ("HH", "HV", "VH", "VV")
HEADS = {"lexicographic": "power", "pauli": "pauli_power"}  # decoder output of a polarimetric basis


def require(sensor: Sensor, *, who: str, complex_only: bool = False) -> None:
    """Raises a `ConfigError` where a sensor is not SAR, or not complex."""
    if complex_only and sensor.resampling != COMPLEX:
        raise ConfigError(f'{who} needs a complex sensor, "{sensor.name}" is not one')
    if sensor.looks is None:
        raise ConfigError(
            f'{who} needs a SAR sensor (one with `looks` in the sensor table), "{sensor.name}" is not one'
        )


def require_quad(sensor: Sensor, *, who: str) -> None:
    """Raises a `ConfigError` where a sensor is not complex with the polarisations HH HV VH VV."""
    require(sensor, who=who, complex_only=True)
    if polarisations(sensor) != QUAD:
        raise ConfigError(
            f'{who} needs the polarisations {" ".join(QUAD)}, "{sensor.name}" has {" ".join(polarisations(sensor))}'
        )


def polarisations(sensor: Sensor) -> tuple[str, ...]:
    """Names of the P polarisations, for example ("VV", "VH")."""
    if sensor.resampling == COMPLEX:
        return tuple(band.name.split("_")[0] for band in sensor.bands[::2])
    return sensor.band_names


def as_complex(pixels: jax.Array) -> jax.Array:
    """[..., 2 P] float32 of re, im pairs -> [..., P] complex64."""
    return jax.lax.complex(pixels[..., 0::2], pixels[..., 1::2])


def intensity(sensor: Sensor, pixels: jax.Array) -> jax.Array:
    """[..., C] in the sensor's unit -> [..., P] float32 linear power; NaN where dB are infinite or others below 0."""
    if sensor.resampling == COMPLEX:
        return jnp.square(pixels[..., 0::2]) + jnp.square(pixels[..., 1::2])
    if sensor.resampling == DECIBEL:
        return jnp.exp(jnp.where(jnp.isfinite(pixels), pixels, jnp.nan) / DB)
    return jnp.where(pixels >= 0, jnp.square(pixels) if sensor.resampling == AMPLITUDE else pixels, jnp.nan)


def mean_power(sensor: Sensor, statistics: Statistics) -> np.ndarray:
    """[P] float64 > 0: mean linear power by the statistics (dB: that of the mean dB)."""
    mean, std = np.asarray(statistics.mean), np.asarray(statistics.std)
    if sensor.resampling == COMPLEX:
        return (mean**2 + std**2).reshape(-1, 2).sum(axis=-1)
    if sensor.resampling == DECIBEL:
        return np.exp(mean / DB)
    power = mean**2 + std**2 if sensor.resampling == AMPLITUDE else mean
    return np.maximum(power, np.finfo(np.float32).tiny)


def bounded(x: jax.Array, limit: float = LIMIT) -> jax.Array:
    """x where |x| is small, within -limit..limit everywhere: keeps exponentials and their gradients finite."""
    return limit * jnp.tanh(x / limit)


def predicted_power(outputs: Mapping, sensor: str, basis: str = "lexicographic") -> jax.Array:
    """lambda [B, T, H, W, P] > 0, linear power, of the decoder that gives ln lambda relative to the mean power."""
    mean = mean_power(outputs["sensors"][sensor], outputs["statistics"][sensor])
    if basis == "pauli":  # the mean power of every combination is not in the statistics: equal shares
        mean = np.full_like(mean, mean.mean())
    return jnp.asarray(mean, jnp.float32) * jnp.exp(bounded(outputs["heads"][sensor][HEADS[basis]]))


def decibels(power: jax.Array) -> jax.Array:
    """10 log10 of a linear power, -100 at the least."""
    return DB * jnp.log(jnp.maximum(power, 1e-10))


def span(pixels: jax.Array) -> jax.Array:
    """Total power of re, im pairs.

    Args:
        pixels: [..., 2 P] float32, complex amplitudes with |S|^2 = sigma0.

    Returns:
        [..., 1] float32 >= 0, linear sigma0 summed over the P polarisations.
    """
    return jnp.sum(jnp.square(pixels), axis=-1, keepdims=True)


def pauli(s: jax.Array) -> jax.Array:
    """Scattering amplitudes in the Pauli basis (Cloude and Pottier 1996), a unitary change of basis.

    Args:
        s: [..., 4] complex64, HH HV VH VV.

    Returns:
        [..., 4] complex64: (HH + VV, HH - VV, HV + VH, HV - VH) / sqrt(2): odd bounce, even bounce at 0 degrees,
        even bounce at 45 degrees, and what reciprocity makes 0.
    """
    hh, hv, vh, vv = (s[..., i] for i in range(4))
    return jnp.stack([hh + vv, hh - vv, hv + vh, hv - vh], axis=-1) / np.sqrt(2.0)


def reciprocal(s: jax.Array) -> jax.Array:
    """[..., 4] HH HV VH VV -> [..., 3] HH, (HV + VH) / sqrt(2), VV: equal power where HV = VH (monostatic)."""
    return jnp.stack([s[..., 0], (s[..., 1] + s[..., 2]) / np.sqrt(2.0), s[..., 3]], axis=-1)


def covariance(s: jax.Array) -> jax.Array:
    """[..., looks, P] complex -> [..., P, P] Hermitian mean of s s^H over the looks."""
    return jnp.einsum("...lp,...lq->...pq", s, s.conj()) / s.shape[-2]


def windows(x: jax.Array, side: int) -> jax.Array:
    """[..., H, W, K] -> [..., H / side, W / side, side^2, K]; rows and columns that fill no window are left out."""
    *lead, height, width, channels = x.shape
    x = x[..., : height // side * side, : width // side * side, :]
    x = x.reshape(*lead, height // side, side, width // side, side, channels).swapaxes(-4, -3)
    return x.reshape(*x.shape[:-3], side * side, channels)


def check_looks(looks: float) -> None:
    """Raises a `ConfigError` where a number of looks is not finite and above 0."""
    if not 0 < looks < np.inf:
        raise ConfigError(f"looks = {looks}: wanted a finite number > 0")
