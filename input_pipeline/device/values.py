"""Stored values to the sensor's unit, and the disturbance of values: twins of `pipeline.physical` and of
`augment.disturb`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import rules
from input_pipeline.device.resampling import blur
from input_pipeline.schema import SensorInfo
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.data_config import PhotometricConfig
from ringmoe_jax.sensors import Statistics


def observed(info: SensorInfo, stored: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Where every chosen band was observed: not where one holds the no-data value, NaN or infinity. On the host.

    Args:
        info: how the sensor is stored.
        stored: [..., C] of the chosen bands, storage dtype.
        valid: [...] bool, as stored.
    """
    if stored.dtype.kind == "f":
        valid = valid & np.isfinite(stored).all(-1)
    if info.no_data is not None:
        valid = valid & (stored != np.asarray(info.no_data, stored.dtype)).all(-1)
    return valid


def physical(info: SensorInfo, stored, valid):
    """[T, H, W, C] of the storage dtype to float32 in the sensor's unit, 0 where not valid (None: all are)."""
    pixels = stored.astype(jnp.float32)
    if (info.scale, info.offset) != (1, 0):
        pixels = pixels * info.scale + info.offset
    return pixels if valid is None else jnp.where(valid[..., None], pixels, 0.0)


def power_limits(pixels, valid):
    """Smallest and largest total power of valid pixels, [T, 2] float32, 0 for none; see `physical`."""
    power = jnp.sum(jnp.square(pixels), axis=-1)
    valid = jnp.ones(power.shape, bool) if valid is None else valid
    low = jnp.min(jnp.where(valid, power, jnp.inf), axis=(1, 2))
    high = jnp.max(jnp.where(valid, power, 0.0), axis=(1, 2))
    return jnp.stack([jnp.minimum(low, high), high], axis=1)


def disturb(pixels, valid, draw, config: PhotometricConfig, resampling: str, statistics: Statistics):
    """Random gain, offset, blur, solarisation and loss of bands, in this order; see `input_pipeline.augment.disturb`.

    Args:
        pixels: [T, size, size, C] float32, in the sensor's unit, 0 where not valid; re, im pairs where complex.
        valid: [T, size, size] bool, or None where all are.
        draw: [3 C + 4] uniform numbers.
        config: which ones, and how much; `rules.check_photometric` says which ones a sensor allows.
        resampling: of the sensor table.
        statistics: of the C channels.

    Returns:
        pixels and valid.
    """
    pair = rules.channels_a_band(resampling)
    by_band, draw = draw[:-4].reshape(3, -1)[:, ::pair], draw[-4:]

    def where_valid(changed, otherwise=0.0):
        return changed if valid is None else jnp.where(valid[..., None], changed, otherwise)

    if config.gain or config.illumination:
        log = jnp.repeat(config.gain * _normal(by_band[0]), pair) + config.illumination * _normal(draw[3])
        pixels = where_valid(_multiplied(pixels, log, resampling))
    if config.offset:
        shift = config.offset * _normal(by_band[1]) * jnp.array(statistics.std, jnp.float32)
        pixels = where_valid(pixels + shift)
    if config.blur:
        sigma = rules.BLUR[0] + draw[1] * (rules.BLUR[1] - rules.BLUR[0])
        pixels, valid = blur(pixels, valid, jnp.where(draw[0] < config.blur, sigma, 0.0), resampling)
    if config.solarise:
        solarised = jnp.where(pixels > 0.5, jnp.maximum(1.0 - pixels, 0.0), pixels)
        pixels = jnp.where(draw[2] < config.solarise, solarised, pixels)
    if config.drop_band:
        dropped = jnp.repeat((by_band[2] < config.drop_band) & (by_band[2] < by_band[2].max()), pair)
        mean = jnp.array(statistics.mean, jnp.float32)
        pixels = where_valid(jnp.where(dropped, mean, pixels), pixels)
    return pixels, valid


def _multiplied(pixels, log, resampling: str):
    """Power or reflectance times exp(log)."""
    if resampling == sensor_table.DECIBEL:
        return pixels + 10.0 * log / math.log(10.0)
    return pixels * jnp.exp(log if resampling == sensor_table.LINEAR else 0.5 * log)


def _normal(draw):
    """Uniform numbers of 0 to 1 to standard normal ones."""
    return math.sqrt(2) * jax.scipy.special.erfinv(
        jnp.maximum(2 * draw - 1, np.nextafter(np.float32(-1), np.float32(0)))
    )
