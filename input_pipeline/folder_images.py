"""Image files of a user's folder: which there are, and what they hold. `input_pipeline.folder` says how they lie."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from affine import Affine

from ringmoe_jax import geo
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError
from ringmoe_jax.sensors import COMPLEX, Sensor

EXTENSIONS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy")


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image of one sensor and date.

    Attributes:
        pixels: [H, W, C] in storage dtype.
        valid: [H, W] bool.
        crs: coordinate reference system, or None.
        transform: pixels to coordinates.
        day: days since 1970-01-01, of the folder's name or TIFFTAG_DATETIME, or NO_TIME.
    """

    pixels: np.ndarray
    valid: np.ndarray
    crs: object = None
    transform: Affine = dataclasses.field(default_factory=Affine.identity)
    day: int = NO_TIME


@dataclasses.dataclass(frozen=True)
class Images:
    """All files of one sensor.

    Attributes:
        sensor: of the sensor table.
        dates: files by ID (see `files`) of every date in ascending order.
        days: days since 1970-01-01 that the folders' names say, NO_TIME where none.
    """

    sensor: Sensor
    dates: Sequence[Mapping[str, Sequence[Path]]]
    days: Sequence[int]

    @property
    def classes(self) -> dict[str, str]:
        """Names of the folders that the images lie in, by ID, where they lie in a folder a class."""
        folders = {stem: paths[0].parent.name for stem, paths in self.dates[0].items()}
        return {stem: name for stem, name in folders.items() if name.partition("@")[0] != self.sensor.name}

    @staticmethod
    def find(source: Path, sensor: Sensor) -> Images:
        """The files in `source/<sensor>` or `source/<sensor>@<date or number>`.

        Raises:
            DataError: there are none, the folders' names are no dates or numbers, or an ID lacks a date.
        """
        folders = {path.name.partition("@")[2]: path for path in source.glob(f"{sensor.name}@*") if path.is_dir()}
        if not folders:
            return Images(sensor, (files(source / sensor.name, sensor),), (NO_TIME,))
        if (source / sensor.name).is_dir():
            raise DataError(f'{source} holds "{sensor.name}" and "{sensor.name}@{min(folders)}": wanted one kind')
        if all(name.isdecimal() for name in folders):
            order = {int(name): path for name, path in folders.items()}
            days = [NO_TIME] * len(folders)
        else:
            order = {_day(path): path for path in folders.values()}
            days = sorted(order)
        if len(order) < len(folders):
            raise DataError(f"{source}: two folders of {sensor.name} mean the same date: {', '.join(sorted(folders))}")
        first, *others = (order[key] for key in sorted(order))
        dates = [files(path, sensor) for path in (first, *others)]
        for path, found in zip(others, dates[1:], strict=True):
            if odd := sorted(set(dates[0]) ^ set(found)):
                lacking, has = (path, first) if odd[0] in dates[0] else (first, path)
                raise DataError(
                    f'{source}: "{odd[0]}" has no file in {lacking.name}, but one in {has.name}: add or remove it'
                )
        return Images(sensor, dates, days)

    @property
    def ids(self) -> list[str]:
        """Names of the places."""
        return list(self.dates[0])

    def read(self, stem: str) -> list[Frame]:
        """All dates of a place."""
        frames = [read(found[stem], self.sensor) for found in self.dates]
        return [
            frame if day == NO_TIME else dataclasses.replace(frame, day=day)
            for frame, day in zip(frames, self.days, strict=True)
        ]

    def size(self, stem: str) -> tuple[int, int]:
        """Height and width of a place's first image, from its header."""
        path = self.dates[0][stem][0]
        if path.suffix.lower() == ".npy":
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            return shape[1:] if self.sensor.resampling == COMPLEX else shape[:2]
        with geo.open_raster(path, "GeoTIFF, PNG, JPEG or NPY") as file:
            return file.height, file.width


