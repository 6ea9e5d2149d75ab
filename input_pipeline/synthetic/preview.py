"""Pictures of a simulated scene, for eyes only."""

from __future__ import annotations

import math

import numpy as np

from input_pipeline.synthetic import grid, radar, spectra
from input_pipeline.synthetic.scene import Scene
from ringmoe_jax import sensors as sensor_table

# Colours of `scene.LAND`: water, sand, soil, crop, grass, forest, building, road.
COLOURS = ("#2B5EA7", "#E8D9A0", "#B07B4F", "#C9D24B", "#8CC266", "#2D6A2E", "#D23B2A", "#4D4D4D")


def pictures(scene: Scene, seed: int = 0) -> dict[str, np.ndarray]:
    """What some sensors see of the first date, and its truth: {title: [h, w, 3] in 0..1}; for sizes of `fitting`."""
    rng = np.random.default_rng(seed)
    rgb = spectra.observe(scene, sensor_table.get("rgb"), rng)[0] / 255
    infrared = spectra.observe(scene, sensor_table.get("s2_12").select(["nir", "red", "green"]), rng)[0] * 1e-4
    quad = radar.observe(scene, sensor_table.get("slc_quad"), rng)[0]
    backscatter = radar.observe(scene, sensor_table.get("s1_grd"), rng)[0, ..., 0]
    colours = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in COLOURS])
    return {
        "aerial RGB": np.clip(rgb, 0, 1),
        "Sentinel-2, false colour": np.clip(infrared / (0.5, 0.2, 0.2), 0, 1),
        "quad-pol span, dB": _grey(10 * np.log10(np.square(quad).sum(-1))),
        "Sentinel-1 VV, dB": _grey(backscatter),
        "land cover (truth)": colours[scene.classes[0]],
        "height (truth)": _grey(scene.heights[0]),
    }


def fitting(size: int, gsd: float) -> int:
    """The next size, in pixels of `gsd` metres, that is whole pixels of every sensor in `pictures`."""
    step = math.lcm(*(grid.factor(sensor_table.get(name).gsd, gsd) for name in ("rgb", "s2_12", "slc_quad", "s1_grd")))
    return -(-size // step) * step


def _grey(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (1, 99))
    return np.repeat(np.clip((values - low) / max(high - low, 1e-6), 0, 1)[..., None], 3, axis=-1)
