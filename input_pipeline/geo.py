"""Small geographic helpers that the builders share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import rasterio
from rasterio.io import MemoryFile
from rasterio.warp import transform as to_crs


def offsets(length: int, tile: int, stride: int, start: int = 0) -> list[int]:
    """First pixels of the tiles that fit wholly into start..length."""
    return list(range(start, length - tile + 1, stride))


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
