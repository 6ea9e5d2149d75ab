"""Small helpers that the builders share: places, dates, grids and splits."""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
from rasterio.io import MemoryFile
from rasterio.warp import transform as to_crs

from ringmoe_jax.errors import DataError, nearest
from ringmoe_jax.sensors import Sensor

OFFSET_BASELINE, OFFSET = 4.0, 1000  # Sentinel-2 processing baseline that introduced it, and digital numbers


def offsets(length: int, tile: int, stride: int, start: int = 0) -> list[int]:
    """First pixels of the tiles that fit wholly into start..length."""
    return list(range(start, length - tile + 1, stride))


def open_raster(path: Path, wanted: str):
    """Opens a file by rasterio, without a warning where it has no coordinates.

    Args:
        path: file.
        wanted: kinds of files, for the message.

    Raises:
        DataError: GDAL cannot read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            return rasterio.open(path)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path} cannot be read ({error}): wanted {wanted}") from error


def bands_by_name(path: Path, names: Sequence[str], sensor: Sensor) -> list[int]:
    """Where the bands of a sensor stand among the named ones of a file, from 0 on.

    Raises:
        DataError: one is not there; the message names the nearest.
    """
    positions = {name: i for i, name in enumerate(names)}
    for band in sensor.bands:
        if band.name not in positions and band.alias not in positions:
            raise DataError(f'{path} has no band "{band.name}" of "{sensor.name}": {nearest(band.name, names)}')
    return [positions.get(band.name, positions.get(band.alias)) for band in sensor.bands]


def latitude_longitude(crs, transform, row: float, column: float) -> tuple[float, float]:
    """Degrees (WGS 84) of a place in an image, counted in pixels from its upper left corner; NaN without CRS."""
    if not crs:
        return float("nan"), float("nan")
    a, b, c, d, e, f = transform[:6]
    x, y = a * column + b * row + c, d * column + e * row + f
    (longitude,), (latitude,) = to_crs(crs, "EPSG:4326", [x], [y])
    return latitude, longitude


def days(date: str) -> int:
    """Days since 1970-01-01 of a text that begins with YYYY-MM-DD."""
    return int(np.datetime64(date[:10], "D").astype(int))


def acquisition(product: str) -> np.datetime64:
    """Start of sensing, to the second, from a Sentinel product name: the first YYYYMMDDThhmmss in it.

    Raises:
        DataError: there is none, or it is no date.
    """
    found = re.search(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)", product)
    try:
        year, month, day, *clock = found.groups()
        return np.datetime64(f"{year}-{month}-{day}T{':'.join(clock)}", "s")
    except (AttributeError, ValueError):
        raise DataError(f'"{product}" holds no date, wanted a Sentinel product name with YYYYMMDDThhmmss') from None


def evenly(count: int, wanted: int | None) -> np.ndarray:
    """Indices that thin a series of `count` dates to `wanted`: evenly, with the first and the last one kept.

    All of them where `wanted` is None or not smaller; the middle one for `wanted` = 1.
    """
    if wanted is None or wanted >= count:
        return np.arange(count)
    return np.round(np.linspace(0, count - 1, wanted)).astype(int) if wanted > 1 else np.array([count // 2])


def without_offset(values: np.ndarray, baseline: float) -> np.ndarray:
    """Sentinel-2 digital numbers as reflectance x 10,000, 0 where there is no data.

    Products of processing baseline 04.00 (25 January 2022) and newer store 1,000 more, so that reflectance
    below zero fits in; here it becomes 1, for 0 means "no data" (ESA Sentinel-2 products specification,
    BOA_ADD_OFFSET and RADIO_ADD_OFFSET).
    """
    if baseline < OFFSET_BASELINE:
        return values
    return np.where(values > 0, np.maximum(values.astype(np.int32) - OFFSET, 1), 0).astype(values.dtype)


def to_finest(bands: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """[H, W, C] of bands [h, w] by name: pixels of coarser bands are repeated, so that values stay measured ones.

    Raises:
        DataError: a band is missing, or its side does not divide the one of the finest band.
    """
    if missing := [name for name in names if name not in bands]:
        raise DataError(f"band {missing[0]} is missing, got {', '.join(bands)}")
    side = max(bands[name].shape[0] for name in names)
    stacked = []
    for name in names:
        factor, rest = divmod(side, bands[name].shape[0])
        if rest or bands[name].shape[0] != bands[name].shape[1]:
            raise DataError(f"band {name} has {bands[name].shape} px, wanted a square whose side divides {side}")
        stacked.append(np.repeat(np.repeat(bands[name], factor, 0), factor, 1))
    return np.stack(stacked, -1)


def split_places(ids: Iterable[str]) -> dict[str, list[str]]:
    """Every fifth ID to validation, ordered by CRC-32 and so not by name; all to training with fewer than five."""
    mixed = sorted(ids, key=lambda name: (zlib.crc32(name.encode()), name))
    if len(mixed) < 5:
        return {"train": mixed}
    return {"train": [name for i, name in enumerate(mixed) if i % 5], "validation": mixed[::5]}


def read_bytes(content: bytes):
    """Decodes an image file in memory: [C, H, W] array, CRS and transform."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with MemoryFile(content) as memory, memory.open() as file:
            return file.read(), file.crs, file.transform


def pairs(values: np.ndarray) -> np.ndarray:
    """[..., P] complex to [..., 2 P] float32: re and im of each polarisation."""
    parts = np.stack([values.real, values.imag], -1).astype(np.float32)
    return parts.reshape(*values.shape[:-1], 2 * values.shape[-1])


def squares(boxes: Sequence[tuple[int, int, int, int]], height: int, width: int) -> np.ndarray:
    """[H, W] bool, True inside any of the boxes (left, top, right, bottom in pixels, right and bottom excluded)."""
    inside = np.zeros((height, width), np.bool_)
    for left, top, right, bottom in boxes:
        inside[max(0, top) : bottom, max(0, left) : right] = True
    return inside
