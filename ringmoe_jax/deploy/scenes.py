"""Scenes of any size, read by strips and windows in the sensors' physical units. Imports no TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import MaskFlags
from rasterio.warp import transform as to_crs
from rasterio.windows import Window

from ringmoe_jax import geo
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError
from ringmoe_jax.sensors import COMPLEX, Sensor

CACHE = 256  # MB of decoded blocks that GDAL may keep


@dataclasses.dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie.

    Attributes:
        crs: coordinate reference system, or None.
        transform: (column, row) to coordinates.
        height: rows.
        width: columns.
    """

    crs: object
    transform: Affine
    height: int
    width: int

    def coarser(self, cell: int) -> Grid:
        """The grid of cells of `cell` x `cell` pixels from the upper left corner, the last ones cut short."""
        a, b, c, d, e, f = self.transform[:6]
        transform = Affine(a * cell, b * cell, c, d * cell, e * cell, f)
        return Grid(self.crs, transform, math.ceil(self.height / cell), math.ceil(self.width / cell))

    def coordinates(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x and y in the CRS of places counted in pixels from the upper left corner."""
        a, b, c, d, e, f = self.transform[:6]
        return a * columns + b * rows + c, d * columns + e * rows + f

    def locations(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """[N, 2] float32 latitudes and longitudes in degrees (WGS 84) of such places; NaN without CRS."""
        if not self.crs:
            return np.full((len(rows), 2), np.nan, np.float32)
        longitudes, latitudes = to_crs(self.crs, "EPSG:4326", *self.coordinates(rows, columns))
        return np.stack([latitudes, longitudes], -1).astype(np.float32)


class Scene:
    """One raster of one sensor and date, an open file: a context manager.

    Attributes:
        sensor: with the bands that are read.
        grid: where it lies.
        day: days since 1970-01-01 of TIFFTAG_DATETIME, or NO_TIME.
        notes: what the file declares otherwise than the sensor table, one line each.
    """

    def __init__(self, path: str | Path, sensor: Sensor):
        """Opens a raster that GDAL can read.

        Args:
            path: of the file. Bands are found by their descriptions (names or STAC names) where all have one, else by
                number, and then there must be as many as the sensor has. Complex sensors: one complex band a
                polarisation.
            sensor: what the file has to hold, in its storage dtype.

        Raises:
            DataError: no raster, other bands or another dtype.
        """
        self.path, self.sensor = Path(path), sensor
        self._file = geo.open_raster(self.path, "a GeoTIFF or another raster of GDAL")
        try:
            self._indexes, self._channels = _channels(self.path, self._file, sensor)
        except DataError:
            self._file.close()
            raise
        self.grid = Grid(self._file.crs, self._file.transform, self._file.height, self._file.width)
        date = self._file.tags().get("TIFFTAG_DATETIME", "").replace(":", "-")
        self.day = geo.days(date) if date else NO_TIME
        self.notes = _notes(self.path, self._file, sensor)
        self._masked = _needs_mask(self._file, sensor)

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def read(self, first: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Whole rows of the scene; those above and below it are mirrored.

        Args:
            first: row, negative above the scene.
            rows: how many.

        Returns:
            [rows, width, C] in storage dtype, and [rows, width] bool, True where every band was observed: neither the
            file's mask, nor the sensor's no-data value, nor a number that is not finite says otherwise.

        Raises:
            DataError: the file is damaged.
        """
        wanted = mirrored(first, rows, self.grid.height)
        low = int(wanted.min())
        window = Window(0, low, self.grid.width, int(wanted.max()) + 1 - low)
        try:
            stored = np.moveaxis(self._file.read(self._indexes, window=window), 0, -1)
            valid = self._file.dataset_mask(window=window) > 0 if self._masked else None
        except rasterio.errors.RasterioError as error:
            raise DataError(f"{self.path} cannot be read at row {low} ({error}): the file is damaged") from error
        if np.iscomplexobj(stored):
            stored = geo.pairs(stored)[..., self._channels]
        valid = np.ones(stored.shape[:2], np.bool_) if valid is None else valid
        if self.sensor.no_data is not None:
            valid &= (stored != stored.dtype.type(self.sensor.no_data)).all(-1)
        if stored.dtype.kind == "f":
            valid &= np.isfinite(stored).all(-1)
        return stored[wanted - low], valid[wanted - low]


class Stack:
    """Scenes of one or several sensors and dates on one grid, open files: a context manager.

    Attributes:
        scenes: of every sensor, in order of time where all times are known, else as given.
        grid: that all share.
    """

    def __init__(self, files: Mapping[str, Sequence[str | Path]], sensors: Mapping[str, Sensor]):
        """Opens the files.

        Args:
            files: by sensor, one a date.
            sensors: by name, with the bands that are read.

        Raises:
            DataError: a file does not suit its sensor, or lies on another grid than the first one.
        """
        with contextlib.ExitStack() as opened:
            opened.enter_context(rasterio.Env(GDAL_CACHEMAX=CACHE))
            self.scenes = {
                name: [opened.enter_context(Scene(path, sensors[name])) for path in paths]
                for name, paths in files.items()
            }
            first, *others = [scene for dates in self.scenes.values() for scene in dates]
            for scene in others:
                _check_grid(first, scene)
            for dates in self.scenes.values():
                if all(scene.day != NO_TIME for scene in dates):
                    dates.sort(key=lambda scene: scene.day)
            self.grid = first.grid
            self._opened = opened.pop_all()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *error) -> None:
        self._opened.close()

    def strip(self, first: int, rows: int) -> Strip:
        """Rows `first` to before `first + rows` of all scenes, see `Scene.read`."""
        read = {name: [scene.read(first, rows) for scene in dates] for name, dates in self.scenes.items()}
        return Strip(
            self,
            first,
            {name: [stored for stored, _ in dates] for name, dates in read.items()},
            {name: np.stack([valid for _, valid in dates]) for name, dates in read.items()},
        )


