"""Images and masks of files: bands in the sensor table's order, classes by value, colour or layer."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio

from input_pipeline.layouts import templates, tiles
from input_pipeline.schema import UNLABELLED, Image
from ringmoe_jax import geo
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import DataError
from ringmoe_jax.sensors import Sensor

Fields = Mapping[str, str]
_UNKNOWN = -2  # class of a pixel whose value nobody has named


@dataclasses.dataclass(frozen=True)
class Raster:
    """Images of one sensor.

    Attributes:
        sensor: name in the sensor table.
        paths: template of the files, one a date in ascending order; with the field `band`, one file a band.
        gsd: metres a pixel.
        bands: names of a file's bands in its order; those of the sensor by default. More than the sensor has are
            left out.
        gain: stored value = gain x value of the file.
        dates: function (source, fields) -> days since 1970-01-01, one a path; unknown by default.
        void: value of a file's pixels that were not observed, where every band has it; other files say so themselves,
            or the sensor does.
    """

    sensor: str
    paths: tuple[str, ...]
    gsd: float
    bands: tuple[str, ...] = ()
    gain: float = 1.0
    dates: Callable[[Path, Fields], Sequence[int]] | None = None
    void: int | None = None

    @property
    def template(self) -> str:
        """Path of the first file of a place; its fields name the place."""
        return self.paths[0].replace("{band}", sensor_table.get(self.sensor).band_names[0])

    def read(self, source: Path, fields: Fields) -> tuple[Image, Callable[[float, float], tuple[float, float]]]:
        """The image [T, H, W, C] of a place, and its georeference as `tiles.Scene.place` says.

        Raises:
            DataError: a file cannot be read, or has other bands, values or another size than it should.
        """
        frames = [self._frame(source, path, fields) for path in self.paths]
        pixels, valid, place = zip(*frames, strict=True)
        if len({frame.shape for frame in pixels}) > 1:
            shapes = " and ".join(f"{frame.shape[0]} x {frame.shape[1]} px" for frame in pixels)
            raise DataError(f"{source / templates.fill(self.template, fields)}: dates have {shapes}: wanted one size")
        days = np.array(self.dates(source, fields)) if self.dates else None
        return Image(np.stack(pixels), np.stack(valid), days), place[0]

    def size(self, source: Path, fields: Fields) -> tuple[int, int]:
        """Height and width of a place's image, from the header of its first file."""
        with _opened(source / templates.fill(self.template, fields)) as file:
            return file.height, file.width

    def _frame(self, source: Path, template: str, fields: Fields):
        sensor = sensor_table.get(self.sensor)
        path = source / templates.fill(template, {**fields, "band": "{band}"})
        if "{band}" not in template:
            values, no_data, place = load(path)
            bands = self.bands or sensor.band_names
            stored, valid, place = ordered(values, no_data, place, sensor, bands, self.gain, str(path))
            return stored, valid if self.void is None else valid & (values != self.void).any(-1), place
        files = {name: load(path.with_name(path.name.replace("{band}", name))) for name in sensor.band_names}
        bands = {name: values[..., 0] for name, (values, *_) in files.items()}
        if len({band.shape for band in bands.values()}) > 1:
            values = geo.to_finest(bands, sensor.band_names)
        else:
            values = np.stack(list(bands.values()), -1)
        finest = max(files, key=lambda name: bands[name].shape[0])
        _, no_data, place = files[finest]
        return ordered(values, no_data, place, sensor, sensor.band_names, self.gain, str(path))


@dataclasses.dataclass(frozen=True)
class Values:
    """Masks with one number a class.

    Attributes:
        of_class: number of every class, in the order of their index.
        void: numbers of pixels that nobody knows or wants.
        lossy: take the class whose number is nearest: for masks that are stored as JPEG.
    """

    of_class: tuple[int, ...]
    void: tuple[int, ...] = ()
    lossy: bool = False

    def classes(self, values: np.ndarray, where: str) -> np.ndarray:
        """[H, W] int16 of a file's [H, W, C], whose first channel counts."""
        values = values[..., 0]
        if self.lossy:
            distance = np.abs(values[..., None].astype(np.int32) - np.array(self.of_class))
            return distance.argmin(-1).astype(np.int16)
        return _looked_up(values, self.of_class, self.void, where, str)


@dataclasses.dataclass(frozen=True)
class Colours:
    """Masks with one colour (red, green, blue; 0 to 255) a class; attributes as those of `Values`."""

    of_class: tuple[tuple[int, int, int], ...]
    void: tuple[tuple[int, int, int], ...] = ()

    def classes(self, values: np.ndarray, where: str) -> np.ndarray:
        """[H, W] int16 of a file's [H, W, 3 or 4] uint8."""
        if values.shape[-1] not in (3, 4) or values.dtype != np.uint8:
            raise DataError(f"{where} holds {values.dtype}{list(values.shape)}, wanted uint8[H, W, 3] colours")

        def packed(colour) -> int:
            return (int(colour[0]) << 16) + (int(colour[1]) << 8) + int(colour[2])

        def shown(number: int) -> str:
            return f"({number >> 16}, {number >> 8 & 255}, {number & 255})"

        numbers = values[..., :3].astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        return _looked_up(numbers, tuple(map(packed, self.of_class)), tuple(map(packed, self.void)), where, shown)


