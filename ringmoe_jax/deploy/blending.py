"""Overlapping windows on a scene, and one map of what was said of each. Plain NumPy, one strip of memory."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from ringmoe_jax.errors import ConfigError

FLOOR = 1e-2  # weight of a window's edge over that of its centre: keeps every pixel known (our choice)


@dataclasses.dataclass(frozen=True)
class Lattice:
    """Windows along one axis of a scene, and the cells of the map that they give.

    The cores of the windows, `step` pixels in their middle, tile the scene. So windows begin before the scene and end
    behind it, and no pixel is known from the rim of a window alone.

    Attributes:
        length: of the scene in pixels.
        window: of a window in pixels.
        cell: pixels of a cell of the map.
        cells: of a window.
        stride: from window to window, in cells.
        before: cells of the first window before the map.
        margin: pixels of the first window before the scene.
    """

    length: int
    window: int
    cell: int
    cells: int
    stride: int
    before: int
    margin: int

    @staticmethod
    def of(length: int, window: int, overlap: float, cells: int) -> Lattice:
        """Places windows.

        Args:
            length: of the scene in pixels, > 0.
            window: in pixels.
            overlap: share of a window that the next one shows too, 0 to below 1; rounded to whole cells.
            cells: answers along a window, a divisor of `window`. One answer for a whole window is that of its core.

        Raises:
            ConfigError: the overlap is out of its range.
        """
        if not 0 <= overlap < 1:
            raise ConfigError(f"overlap = {overlap}: wanted at least 0 and below 1")
        if cells == 1:
            step = max(1, round(window * (1 - overlap)))
            return Lattice(length, window, step, 1, 1, 0, (window - step) // 2)
        cell = window // cells
        stride = max(1, round(cells * (1 - overlap)))
        before = (cells - stride) // 2
        return Lattice(length, window, cell, cells, stride, before, before * cell)

    @property
    def step(self) -> int:
        """Pixels from window to window."""
        return self.stride * self.cell

    @property
    def windows(self) -> int:
        """Number of windows."""
        return -(-self.length // self.step)

    @property
    def size(self) -> int:
        """Number of cells of the map; the last one may reach beyond the scene."""
        return -(-self.length // self.cell)

    @property
    def reach(self) -> int:
        """Further windows that show a cell of this one."""
        return -(-self.cells // self.stride) - 1

    def start(self, i: int) -> int:
        """First pixel of window i; negative before the scene."""
        return i * self.step - self.margin

    def first(self, i: int) -> int:
        """First cell of window i; negative before the map."""
        return i * self.stride - self.before

    def finished(self, i: int) -> tuple[int, int]:
        """Cells from a to before b that no later window than i shows, and a later one than i - 1 does."""
        return max(0, self.first(i)), self.size if i == self.windows - 1 else max(0, self.first(i + 1))

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """[windows, cells] float64: of every window's answers; those of a cell of the map sum to 1."""
        shape = FLOOR + (1 - FLOOR) * (1 - np.cos(2 * np.pi * (np.arange(self.cells) + 0.5) / self.cells)) / 2
        where = np.arange(self.windows)[:, None] * self.stride + np.arange(self.cells)
        total = np.bincount(where.ravel(), np.tile(shape, self.windows))
        return shape / total[where]


class Blend:
    """Weighted means of what overlapping windows say, in the memory of one strip of windows.

    Give it the strips from top to bottom, each as any number of `add`s and one `finish`.

    Args:
        rows: windows down the scene.
        columns: windows across it.
        channels: K numbers a cell.
    """

    def __init__(self, rows: Lattice, columns: Lattice, channels: int):
        self.rows, self.columns = rows, columns
        width = (columns.windows - 1) * columns.stride + columns.cells
        self._sums = np.zeros((rows.cells, width, channels))

    def add(self, row: int, column: int, answers: np.ndarray) -> None:
        """Adds the answers [cells, cells, K] of window (row, column)."""
        first = column * self.columns.stride
        weights = self.rows.weights[row][:, None, None] * self.columns.weights[column][:, None]
        self._sums[:, first : first + self.columns.cells] += weights * answers

    def finish(self, row: int) -> np.ndarray:
        """Ends a strip of windows: [n, columns.size, K] float64, the map's rows `rows.finished(row)`."""
        top, bottom = (cell - self.rows.first(row) for cell in self.rows.finished(row))
        left = self.columns.before
        done = self._sums[top:bottom, left : left + self.columns.size].copy()
        kept = max(0, self.rows.cells - self.rows.stride)
        self._sums[:kept] = self._sums[self.rows.cells - kept :]
        self._sums[kept:] = 0
        return done
