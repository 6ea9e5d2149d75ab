"""What optical and multispectral sensors see: reflectance, sun and shadow, point-spread function, noise.

One table of reflectances gives every band of every sensor through `Band.wavelength`. There is no
atmosphere: values are surface reflectances also where a real product is top of atmosphere (s2_13), and
the absorption bands near 0.94 and 1.37 micrometres are dark in real data but not here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from input_pipeline.synthetic import grid
from input_pipeline.synthetic.scene import BUILDING, CROP, FOREST, GRASS, LAND, MATERIALS, SOIL, Scene
from ringmoe_jax.errors import DataError
from ringmoe_jax.sensors import Band, Sensor

# Reflectance (0 to 1) by wavelength in micrometres. Our choice: rounded values with the shapes that spectral
# libraries such as ECOSTRESS show (red edge of leaves, rise of soil and sand to 1.6, water dark from 0.7 on).
WAVELENGTHS = (0.40, 0.45, 0.49, 0.56, 0.665, 0.705, 0.74, 0.78, 0.865, 0.945, 1.375, 1.61, 2.20, 2.50)
REFLECTANCE = {
    "water": (0.050, 0.050, 0.048, 0.045, 0.022, 0.015, 0.010, 0.008, 0.006, 0.004, 0.002, 0.002, 0.001, 0.001),
    "sand": (0.14, 0.18, 0.21, 0.27, 0.33, 0.345, 0.36, 0.37, 0.39, 0.40, 0.42, 0.46, 0.42, 0.40),
    "soil": (0.06, 0.07, 0.085, 0.11, 0.155, 0.17, 0.18, 0.195, 0.22, 0.235, 0.27, 0.31, 0.27, 0.24),
    "crop": (0.025, 0.030, 0.035, 0.080, 0.040, 0.12, 0.32, 0.42, 0.46, 0.45, 0.32, 0.22, 0.10, 0.07),
    "grass": (0.03, 0.04, 0.045, 0.095, 0.065, 0.14, 0.28, 0.34, 0.38, 0.375, 0.30, 0.24, 0.13, 0.10),
    "forest": (0.015, 0.020, 0.022, 0.045, 0.025, 0.07, 0.20, 0.27, 0.31, 0.305, 0.20, 0.13, 0.06, 0.04),
    "building": (0.12, 0.14, 0.16, 0.18, 0.20, 0.205, 0.21, 0.215, 0.225, 0.23, 0.235, 0.25, 0.24, 0.23),
    "road": (0.06, 0.065, 0.07, 0.08, 0.09, 0.092, 0.095, 0.10, 0.105, 0.11, 0.12, 0.13, 0.13, 0.13),
    "vehicle": (0.36,) * 14,
    "ship": (0.30,) * 14,
}
RESPONSE = 0.06  # full width of a band over its wavelength; MSI bands lie between about 0.02 and 0.13
PSF = 0.4  # sigma in ground sampling distances: with the cell's mean, 0.29 of the contrast is left at Nyquist
NOISE = 0.002  # standard deviation of a band that states none, in reflectance: our choice
WHITE = 0.25  # reflectance that 8-bit sensors show as 1
DIFFUSE = 0.25  # share of skylight on open, flat ground


def band_reflectance(bands: Sequence[Band]) -> np.ndarray:
    """Reflectance of every material in some bands, averaged over a boxcar response of width `RESPONSE`.

    Args:
        bands: with wavelengths of 0.4 to 2.5 micrometres.

    Returns:
        [materials, bands] float64, 0 to 1.

    Raises:
        DataError: a band has no wavelength, or one outside the table.
    """
    low, high = WAVELENGTHS[0], WAVELENGTHS[-1]
    for band in bands:
        if band.wavelength is None or not low <= band.wavelength <= high:
            raise DataError(
                f'band "{band.name}" has the wavelength {band.wavelength}: the simulator wants {low} to {high} '
                "micrometres; set it in the sensor table, or leave the sensor out"
            )
    offsets = np.linspace(-RESPONSE / 2, RESPONSE / 2, 9)
    at = np.array([[band.wavelength * (1 + offset) for offset in offsets] for band in bands])
    return np.stack([np.interp(at, WAVELENGTHS, REFLECTANCE[name]).mean(-1) for name in MATERIALS])


def illumination(scene: Scene, date: int) -> np.ndarray:
    """[H, W] light on a pixel over that on open, flat ground: Lambert's law on canopies, and cast shadows.

    Roofs are flat. In a shadow only the skylight `DIFFUSE` is left.
    """
    elevation, azimuth = np.radians(scene.sun)
    to_sun = np.array([np.sin(azimuth), -np.cos(azimuth)])  # x, y; north is up, y points down
    heights = scene.heights[date].astype(np.float64)
    canopy = np.where(scene.classes[date] == FOREST, heights, 0)
    slope_y, slope_x = np.clip(np.gradient(canopy, scene.gsd), -1, 1)
    normal = np.sqrt(1 + slope_x**2 + slope_y**2)
    cosine = np.sin(elevation) - np.cos(elevation) * (to_sun[0] * slope_x + to_sun[1] * slope_y)
    direct = np.maximum(cosine / normal, 0) / np.sin(elevation)
    rows, columns = np.indices(heights.shape)
    steps = int(heights.max() / (np.tan(elevation) * scene.gsd)) + 1
    for step in range(1, steps + 1):
        dx, dy = np.rint(step * to_sun).astype(int)
        towards = heights[np.clip(rows + dy, 0, scene.size - 1), np.clip(columns + dx, 0, scene.size - 1)]
        direct[towards - heights > np.hypot(dx, dy) * scene.gsd * np.tan(elevation)] = 0
    return DIFFUSE + (1 - DIFFUSE) * direct


def reflectance(scene: Scene, date: int, bands: Sequence[Band]) -> np.ndarray:
    """What leaves the ground before any sensor looks: [H, W, bands] float64, without unit.

    A class's reflectance, mixed with soil by `scene.bare`, times `scene.tone` and `illumination`.
    """
    table, material = band_reflectance(bands), scene.material(date)
    land = material < len(LAND)
    share = np.where(np.isin(material, (CROP, GRASS, BUILDING)), scene.bare[date], 0)[..., None]
    light = np.where(land, scene.tone[date], 1) * illumination(scene, date)
    return (table[material] * (1 - share) + table[SOIL] * share) * light[..., None]


def blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    """A [H, W] image through a Gaussian point-spread function of `sigma` pixels; its sum stays what it was."""
    return gaussian_filter(values, sigma, mode="reflect")


def observe(scene: Scene, sensor: Sensor, rng: np.random.Generator, noise: float | None = None) -> np.ndarray:
    """An optical or multispectral sensor's image, as it is stored.

    Every band is blurred by a Gaussian of `PSF` of its own ground sampling distance, averaged over its own
    cells, gets white Gaussian noise, and is repeated to the sensor's grid: neighbouring pixels of a 20 m
    band of Sentinel-2 hold one measurement, as in products on one grid.

    Args:
        scene: the truth.
        sensor: whose bands have wavelengths; its unit is a reflectance, or a radiance relative to `WHITE`.
        rng: of the noise.
        noise: standard deviation in reflectance, of every band; by default the sensor table's, which is in the
            sensor's unit, or `NOISE` where the table states none.

    Returns:
        [T, h, w, C] in the sensor's dtype.

    Raises:
        DataError: a band has no wavelength, or the scene is no whole number of the sensor's pixels.
    """
    k = grid.cell(scene.size, scene.gsd, sensor)
    size = scene.size // k
    limits = np.iinfo(sensor.dtype) if np.dtype(sensor.dtype).kind in "iu" else None
    least = 1 if sensor.no_data == 0 else 0
    white = 1.0 if sensor.unit == "reflectance" else WHITE
    images = np.empty((scene.dates, size, size, sensor.channels), sensor.dtype)
    for t in range(scene.dates):
        truth = reflectance(scene, t, sensor.bands)
        for c, band in enumerate(sensor.bands):
            cell = k * grid.factor(band.gsd, k * scene.gsd)
            seen = grid.average(blurred(truth[..., c], PSF * cell), cell)
            seen = (seen + _noise(band, white, noise) * rng.standard_normal(seen.shape)) / white
            stored = (grid.repeat(seen, cell // k, size) - sensor.offset) / sensor.scale
            images[t, ..., c] = stored if limits is None else np.clip(np.rint(stored), least, limits.max)
    return images


def _noise(band: Band, white: float, given: float | None) -> float:
    """Standard deviation in reflectance; the table's is in the sensor's unit, of which 1 is `white`."""
    if given is not None:
        return given
    return NOISE if band.noise is None else band.noise * white
