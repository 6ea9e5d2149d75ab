"""Whether values can be in the unit of a sensor, and in which unit they look to be: one rule for arrays and files."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from ringmoe_jax.errors import DataError
from ringmoe_jax.sensors import AMPLITUDE, DECIBEL, Sensor

OUTSIDE = 0.01  # share of values beyond a sensor's range that are outliers and not another unit (our choice)


def unchecked(sensor: Sensor) -> Sensor:
    """The sensor for values in a unit of their own, such as an uncalibrated radar's: any value is in its range."""
    return dataclasses.replace(sensor, valid_range=(-math.inf, math.inf))


def within(sensor: Sensor, stored: np.ndarray) -> bool:
    """Whether the smallest and the largest stored value say that `check` has nothing against any of them."""
    (low, high), ends = sensor.valid_range, np.array([stored.min(), stored.max()]) * sensor.scale + sensor.offset
    return sensor.resampling != DECIBEL and bool(low <= ends.min() and ends.max() <= high)


def check(sensor: Sensor, values: np.ndarray, where: str, advice: str) -> None:
    """Raises where values cannot be the sensor's unit, and says what they look like.

    Backscatter of a whole image hardly ever is above 0 dB everywhere, and linear power always is.

    Args:
        sensor: with the bands of the values.
        values: [N, C], all of them valid; none is fine.
        where: begins the message.
        advice: ends it: what to do where the values are right.

    Raises:
        DataError: more than `OUTSIDE` of the values lie beyond `sensor.valid_range`, or none of dB is negative.
    """
    low, high = sensor.valid_range
    if not values.size or not math.isfinite(high - low):
        return
    linear = sensor.resampling == DECIBEL and values.min() >= 0
    if not linear and ((values < low) | (values > high)).mean() <= OUTSIDE:
        return
    wanted = sensor.unit if linear else f"{sensor.unit}, {low:g} to {high:g}"
    raise DataError(
        f"{where} runs from {values.min():g} to {values.max():g}, wanted {wanted}: {likely(sensor, values)} ({advice})"
    )


def likely(sensor: Sensor, values: np.ndarray) -> str:
    """The conversion that brings values [N, C] closest to the sensor's mean, in words."""
    stored, shift = sensor.scale != 1 or sensor.offset, f" + {sensor.offset:g}" if sensor.offset else ""
    decibel = sensor.resampling == DECIBEL
    conversions = {
        f"{sensor.scale:g} * pixels{shift}": (stored, lambda x: sensor.scale * x + sensor.offset),
        "pixels / 100": (stored or decibel, lambda x: x / 100),
        "10 * numpy.log10(pixels)": (decibel, lambda x: 10 * np.log10(np.maximum(x, 1e-12))),
        "20 * numpy.log10(pixels)": (decibel, lambda x: 20 * np.log10(np.maximum(x, 1e-12))),
        "10 ** (pixels / 20)": (sensor.resampling == AMPLITUDE, lambda x: 10 ** (x / 20)),
    }
    mean, std = np.asarray(sensor.statistics.mean), np.asarray(sensor.statistics.std)
    middle = np.median(values, axis=0)
    fitting = {text: convert(middle) for text, (fits, convert) in conversions.items() if fits}
    away = {text: np.abs((values - mean) / std).mean() for text, values in fitting.items()}
    best = min(away, key=away.get, default=None)
    if best is None or away[best] > 3:
        return "they look like another unit: convert them"
    return f"they look like another unit, give {best}"
