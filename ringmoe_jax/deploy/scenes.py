"""Scenes of any size, read by strips and windows in the sensors' physical units. Imports no TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from rasterio.windows import Window

from ringmoe_jax import rasters
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError
from ringmoe_jax.sensors import Sensor

DISORDER = f"{rasters.DISORDER} (the order of the command line counts)"
SHIFT = 0.1  # pixels that grids may lie apart, the errors of writing a transform (our choice)
CACHE = 64  # MB of decoded blocks that GDAL may keep
DECODED = 2**29  # bytes of decoded blocks that all files of a stack keep, at most (our choice)


class Scene:
    """One raster of one sensor and date, an open file: a context manager.

    Attributes:
        sensor: with the bands that are read.
        grid: where it lies.
        day: days since 1970-01-01 of TIFFTAG_DATETIME, or NO_TIME.
        notes: what the file says otherwise than the sensor table, and what reading it met so far; one line each.
    """

    def __init__(self, path: str | Path, sensor: Sensor, decoded: int = DECODED):
        """Opens a raster that GDAL can read.

        Args:
            path: of the file. Bands are found by their descriptions (names or STAC names) where all have one, else by
                number, and then there must be as many as the sensor has. Complex sensors: one complex band a
                polarisation.
            sensor: what the file has to hold, in its storage dtype.
            decoded: bytes of its blocks that may be kept, see `_Decoded`.

        Raises:
            DataError: no raster, other bands or another dtype.
        """
        self.path, self.sensor = Path(path), sensor
        self._file = rasters.open_raster(self.path, "a GeoTIFF or another raster of GDAL")
        try:
            self._plan = rasters.plan(self.path, self._file, sensor)
        except DataError:
            self._file.close()
            raise
        self._decoded = _Decoded(self._file, decoded)
        self.grid = rasters.grid(self._file)
        self.day, odd = rasters.day(self._file)
        self._said = dict.fromkeys((*self._plan.notes, *odd))

    @property
    def notes(self) -> list[str]:
        return [f"files such as {self.path} {said}" for said in self._said]

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *error) -> None:
        self._file.close()

    def forget(self, others: Sequence[Scene]) -> None:
        """Takes the times of this and further dates for those of processing."""
        self._said[DISORDER] = None
        for scene in (self, *others):
            scene.day = NO_TIME

    def read(self, first: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Whole rows of the scene; those above and below it are mirrored.

        Args:
            first: row, negative above the scene.
            rows: how many.

        Returns:
            [rows, width, C] in storage dtype, and [rows, width] bool, True where all were observed, see `rasters`.

        Raises:
            DataError: the file is damaged, or its values cannot be the sensor's unit.
        """
        wanted = mirrored(first, rows, self.grid.height)
        low = int(wanted.min())
        window = Window(0, low, self.grid.width, int(wanted.max()) + 1 - low)
        stored, valid, notes = rasters.read(self.path, self._decoded, self._plan, window)
        self._said |= dict.fromkeys(notes)
        return stored[wanted - low], valid[wanted - low]


