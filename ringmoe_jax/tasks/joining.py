"""Tiles and the scenes that they were cut from: how answers to tiles become one to a scene, where everything counts
once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ringmoe_jax.contracts import TRACK

_X, _Y, _DATE = (TRACK.index(name) for name in ("x", "y", "date"))


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tile lies in its scene, in pixels as a model is shown them and dates.

    Attributes:
        row: of its upper edge.
        column: of its left edge.
        rows: of the tile.
        columns: of the tile.
        date: the scene's date that is its first one.
        observed: [T] bool, the dates on which something was observed.
    """

    row: float
    column: float
    rows: int
    columns: int
    date: int
    observed: np.ndarray

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of its upper left pixel: the nearest one, where tiles begin between the pixels shown."""
        return int(np.floor(self.row + 0.5)), int(np.floor(self.column + 0.5))

    def holds(self, rows: np.ndarray) -> np.ndarray:
        """[n] bool, which rows of `BOX` [n, 6] or `TRACK` [n, 8] of the scene have their centre and date in it."""
        x, y = rows[:, _X] - self.column, rows[:, _Y] - self.row
        inside = (x >= 0) & (x < self.columns) & (y >= 0) & (y < self.rows)
        if rows.shape[1] == len(TRACK):
            inside &= (rows[:, _DATE] >= self.date) & (rows[:, _DATE] < self.date + len(self.observed))
        return inside


@dataclasses.dataclass(frozen=True)
class Tile:
    """One tile of a scene.

    Attributes:
        place: where it lies.
        answers: by whoever answers, what `Task.answer` gives, without the batch axis.
        truth: of `Task.truth`, likewise.
    """

    place: Place
    answers: Mapping[str, Mapping[str, np.ndarray]]
    truth: Any


@dataclasses.dataclass(frozen=True)
class Scene:
    """What tiles were cut from.

    Attributes:
        rows: in pixels as a model is shown them.
        columns: likewise.
        objects: [n, 6] rows of `BOX` or [n, 8] of `TRACK` in these pixels, whole; None where the target has none.
    """

    rows: int
    columns: int
    objects: np.ndarray | None = None


def mosaic(scene: Scene, tiles: Iterable[Tile], unknown: Any) -> tuple[dict[str, Any], Any]:
    """Maps of tiles laid on their scene: a pixel is that of the tile in whose inside it lies deepest (our choice).

    Args:
        scene: of the tiles.
        tiles: whose answers and truth are arrays [h, w].
        unknown: what the truth is where no tile lies, a number for each of its arrays.

    Returns:
        Answers and truth of the scene, arrays [rows, columns]; answers are 0 where no tile lies.
    """
    depth = np.zeros((scene.rows, scene.columns), np.int32)
    whole = None
    for tile in tiles:
        maps, (row, column) = (dict(tile.answers), tile.truth), tile.place.corner
        if whole is None:
            fills = jax.tree.map(lambda _: 0, maps[0]), unknown
            whole = jax.tree.map(lambda x, fill: np.full(depth.shape, fill, np.asarray(x).dtype), maps, fills)
        window = np.s_[row : row + tile.place.rows, column : column + tile.place.columns]
        inner = np.minimum.outer(_from_rim(tile.place.rows), _from_rim(tile.place.columns))
        deeper = inner > depth[window]
        depth[window][deeper] = inner[deeper]
        jax.tree.map(lambda x, part, w=window, d=deeper: x[w].__setitem__(d, part[d]), whole, maps)
    return whole


def _from_rim(length: int) -> np.ndarray:
    """[length] int: 1 for the outermost pixels, more for those behind."""
    return np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))


def moved(boxes: np.ndarray, place: Place) -> np.ndarray:
    """Boxes [n, 5] of a tile in pixels of its scene."""
    boxes = np.array(boxes, np.float64).reshape(-1, 5)
    boxes[:, :2] += place.column, place.row
    return boxes