@dataclasses.dataclass(frozen=True)
class Strip:
    """Rows of all scenes of a stack.

    Attributes:
        stack: whose rows they are.
        first: row of the scene, negative above it.
        stored: [rows, width, C] of every date, by sensor.
        valid: [T, rows, width] bool, by sensor.
    """

    stack: Stack
    first: int
    stored: dict[str, list[np.ndarray]]
    valid: dict[str, np.ndarray]

    def observed(self, every_date: bool) -> np.ndarray:
        """[rows, width] bool, True where every sensor saw the ground, on every date or on one at least."""
        return np.all([valid.all(0) if every_date else valid.any(0) for valid in self.valid.values()], axis=0)

    def seen(self, first: int, columns: int) -> bool:
        """Whether any scene has a valid pixel in these columns."""
        wanted = mirrored(first, columns, self.stack.grid.width)
        return any(valid[..., wanted.min() : wanted.max() + 1].any() for valid in self.valid.values())

    def batch(self, firsts: Sequence[int], size: int) -> dict:
        """Square windows as high as the strip, as `ringmoe_jax.contracts` describes a batch.

        Args:
            firsts: column at which each begins; columns beside the scene are mirrored.
            size: B; rows beyond the windows are zeros that are not valid.
        """
        side = next(iter(self.valid.values())).shape[1]
        columns = [mirrored(first, side, self.stack.grid.width) for first in firsts]
        location = np.full((size, 2), np.nan, np.float32)
        middle = np.asarray(firsts, float) + side / 2
        location[: len(firsts)] = self.stack.grid.locations(np.full(len(firsts), self.first + side / 2), middle)
        sensors = {}
        for name, scenes in self.stack.scenes.items():
            sensor = scenes[0].sensor
            pixels = np.zeros((size, len(scenes), side, side, sensor.channels), np.float32)
            valid = np.zeros(pixels.shape[:-1], np.bool_)
            for row, wanted in enumerate(columns):
                valid[row] = self.valid[name][..., wanted]
                for date, stored in enumerate(self.stored[name]):
                    pixels[row, date] = physical(stored[:, wanted], valid[row, date], sensor)
            time = np.tile(np.array([scene.day for scene in scenes], np.int32), (size, 1))
            sensors[name] = {"pixels": pixels, "valid": valid, "time": time, "location": location}
        return {"sensors": sensors}