class Stack:
    """Scenes of one or several sensors and dates on one grid, open files: a context manager.

    Attributes:
        scenes: of every sensor, in the order in which they are given: the order of their dates. Where TIFFTAG_DATETIME
            says another, it is the time of processing, and their times are unknown.
        grid: that all share.
        gsd: metres between its pixels by sensor: the grid's, or the sensor's finest where nobody knows.
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
            share = DECODED // sum(map(len, files.values()))
            self.scenes = {
                name: [opened.enter_context(Scene(path, sensors[name], share)) for path in paths]
                for name, paths in files.items()
            }
            first, *others = [scene for dates in self.scenes.values() for scene in dates]
            for scene in others:
                _check_grid(first, scene)
            for dates in self.scenes.values():
                days = [scene.day for scene in dates]
                if NO_TIME not in days and days != sorted(days):
                    dates[0].forget(dates[1:])
            self.grid, metres = first.grid, first.grid.gsd
            self.gsd = {name: metres or dates[0].sensor.gsd for name, dates in self.scenes.items()}
            self._opened = opened.pop_all()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *error) -> None:
        self._opened.close()

    def strip(self, first: int, rows: int, before: Strip | None = None) -> Strip:
        """Rows `first` to before `first + rows` of all scenes, see `Scene.read`.

        Args:
            first: row, negative above the scene.
            rows: how many.
            before: a strip above or at it: rows that both hold are read once.
        """
        shared = max(0, before.first + before.rows - first) if before and before.first <= first else 0
        pixels, valid = {}, {}
        for name, scenes in self.scenes.items():
            read = [_floats(*scene.read(first + shared, rows - shared), scene.sensor) for scene in scenes]
            pixels[name], valid[name] = (np.stack(parts) for parts in zip(*read, strict=True))
            if shared:
                pixels[name] = np.concatenate([before.pixels[name][:, -shared:], pixels[name]], axis=1)
                valid[name] = np.concatenate([before.valid[name][:, -shared:], valid[name]], axis=1)
        return Strip(self, first, rows, pixels, valid)


@dataclasses.dataclass(frozen=True)
class Strip:
    """Rows of all scenes of a stack.

    Attributes:
        stack: whose rows they are.
        first: row of the scene, negative above it.
        rows: how many.
        pixels: [T, rows, width, C] float32 in the sensor's unit, 0 where not valid, by sensor.
        valid: [T, rows, width] bool, by sensor.
    """

    stack: Stack
    first: int
    rows: int
    pixels: dict[str, np.ndarray]
    valid: dict[str, np.ndarray]

    def ground(self, every_date: bool) -> Ground:
        """Where every sensor saw the ground, on every date or on one at least."""
        seen = [valid.all(0) if every_date else valid.any(0) for valid in self.valid.values()]
        return Ground(self.first, np.all(seen, axis=0))

    def seen(self, row: int, column: int, side: int) -> bool:
        """Whether any scene has a valid pixel in the window that begins at a row and column of the scene."""
        wanted = self._window(row, column, side)
        return any(valid[wanted].any() for valid in self.valid.values())

    def batch(self, corners: Sequence[tuple[int, int]], side: int, size: int) -> dict:
        """Square windows, as `ringmoe_jax.contracts` describes a batch.

        Args:
            corners: row and column of the scene at which each begins; columns beside the scene are mirrored.
            side: of the windows; their rows are the strip's.
            size: B; rows beyond the windows are zeros that are not valid.
        """
        location = np.full((size, 2), np.nan, np.float32)
        middle = np.array(corners, float).reshape(-1, 2) + side / 2
        location[: len(corners)] = self.stack.grid.locations(*middle.T)
        sensors = {}
        for name, scenes in self.stack.scenes.items():
            shape = (size, len(scenes), side, side)
            pixels = np.zeros((*shape, scenes[0].sensor.channels), np.float32)
            valid = np.zeros(shape, np.bool_)
            for i, corner in enumerate(corners):
                wanted = self._window(*corner, side)
                pixels[i], valid[i] = self.pixels[name][wanted], self.valid[name][wanted]
            time = np.tile(np.array([scene.day for scene in scenes], np.int32), (size, 1))
            metres = np.full(size, self.stack.gsd[name], np.float32)
            sensors[name] = {"pixels": pixels, "valid": valid, "time": time, "location": location, "gsd": metres}
        return {"sensors": sensors}

    def _window(self, row: int, column: int, side: int) -> tuple:
        """Where a window lies in `pixels` and `valid`."""
        width = self.stack.grid.width
        inside = 0 <= column <= width - side
        columns = slice(column, column + side) if inside else mirrored(column, side, width)
        return slice(None), slice(row - self.first, row - self.first + side), columns


class Ground(NamedTuple):
    """Which ground was observed: `seen` [rows, width] bool, whose first row is row `first` of the scene."""

    first: int
    seen: np.ndarray

    def rows(self, first: int, stop: int) -> np.ndarray:
        """[stop - first, width] bool, rows of the scene."""
        return self.seen[first - self.first : stop - self.first]


class _Decoded:
    """An open file whose rows are decoded once, where they are read from top to bottom.

    GDAL decodes blocks of several bands anew for every read that touches them: whole rows of blocks are read, and the
    last one is kept, unless it is larger than `most` bytes.
    """

    def __init__(self, file, most: int):
        self._file, self._most, self._height = file, most, max(height for height, _ in file.block_shapes)
        self._kept: dict[str, tuple[int, np.ndarray]] = {}

    def read(self, indexes: list[int], window: Window) -> np.ndarray:
        """[bands, h, w], as rasterio's."""
        return self._rows("pixels", window, len(indexes), lambda rows: self._file.read(indexes, window=rows))

    def read_masks(self, index: int, window: Window) -> np.ndarray:
        """[h, w], as rasterio's."""
        return self._rows("mask", window, 1, lambda rows: self._file.read_masks(index, window=rows))

    def _rows(self, name: str, window: Window, bands: int, read: Callable[[Window], np.ndarray]) -> np.ndarray:
        high, (first, rows) = self._height, (window.row_off, window.height)
        if rows > high or high * window.width * bands * np.dtype(self._file.dtypes[0]).itemsize > self._most:
            return read(window)
        parts = []
        for block in range(first // high, (first + rows - 1) // high + 1):
            top = block * high
            if self._kept.get(name, (-1,))[0] != block:
                parts, _ = [part.copy() for part in parts], self._kept.pop(name, None)
                self._kept[name] = block, read(Window(0, top, window.width, min(high, self._file.height - top)))
            parts.append(self._kept[name][1][..., max(first - top, 0) : first + rows - top, :])
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2)


def _floats(stored: np.ndarray, valid: np.ndarray, sensor: Sensor) -> tuple[np.ndarray, np.ndarray]:
    """See `physical`; channels lie side by side, so that windows are copied fast."""
    return np.ascontiguousarray(physical(stored, valid, sensor)), valid


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


def _check_grid(first: Scene, other: Scene) -> None:
    a, b = first.grid, other.grid
    if a.crs != b.crs:
        differs = f"has the CRS {b.crs}, {first.path} {a.crs}"
    elif (a.height, a.width) != (b.height, b.width):
        differs = f"has {b.height} x {b.width} pixels, {first.path} {a.height} x {a.width}"
    elif a.apart(b) > SHIFT:
        differs = (
            f"has the transform {tuple(b.transform)[:6]}, {first.path} {tuple(a.transform)[:6]}, {a.apart(b):.3g} px "
            "apart"
        )
    else:
        return
    raise DataError(f"{other.path} {differs}: scenes share one grid; resample one to the other (gdalwarp)")
