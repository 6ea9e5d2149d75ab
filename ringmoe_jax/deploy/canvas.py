"""What windows say of places: blended, and written as a map."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ringmoe_jax.deploy import maps
from ringmoe_jax.deploy.blending import Blend, Lattice
from ringmoe_jax.deploy.maps import Draft
from ringmoe_jax.deploy.scenes import Ground
from ringmoe_jax.deploy.windows import EMBEDDINGS, WindowModel
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.geo import Grid

COG, PARQUET = "cog", "parquet"


class Canvas:
    """A map of numbers; see `passes.Product`."""

    def __init__(self, model: WindowModel, grid: Grid, answer, overlap: float, form: str):
        """Places windows.

        Args:
            model: that answers.
            grid: of the scene.
            answer: [B, h, w, K], its shape.
            overlap: share of a window that the next one shows too.
            form: `COG` or `PARQUET`.

        Raises:
            UserError: the answers do not tile a window, or the overlap is out of its range.
        """
        _, cells, _, channels = answer.shape
        if model.size % cells:
            raise DataError(f"the model gives {cells} answers along a window of {model.size} pixels: wanted a divisor")
        self.rows = Lattice.of(grid.height, model.size, overlap, cells)
        self.columns = Lattice.of(grid.width, model.size, overlap, cells)
        self.reach = self.rows.reach
        self._model, self._grid, self._form, self._channels = model, grid, form, channels
        self._layers = model.layers(channels)
        self.shape = self.columns.size, len(self._layers.names) + (form == PARQUET)
        self.dtype = self._layers.dtype
        self.begin()

    @staticmethod
    def form(model: WindowModel, asked: str, out: Path) -> str:
        """`COG` or `PARQUET`, as asked for or by the ending of a file; raises a `ConfigError`."""
        form = asked or (PARQUET if out.suffix == ".parquet" else COG)
        if form not in (COG, PARQUET):
            raise ConfigError(f'format "{form}" does not exist: {nearest(form, (COG, PARQUET))}')
        if form == PARQUET and model.names:
            raise ConfigError(f'--format parquet is for {EMBEDDINGS}, this run gives {model.output}: use "{COG}"')
        return form

    def begin(self) -> None:
        self._blend = Blend(self.rows, self.columns, self._channels)

    def add(self, row: int, column: int, answer: np.ndarray) -> None:
        self._blend.add(row, column, answer)

    def finish(self, row: int, ground: Ground) -> tuple[np.ndarray, int]:
        values, observed = self._blend.finish(row), self._observed(row, ground)
        if self._model.is_classes:
            values = values.argmax(-1)[..., None]
        values = np.where(observed[..., None] > 0, values, self._layers.no_data)
        if self._form == PARQUET:
            values = np.concatenate([values, observed[..., None]], -1)
        return values.astype(self.dtype), int((observed > 0).sum())

    def _observed(self, row: int, ground: Ground) -> np.ndarray:
        """[n, columns.size]: which share of the pixels of the map's finished cells was observed."""
        cell, (top, bottom) = self.rows.cell, self.rows.finished(row)
        inside = ground.rows(top * cell, min(bottom * cell, self.rows.length))
        padding = ((0, (bottom - top) * cell - len(inside)), (0, self.columns.size * cell - self.columns.length))
        count = np.ones_like(inside)
        seen, pixels = (
            np.pad(x, padding).reshape(bottom - top, cell, self.columns.size, cell).sum((1, 3)) for x in (inside, count)
        )
        return seen / pixels

    def write(self, draft: Draft, out: Path) -> dict[str, int]:
        grid = self._grid.coarser(self.rows.cell)
        if self._form == PARQUET:
            return {"left_out": maps.write_geoparquet(draft, out, grid, self._layers.tags)}
        maps.write_cog(draft, out, grid, self._layers)
        return {}