@dataclasses.dataclass(frozen=True)
class Layers:
    """Masks with one layer a class, not zero where the class is. Pixels of no layer, or of one without class, are void.

    Attributes:
        count: layers of a file; the classes have the first ones.
    """

    count: int

    def classes(self, values: np.ndarray, where: str) -> np.ndarray:
        """[H, W] int16 of a file's [H, W, count]; the number of a void layer is left for the mask to drop."""
        if values.shape[-1] != self.count:
            raise DataError(f"{where} has {values.shape[-1]} layers, wanted {self.count}")
        return np.where((values != 0).any(-1), (values != 0).argmax(-1), UNLABELLED).astype(np.int16)


@dataclasses.dataclass(frozen=True)
class Mask:
    """One class a pixel.

    Attributes:
        path: template of the files.
        code: what their values mean.
        label: name of the label.
        change: see `LabelInfo`.
        observed: pixels that a sensor missed on some date are void, whatever the file says of them.
    """

    path: str
    code: Values | Colours | Layers
    label: str = "map"
    change: bool = False
    observed: bool = False

    def read(self, source: Path, fields: Fields, classes: int) -> np.ndarray:
        """[H, W] int16 of a place, 0..`classes` - 1, -1 void.

        Raises:
            DataError: the file cannot be read, or holds a value that is neither a class nor void.
        """
        path = source / templates.fill(self.path, fields)
        found = self.code.classes(load(path)[0], str(path))
        return np.where(found < classes, found, UNLABELLED).astype(np.int16)


def load(path: Path):
    """An image file: values [H, W, C], its no-data value or None, and its georeference as `tiles.Scene.place` says."""
    with _opened(path) as file:
        values, no_data, crs, transform = file.read(), file.nodata, file.crs, file.transform
    place = functools.partial(geo.latitude_longitude, crs, transform) if crs else tiles.nowhere
    return values.transpose(1, 2, 0), no_data, place


def ordered(values: np.ndarray, no_data, place, sensor: Sensor, bands: Sequence[str], gain: float, where: str):
    """Values as the sensor table stores them, where they are valid, and `place`.

    A grey image is repeated for `rgb`, a second and third channel of a grey sensor and the transparency of `rgb` are
    dropped.

    Args:
        values: [..., C] of a file.
        no_data: value of pixels that were not observed, or None.
        place: handed on.
        sensor: what is wanted.
        bands: names of the C channels.
        gain: stored value = gain x value.
        where: file, for messages.

    Raises:
        DataError: other channels or values than wanted.
    """
    channels = values.shape[-1]
    if sensor.dtype == "uint8" and channels != len(bands) and values.dtype == np.uint8:
        if (channels, len(bands)) == (1, 3):
            values = np.repeat(values, 3, -1)
        elif (channels, len(bands)) in ((3, 1), (4, 1), (4, 3)):
            values = values[..., : len(bands)]
    if values.shape[-1] != len(bands):
        raise DataError(f"{where} has {channels} bands, wanted {len(bands)}: {', '.join(bands)}")
    values = values[..., [bands.index(name) for name in sensor.band_names]]
    valid = np.isfinite(values).all(-1)
    if no_data is not None and np.isfinite(no_data):
        valid &= (values != no_data).all(-1)
    if gain != 1:
        values = values * gain
    stored = _stored(values, valid, sensor, where)
    if sensor.no_data is not None:
        valid &= (stored != sensor.no_data).all(-1)
    return stored, valid, place


def _stored(values: np.ndarray, valid: np.ndarray, sensor: Sensor, where: str) -> np.ndarray:
    """Values in the sensor's dtype. Whole numbers below its range, which nothing reflects, become "no data"."""
    wanted = np.dtype(sensor.dtype)
    if values.dtype == wanted or wanted.kind == "f":
        return values.astype(wanted, copy=False)
    limits = np.iinfo(wanted)
    rounded = np.rint(np.where(valid[..., None], values, 0))
    if sensor.no_data is not None:
        rounded = np.maximum(rounded, sensor.no_data)
    if rounded.min(initial=0) < limits.min or rounded.max(initial=0) > limits.max:
        raise DataError(
            f'{where} holds {values.dtype} from {rounded.min():g} to {rounded.max():g}, "{sensor.name}" is stored as '
            f"{wanted} in units of {sensor.scale:g} {sensor.unit}"
        )
    return rounded.astype(wanted)


def _looked_up(values: np.ndarray, of_class: Sequence[int], void: Sequence[int], where: str, shown) -> np.ndarray:
    """Class of every pixel; raises where a value is neither a class nor void."""
    found = np.full(values.shape, _UNKNOWN, np.int16)
    for number in void:
        found[values == number] = UNLABELLED
    for i, number in enumerate(of_class):
        found[values == number] = i
    if (bad := found == _UNKNOWN).any():
        row, column = np.argwhere(bad)[0]
        unknown = f"; {', '.join(map(shown, void))}: void" if void else ""
        raise DataError(
            f"{where} holds {shown(values[row, column])} at row {row}, column {column}: wanted one of the classes "
            f"{', '.join(map(shown, of_class))}{unknown}"
        )
    return found


@contextlib.contextmanager
def _opened(path: Path):
    """`rasterio.open` that says which file it was, and nothing of missing coordinates."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            file = rasterio.open(path)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path} cannot be read ({error}): wanted an image") from error
    with file:
        yield file
