"""Image files of a user's folder: which there are, and what they hold. `input_pipeline.folder` says how they lie."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ringmoe_jax import files as stored_files
from ringmoe_jax import geo, rasters
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError
from ringmoe_jax.sensors import COMPLEX, Sensor

EXTENSIONS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy")
WANTED = "GeoTIFF, PNG, JPEG or NPY"


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image of one sensor and date.

    Attributes:
        pixels: [H, W, C] in storage dtype.
        valid: [H, W] bool, see `ringmoe_jax.rasters`.
        grid: where it lies.
        day: days since 1970-01-01, of the folder's name or TIFFTAG_DATETIME, or NO_TIME.
        path: of its first file.
        notes: what the file says otherwise than assumed, see `rasters.Plan`.
    """

    pixels: np.ndarray
    valid: np.ndarray
    grid: geo.Grid
    day: int
    path: Path
    notes: tuple[str, ...] = ()


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
            named = sorted(folders.values(), key=lambda path: path.name.partition("@")[2].isdecimal())
            order = {_day(path): path for path in named}
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

    def grid(self, stem: str) -> geo.Grid:
        """Where a place's first image lies, from its header."""
        path = self.dates[0][stem][0]
        if path.suffix.lower() == ".npy":
            shape = rasters.load_array(path, WANTED).shape
            return geo.Grid.nowhere(*(shape[1:3] if self.sensor.resampling == COMPLEX else shape[:2]))
        with rasters.open_raster(path, WANTED) as file:
            return rasters.grid(file)


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
        return {stem: [path] for stem, path in by_stem(paths).items()}
    found: dict[str, list[Path]] = {}
    polarisations = [name.removesuffix("_re") for name in sensor.band_names[::2]]
    for path in paths:
        whole = stored_files.stem(path)
        stem, _, end = whole.rpartition("_")
        found.setdefault(stem if stem and end.upper() in polarisations else whole, []).append(path)
    for stem, several in found.items():
        if len(several) > 1:
            by_name = {path.stem.rpartition("_")[2].upper(): path for path in several}
            if sorted(by_name) != sorted(polarisations):
                raise DataError(f"{folder}/{stem}: got {sorted(by_name)}, wanted one file of each of {polarisations}")
            found[stem] = [by_name[p] for p in polarisations]
    return found


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Paths by their name without folders and ending, sorted.

    Raises:
        DataError: two have the same.
    """
    found: dict[str, Path] = {}
    for path in sorted(paths):
        stem = stored_files.stem(path)
        if stem in found:
            raise DataError(f"{path} and {found[stem]} have the same ID: rename or remove one")
        found[stem] = path
    return found


def listed(name: str, ids: Collection[str]) -> str:
    """The ID that a list or table means: the name, or the name without the ending of a file."""
    whole, stem = unicodedata.normalize("NFC", name), stored_files.stem(name)
    return whole if whole in ids or stem not in ids else stem


def _images(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in EXTENSIONS and path.name[0] != ".")


def read(paths: Sequence[Path], sensor: Sensor) -> Frame:
    """One image, its bands in the sensor's order.

    Args:
        paths: one file, or for a complex sensor one a polarisation in its order.
        sensor: what the file has to be.

    Raises:
        DataError: bands, dtype, unit or file format do not fit.
    """
    if len(paths) == 1:
        return _read_file(paths[0], sensor)
    parts = [sensor.select(sensor.band_names[2 * i : 2 * i + 2]) for i in range(len(paths))]
    frames = [_read_file(path, part) for path, part in zip(paths, parts, strict=True)]
    if len({frame.pixels.shape[:2] for frame in frames}) > 1:
        raise DataError(f"{paths[0]} and {paths[1]} have different sizes: wanted one for all polarisations")
    pixels, valid = np.concatenate([frame.pixels for frame in frames], -1), np.all([f.valid for f in frames], 0)
    return dataclasses.replace(frames[0], pixels=pixels, valid=valid)


def _read_file(path: Path, sensor: Sensor) -> Frame:
    if path.suffix.lower() == ".npy":
        return _read_array(path, sensor)
    with rasters.open_raster(path, WANTED, whole=True) as file:
        how = rasters.plan(path, file, sensor)
        pixels, valid, notes = rasters.read(path, file, how)
        day, odd = rasters.day(file)
        return Frame(pixels, valid, rasters.grid(file), day, path, (*how.notes, *notes, *odd))


def _read_array(path: Path, sensor: Sensor) -> Frame:
    pixels = rasters.load_array(path, WANTED)
    wanted = "complex [P, H, W]" if sensor.resampling == COMPLEX else "[H, W, C]"
    if pixels.ndim != 3 or np.iscomplexobj(pixels) != (sensor.resampling == COMPLEX) or not pixels.size:
        raise DataError(f'{path} holds {pixels.dtype}{list(pixels.shape)}, wanted {wanted} for "{sensor.name}"')
    pixels = geo.pairs(pixels.transpose(1, 2, 0)) if sensor.resampling == COMPLEX else pixels
    rasters.check_pixels(path, *pixels.shape[:2])
    if pixels.shape[-1] != sensor.channels:
        names = ", ".join(sensor.band_names)
        raise DataError(f'{path} gives {pixels.shape[-1]} channels, "{sensor.name}" has {sensor.channels}: {names}')
    if pixels.dtype != sensor.dtype:
        raise DataError(
            f'{path} holds {pixels.dtype}, "{sensor.name}" is stored as {sensor.dtype} in units of {sensor.scale:g} '
            f"{sensor.unit}: convert it, or register a sensor of your own"
        )
    stored, valid, notes = rasters.settle(pixels, np.ones(pixels.shape[:2], np.bool_), sensor, str(path))
    return Frame(stored, valid, geo.Grid.nowhere(*pixels.shape[:2]), NO_TIME, path, notes)


def _day(folder: Path) -> int:
    try:
        return geo.plausible_day(folder.name.partition("@")[2])
    except ValueError:
        name = folder.name.partition("@")[0]
        raise DataError(f"{folder}: wanted {name}@1, {name}@2, ... or {name}@YYYY-MM-DD for its dates") from None
