"""Images and masks of files: bands in the sensor table's order, classes by value, colour or layer."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from rasterio.enums import MaskFlags

from input_pipeline.layouts import templates
from input_pipeline.places import Report
from input_pipeline.schema import UNLABELLED, Image
from ringmoe_jax import geo, rasters
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import DataError
from ringmoe_jax.sensors import Sensor

Fields = Mapping[str, str]
WANTED = "an image"
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
        gain: stored value = gain x value of the file, see `rasters.plan`.
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

    def read(
        self, source: Path, fields: Fields, report: Report | None = None
    ) -> tuple[Image, Callable[[float, float], tuple[float, float]]]:
        """The image [T, H, W, C] of a place, and its georeference as `tiles.Scene.place` says.

        Args:
            source: the data set's folder.
            fields: of the place.
            report: counts what files say otherwise than the entry.

        Raises:
            DataError: a file cannot be read, or has other bands, values, unit or size than it should.
        """
        pixels, valid, grids = zip(*[self._frame(source, path, fields, report) for path in self.paths], strict=True)
        if len({frame.shape for frame in pixels}) > 1:
            shapes = " and ".join(f"{frame.shape[0]} x {frame.shape[1]} px" for frame in pixels)
            raise DataError(f"{source / templates.fill(self.template, fields)}: dates have {shapes}: wanted one size")
        days = np.array(self.dates(source, fields)) if self.dates else None
        place = functools.partial(geo.latitude_longitude, grids[0].crs, grids[0].transform)
        return Image(np.stack(pixels), np.stack(valid), days), place

    def grid(self, source: Path, fields: Fields) -> geo.Grid:
        """Where a place's image lies, from the header of its first file."""
        with rasters.open_raster(source / templates.fill(self.template, fields), WANTED) as file:
            return rasters.grid(file)

    def size(self, source: Path, fields: Fields) -> tuple[int, int]:
        """Height and width of a place's image, from the header of its first file."""
        grid = self.grid(source, fields)
        return grid.height, grid.width

    def _frame(self, source: Path, template: str, fields: Fields, report: Report | None):
        """[H, W, C] as stored, [H, W] bool and the grid of one date."""
        sensor = sensor_table.get(self.sensor)
        path = source / templates.fill(template, {**fields, "band": "{band}"})
        if "{band}" not in template:
            return self._read(path, sensor, self.bands or sensor.band_names, report)
        found = {}
        for band in sensor.bands:
            one = path.with_name(path.name.replace("{band}", band.name))
            found[band.name] = self._read(one, dataclasses.replace(sensor, bands=(band,)), (band.name,), report)
        finest = max(found, key=lambda name: found[name][0].shape[0])
        pixels = _stacked({name: stored[..., 0] for name, (stored, *_) in found.items()})
        valid = _stacked({name: valid for name, (_, valid, _) in found.items()})
        return pixels, valid.all(-1), found[finest][2]

    def _read(self, path: Path, sensor: Sensor, bands: Sequence[str], report: Report | None):
        """The same of one file."""
        with rasters.open_raster(path, WANTED, whole=True) as file:
            how = rasters.plan(path, file, sensor, bands, self.gain)
            stored, valid, notes = rasters.read(path, file, how)
            grid = rasters.grid(file)
        if self.void is not None:
            valid = valid & (stored != self.void).any(-1)
        if report is not None:
            report.note((*how.notes, *notes), str(path))
            report.measure(self.sensor, self.gsd, grid.gsd)
        return stored, valid, grid


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

    def read(self, source: Path, fields: Fields, classes: int, image: geo.Grid | None = None) -> np.ndarray:
        """[H, W] int16 of a place, 0..`classes` - 1, -1 void.

        Args:
            source: the data set's folder.
            fields: of the place.
            classes: their number.
            image: where the place's image lies, see `load_mask`.

        Raises:
            DataError: the file cannot be read, lies elsewhere, or holds a value that is neither a class nor void.
        """
        path = source / templates.fill(self.path, fields)
        values, _, hidden, _ = load_mask(path, image)
        found = self.code.classes(values, str(path))
        return np.where((found < classes) & ~hidden, found, UNLABELLED).astype(np.int16)


def load_mask(path: Path, image: geo.Grid | None = None):
    """A mask, turned to lie as its image does.

    Args:
        path: of the file.
        image: where its image lies.

    Returns:
        Values [H, W, C], declared no-data or None, [H, W] bool hidden by an internal mask, and palette or None.

    Raises:
        DataError: it cannot be read, or lies elsewhere than its image.
    """
    with rasters.open_raster(path, "a mask (PNG or GeoTIFF)", whole=True) as file:
        with rasters.reading(path, "the mask is damaged"):
            values, no_data, flags = file.read().transpose(1, 2, 0), file.nodata, file.mask_flag_enums[0]
            internal = MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags
            hidden = file.read_masks(1) == 0 if internal else np.zeros(values.shape[:2], np.bool_)
        try:
            palette = file.colormap(1)
        except ValueError:
            palette = None
        rows, columns = (slice(None), slice(None)) if image is None else _turn(path, rasters.grid(file), image)
    return values[rows, columns], no_data, hidden[rows, columns], palette


def _turn(path: Path, mask: geo.Grid, image: geo.Grid) -> tuple[slice, slice]:
    """In which order rows and columns of a mask follow those of its image; raises where it lies elsewhere."""
    turns = {turn: image.distance(mask, turn) for turn in itertools.product((False, True), repeat=2)}
    turn = min(turns, key=turns.get)
    pixel = max(filter(None, (image.gsd, mask.gsd)), default=0)
    if turns[turn] > pixel:  # not where a place is unknown: NaN
        raise DataError(
            f"{path}: a corner is {turns[turn]:.0f} m away from the one of its image: masks lie on their image's grid; "
            "crop or warp them to it (gdalwarp -te -ts)"
        )
    return tuple(slice(None, None, -1 if reverse else None) for reverse in turn)


def _stacked(bands: Mapping[str, np.ndarray]) -> np.ndarray:
    """[H, W, C] of bands [h, w], coarser ones repeated."""
    if len({band.shape for band in bands.values()}) == 1:
        return np.stack(list(bands.values()), -1)
    return geo.to_finest(bands, tuple(bands))


def ordered(
    values: np.ndarray, sensor: Sensor, bands: Sequence[str], gain: float, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Arrays [..., C] of a published data set as the sensor table stores them, and where they are valid [...].

    Args:
        values: of the bands `bands`.
        sensor: what is wanted.
        bands: names of the C channels.
        gain: stored value = gain x value.
        where: file, for messages.

    Raises:
        DataError: other channels or values than wanted.
    """
    if values.shape[-1] != len(bands):
        raise DataError(f"{where} has {values.shape[-1]} bands, wanted {len(bands)}: {', '.join(bands)}")
    values = values[..., [bands.index(name) for name in sensor.band_names]]
    valid = np.isfinite(values).all(-1)
    gains, shifts = [gain] * sensor.channels, [0] * sensor.channels
    return rasters.settle(rasters.convert(values, valid, sensor, gains, shifts, where), valid, sensor, where)[:2]


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
