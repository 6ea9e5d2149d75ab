"""Data sets that come as arrays: So2Sat LCZ42 in HDF5, PASTIS in NPY."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from input_pipeline.layouts import Opened, Request
from input_pipeline.layouts.files import LABEL
from input_pipeline.layouts.rasters import ordered
from input_pipeline.layouts.tiles import Scene
from input_pipeline.places import Places
from input_pipeline.schema import CLASSES, MAP, UNLABELLED, Image, LabelInfo
from ringmoe_jax import files, geo, rasters
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError

_VH, _VV = 4, 5  # channels of So2Sat's Sentinel-1: intensities after a refined Lee filter


@dataclasses.dataclass(frozen=True)
class So2Sat:
    """HDF5 files with `sen1` [N, 32, 32, 8], `sen2` [N, 32, 32, 10] and `label` [N, 17] (one-hot).

    Reflectance is stored again as digital numbers (x 10,000). Of the Sentinel-1 channels, the filtered intensities of
    VV and VH are taken, in dB; the unfiltered complex ones and the covariance are left.

    Attributes:
        files: by split.
    """

    files: Mapping[str, str]
    sensors: tuple[str, ...] = ("s2_10", "s1_grd")

    @property
    def rule(self) -> str:
        """How splits are made."""
        return f"as published, files {', '.join(self.files.values())}"

    def open(self, request: Request) -> Opened:
        """Finds the files, see `Opened`."""
        return Opened(
            {
                split: Places(range(_length(request.source / name)), functools.partial(self._scenes, request, split))
                for split, name in self.files.items()
            },
            {LABEL: LabelInfo(CLASSES, request.classes, "local climate zone")},
            dict.fromkeys(request.sensors, 1),
            dict.fromkeys(request.sensors, 10.0),
            self.rule,
        )

    def _scenes(self, request: Request, split: str, rows: Sequence[int]) -> Iterator[Scene]:
        path = request.source / self.files[split]
        with h5py.File(path) as file:
            for i in rows:
                label, images = file["label"][i], {}
                if "s2_10" in request.sensors:
                    images["s2_10"] = so2sat_optical(file["sen2"][i], str(path))
                if "s1_grd" in request.sensors:
                    images["s1_grd"] = so2sat_radar(file["sen1"][i])
                yield Scene(f"{split}/{i}", images, {LABEL: int(np.argmax(label))})


def _length(path: Path) -> int:
    """Rows of a file of So2Sat."""
    try:
        with h5py.File(path) as file:
            return len(file["label"])
    except (OSError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}): wanted the file as published") from error


def so2sat_optical(values: np.ndarray, where: str) -> Image:
    """`s2_10` [1, H, W, 10] of reflectance [H, W, 10]."""
    sensor = sensor_table.get("s2_10")
    pixels, valid = ordered(values, sensor, sensor.band_names, 1 / sensor.scale, where)
    return Image(pixels[None], valid[None])


def so2sat_radar(values: np.ndarray) -> Image:
    """`s1_grd` [1, H, W, 2] in dB of So2Sat's channels [H, W, 8]; not valid where an intensity is not above 0."""
    intensity = values[..., [_VV, _VH]].astype(np.float32)
    valid = (intensity > 0).all(-1)
    decibel = 10 * np.log10(np.where(valid[..., None], intensity, 1))
    return Image(decibel[None].astype(np.float32), valid[None])


