"""SSL4EO-S12 as distributed, small."""

import json

import numpy as np
import rasterio
from affine import Affine

from ringmoe_jax import sensors

S1 = "S1A_IW_GRDH_1SDV_{0}T010800_{0}T010825_032904_03CFBA_D457"


S2 = "{0}T054639_{0}T054831_T43RCP"


def tif(path, pixels, degrees=0.0001):
    path.parent.mkdir(parents=True, exist_ok=True)
    side = pixels.shape[0]
    transform = Affine(degrees * 264 / side, 0, 73.0, 0, -degrees * 264 / side, 30.5)
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": pixels.dtype}
    with rasterio.open(path, "w", crs="EPSG:4326", transform=transform, **profile) as file:
        file.write(pixels, 1)


def write_s1(folder, date, value):
    """VV holds `value` dB and VH 7 less, both 1 / 1000 more from column to column; a corner is not observed."""
    for name, shift in (("VV", 0), ("VH", -7)):
        pixels = (np.arange(264) / 1000 + value + shift).astype(np.float32) * np.ones((264, 1), np.float32)
        pixels[0, 0] = 0
        tif(folder / S1.format(date) / f"{name}.tif", pixels)


def write_s2(folder, date, sensor, base, baseline="02.14"):
    """Band i holds base + 100 i + its own row, at its own resolution."""
    for i, band in enumerate(sensors.get(sensor).bands):
        side = round(2640 / band.gsd)
        pixels = (base + 100 * i + np.arange(side)[:, None] * np.ones(side)).astype(np.uint16)
        tif(folder / S2.format(date) / f"{band.name.replace('B0', 'B')}.tif", pixels)
    if baseline:
        (folder / S2.format(date) / "metadata.json").write_text(json.dumps({"PROCESSING_BASELINE": baseline}))
