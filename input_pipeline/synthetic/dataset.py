"""All sensors of a scene, and a data set of scenes with their truth as labels."""

from __future__ import annotations

import functools
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.parts import Workers
from input_pipeline.places import Places
from input_pipeline.schema import (
    BOXES,
    CLASSES,
    MAP,
    MULTILABEL,
    TRACK,
    TRACKS,
    UNLABELLED,
    VALUE,
    Image,
    LabelInfo,
    Metadata,
    Sample,
    SensorInfo,
)
from input_pipeline.synthetic import grid, radar, spectra
from input_pipeline.synthetic.scene import LAND, NOTABLE, OBJECTS, SETTINGS, Scene, draw
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import ConfigError

SENSORS = ("rgb", "ms4", "s2_12", "s1_grd", "sar_amplitude", "slc_quad", "ndsm")
VEHICLES, SHIPS = 8, 4  # at most, in a sample
_HEIGHT_UNIT = "m above ground"


def simulate(
    scene: Scene,
    sensors: Sequence[str] = SENSORS,
    seed: int = 0,
    *,
    noise: float | None = None,
    texture: float | None = None,
) -> dict[str, Image]:
    """Renders sensors of the sensor table. All show the whole scene; a pixel is one or more of the scene's.

    Args:
        scene: the truth.
        sensors: names: SAR, bands with wavelengths of 0.4 to 2.5 micrometres, or heights above ground.
        seed: of noise and speckle; a sensor's do not depend on the others.
        noise: of optical sensors, see `spectra.observe`.
        texture: see `radar.single_look`.

    Returns:
        Images [T, h, w, C] by sensor, in the dtype and scale that the sensor is stored in.

    Raises:
        ConfigError: the sensor table does not know a name.
        DataError: a band has no wavelength, or one that the simulator does not know; or the scene is no whole
            number of a sensor's pixels.
    """
    images = {}
    for name in sensors:
        sensor, rng = sensor_table.get(name), np.random.default_rng([seed, zlib.crc32(name.encode())])
        if sensor.looks is not None:
            pixels = radar.observe(scene, sensor, rng, texture)
        elif sensor.unit == _HEIGHT_UNIT:
            k = grid.cell(scene.size, scene.gsd, sensor)
            pixels = np.stack([grid.average(h, k)[..., None] for h in scene.heights]).astype(sensor.dtype)
        else:  # an error where it has no wavelengths
            pixels = spectra.observe(scene, sensor, rng, noise)
        images[name] = Image(pixels, time=scene.time)
    return images