def physical(stored: np.ndarray, valid: np.ndarray, sensor: Sensor) -> np.ndarray:
    """[..., C] in storage dtype to float32 in the sensor's unit, 0 where `valid` [...] is False."""
    pixels = stored.astype(np.float32)
    if (sensor.scale, sensor.offset) != (1, 0):
        pixels = pixels * np.float32(sensor.scale) + np.float32(sensor.offset)
    return np.where(valid[..., None], pixels, np.float32(0))


def mirrored(first: int, count: int, length: int) -> np.ndarray:
    """[count] indices into 0..length - 1 of first, first + 1, ...: those outside are reflected at the borders."""
    around = np.arange(first, first + count) % (2 * length)
    return np.minimum(around, 2 * length - 1 - around)


def _channels(path: Path, file, sensor: Sensor) -> tuple[list[int], list[int]]:
    """Bands of the file to read, from 1 on, and of complex ones the channels of `geo.pairs`."""
    whole, stored = sensor_table.get(sensor.name), np.dtype(file.dtypes[0])
    is_complex = stored.kind == "c"
    if is_complex != (sensor.resampling == COMPLEX) or not (is_complex or set(file.dtypes) == {sensor.dtype}):
        wanted = "complex64, one band a polarisation" if sensor.resampling == COMPLEX else sensor.dtype
        raise DataError(
            f'{path} holds {file.dtypes[0]}, "{sensor.name}" is stored as {wanted} in units of '
            f"{sensor.scale:g} {sensor.unit}: convert it (gdal_translate -ot), or register a sensor of your own"
        )
    if all(file.descriptions) and not is_complex:
        return [i + 1 for i in geo.bands_by_name(path, file.descriptions, sensor)], []
    channels = file.count * (2 if is_complex else 1)
    if channels == whole.channels:
        chosen = [whole.band_index(band.name) for band in sensor.bands]
    elif channels == sensor.channels:
        chosen = list(range(channels))
    else:
        raise DataError(
            f'{path} gives {channels} channels without names, "{sensor.name}" has {whole.channels}: '
            f"{', '.join(whole.band_names)}; name the bands in the GeoTIFF (descriptions) or choose another sensor"
        )
    return (list(range(1, file.count + 1)), chosen) if is_complex else ([i + 1 for i in chosen], [])


def _needs_mask(file, sensor: Sensor) -> bool:
    """Whether the file's mask, slow to read, says more than the sensor's no-data value and finiteness do."""
    if all(flags == [MaskFlags.nodata] for flags in file.mask_flag_enums):
        return not all(value == sensor.no_data or math.isnan(value) for value in file.nodatavals)
    return any(MaskFlags.all_valid not in flags for flags in file.mask_flag_enums)


def _notes(path: Path, file, sensor: Sensor) -> list[str]:
    notes = []
    declared = {value for value in file.nodatavals if value is not None and not math.isnan(value)}
    if other := sorted(declared - {sensor.no_data}):
        table = "has none" if sensor.no_data is None else f"has {sensor.no_data:g}"
        notes.append(f'{path} declares the no-data value {other[0]:g}, "{sensor.name}" {table}: both are not observed')
    scalings = {*zip(file.scales, file.offsets, strict=True)} - {(1.0, 0.0), (sensor.scale, sensor.offset)}
    for scale, offset in sorted(scalings)[:1]:
        notes.append(
            f"{path} declares unit = {scale:g} stored + {offset:g}, which is not used: "
            f'"{sensor.name}" is {sensor.scale:g} stored + {sensor.offset:g}'
        )
    return notes


def _check_grid(first: Scene, other: Scene) -> None:
    a, b = first.grid, other.grid
    if a.crs != b.crs:
        differs = f"has the CRS {b.crs}, {first.path} {a.crs}"
    elif (a.height, a.width) != (b.height, b.width):
        differs = f"has {b.height} x {b.width} pixels, {first.path} {a.height} x {a.width}"
    elif not a.transform.almost_equals(b.transform, precision=1e-6 * abs(a.transform.a)):
        differs = f"has the transform {tuple(b.transform)[:6]}, {first.path} {tuple(a.transform)[:6]}"
    else:
        return
    raise DataError(f"{other.path} {differs}: scenes share one grid; resample one to the other (gdalwarp)")
