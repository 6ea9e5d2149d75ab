"""Raster files: what a file says of its values against what a sensor assumes, and which pixels are valid.

One rule for `prepare`, the catalogue and `predict`; docs/reliability.md has it as a table. A pixel is valid where every
band that is read was observed: neither the file's mask or transparency, nor its no-data value or valid range, nor the
sensor's no-data value or flags, nor a number that is not finite says otherwise. Of pictures in 8 bits, whose values
all are colours, a pixel is no data where all bands have the no-data value.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import stat
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags

from ringmoe_jax import geo, units
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError, nearest
from ringmoe_jax.sensors import COMPLEX, Sensor

os.environ.setdefault("GDAL_PNG_WHOLE_IMAGE_OPTIM", "NO")  # which reads a PNG that is cut off without an error
os.environ.setdefault("GDAL_ERROR_ON_LIBJPEG_WARNING", "YES")  # a JPEG that is cut off

LEAST = 64  # valid pixels, from which on they are compared with the sensor's range
PIXELS = 2**29  # of a file that is read whole (our choice)
COARSEST = 0.1  # of a stored step: a finer step of the file is lost by rounding (our choice)
OWN_SENSOR = "if they are right, register a sensor of your own, or prepare with --any-unit"
FLAGGED = "hold saturated or wrapped values: their pixels are not valid"
DISORDER = "have a TIFFTAG_DATETIME in another order than their dates, so of processing: their time is unknown"
_NOT_RGB = {ColorInterp[name] for name in ("cyan", "magenta", "yellow", "black", "hue", "saturation", "lightness")}
_GENERIC = re.compile(r"(band|layer|channel)?[ _]*\d*", re.I)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a file becomes what a sensor stores.

    Attributes:
        sensor: with the bands that are wanted.
        indexes: bands of the file in the sensor's order, from 1 on; of complex ones all.
        channels: of the re, im pairs of complex bands, in the sensor's order; () for others.
        gains: stored value = gain x value of the file + shift, by band.
        shifts: see `gains`.
        no_data: value of every band that means "not observed", or None.
        limits: smallest and largest valid value that the file states, or None.
        masked: the file has a mask or transparency.
        notes: what the file says otherwise than assumed, each a sentence that begins with a verb of many files.
    """

    sensor: Sensor
    indexes: tuple[int, ...]
    channels: tuple[int, ...]
    gains: tuple[float, ...]
    shifts: tuple[float, ...]
    no_data: tuple[float | None, ...]
    limits: tuple[float, float] | None
    masked: bool
    notes: tuple[str, ...]


# ---- Opening ------------------------------------------------------------------------------------------


def open_raster(path: Path, wanted: str, *, whole: bool = False):
    """Opens a file by rasterio, without a warning where it has no coordinates.

    Args:
        path: file.
        wanted: kinds of files, for the message.
        whole: all of it is to be read at once.

    Raises:
        DataError: GDAL cannot read it, it has several pages, is to be shown turned, or is too large.
    """
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise DataError(f"{path} is no file: wanted {wanted}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with reading(path, f"wanted {wanted}"):
            file = rasterio.open(path)
    try:
        _check_header(path, file, whole)
    except BaseException:
        file.close()
        raise
    return file


@contextlib.contextmanager
def reading(path: Path, hint: str):
    """Within it, whatever GDAL says becomes a `DataError` that names the file."""
    try:
        yield
    except Exception as error:  # GDAL's own exceptions, too, which rasterio does not name
        raise DataError(
            f"{path} cannot be read ({next(iter(str(error).splitlines()), type(error).__name__)}): {hint}"
        ) from error


def _check_header(path: Path, file, whole: bool) -> None:
    if len(file.subdatasets) > 1:
        raise DataError(f"{path} has {len(file.subdatasets)} pages: wanted one image a file; write the pages to files")
    if (turned := file.tags().get("EXIF_Orientation", "1")) != "1":
        raise DataError(
            f"{path} is to be shown turned (EXIF orientation {turned}), so labels drawn on it may lie elsewhere: turn "
            "its pixels (ImageMagick: mogrify -auto-orient) or remove the tag"
        )
    if not file.count:
        raise DataError(f"{path} has no band: wanted an image")
    if whole:
        check_pixels(path, file.height, file.width)


def check_pixels(path: Path, height: int, width: int) -> None:
    """Raises where an image that is read whole would not fit in memory."""
    if height * width > PIXELS:
        raise DataError(
            f"{path} has {height} x {width} px: images are read whole, at most {PIXELS:,} px; cut it into parts "
            "(gdal_retile.py, or gdal_translate -srcwin)"
        )


def load_array(path: Path, wanted: str) -> np.ndarray:
    """An NPY file, which may be nothing else.

    Raises:
        DataError: it is a pipe, damaged, or of Python objects.
    """
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path} is no file: wanted {wanted}")
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(values, np.ndarray):
            raise ValueError("an archive of several arrays")
        return np.array(values)
    except Exception as error:  # a header is Python's text, whose parser fails in more ways than it says
        raise DataError(f"{path} cannot be read ({type(error).__name__}: {error}): wanted {wanted}") from error