@dataclasses.dataclass(frozen=True)
class Pastis:
    """NPY files by patch: DATA_S2/S2_ID.npy [T, 10, 128, 128], ANNOTATIONS/TARGET_ID.npy [3, 128, 128].

    PASTIS-R adds DATA_S1A/S1A_ID.npy [T, 3, 128, 128], of which VV and VH in dB are taken. `metadata.geojson` holds
    folds, dates and outlines.

    Attributes:
        folds: of every split.
        void: class of parcels that lie mostly outside their patch.
    """

    folds: Mapping[str, tuple[int, ...]]
    void: int
    sensors: tuple[str, ...] = ("s2_10", "s1_grd")

    @property
    def rule(self) -> str:
        """How splits are made."""
        return "folds as published: " + ", ".join(f"{split} {folds}" for split, folds in self.folds.items())

    def open(self, request: Request) -> Opened:
        """Reads the metadata, see `Opened`."""
        path = request.source / "metadata.geojson"
        content = files.read_json(path, "the file of PASTIS")
        try:
            crs = content.get("crs", {}).get("properties", {}).get("name", "EPSG:4326")
            patches = [feature["properties"] | {"outline": feature["geometry"]} for feature in content["features"]]
            folds = {int(patch["Fold"]) for patch in patches}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} cannot be read ({error!r}): wanted the file of PASTIS") from error
        splits = {s: [p for p in patches if int(p["Fold"]) in chosen] for s, chosen in self.folds.items()}
        if empty := [split for split, found in splits.items() if not found]:
            raise DataError(f"{path} has the folds {sorted(folds)}, wanted {self.folds[empty[0]]} for {empty[0]}")
        longest = {name: max(len(_dates(patch, name, path)) for patch in patches) for name in request.sensors}
        return Opened(
            {
                split: Places(found, functools.partial(self._scenes, request, crs), request.report, _name)
                for split, found in splits.items()
            },
            {"map": LabelInfo(MAP, request.classes, "crop of the parcel", request.sensors[0])},
            {name: min(count, request.max_frames or count) for name, count in longest.items()},
            dict.fromkeys(request.sensors, 10.0),
            self.rule,
        )

    def _scenes(self, request: Request, crs: str, patches: Sequence[Mapping]) -> Iterator[Scene]:
        for patch in patches:
            name = _name(patch)
            images = {sensor: _series(request, patch, sensor) for sensor in request.sensors}
            target = _array(request.source / f"ANNOTATIONS/TARGET_{name}.npy", 3)[0].astype(np.int16)
            target[target == self.void] = UNLABELLED
            where = _centre(patch["outline"], crs)
            yield Scene(name, images, {"map": target}, lambda row, column, where=where: where)


def _name(patch: Mapping) -> str:
    return str(patch["ID_PATCH"])


def _series(request: Request, patch: Mapping, name: str) -> Image:
    prefix, sensor = {"s2_10": "S2", "s1_grd": "S1A"}[name], sensor_table.get(name)
    path = request.source / f"DATA_{prefix}/{prefix}_{patch['ID_PATCH']}.npy"
    values = _array(path, 4).transpose(0, 2, 3, 1)[..., : sensor.channels]
    days = _dates(patch, name, path)
    if len(days) != len(values):
        raise DataError(f"{path} has {len(values)} dates, metadata.geojson {len(days)}")
    order = np.argsort(days, kind="stable")
    order = order[geo.evenly(len(order), request.max_frames)]
    pixels, valid = ordered(values[order], sensor, sensor.band_names, 1, str(path))
    return Image(pixels, valid, np.array(days)[order])


def _dates(patch: Mapping, name: str, path: Path) -> list[int]:
    """Days of a patch's series, as it lies in the file."""
    key = {"s2_10": "dates-S2", "s1_grd": "dates-S1A"}[name]
    if key not in patch:
        raise DataError(f'{path}: patch {patch["ID_PATCH"]} has no "{key}": leave {name} out (--sensors)')
    dates = patch[key] if isinstance(patch[key], dict) else json.loads(patch[key])
    texts = [str(dates[number]) for number in sorted(dates, key=int)]
    return [geo.days(f"{text[:4]}-{text[4:6]}-{text[6:]}") if text.isdigit() else NO_TIME for text in texts]


def _centre(outline: Mapping, crs: str) -> tuple[float, float]:
    """Latitude and longitude of the middle of a polygon's bounding box."""
    points = np.concatenate([np.reshape(ring, (-1, 2)) for ring in _rings(outline)])
    x, y = (points.min(0) + points.max(0)) / 2
    return geo.latitude_longitude(crs, (1, 0, x, 0, 1, y), 0, 0)


def _rings(outline: Mapping) -> list:
    polygons = outline["coordinates"] if outline["type"] == "MultiPolygon" else [outline["coordinates"]]
    return [polygon[0] for polygon in polygons]


def _array(path: Path, dimensions: int) -> np.ndarray:
    values = rasters.load_array(path, "an array of PASTIS")
    if values.ndim != dimensions:
        raise DataError(f"{path} has shape {values.shape}, wanted {dimensions} dimensions")
    return values
