"""Scenes of any size, read by strips and windows in the sensors' physical units. Imports no TensorFlow."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from ringmoe_jax import rasters
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError
from ringmoe_jax.sensors import Sensor

DISORDER = f"{rasters.DISORDER} (the order of the command line counts)"
SHIFT = 0.1  # pixels that grids may lie apart, the errors of writing a transform (our choice)
CACHE = 256  # MB of decoded blocks that GDAL may keep


class Scene:
    """One raster of one sensor and date, an open file: a context manager.

    Attributes:
        sensor: with the bands that are read.
        grid: where it lies.
        day: days since 1970-01-01 of TIFFTAG_DATETIME, or NO_TIME.
        notes: what the file says otherwise than the sensor table, and what reading it met so far; one line each.
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
        self._file = rasters.open_raster(self.path, "a GeoTIFF or another raster of GDAL")
        try:
            self._plan = rasters.plan(self.path, self._file, sensor)
        except DataError:
            self._file.close()
            raise
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
        stored, valid, notes = rasters.read(self.path, self._file, self._plan, window)
        self._said |= dict.fromkeys(notes)
        return stored[wanted - low], valid[wanted - low]


class Stack:
    """Scenes of one or several sensors and dates on one grid, open files: a context manager.

    Attributes:
        scenes: of every sensor, in the order in which they are given: the order of their dates. Where TIFFTAG_DATETIME
            says another, it is the time of processing, and their times are unknown.
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
                days = [scene.day for scene in dates]
                if NO_TIME not in days and days != sorted(days):
                    dates[0].forget(dates[1:])
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