def grid(file) -> geo.Grid:
    """Where the pixels of an open file lie; nowhere without a transform, for which rasterio gives the identity."""
    return geo.Grid(None if file.transform.is_identity else file.crs, file.transform, file.height, file.width)


def day(file) -> tuple[int, tuple[str, ...]]:
    """Days since 1970-01-01 of TIFFTAG_DATETIME, or NO_TIME; and what there is to note of it."""
    text = file.tags().get("TIFFTAG_DATETIME", "").strip("\0 ")
    if not text:
        return NO_TIME, ()
    try:
        return geo.plausible_day(text.replace(":", "-")[:10]), ()
    except ValueError:
        return NO_TIME, ("have a TIFFTAG_DATETIME that is no date of an image: their time is unknown",)


# ---- Declared against assumed -------------------------------------------------------------------------


def plan(path: Path, file, sensor: Sensor, bands: Sequence[str] = (), gain: float | None = None) -> Plan:
    """Compares what an open file says with what is assumed of it.

    Args:
        path: for messages.
        file: of `open_raster`.
        sensor: what is wanted, with some or all of the bands of the sensor table.
        bands: names of the file's bands where it does not name them; the sensor's by default.
        gain: stored value = gain x value, as a published data set has it; files then may have any dtype whose values
            fit. None: the file has the sensor's dtype, or says itself by scale and offset how it becomes that.

    Raises:
        DataError: other bands, another dtype, or colours that are no bands.
    """
    colours = file.colorinterp
    if odd := sorted(c.name for c in set(colours) & _NOT_RGB):
        raise DataError(f"{path} holds the colours {', '.join(odd)}: convert it to red, green, blue first")
    whole, notes = len(bands) or _whole(sensor).channels, []
    indexes = [i for i, colour in enumerate(colours, 1) if colour != ColorInterp.alpha]
    transparent = len(indexes) < file.count
    converted = "SOURCE_COLOR_SPACE" in file.tags(ns="IMAGE_STRUCTURE")  # CMYK, which GDAL reads as RGBA
    if transparent and file.count == whole and not converted:  # what GDAL calls a fourth band that nothing is said of
        indexes, transparent = list(range(1, file.count + 1)), False
        notes.append("call their last band transparency: taken for a band")
    if colours[0] == ColorInterp.palette and sensor.channels > 1:
        raise DataError(f"{path} holds a palette: expand it (gdal_translate -expand rgb)")
    if file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES":
        raise DataError(f"{path} stores white as 0: invert its values first")
    is_complex = np.dtype(_dtype(file.dtypes[0])).kind == "c"
    if is_complex != (sensor.resampling == COMPLEX):
        raise DataError(_other_dtype(path, file, sensor))
    scalings = {(file.scales[i - 1], file.offsets[i - 1]) for i in indexes}
    if gain is None and not is_complex and scalings == {(1.0, 0.0)}:
        _check_dtype(path, file, indexes, sensor)
    channels: tuple[int, ...] = ()
    if is_complex:
        channels = _complex_channels(path, len(indexes), sensor)
    else:
        indexes = _indexes(path, file, indexes, sensor, bands)
    gains, shifts, scaled = _conversion(path, file, indexes, sensor, gain)
    notes += scaled
    mask = file.mask_flag_enums[0]
    masked = transparent if MaskFlags.alpha in mask else MaskFlags.per_dataset in mask
    return Plan(
        sensor,
        tuple(indexes),
        channels,
        gains,
        shifts,
        tuple(file.nodatavals[i - 1] for i in indexes),
        _limits(file, indexes),
        masked,
        (*notes, *_other_notes(file, sensor, indexes)),
    )


def _whole(sensor: Sensor) -> Sensor:
    """With all bands of the sensor table; one of the user's own file as it is."""
    return sensor_table.get(sensor.name) if sensor.name in sensor_table.SENSORS else sensor


def _dtype(name: str) -> str:
    return "complex64" if name.startswith("complex_") else name


