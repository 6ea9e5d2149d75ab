"""Small helpers that the builders share: places, dates, grids and splits."""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import rasterio
from affine import Affine
from rasterio.io import MemoryFile
from rasterio.warp import transform as to_crs

from ringmoe_jax.errors import DataError

PLAUSIBLE = ("1957-10-04", "2100-01-01")  # dates of an image: from the first satellite on
METRES = 111_320  # a degree of latitude
OFFSET_BASELINE, OFFSET = 4.0, 1000  # Sentinel-2 processing baseline that introduced it, and digital numbers


def offsets(length: int, tile: int, stride: int, start: int = 0) -> list[int]:
    """First pixels of the tiles that fit wholly into start..length."""
    return list(range(start, length - tile + 1, stride))


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

    @staticmethod
    def nowhere(height: int, width: int) -> Grid:
        """Of an image that nobody knows the place of."""
        return Grid(None, Affine.identity(), height, width)

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
        """[N, 2] float64 latitudes and longitudes in degrees (WGS 84) of such places; NaN where nobody knows."""
        return places(self.crs, *self.coordinates(np.asarray(rows, float), np.asarray(columns, float)))

    def corners(self, turned: tuple[bool, bool] = (False, False)) -> np.ndarray:
        """[4, 2] places of the corners in pixels, row by row; of an image that is mirrored upside down or sideways."""
        rows = np.array([0, 0, self.height, self.height], float)
        columns = np.array([0, self.width, 0, self.width], float)
        return np.stack([self.height - rows if turned[0] else rows, self.width - columns if turned[1] else columns], -1)

    def middle(self) -> tuple[float, float]:
        """Latitude and longitude of the middle."""
        return latitude_longitude(self.crs, self.transform, self.height / 2, self.width / 2)

    @property
    def gsd(self) -> float | None:
        """Metres a pixel in the middle, by the units of the CRS or the size of a degree there; None where unknown."""
        row, column = self.height / 2, self.width / 2
        here, below, right = self.locations([row, row + 1, row], [column, column, column + 1])
        if projected_metres(self.crs):
            return float(math.sqrt(abs(self.transform.determinant)) * projected_metres(self.crs))
        size = math.sqrt(metres(here, below) * metres(here, right))
        return size if math.isfinite(size) and size > 0 else None

    def apart(self, other: Grid) -> float:
        """Pixels that the corners of a grid of the same CRS and size are apart at most."""
        x, y = np.subtract(other.coordinates(*self.corners().T), self.coordinates(*self.corners().T))
        inverse = ~self.transform
        return float(np.hypot(inverse.a * x + inverse.b * y, inverse.d * x + inverse.e * y).max())

    def distance(self, other: Grid, turned: tuple[bool, bool] = (False, False)) -> float:
        """Metres that the corners of two images are apart at most; NaN where one has no place.

        Args:
            other: of any number of pixels.
            turned: the other is looked at upside down, or sideways.
        """
        ours, theirs = (g.coordinates(*g.corners(t).T) for g, t in ((self, (False, False)), (other, turned)))
        if self.crs == other.crs and projected_metres(self.crs):
            return float(np.hypot(*np.subtract(ours, theirs)).max() * projected_metres(self.crs))
        ends = zip(places(self.crs, *ours), places(other.crs, *theirs), strict=True)
        return float(np.max([metres(a, b) for a, b in ends]))


def projected_metres(crs) -> float | None:
    """Metres a unit of a projected CRS, 1 or such as 0.3048; None of others."""
    try:
        return float(crs.linear_units_factor[1]) if crs and crs.is_projected else None
    except (rasterio.errors.CRSError, AttributeError):
        return None


def metres(here: Sequence[float], there: Sequence[float]) -> float:
    """Between two close places in degrees, also across the antimeridian."""
    east = (there[1] - here[1] + 180) % 360 - 180
    return METRES * math.hypot(there[0] - here[0], east * math.cos(math.radians(here[0])))


def places(crs, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[N, 2] latitudes and longitudes (WGS 84; -180 to 180) of coordinates; NaN without CRS, or where PROJ knows none.

    Raises:
        DataError: PROJ's own tables are not found.
    """
    unknown = np.full((len(x), 2), np.nan)
    if not crs:
        return unknown
    try:
        longitudes, latitudes = to_crs(crs, "EPSG:4326", x, y)
    except Exception as error:  # GDAL's own exceptions, too, which rasterio does not name
        try:
            rasterio.crs.CRS.from_epsg(4326)
        except rasterio.errors.CRSError:
            raise DataError(
                f"PROJ cannot look up EPSG:4326 ({str(error).splitlines()[0]}): PROJ_DATA or PROJ_LIB names the tables "
                "of another installation; unset them"
            ) from error
        return unknown
    found = np.stack([latitudes, longitudes], -1)
    found[~np.isfinite(found).all(-1) | (np.abs(found[:, 0]) > 90)] = np.nan
    beyond = np.abs(found[:, 1]) > 180
    found[beyond, 1] = (found[beyond, 1] + 180) % 360 - 180
    return found


def latitude_longitude(crs, transform, row: float, column: float) -> tuple[float, float]:
    """Degrees (WGS 84) of a place in an image, counted in pixels from its upper left corner; NaN as `places`."""
    a, b, c, d, e, f = transform[:6]
    return tuple(places(crs, [a * column + b * row + c], [d * column + e * row + f])[0].tolist())


def days(date: str) -> int:
    """Days since 1970-01-01 of a text that begins with YYYY-MM-DD."""
    return int(np.datetime64(date[:10], "D").astype(int))


def plausible_day(date: str) -> int:
    """Days since 1970-01-01 of YYYY-MM-DD.

    Raises:
        ValueError: it is no date, or none of an image, see `PLAUSIBLE`.
    """
    first, last = map(days, PLAUSIBLE)
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date) or not first <= days(date) <= last:
        raise ValueError(date)
    return days(date)


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
