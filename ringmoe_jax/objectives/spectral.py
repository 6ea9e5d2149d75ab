"""Physics of reflectance: indices, the spectral angle, bounds; and brightness temperature of thermal bands.

All but `BrightnessTemperature` look at the decoder of the standardised bands, so they go beside a masked
reconstruction and change what it is accurate about.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.contracts import restore
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.base import PIXELS, Constraint, Reconstruction, find, register
from ringmoe_jax.sensors import Sensor

DARK = 1e-3  # smallest reflectance that enters an index: keeps ratios of dark pixels finite (our choice)
LIMIT = 100.0  # largest magnitude of a predicted index (our choice)
SYNONYMS = {"NDRE": "NDREI"}  # our spelling: that of the index table


@dataclasses.dataclass(frozen=True, kw_only=True)
class _InUnit(Reconstruction):
    """Compares restored pixels, in the sensor's unit, instead of standardised ones."""

    unit = "reflectance"

    def channels(self, sensor: Sensor) -> int:
        if sensor.unit != self.unit:
            raise ConfigError(
                f'{type(self).__name__} needs a sensor in {self.unit}, "{sensor.name}" is in {sensor.unit}'
            )
        return sensor.channels

    def prediction(self, outputs: Mapping) -> jax.Array:
        return restore(super().prediction(outputs), outputs["statistics"][self.sensor])

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        return batch["sensors"][self.sensor]["pixels"]


@register("spectral_indices")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralIndices(_InUnit):
    """Mean absolute difference of spectral indices between prediction and truth on hidden pixels.

    Indices are ratios of reflectances, so they are insensitive to illumination and to what scales all bands, and
    say what a class of ground is by its absorption bands. Formulas by name from Awesome Spectral Indices
    (package spyndex; Montero et al. 2023), constants at its defaults; NDRE is its NDREI. Without unit; the
    normalised differences lie in -1..1. Reflectances below 0.001 count as that; pixels where an index of the
    truth is not finite, and no-data pixels, add nothing.

    Attributes:
        indices: names, for example "NDVI", "NDWI", "NDBI", "NDRE", "NBR".
    """

    indices: tuple[str, ...] = ("NDVI", "NDWI", "NDBI", "NDRE", "NBR")

    def channels(self, sensor: Sensor) -> int:
        formulas(sensor, self.indices)
        return super().channels(sensor)

    def prediction(self, outputs: Mapping) -> jax.Array:
        return bounded_indices(super().prediction(outputs), outputs["sensors"][self.sensor], self.indices)

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        pixels = super().target(outputs, batch)
        pixels = jnp.where(jnp.isfinite(pixels), pixels, jnp.nan)  # -inf is no dark pixel
        return compute_indices(pixels, outputs["sensors"][self.sensor], self.indices)

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.abs(prediction - target)


@functools.lru_cache
def formulas(sensor: Sensor, indices: tuple[str, ...]) -> tuple[tuple, ...]:
    """For every index: compiled formula, {symbol: band position}, {symbol: constant}.

    Raises:
        ConfigError: no such index, or the sensor lacks one of its bands; names which, and what would do.
    """
    import spyndex  # a second of loading, for this objective alone

    if not indices:
        raise ConfigError("SpectralIndices: indices is empty, name at least one, for example NDVI")
    positions = {band.alias: i for i, band in enumerate(sensor.bands) if band.alias}
    alias = {symbol: spyndex.bands[symbol].common_name for symbol in spyndex.bands}
    found = []
    for name in indices:
        index = spyndex.indices.get(SYNONYMS.get(name, name))
        if index is None:
            close = difflib.get_close_matches(name.upper(), spyndex.indices, n=5, cutoff=0.0)
            raise ConfigError(f'no spectral index "{name}": did you mean one of {", ".join(close)}? (spyndex.indices)')
        bands = {symbol: alias[symbol] for symbol in index.bands if symbol in alias}
        constants = {s: spyndex.constants[s].default for s in index.bands if s in spyndex.constants}
        others = [symbol for symbol in index.bands if symbol not in alias and constants.get(symbol) is None]
        lacking = [f"{symbol} ({common})" for symbol, common in bands.items() if common not in positions] + others
        if lacking:
            raise ConfigError(
                f'spectral index "{name}" = {index.formula} needs {", ".join(lacking)}, which "{sensor.name}" lacks: '
                f"its bands are {', '.join(positions)}"
            )
        code = compile(index.formula, f"<spectral index {name}>", "eval")
        found.append((code, {symbol: positions[common] for symbol, common in bands.items()}, constants))
    return tuple(found)


def compute_indices(reflectance: jax.Array, sensor: Sensor, indices: tuple[str, ...]) -> jax.Array:
    """[..., C] reflectance in the sensor's bands -> [..., len(indices)], each as its formula says."""
    reflectance = jnp.maximum(reflectance, DARK)
    values = []
    for code, bands, constants in formulas(sensor, tuple(indices)):
        symbols = {symbol: reflectance[..., i] for symbol, i in bands.items()} | constants
        values.append(eval(code, {"__builtins__": {}}, symbols))  # a formula of the table
    return jnp.stack(values, axis=-1)