def _other_dtype(path: Path, file, sensor: Sensor) -> str:
    wanted = "complex64, one band a polarisation" if sensor.resampling == COMPLEX else sensor.dtype
    text = (
        f'{path} holds {file.dtypes[0]}, "{sensor.name}" is stored as {wanted} in units of {sensor.scale:g} '
        f"{sensor.unit}: "
    )
    own = "or register a sensor of your own"
    if sensor.resampling == COMPLEX or np.dtype(_dtype(file.dtypes[0])).kind == "c" or file.count < sensor.channels:
        return f"{text}convert it (gdal_translate -ot), {own}"
    shape = (sensor.channels, min(file.height, 256), min(file.width, 256))
    with reading(path, "the file is damaged"):
        some = file.read(list(range(1, sensor.channels + 1)), out_shape=shape).reshape(sensor.channels, -1).T
    some = some[np.isfinite(some).all(1) & (some != (math.nan if file.nodata is None else file.nodata)).all(1)]
    if not len(some):
        return f"{text}convert it (gdal_translate -ot), {own}"
    look = ""
    low, high = sensor.valid_range
    if sensor.dtype == "float32" and ((some < low) | (some > high)).mean() > units.OUTSIDE:
        look = f"; values from {some.min():g} to {some.max():g} {units.likely(sensor, some).removeprefix('they ')}"
    return f"{text}convert its values, and then its dtype (gdal_translate -ot alone keeps numbers){look}; {own}"


def _check_dtype(path: Path, file, indexes: Sequence[int], sensor: Sensor) -> None:
    kinds = {file.dtypes[i - 1] for i in indexes}
    if kinds != {sensor.dtype} and not (sensor.dtype == "float32" and kinds <= {"float32", "float64"}):
        raise DataError(_other_dtype(path, file, sensor))


def _complex_channels(path: Path, count: int, sensor: Sensor) -> tuple[int, ...]:
    whole = _whole(sensor)
    if 2 * count == whole.channels:
        return tuple(whole.band_index(band.name) for band in sensor.bands)
    if 2 * count == sensor.channels:
        return tuple(range(sensor.channels))
    raise DataError(_channels_text(path, 2 * count, whole))


def _channels_text(path: Path, count: int, sensor: Sensor) -> str:
    return (
        f'{path} gives {count} channels without names, "{sensor.name}" has {sensor.channels}: '
        f"{', '.join(sensor.band_names)}; name the bands in the GeoTIFF (descriptions) or choose another sensor"
    )


def _indexes(path: Path, file, indexes: Sequence[int], sensor: Sensor, bands: Sequence[str]) -> list[int]:
    """Bands of the file in the sensor's order: by their names, by their colours, else by the assumed order.

    Of a published data set, a grey picture is repeated for three bands, and of a coloured one the first band is grey.
    """
    if len(indexes) == 1 == sensor.channels:
        return list(indexes)
    if bands and file.dtypes[0] == "uint8" and len(indexes) != len(bands):
        if (len(indexes), len(bands)) == (1, 3):
            return list(indexes) * 3
        if (len(indexes), len(bands)) in ((3, 1), (4, 1), (4, 3)):
            indexes = indexes[: len(bands)]
    names = [file.descriptions[i - 1] or "" for i in indexes]
    said = [name for name in names if not _GENERIC.fullmatch(name)]
    if said:
        return [indexes[i] for i in bands_by_name(path, names, sensor)]
    colours = [file.colorinterp[i - 1].name for i in indexes]
    if all(band.name in colours for band in sensor.bands) and len(set(colours)) == len(colours):
        return [indexes[colours.index(band.name)] for band in sensor.bands]
    whole = _whole(sensor)
    for order in (bands, whole.band_names, sensor.band_names):
        if len(order) == len(indexes):
            return [indexes[list(order).index(band.name)] for band in sensor.bands]
    if bands:
        raise DataError(f"{path} has {len(indexes)} bands, wanted {len(bands)}: {', '.join(bands)}")
    raise DataError(_channels_text(path, len(indexes), whole))


