"""Cuts whole images and their labels into tiles of one size.

Tiles lie on a grid from the upper left corner. Where they touch or overlap (stride <= tile), the last one of a row or
column is moved inward, so that all of the image is covered and no tile holds more padding than it must; what two tiles
share is then in both. An image that is smaller than a tile is padded at right and bottom: `valid` False, maps void.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.places import Report
from input_pipeline.schema import (
    BOX,
    BOXES,
    MAP,
    TRACK,
    TRACKS,
    UNLABELLED,
    Image,
    LabelInfo,
    Origin,
    Sample,
    SensorInfo,
)
from ringmoe_jax import geo
from ringmoe_jax.errors import DataError

_COLUMNS = {BOXES: len(BOX), TRACKS: len(TRACK)}
_X, _Y, _WIDTH, _HEIGHT, _ANGLE = range(1, 6)  # columns of BOX and TRACK after the class


def nowhere(row: float, column: float) -> tuple[float, float]:
    """The place of every pixel of an image that is not georeferenced: NaN, NaN."""
    return float("nan"), float("nan")


@dataclasses.dataclass(frozen=True)
class Scene:
    """One place, before it is cut.

    Attributes:
        id: text, unique in the data set, for example the file's name.
        images: by sensor name: whole images [T, H, W, C]; sensors of other GSD cover the same ground.
        labels: by label name, as `LabelInfo` says of one sample, but of the whole image: `MAP` [H, W], and any number
            of rows of `BOXES` [n, 6] and `TRACKS` [n, 8], in pixels of the whole image.
        place: (row, column) in pixels of the first sensor to (latitude, longitude) in degrees (WGS 84).
        series: id of the longer series whose dates from `date` on these are; "" where these are all.
        date: see `series`.
    """

    id: str
    images: Mapping[str, Image]
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    place: Callable[[float, float], tuple[float, float]] = nowhere
    series: str = ""
    date: int = 0


def cut(
    scene: Scene,
    infos: Mapping[str, SensorInfo],
    labels: Mapping[str, LabelInfo],
    *,
    stride: int | None = None,
    corners: Sequence[tuple[int, int]] | None = None,
    report: Report | None = None,
) -> Iterator[Sample]:
    """Tiles of one scene, row by row; their ids are ID/COLUMN/ROW of the upper left corner.

    A `MAP` is cut with its sensor. A row of `BOXES` or `TRACKS` goes to every tile that its centre lies in, moved to
    the tile's corner. Horizontal boxes (angle 0) are clipped, first to the image, then to the tile; oriented ones stay
    whole, because what a border leaves of them is no rectangle. Boxes without area or outside the image are left out
    and counted. Other labels go to every tile.

    Args:
        scene: whole images; a sensor of `infos` may be absent.
        infos: sensors of the data set, whose `shape` is the tile; the first one sets the grid.
        labels: of the data set.
        stride: pixels of the first sensor from tile to tile; one tile by default.
        corners: (row, column) of the tiles in pixels of the first sensor, in place of a grid every `stride` pixels.
        report: counts what is left out.

    Raises:
        DataError: sizes do not fit each other, a class is not in the table, or a tile holds more than `count` objects.
    """
    report = Report() if report is None else report
    factors = {name: info.shape[1] / next(iter(infos.values())).shape[1] for name, info in infos.items()}
    size = _size(scene, factors)
    tile = next(iter(infos.values())).shape[1:]
    maps = _maps(scene, labels, size, factors)
    rows = _rows(scene, labels, size, factors, report)
    taken = {name: np.zeros(len(objects), np.bool_) for name, objects in rows.items()}
    for top, left in grid(size, tile, stride) if corners is None else corners:
        at = {name: _pixels(top, left, factor, name) for name, factor in factors.items()}
        images = {name: _window(image, at[name], infos[name].shape[1:]) for name, image in scene.images.items()}
        values = dict(scene.labels)
        for name, mask in maps.items():
            values[name] = _padded(mask, at[labels[name].sensor], labels[name].shape(infos), UNLABELLED)
        for name, objects in rows.items():
            corner, side = at[labels[name].sensor], infos[labels[name].sensor].shape[1:]
            inside = _inside(objects, corner, side)
            taken[name] |= inside
            where = f'"{scene.id}", tile at row {top}, column {left}'
            values[name] = _filled(_moved(objects[inside], corner, side), labels[name], where)
        place = scene.place(top + tile[0] / 2, left + tile[1] / 2)
        origin = Origin(scene.series or scene.id, scene.date, top, left, rows)
        yield Sample(f"{scene.id}/{left}/{top}", images, *place, values, origin)
    for found in taken.values():
        report.leave_out("lay between tiles", scene.id, np.sum(~found))


def grid(size: tuple[int, int], tile: tuple[int, int], stride: int | None = None) -> list[tuple[int, int]]:
    """(row, column) of the upper left corners of all tiles of an image, see the module's text.

    Args:
        size: height and width of the image.
        tile: height and width of a tile.
        stride: from tile to tile; the tile's own size by default.
    """

    def starts(length: int, side: int) -> list[int]:
        step = side if stride is None else stride
        first = geo.offsets(length, side, step) or [0]
        return [*first, length - side] if step <= side and first[-1] + side < length else first

    return [(top, left) for top in starts(size[0], tile[0]) for left in starts(size[1], tile[1])]


def middle(size: tuple[int, int], tile: tuple[int, int]) -> list[tuple[int, int]]:
    """(row, column) of one tile in the middle of an image; arguments as those of `grid`."""
    return [(max(0, size[0] - tile[0]) // 2, max(0, size[1] - tile[1]) // 2)]


def most(rows: np.ndarray, size: tuple[int, int], tile: tuple[int, int], stride: int | None = None) -> int:
    """The largest number of objects that one tile of an image holds: what `LabelInfo.count` has to be at least.

    Args:
        rows: [n, 6] or [n, 8] of the whole image, columns `BOX` or `TRACK`.
        size: height and width of the image.
        tile: height and width of a tile.
        stride: see `grid`.
    """
    kept = _on_image(rows, size)[0]
    return max((int(_inside(kept, corner, tile).sum()) for corner in grid(size, tile, stride)), default=0)


def _size(scene: Scene, factors: Mapping[str, float]) -> tuple[int, int]:
    """Height and width of a scene in pixels of the first sensor; raises unless all its images agree."""
    if not scene.images:
        raise DataError(f'"{scene.id}" has no image: wanted one of {", ".join(factors)}')
    lead = next(name for name in factors if name in scene.images)
    shapes = {name: image.pixels.shape[1:3] for name, image in scene.images.items()}
    height, width = (side / factors[lead] for side in shapes[lead])
    for name, shape in shapes.items():
        wanted = height * factors[name], width * factors[name]
        if not np.allclose(shape, wanted):
            raise DataError(
                f'"{scene.id}": {name} has {shape[0]} x {shape[1]} px where {lead} has {shapes[lead][0]} x '
                f"{shapes[lead][1]}, wanted {wanted[0]:g} x {wanted[1]:g}: all images show the same ground"
            )
    return round(height), round(width)


def _maps(scene: Scene, labels: Mapping[str, LabelInfo], size, factors) -> dict[str, np.ndarray]:
    """The maps of a scene, once their sizes and classes are checked."""
    maps = {}
    for name, info in labels.items():
        if info.kind != MAP:
            continue
        maps[name] = np.asarray(scene.labels[name])
        wanted = tuple(round(side * factors[info.sensor]) for side in size)
        if maps[name].shape != wanted:
            raise DataError(
                f'"{scene.id}": the {info.sensor} image has {wanted[0]} x {wanted[1]} px, its mask "{name}" '
                f"{' x '.join(map(str, maps[name].shape))}: wanted a mask pixel for every pixel"
            )
        _check_classes(maps[name], info, f'"{scene.id}": the mask "{name}"')
    return maps


def _rows(scene: Scene, labels: Mapping[str, LabelInfo], size, factors, report: Report) -> dict[str, np.ndarray]:
    """Boxes and tracks of a scene, checked, and clipped to the image."""
    rows = {}
    for name, info in labels.items():
        if info.kind not in _COLUMNS:
            continue
        given = np.asarray(scene.labels[name], np.float32).reshape(-1, _COLUMNS[info.kind])
        _check_classes(given[:, 0], info, f'"{scene.id}": "{name}"')
        whole = tuple(round(side * factors[info.sensor]) for side in size)
        rows[name], flat, outside = _on_image(given, whole)
        report.leave_out("had no area", scene.id, flat)
        report.leave_out("lay outside the image", scene.id, outside)
    return rows


def _on_image(rows: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """Rows with an area on the image, horizontal ones clipped to it; how many had no area; how many lay outside."""
    area = np.isfinite(rows).all(1) & (rows[:, _WIDTH] > 0) & (rows[:, _HEIGHT] > 0)
    clipped = _clipped(rows[area], size)
    inside = _inside(clipped, (0, 0), size) & (clipped[:, _WIDTH] > 0) & (clipped[:, _HEIGHT] > 0)
    return clipped[inside], int((~area).sum()), int((~inside).sum())


def _clipped(rows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Horizontal boxes cut off at the borders of 0..height, 0..width; a box outside gets no or a negative extent."""
    rows = rows.copy()
    horizontal = rows[:, _ANGLE] == 0
    for centre, extent, limit in ((_X, _WIDTH, size[1]), (_Y, _HEIGHT, size[0])):
        low = np.maximum(rows[:, centre] - rows[:, extent] / 2, 0)
        high = np.minimum(rows[:, centre] + rows[:, extent] / 2, limit)
        over = horizontal & ((high - low) < rows[:, extent])
        rows[over, centre], rows[over, extent] = ((low + high) / 2)[over], (high - low)[over]
    return rows


