"""A whole scene through a model: how long a megapixel takes, what that goes into, and what computing alone takes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rasterio
from affine import Affine

from ringmoe_jax import clock
from ringmoe_jax.deploy.predict import predict
from ringmoe_jax.deploy.scenes import Stack
from ringmoe_jax.deploy.windows import WindowModel, window_model
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.run import PretrainConfig, Run, pretraining
from ringmoe_jax.sensors import COMPLEX, Sensor

BLOCK = 512  # pixels of a file's blocks, as cloud-optimised GeoTIFFs have them


def model(values: Mapping[str, Any] | None, checkpoint: str) -> WindowModel:
    """The model of a run, or a new one of a pre-training configuration."""
    if checkpoint:
        return window_model(Run.open(checkpoint))
    config = PretrainConfig.of(values)
    statistics = {name: sensor.statistics for name, sensor in config.sensors.items()}
    params = pretraining(config, statistics).model.init(jax.random.key(0))
    stated = {name: s.to_json() for name, s in statistics.items()}
    return window_model(Run({"config": config.complete(), "statistics": stated, "step": 0}, params))


def write(path: Path, sensor: Sensor, side: int, seed: int) -> Path:
    """A square scene of blocks of numbers around a sensor's means, as a tiled and compressed GeoTIFF."""
    if sensor.resampling == COMPLEX:
        raise ConfigError(f"{sensor.name} is complex: scenes are drawn for other sensors only; give another run")
    rng, coarse = np.random.default_rng(seed), -(-side // 8)
    statistics = np.array(sensor.statistics.mean), np.array(sensor.statistics.std)
    drawn = statistics[0] + statistics[1] * rng.normal(size=(coarse, coarse, sensor.channels))
    pixels = np.clip(drawn, *sensor.valid_range).repeat(8, 0).repeat(8, 1)[:side, :side]
    stored = (pixels - sensor.offset) / sensor.scale
    if np.dtype(sensor.dtype).kind in "iu":
        least, most = np.iinfo(sensor.dtype).min, np.iinfo(sensor.dtype).max
        stored = np.clip(np.rint(stored + rng.normal(0, 2, stored.shape)), max(1, least), most)
    profile = dict(driver="GTiff", height=side, width=side, count=sensor.channels, dtype=sensor.dtype)
    profile |= dict(tiled=True, blockxsize=BLOCK, blockysize=BLOCK, compress="deflate", interleave="pixel")
    place = dict(crs="EPSG:32633", transform=Affine(10, 0, 5e5, 0, -10, 5e6))
    with rasterio.open(path, "w", **profile, **place) as file:
        file.write(stored.astype(sensor.dtype).transpose(2, 0, 1))
    return path


def measure(shown: WindowModel, megapixels: float, repeats: int, batch: int | None, folder: Path) -> dict[str, Any]:
    """Times predictions of a scene against the same batches without reading, blending and writing, in turns.

    Args:
        shown: the model; one that takes any of its sensors is shown the one of most bands.
        megapixels: of the scene, a square.
        repeats: timed turns.
        batch: windows at a time; None: as `predict` chooses.
        folder: an empty one.

    Returns:
        "megapixels", "windows", "batch"; "seconds" by "predict" and "compute alone", medians; "seconds_a_megapixel" and
        "ratio" of them; "shares" of the time of a prediction that reading, computing and writing were busy, which
        overlap, and that computing waited for windows: medians.
    """
    names = list(shown.sensors)
    if not shown.complete:
        names = [max(names, key=lambda name: shown.sensors[name].channels)]
    side = max(1, round((1e6 * megapixels) ** 0.5))
    paths = {name: write(folder / f"{name}.tif", shown.sensors[name], side, i) for i, name in enumerate(names)}
    files = {name: [path] * shown.dates.get(name, 1) for name, path in paths.items()}
    found, count = [], itertools.count()
    ending = "parquet" if shown.objects else "tif"

    def whole() -> None:
        found.append(predict(shown, files, folder / f"map{next(count)}.{ending}", batch=batch))

    whole()
    with Stack(files, shown.sensors) as stack:
        corners = [(0, 0)] * found[0].batch
        example = stack.strip(0, shown.size).batch(corners, shown.size, len(corners))
    batches = -(-found[0].windows // len(corners))

    def alone() -> None:
        for _ in range(batches):
            jax.block_until_ready(shown.answer(example))

    seconds = clock.interleaved({"predict": whole, "compute alone": alone}, repeats, warmup=1)
    timed = found[-repeats:]
    return {
        "megapixels": side**2 / 1e6,
        "windows": found[0].windows,
        "batch": len(corners),
        "seconds": seconds,
        "seconds_a_megapixel": {name: 1e6 * value / side**2 for name, value in seconds.items()},
        "ratio": seconds["predict"] / seconds["compute alone"],
        "shares": {name: float(np.median([s.busy[name] / s.seconds for s in timed])) for name in found[0].busy},
    }