def bands_by_name(path: Path, names: Sequence[str], sensor: Sensor) -> list[int]:
    """Where the bands of a sensor stand among the named ones of a file, from 0 on.

    Case does not matter, nor the 0 of "B01", which Google Earth Engine leaves out.

    Raises:
        DataError: one is not there, or there twice; the message lists what is missing and names the nearest.
    """
    known = [_normal(name) for name in names]
    found = []
    for band in sensor.bands:
        wanted = {_normal(band.name), _normal(band.alias)} - {""}
        places = [i for i, name in enumerate(known) if name in wanted]
        if len(places) > 1:
            raise DataError(f'{path} has the band "{band.name}" of "{sensor.name}" {len(places)} times: wanted it once')
        found.append(places[0] if places else None)
    if missing := [band.name for band, at in zip(sensor.bands, found, strict=True) if at is None]:
        named = [name for name in names if name]
        raise DataError(
            f'{path} has no band "{missing[0]}" of "{sensor.name}": {nearest(missing[0], named)}; its bands have '
            f"names, but none is {', '.join(missing)}: name them all, or none"
        )
    return found


def _normal(name: str) -> str:
    """A band's name without what spellings differ in."""
    name = name.strip().upper()
    number = re.fullmatch(r"B0*(\d+)(A?)", name)
    return f"B{int(number[1]):02d}{number[2]}" if number else name


def _conversion(path: Path, file, indexes: Sequence[int], sensor: Sensor, gain: float | None):
    """Gains and shifts of the bands to what the sensor stores, and a note where they are not 1 and 0."""
    gains, shifts, notes = [], [], []
    for i in indexes:
        scale, offset = file.scales[i - 1], file.offsets[i - 1]
        if (scale, offset) == (1.0, 0.0):
            gains.append(1.0 if gain is None else gain)
            shifts.append(0.0)
            continue
        own, shift = scale / sensor.scale, (offset - sensor.offset) / sensor.scale
        if gain not in (None, 1.0) and not (math.isclose(own, gain, rel_tol=1e-6) and abs(shift) < 1e-6):
            raise DataError(
                f"{path} says unit = {scale:g} stored + {offset:g}, the data set's entry another: wanted one"
            )
        if not (math.isfinite(own) and math.isfinite(shift) and own > 0):
            raise DataError(f"{path} says unit = {scale:g} stored + {offset:g}: correct scale and offset of the file")
        if np.dtype(sensor.dtype).kind in "iu" and own < COARSEST:
            raise DataError(
                f'{path} says unit = {scale:g} stored + {offset:g}, too fine for "{sensor.name}", which is stored in '
                f"steps of {sensor.scale:g} {sensor.unit}: remove the file's scale, or register a sensor of your own"
            )
        gains.append(round(own, 9) if abs(own - round(own)) > 1e-6 else float(round(own)))
        shifts.append(round(shift, 6))
    if any(g != 1 or s for g, s in zip(gains, shifts, strict=True)) and gain in (None, 1.0):
        notes = [
            f"say unit = {file.scales[indexes[0] - 1]:g} stored + {file.offsets[indexes[0] - 1]:g}: converted to "
            f'{sensor.scale:g} stored + {sensor.offset:g}, as "{sensor.name}" has it'
        ]
    return tuple(gains), tuple(shifts), notes


def _limits(file, indexes: Sequence[int]) -> tuple[float, float] | None:
    """What valid_range, or valid_min and valid_max, of the first band say; in the file's values."""
    tags = {**file.tags(), **file.tags(indexes[0])}
    texts = re.split(r"[,\s]+", tags.get("valid_range", "").strip("{}[]() "))
    try:
        low, high = map(float, texts)
    except ValueError:
        try:
            low, high = float(tags.get("valid_min", "-inf")), float(tags.get("valid_max", "inf"))
        except ValueError:
            return None
    return (low, high) if low <= high and (low, high) != (-math.inf, math.inf) else None


def _other_notes(file, sensor: Sensor, indexes: Sequence[int]) -> list[str]:
    notes = []
    declared = {file.nodatavals[i - 1] for i in indexes} - {None}
    if other := sorted(v for v in declared if not math.isnan(v) and v != sensor.no_data):
        table = "has none" if sensor.no_data is None else f"has {sensor.no_data:g}"
        notes.append(f'declare the no-data value {other[0]:g}, "{sensor.name}" {table}: both are not observed')
    baseline = file.tags().get("PROCESSING_BASELINE", "")
    with contextlib.suppress(ValueError):
        plain = all(file.offsets[i - 1] == 0 for i in indexes)
        if plain and float(baseline) >= geo.OFFSET_BASELINE and sensor.scale == 1e-4:
            notes.append(
                f"say PROCESSING_BASELINE {baseline} and no offset: taken as reflectance x 10,000; subtract "
                f"{geo.OFFSET} first if they are not"
            )
    if not file.crs and (file.gcps[0] or file.rpcs):
        notes.append("are placed by control points or RPCs alone, so they have no place here: warp them (gdalwarp)")
    elif file.crs and file.transform.is_identity:
        notes.append("name a CRS, but not where their pixels lie in it: they have no place")
    return notes