def _inside(rows: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """[n] bool: the centre lies in the window of `size` = (height, width) at `corner` = (row, column)."""
    x, y = rows[:, _X] - corner[1], rows[:, _Y] - corner[0]
    return (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])


def _moved(rows: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Rows in pixels of a window, clipped to it."""
    rows = rows.copy()
    rows[:, [_Y, _X]] -= corner
    return _clipped(rows, size)


def _filled(rows: np.ndarray, info: LabelInfo, where: str) -> np.ndarray:
    """[count, columns] float32: unused rows at the end are UNLABELLED throughout."""
    if len(rows) > info.count:
        raise DataError(f"{where} holds {len(rows)} objects, the data set has room for {info.count}: raise its count")
    full = np.full((info.count, _COLUMNS[info.kind]), UNLABELLED, np.float32)
    full[: len(rows)] = rows
    return full


def _pixels(top: int, left: int, factor: float, name: str) -> tuple[int, int]:
    """A tile's corner in pixels of another sensor."""
    corner = round(top * factor), round(left * factor)
    if not np.allclose(corner, (top * factor, left * factor)):
        raise DataError(f'a tile at row {top}, column {left} is no whole pixel of "{name}": choose another stride')
    return corner


def _window(image: Image, corner: tuple[int, int], size: tuple[int, int]) -> Image:
    valid = np.ones(image.pixels.shape[:3], np.bool_) if image.valid is None else image.valid
    pixels, valid = (np.moveaxis(_padded(np.moveaxis(a, 0, 2), corner, size, 0), 2, 0) for a in (image.pixels, valid))
    return Image(pixels, valid, image.time)


def _padded(values: np.ndarray, corner: tuple[int, int], size: tuple[int, int], fill: int) -> np.ndarray:
    """[h, w, ...] of a window at `corner` of [H, W, ...]; `fill` where it reaches over the right or lower border."""
    window = values[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]]
    full = np.full((*size, *values.shape[2:]), fill, values.dtype)
    full[: window.shape[0], : window.shape[1]] = window
    return full


def _check_classes(values: np.ndarray, info: LabelInfo, where: str) -> None:
    bad = values[(values < UNLABELLED) | (values >= len(info.names))]
    if bad.size:
        raise DataError(
            f"{where} holds the class {bad.flat[0]:g}, wanted {UNLABELLED} (unknown) to {len(info.names) - 1} "
            f"({info.names[-1]})"
        )
