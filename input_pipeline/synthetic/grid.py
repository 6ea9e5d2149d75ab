"""Pixels of the truth, cells of a sensor's coarser grid, and rectangles on them.

Ground coordinates are metres from the upper left corner of a scene: x to the east (columns), y to the
south (rows). The centre of pixel (row, column) lies at ((column + 0.5) gsd, (row + 0.5) gsd).
"""

from __future__ import annotations

import numpy as np

from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.sensors import Sensor


def centres(size: int, gsd: float) -> tuple[np.ndarray, np.ndarray]:
    """Ground coordinates x and y [size, size] of the pixel centres, in metres."""
    along = (np.arange(size) + 0.5) * gsd
    return np.broadcast_to(along, (size, size)), np.broadcast_to(along[:, None], (size, size))


def factor(gsd: float, truth: float) -> int:
    """Pixels of `truth` metres along a cell of about `gsd` metres; 1 where a sensor is finer than the truth."""
    return max(1, round(gsd / truth))


def cell(size: int, gsd: float, sensor: Sensor) -> int:
    """Pixels of a scene along a pixel of a sensor.

    Args:
        size: rows and columns of the scene.
        gsd: metres a pixel of the scene.
        sensor: whose finest band gives the size of its pixels.

    Raises:
        ConfigError: `size` or `gsd` is not > 0.
        DataError: the scene is no whole number of the sensor's pixels.
    """
    if not (gsd > 0 and size > 0):
        raise ConfigError(f"scenes of {size} px of {gsd:g} m: wanted numbers > 0")
    k = factor(sensor.gsd, gsd)
    if size % k:
        raise DataError(
            f'scenes of {size} px of {gsd:g} m are no whole pixels of "{sensor.name}" ({k * gsd:g} m): '
            f"wanted a multiple of {k} px"
        )
    return k


def average(values: np.ndarray, k: int) -> np.ndarray:
    """Mean over cells of k x k pixels.

    Args:
        values: [H, W, ...]; where k does not divide H and W the last pixels repeat.
        k: pixels along a cell.

    Returns:
        [ceil(H / k), ceil(W / k), ...].
    """
    pad = [(0, -n % k) for n in values.shape[:2]]
    values = np.pad(values, pad + [(0, 0)] * (values.ndim - 2), mode="edge") if any(p[1] for p in pad) else values
    rows, columns = (n // k for n in values.shape[:2])
    return values.reshape(rows, k, columns, k, *values.shape[2:]).mean((1, 3))


def repeat(cells: np.ndarray, k: int, size: int) -> np.ndarray:
    """Cells [h, w, ...] as blocks of k x k pixels, cut to [size, size, ...]."""
    return cells.repeat(k, 0).repeat(k, 1)[:size, :size]


def majority(classes: np.ndarray, k: int) -> np.ndarray:
    """The most frequent class of every cell of k x k pixels; the smallest index where several are.

    Args:
        classes: [H, W] integers >= 0; k divides H and W.
        k: pixels along a cell.

    Returns:
        [H / k, W / k], the dtype of `classes`.
    """
    if any(n % k for n in classes.shape):
        raise DataError(f"a map of {classes.shape} px has no whole cells of {k} px: wanted multiples of {k}")
    shares = [average((classes == c).astype(np.float32), k) for c in range(int(classes.max()) + 1)]
    return np.argmax(shares, 0).astype(classes.dtype)


def rectangle(x: float, y: float, heading: float, length: float, width: float, size: int, gsd: float):
    """Pixels whose centre lies in a rectangle.

    Args:
        x: of its centre, in metres.
        y: of its centre, in metres.
        heading: direction of its length, in radians from the x axis towards the y axis.
        length: metres.
        width: metres.
        size: rows and columns of the grid.
        gsd: metres a pixel.

    Returns:
        Two slices (rows, columns) of a window and the [h, w] bool mask in it; empty where it misses the grid.
    """
    c, s = np.cos(heading), np.sin(heading)
    reach_x, reach_y = (abs(c) * length + abs(s) * width) / 2, (abs(s) * length + abs(c) * width) / 2
    rows, columns = (
        slice(*np.clip([int((centre - reach) / gsd), int(np.ceil((centre + reach) / gsd))], 0, size))
        for centre, reach in ((y, reach_y), (x, reach_x))
    )
    dx = (np.arange(columns.start, columns.stop) + 0.5) * gsd - x
    dy = ((np.arange(rows.start, rows.stop) + 0.5) * gsd - y)[:, None]
    inside = (abs(c * dx + s * dy) <= length / 2) & (abs(c * dy - s * dx) <= width / 2)
    return (rows, columns), inside
