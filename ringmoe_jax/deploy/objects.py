"""What windows find: objects where they lie in the scene, each once, and written as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import shapely

from ringmoe_jax.deploy import maps
from ringmoe_jax.deploy.blending import Lattice
from ringmoe_jax.deploy.canvas import PARQUET
from ringmoe_jax.deploy.maps import Draft
from ringmoe_jax.deploy.scenes import Ground
from ringmoe_jax.deploy.windows import WindowModel
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.evaluate.metrics.boxes import Suppression, corners, limits
from ringmoe_jax.geo import Grid
from ringmoe_jax.tasks.joining import Place

EDGE = 2.0  # pixels from a window's border, within which a box counts as cut by it (our choice)
ROWS = 2**15  # boxes of a draft that are read at a time
# Of a row of the draft: strip, date, box, score, class.
_WIDTH = 9
_PARAMETERS = ("x", "y", "width", "height", "angle")


class Objects:
    """Boxes or tracks of a scene; see `passes.Product`.

    The draft holds what single windows keep, strip by strip; what stays of boxes that several windows show is decided
    when it is written, from top to bottom, so that a draft goes on wherever it was left.

    A window leaves a box to another one where its border cuts it, unless the box's centre lies in the window's core:
    then no other window sees it deeper. Cores tile the scene, see `Lattice`. What is left are boxes of windows that see
    them whole, and the better one of a class suppresses the others as in a single image (`task.overlap`).
    """

    def __init__(self, model: WindowModel, grid: Grid, overlap: float):
        """Places windows; `overlap` is the share of a window that the next one shows too."""
        self.rows = Lattice.of(grid.height, model.size, overlap, model.size)
        self.columns = Lattice.of(grid.width, model.size, overlap, model.size)
        self.reach, self.shape, self.dtype = 0, (1, _WIDTH), "float64"
        self._model, self._grid = model, grid
        self.begin()

    @staticmethod
    def form(model: WindowModel, asked: str, out: Path) -> str:
        """`PARQUET`; raises a `ConfigError` where something else is asked for."""
        if (asked or PARQUET) != PARQUET or out.suffix != ".parquet":
            given = f'--format "{asked}"' if asked not in ("", PARQUET) else f"--out {out}"
            raise ConfigError(
                f"{given}: {model.output} are written as GeoParquet: give an --out that ends with .parquet"
            )
        return PARQUET

    def begin(self) -> None:
        self._found: list[np.ndarray] = []

    def add(self, row: int, column: int, answer: Mapping[str, np.ndarray]) -> None:
        size, starts = self._model.size, (self.rows.start(row), self.columns.start(column))
        dates = np.ones(max(self._model.dates.values(), default=1), np.bool_)
        place = Place(*starts, size, size, 0, dates)
        for date, (boxes, scores, classes) in self._model.objects.placed(answer, place):
            kept = self._kept(row, column, boxes)
            head = np.tile(np.array([row, date], float), (len(boxes), 1))
            self._found.append(np.column_stack([head, boxes, scores, classes])[kept])

    def _kept(self, row: int, column: int, boxes: np.ndarray) -> np.ndarray:
        """[n] bool, which boxes of the scene a window does not leave to another one; see the class."""
        lows, highs = limits(boxes)
        whole, central, near = (np.ones(len(boxes), np.bool_) for _ in range(3))
        for axis, (lattice, i) in enumerate(((self.columns, column), (self.rows, row))):
            first, centre = lattice.start(i), boxes[:, axis]
            low, high = lows[:, axis] - first, first + lattice.window - highs[:, axis]
            whole &= (low >= EDGE) & (high >= EDGE)
            central &= (centre >= i * lattice.step) & (centre < (i + 1) * lattice.step)
            near &= (low >= -lattice.window) & (high >= -lattice.window)  # beyond that, no window can say
        return near & (whole | central)

    def finish(self, row: int, ground: Ground) -> tuple[np.ndarray, int]:
        found = np.concatenate([np.zeros((0, _WIDTH)), *self._found])
        self._found = []
        x, y = np.floor(found[:, 2]).astype(int), np.floor(found[:, 3]).astype(int)
        inside = (x >= 0) & (x < self._grid.width) & (y >= 0) & (y < self._grid.height)
        found = found[inside]
        found = found[ground.seen[y[inside] - ground.first, x[inside]]]
        return found[:, None], int(ground.seen.sum())

    def write(self, draft: Draft, out: Path) -> dict[str, int]:
        task, count = self._model.objects, 0
        more = {name: pa.from_numpy_dtype(dtype) for name, dtype in task.listing.items()}
        fields = {"class": pa.string()} | more | dict.fromkeys(_PARAMETERS, pa.float32())

        def tables() -> Iterator[dict]:
            nonlocal count
            for part in task.listed(self._merged(draft)):
                count += len(part["box"])
                values = dict(zip(_PARAMETERS, part["box"].astype(np.float32).T, strict=True))
                names = np.array(self._model.names, object)[part["class"]]
                yield part | values | {"geometry": self._polygons(part["box"]), "class": names}

        maps.write_table(draft, out, maps.geo(self._grid, bounded=False), fields, tables(), self._model.tags)
        return {"found": count}

    def _polygons(self, boxes: np.ndarray) -> np.ndarray:
        """[n] WKB of boxes in the scene's CRS, counterclockwise."""
        turn = [0, 1, 2, 3, 0][:: 1 if self._grid.transform.determinant > 0 else -1]
        columns, rows = np.moveaxis(corners(boxes)[:, turn], -1, 0)
        return shapely.to_wkb(shapely.polygons(np.stack(self._grid.coordinates(rows, columns), -1)))

    def _merged(self, draft: Draft) -> Iterator[tuple[int, tuple]]:
        """Dates, and the boxes, scores and classes that stay on them."""
        task = self._model.objects
        dates: dict[int, Suppression] = {}
        for strip, found in self._strips(draft):
            # A later box lies at most a window above its own window, see `_kept`.
            frontier = self.rows.start(strip + 1) - self.rows.window if len(found) else math.inf
            for date in np.unique(found[:, 1]).astype(int).tolist() if len(found) else list(dates):
                mine = found[found[:, 1] == date]
                decide = dates.setdefault(date, Suppression(task.overlap, task.rotated)).decided
                yield date, decide(mine[:, 2:7], mine[:, 7], mine[:, 8].astype(np.int64), frontier)

    def _strips(self, draft: Draft) -> Iterator[tuple[int, np.ndarray]]:
        """Strips with boxes, each with all of its own, and a last one without any."""
        left, first, nothing = np.zeros((0, _WIDTH)), 0, np.zeros((0, _WIDTH))
        while len(rows := draft.read(first, ROWS)):
            left, first = np.concatenate([left, rows[:, 0]]), first + len(rows)
            *whole, left = np.split(left, np.flatnonzero(np.diff(left[:, 0])) + 1)
            yield from ((int(strip[0, 0]), strip) for strip in whole)
        if len(left):
            yield int(left[0, 0]), left
        yield self.rows.windows, nothing