# ---- Values -------------------------------------------------------------------------------------------


def read(path: Path, file, how: Plan, window=None) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Values as the sensor stores them, and where they are valid.

    Args:
        path: for messages.
        file: of `open_raster`.
        how: of `plan`.
        window: of rasterio; all of the file by default.

    Returns:
        [h, w, C] in the sensor's dtype, [h, w] bool, and what is to be noted, as `Plan.notes`.

    Raises:
        DataError: the file is damaged, or its values do not fit the sensor's dtype, range or unit.
    """
    with reading(path, f"the file is damaged at row {window.row_off if window else 0} or below"):
        values = np.moveaxis(file.read(list(how.indexes), window=window), 0, -1)
        valid = observed(values, how)
        if how.masked:
            valid &= file.read_masks(how.indexes[0], window=window) > 0
    if how.channels:
        values, gains = geo.pairs(values), np.repeat(how.gains, 2)
        stored = values[..., list(how.channels)] * np.asarray(gains, np.float32)[list(how.channels)]
    else:
        stored = convert(values, valid, how.sensor, how.gains, how.shifts, str(path))
    return settle(stored, valid, how.sensor, str(path))


def observed(values: np.ndarray, how: Plan) -> np.ndarray:
    """[h, w] bool of a file's values [h, w, bands]: not its no-data, within its valid range, finite."""
    good = np.isfinite(values)
    empty = np.zeros(values.shape, np.bool_)
    for band, no_data in enumerate(how.no_data):
        if no_data is not None and not math.isnan(no_data):
            empty[..., band] = values[..., band] == np.asarray(no_data).astype(values.dtype, casting="unsafe")
    if how.limits and values.dtype.kind != "c":
        good &= (values >= how.limits[0]) & (values <= how.limits[1])
    return good.all(-1) & ~(empty.all(-1) if values.dtype == np.uint8 else empty.any(-1))


def convert(
    values: np.ndarray, valid: np.ndarray, sensor: Sensor, gains: Sequence[float], shifts: Sequence[float], where: str
) -> np.ndarray:
    """[..., C] gain x value + shift, in the sensor's dtype.

    Whole numbers that fall to the sensor's no-data value or below it become the next number, for they were observed
    (Sentinel-2's reflectance below zero); below the dtype's range nothing reflects, and values are no data.

    Raises:
        DataError: a valid value does not fit.
    """
    wanted = np.dtype(sensor.dtype)
    same = all(g == 1 for g in gains) and not any(shifts)
    if same and (values.dtype == wanted or wanted.kind == "f"):
        return values.astype(wanted, copy=False)
    numbers = values if same else values * np.asarray(gains) + np.asarray(shifts)
    if wanted.kind == "f":
        return numbers.astype(wanted)
    limits = np.iinfo(wanted)
    rounded = np.rint(np.where(valid[..., None], numbers, 0))
    if sensor.no_data is not None:
        least = sensor.no_data + 1 if any(shifts) else sensor.no_data
        rounded = np.where(valid[..., None], np.maximum(rounded, least), sensor.no_data)
    if rounded.min(initial=0) < limits.min or rounded.max(initial=0) > limits.max:
        raise DataError(
            f'{where} holds {values.dtype} from {rounded.min():g} to {rounded.max():g}, "{sensor.name}" is stored as '
            f"{wanted} in units of {sensor.scale:g} {sensor.unit}"
        )
    return rounded.astype(wanted)


def settle(
    stored: np.ndarray, valid: np.ndarray, sensor: Sensor, where: str
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """What a sensor says of stored values [..., C]: which are no data, and whether the rest can be its unit.

    Returns:
        The values; `valid` [...] without the sensor's no-data value and flags in any band; and what is to be noted.

    Raises:
        DataError: they cannot be its unit.
    """
    if sensor.no_data is not None:
        valid = valid & (stored != stored.dtype.type(sensor.no_data)).all(-1)
    if stored.dtype.kind == "f":
        valid = valid & np.isfinite(stored).all(-1)
    low, high = sensor.flags or (np.inf, -np.inf)
    flagged = valid & ((stored >= low) & (stored <= high)).any(-1)
    valid = valid & ~flagged
    if valid.sum() >= LEAST and not units.within(sensor, stored):
        units.check(sensor, stored[valid] * np.float64(sensor.scale) + sensor.offset, where, OWN_SENSOR)
    return stored, valid, (FLAGGED,) if flagged.any() else ()