def prepare(
    out: str | os.PathLike,
    *,
    scenes: int = 100,
    size: int = 96,
    seed: int = 0,
    sensors: Sequence[str] = SENSORS,
    dates: int = 1,
    gsd: float = 2.5,
    shards: int = 8,
    overwrite: bool = False,
    progress: Callable[[str, int], None] | None = None,
    workers: Workers | None = None,
) -> Path:
    """Writes `scenes` scenes for training and a fifth as many, at least one, for validation.

    Args:
        out: the data set's folder.
        scenes: of the split "train", 1 or more.
        size: rows and columns of a scene, a multiple of every sensor's pixel.
        seed: 0 or more; scene i of a split is drawn from (seed, split, i).
        sensors: see `simulate`.
        dates: see `scene.draw`. With two or more the labels `change` and `tracks` are written.
        gsd: metres a pixel of a scene.
        shards: files a split.
        overwrite: replace a data set that is there.
        progress: called with the split and the number of samples written so far.
        workers: see `builder.write_dataset`.

    Raises:
        ConfigError: a number is out of its range, or no or an unknown sensor is named.
        DataError: see `simulate`; the folder is not empty and `overwrite` is False.
    """
    from input_pipeline.builder import write_dataset  # loads TensorFlow, which nothing else here needs

    if scenes < 1 or seed < 0 or not sensors:
        raise ConfigError(f"scenes = {scenes}, seed = {seed}, sensors = {list(sensors)}: wanted 1, 0 and one, or more")
    options = {"size": size, "gsd": gsd, "dates": dates, "vehicles": VEHICLES, "ships": SHIPS}
    info = metadata(sensors, size, gsd, dates)
    counts = {"train": scenes, "validation": max(1, scenes // 5)}
    splits = {
        split: Places(range(count), functools.partial(_samples, info, split, [seed, number], options))
        for number, (split, count) in enumerate(counts.items())
    }
    write_dataset(out, splits, info, shards=shards, overwrite=overwrite, progress=progress, workers=workers)
    return Path(out)


def metadata(sensors: Sequence[str], size: int, gsd: float, dates: int) -> Metadata:
    """What a data set of `prepare` says of itself. Maps and boxes lie on the grid of the finest sensor."""
    table = sensor_table.resolve(sensors)
    pixels = {name: size // grid.cell(size, gsd, sensor) for name, sensor in table.items()}
    finest = max(pixels, key=pixels.get)
    kinds = "vehicle on a road, ship on water"
    labels = {
        "land_cover": LabelInfo(MAP, LAND, "land cover at the first date; objects are not in it", finest),
        "dominant": LabelInfo(CLASSES, LAND, "the class that covers most of the scene at the first date"),
        "setting": LabelInfo(CLASSES, SETTINGS, f"buildings, water: at least {NOTABLE:.1%} of the scene, first date"),
        "present": LabelInfo(MULTILABEL, LAND, "classes that cover at least a pixel of the scene at the first date"),
        "height": LabelInfo(VALUE, ("mean", "max"), f"{_HEIGHT_UNIT}, over the scene at the first date"),
        "boxes": LabelInfo(BOXES, OBJECTS, f"horizontal, first date: {kinds}", finest, VEHICLES + SHIPS),
        "oriented": LabelInfo(BOXES, OBJECTS, f"oriented, first date: {kinds}", finest, VEHICLES + SHIPS),
    }
    if dates > 1:
        why = "land cover, last date against first"
        labels["change"] = LabelInfo(MAP, ("unchanged", "changed"), why, finest, change=True)
        count = dates * (VEHICLES + SHIPS)
        labels["tracks"] = LabelInfo(TRACKS, OBJECTS, "oriented boxes of the objects at every date", finest, count)
    return Metadata(
        name="simulated",
        sensors={
            name: SensorInfo.of(sensor, (dates, pixels[name], pixels[name]), gsd * size / pixels[name], simulated=True)
            for name, sensor in table.items()
        },
        description=(
            f"SIMULATED, nothing in it was measured: toy landscapes of {size} x {size} px of {gsd:g} m, drawn and "
            "rendered by `input_pipeline.synthetic`. Reflectances and backscatter are our choice, of typical size; "
            "places and dates are invented and have no influence on the pixels. The splits have different seeds. "
            "Vehicles and ships move at constant velocity from date to date, far slower than real ones."
        ),
        licence="none: computed",
        source="input_pipeline/synthetic",
        labels=labels,
    )


def labels_of(scene: Scene, info: Metadata) -> dict:
    """The truth of a scene as the labels of `metadata`."""
    height, _ = info.labels["land_cover"].shape(info.sensors)
    k = scene.size // height
    labels = {
        "land_cover": grid.majority(scene.classes[0], k),
        "dominant": scene.dominant,
        "setting": scene.setting,
        "present": scene.present,
        "height": [scene.heights[0].mean(), scene.heights[0].max()],
    }
    for name, oriented in (("boxes", False), ("oriented", True)):
        labels[name] = _rows(scene.boxes(0, oriented), k, info.labels[name])
    if scene.dates > 1:
        labels["change"] = grid.majority(scene.change.astype(np.int8), k)
        dates = [
            np.column_stack([scene.boxes(t, True), [track.number for track in scene.tracks], np.full(n, t)])
            for t in range(scene.dates)
            if (n := len(scene.tracks))
        ]
        rows = np.concatenate(dates) if dates else np.zeros((0, len(TRACK)))
        labels["tracks"] = _rows(rows, k, info.labels["tracks"])
    return labels


def _rows(boxes: np.ndarray, k: int, info: LabelInfo) -> np.ndarray:
    """Boxes in pixels of a scene to pixels of k times the size, filled up with rows that are not used."""
    filled = np.full((info.count, boxes.shape[1]), UNLABELLED, np.float32)
    filled[: len(boxes)] = boxes
    filled[: len(boxes), 1:5] /= k
    return filled


def _samples(
    info: Metadata, split: str, seed: Sequence[int], options: dict, numbers: Sequence[int]
) -> Iterator[Sample]:
    for i in numbers:
        scene = draw([*seed, i], **options)
        images = simulate(scene, tuple(info.sensors), zlib.crc32(f"{seed}/{i}".encode()))
        yield Sample(f"{split}/{i}", images, scene.latitude, scene.longitude, labels_of(scene, info))