def files(folder: Path, sensor: Sensor) -> dict[str, list[Path]]:
    """Files by ID; for a complex sensor with one file a polarisation, in the sensor's order.

    Where a folder holds no image but folders, those are looked into. Files whose name begins with a dot are none.

    Raises:
        DataError: there are none, two have the same ID, or a polarisation is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: wanted the files of the sensor {sensor.name}")
    paths = _images(folder.iterdir()) or _images(folder.glob("*/*"))
    if not paths:
        raise DataError(f"{folder} holds no image: wanted files that end with {', '.join(EXTENSIONS)}")
    if sensor.resampling != COMPLEX:
        by_id: dict[str, list[Path]] = {}
        for path in paths:
            if path.stem in by_id:
                raise DataError(f"{path} and {by_id[path.stem][0]} have the same ID: rename or remove one")
            by_id[path.stem] = [path]
        return by_id
    found: dict[str, list[Path]] = {}
    polarisations = [name.removesuffix("_re") for name in sensor.band_names[::2]]
    for path in paths:
        stem, _, end = path.stem.rpartition("_")
        found.setdefault(stem if stem and end.upper() in polarisations else path.stem, []).append(path)
    for stem, several in found.items():
        if len(several) > 1:
            by_name = {path.stem.rpartition("_")[2].upper(): path for path in several}
            if sorted(by_name) != sorted(polarisations):
                raise DataError(f"{folder}/{stem}: got {sorted(by_name)}, wanted one file of each of {polarisations}")
            found[stem] = [by_name[p] for p in polarisations]
    return found


def listed(name: str, ids: Collection[str]) -> str:
    """The ID that a list or table means: the name, or the name without the ending of a file."""
    return name if name in ids or Path(name).stem not in ids else Path(name).stem


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in EXTENSIONS and path.name[0] != ".")


def read(paths: Sequence[Path], sensor: Sensor) -> Frame:
    """One image, its bands in the sensor's order.

    Args:
        paths: one file, or for a complex sensor one a polarisation in its order.
        sensor: what the file has to be.

    Raises:
        DataError: bands, dtype or file format do not fit.
    """
    frames = [_read_file(path, sensor, len(paths)) for path in paths]
    pixels = np.concatenate([frame.pixels for frame in frames], -1)
    where = ", ".join(path.name for path in paths)
    if pixels.shape[-1] != sensor.channels:
        raise DataError(
            f'{where} gives {pixels.shape[-1]} channels, "{sensor.name}" has {sensor.channels}: '
            f"{', '.join(sensor.band_names)}; name the bands in the GeoTIFF (descriptions) or choose another sensor"
        )
    if pixels.dtype != sensor.dtype:
        raise DataError(
            f'{where} holds {pixels.dtype}, "{sensor.name}" is stored as {sensor.dtype} in units of '
            f"{sensor.scale:g} {sensor.unit}: convert it (gdal_translate -ot), or register a sensor of your own"
        )
    return dataclasses.replace(frames[0], pixels=pixels, valid=np.all([frame.valid for frame in frames], 0))


def _read_file(path: Path, sensor: Sensor, count: int) -> Frame:
    if path.suffix.lower() == ".npy":
        pixels = np.load(path, allow_pickle=False)
        wanted = "complex [P, H, W]" if sensor.resampling == COMPLEX else "[H, W, C]"
        if pixels.ndim != 3 or np.iscomplexobj(pixels) != (sensor.resampling == COMPLEX):
            raise DataError(f'{path} holds {pixels.dtype}{list(pixels.shape)}, wanted {wanted} for "{sensor.name}"')
        pixels = geo.pairs(pixels.transpose(1, 2, 0)) if sensor.resampling == COMPLEX else pixels
        return Frame(pixels, np.ones(pixels.shape[:2], np.bool_))
    with geo.open_raster(path, "GeoTIFF, PNG, JPEG or NPY") as file:
        pixels, valid = file.read().transpose(1, 2, 0), file.dataset_mask() > 0
        names, crs, transform = file.descriptions, file.crs, file.transform
        day = file.tags().get("TIFFTAG_DATETIME", "").replace(":", "-")
    if np.iscomplexobj(pixels):
        pixels = geo.pairs(pixels)
    elif count == 1 and all(names):
        pixels = pixels[..., geo.bands_by_name(path, names, sensor)]
    return Frame(pixels, valid, crs, transform, geo.days(day) if day else NO_TIME)


def _day(folder: Path) -> int:
    try:
        return geo.days(folder.name.partition("@")[2])
    except ValueError:
        name = folder.name.partition("@")[0]
        raise DataError(f"{folder}: wanted {name}@1, {name}@2, ... or {name}@YYYY-MM-DD for its dates") from None
