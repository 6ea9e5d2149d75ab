"""What physics says of a band, as numbers: what a generated patch embedding reads instead of a sensor's name.

Wavelengths are encoded by sines and cosines of their logarithm (DOFA, Xiong et al. 2024, has those of the wavelength;
Copernicus-FM, Wang et al. 2025, those of wavelength and width), averaged over a Gaussian response of the band's width
as positions are over a cone in mip-NeRF (Barron et al. 2021): a broad band is told as the mean of the narrow ones that
it sees. One axis then holds visible light and radar, 0.4 micrometres to a metre. The rest is our choice.
"""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.sensors import COMPLEX, Band, Sensor

PERIODS = tuple(2.0**i for i in range(6, -2, -1))  # of ln wavelength; the shortest is 0.5, red to near infrared 0.23
GSD_PERIODS = (32.0, 16.0, 8.0, 4.0)  # of ln metres
SIGMA = 1 / (2 * math.sqrt(2 * math.log(2)))  # standard deviation of a Gaussian over its full width at half maximum
KINDS = (  # of what is measured: the text of `Sensor.unit` before its first comma or bracket; others are of no kind
    "reflectance",
    "relative radiance",
    "W m-2 sr-1 um-1",
    "K",
    "dB",
    "amplitude",
    "relative amplitude",
    "relative backscatter",
    "complex amplitude",
    "m above the geoid",
    "m above ground",
)


@functools.lru_cache(maxsize=256)
def describe(sensor: Sensor) -> np.ndarray:
    """Every band of a sensor in numbers.

    Returns:
        [C, `WIDTH`] float32, all in -1..1: wavelength and width, whether the wavelength is known, native ground
        sampling distance, polarisation sent (H, V) and received (H, V), real or imaginary part, contrast of the speckle
        (1 / sqrt(looks), 0 where not SAR) and kind of unit.

    Raises:
        ConfigError: nothing tells two bands apart, a polarisation is none, or a length is not above 0.
    """
    check_lengths(sensor)
    contrast = 0.0 if sensor.looks is None else sensor.looks**-0.5
    kind = re.split(r"[,(]", sensor.unit)[0].strip()
    of_sensor = [contrast, *(float(kind == known) for known in KINDS)]
    rows = []
    for i, band in enumerate(sensor.bands):
        parts = [float(sensor.resampling == COMPLEX and i % 2 == part) for part in (0, 1)]
        rows.append([*_wavelength(band), *_waves(math.log(band.gsd), GSD_PERIODS), *_polarisation(band, sensor)])
        rows[-1] += [*parts, *of_sensor]
    table = np.asarray(rows, np.float32)
    for i, band in enumerate(sensor.bands):
        if twins := [sensor.bands[k].name for k in range(i) if np.array_equal(table[k], table[i])]:
            raise ConfigError(
                f'sensor "{sensor.name}": nothing but their names tells {twins[0]} and {band.name} apart: give '
                "Band(wavelength=...) in micrometres, of SAR Band(polarisation=...)"
            )
    table.setflags(write=False)
    return table


def check_lengths(sensor: Sensor) -> None:
    """Raises a `ConfigError` where a sampling distance, wavelength or width of a band is not above 0."""
    for band in sensor.bands:
        for name, length in (("gsd", band.gsd), ("wavelength", band.wavelength), ("width", band.width)):
            if length is not None and not 0 < length < math.inf:
                raise ConfigError(f'sensor "{sensor.name}": band {band.name} has {name} = {length}: wanted above 0')


def _wavelength(band: Band) -> list[float]:
    if band.wavelength is None:
        return [0.0] * (2 * len(PERIODS) + 1)
    spread = SIGMA * (band.width or 0.0) / band.wavelength
    return [*_waves(math.log(band.wavelength), PERIODS, spread), 1.0]


def _waves(x: float, periods: tuple[float, ...], spread: float = 0.0) -> list[float]:
    """Cosine and sine of x by period, averaged over a Gaussian of this standard deviation around x."""
    phases = [2 * math.pi / period for period in periods]
    return [wave(k * x) * math.exp(-((k * spread) ** 2) / 2) for k in phases for wave in (math.cos, math.sin)]


def _polarisation(band: Band, sensor: Sensor) -> list[float]:
    if band.polarisation not in ("", "HH", "HV", "VH", "VV"):
        raise ConfigError(
            f'sensor "{sensor.name}": band {band.name} has polarisation = "{band.polarisation}": wanted "HH", "HV", '
            '"VH", "VV" or "" (unknown, or not SAR)'
        )
    return [float(band.polarisation[i : i + 1] == letter) for i in (0, 1) for letter in "HV"]


WIDTH = 2 * len(PERIODS) + 1 + 2 * len(GSD_PERIODS) + 4 + 2 + 1 + len(KINDS)  # of a row of `describe`