def bounded_indices(reflectance: jax.Array, sensor: Sensor, indices: tuple[str, ...]) -> jax.Array:
    """As `compute_indices`, but within -LIMIT..LIMIT; a pixel near a formula's pole has no gradient."""
    found = compute_indices(jax.lax.stop_gradient(reflectance), sensor, indices)
    near = ~(jnp.abs(found) < LIMIT).all(axis=-1, keepdims=True)  # NaN is not below
    harmless = jnp.linspace(0.1, 0.4, sensor.channels)  # what is differentiated there instead
    values = compute_indices(jnp.where(near, harmless, reflectance), sensor, indices)
    return jnp.where(near, jnp.clip(jnp.nan_to_num(found), -LIMIT, LIMIT), values)


@register("spectral_angle")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralAngle(_InUnit):
    """Angle between the predicted and the true spectrum of a hidden pixel, in radians.

    2 atan2(|a - b|, |a + b|) of the unit vectors a and b (Kahan 2006), which keeps its precision and its gradient
    where arccos loses them. Blind to brightness. Source: Kruse et al. 1993 (SAM). Pixels whose spectrum is zero,
    and no-data pixels, add nothing.
    """

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        pixels = super().target(outputs, batch)
        return jnp.where(jnp.linalg.norm(pixels, axis=-1, keepdims=True) > 0, pixels, jnp.nan)

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        a, b = (x / safe_norm(x) for x in (prediction, target))
        return 2 * jnp.arctan2(safe_norm(a - b), safe_norm(a + b))


def safe_norm(x: jax.Array) -> jax.Array:
    """[..., C] -> [..., 1] Euclidean norm, at least 1e-6, with a finite gradient everywhere."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


@register("reflectance_bounds")
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReflectanceBounds(Constraint):
    """Soft bounds: the squared distance of predicted reflectance from low..high, in squared reflectance.

    A dark or bright pixel's prediction outside of what a surface can reflect is wrong whatever the truth; inside
    nothing happens. Snow, cloud and glint exceed 1 in some directions. Source: our choice.

    Attributes:
        low: smallest reflectance.
        high: largest reflectance.
    """

    low: float = 0.0
    high: float = 1.2

    def __post_init__(self):
        if not self.low < self.high:
            raise ConfigError(f"ReflectanceBounds: low = {self.low}, high = {self.high}: wanted low < high")

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        sensor = find(self, sensors)
        if sensor.unit != "reflectance":
            raise ConfigError(f'ReflectanceBounds needs a sensor in reflectance, "{sensor.name}" is in {sensor.unit}')
        return {self.sensor: {PIXELS: sensor.channels}}

    def residual(self, outputs: Mapping) -> jax.Array:
        x = restore(outputs["heads"][self.sensor][PIXELS], outputs["statistics"][self.sensor])
        return jnp.maximum(self.low - x, 0) + jnp.maximum(x - self.high, 0)


@register("brightness_temperature")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BrightnessTemperature(_InUnit):
    """Mean absolute error of thermal bands as brightness temperature, in kelvin, on hidden pixels.

    Inverts Planck's law at the band's centre wavelength, so that equal errors are equal temperatures in every
    band. Assumes narrow bands and an emissivity of 1. For sensors whose table entry is in spectral radiance.
    Predictions below a thousandth of the band's mean count as that. No-data pixels, and radiances that are not
    above 0, add nothing. Source: Planck's law.
    """

    unit = "W m-2 sr-1 um-1"

    def channels(self, sensor: Sensor) -> int:
        channels = super().channels(sensor)
        if any(band.wavelength is None or not 3 < band.wavelength < 100 for band in sensor.bands):
            raise ConfigError(f'BrightnessTemperature: "{sensor.name}" has a band without a wavelength of 3 to 100 um')
        return channels

    def prediction(self, outputs: Mapping) -> jax.Array:
        least = 1e-3 * jnp.asarray(outputs["statistics"][self.sensor].mean)
        return self._temperature(outputs, jnp.maximum(super().prediction(outputs), least))

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        radiance = super().target(outputs, batch)
        return self._temperature(outputs, jnp.where(radiance > 0, radiance, jnp.nan))

    def _temperature(self, outputs: Mapping, radiance: jax.Array) -> jax.Array:
        wavelengths = np.asarray([band.wavelength for band in outputs["sensors"][self.sensor].bands])
        return brightness_temperature(radiance, wavelengths)

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.abs(prediction - target)


PLANCK_1 = 1.191042972e8  # 2 h c^2, W m-2 sr-1 um^4 (CODATA 2018, exact)
PLANCK_2 = 1.438776877e4  # h c / k, um K (CODATA 2018, exact)


def brightness_temperature(radiance: jax.Array, wavelength: np.ndarray) -> jax.Array:
    """Planck's law solved for temperature.

    Args:
        radiance: [..., C] > 0, W m-2 sr-1 um-1.
        wavelength: [C], um.

    Returns:
        [..., C] kelvin.
    """
    return PLANCK_2 / wavelength / jnp.log1p(PLANCK_1 / wavelength**5 / radiance)
