"""The map of a scene of any size, in the memory of one strip of windows; of several processes, of one block of strips.

Windows as large as the images that a run was trained on overlap; what they say of a place is averaged with weights that
fall smoothly towards a window's rim, and at the borders of the scene it is mirrored.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from ringmoe_jax.deploy import maps
from ringmoe_jax.deploy.blending import Blend, Lattice
from ringmoe_jax.deploy.maps import Draft
from ringmoe_jax.deploy.scenes import Stack, Strip
from ringmoe_jax.deploy.windows import EMBEDDINGS, WindowModel
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.parallel import processes
from ringmoe_jax.planning import ahead
from ringmoe_jax.training.checkpoint import versions

COG, PARQUET = "cog", "parquet"
BLOCK = 8  # strips that a process of several maps in one go, for which it sees the strips before them again
BLOCK_BYTES = 2**26  # of the map that they make, at most, where a block may be smaller


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a prediction did.

    Attributes:
        windows: that the model was shown, in this run, of the strips that it finished.
        empty: of these strips, windows in which nothing was observed: the model was not asked.
        resumed: strips that an earlier, stopped run had finished.
        left_out: rows that a GeoParquet does not have, for nothing was observed there.
        notes: what files declare otherwise than the sensor table, and that nothing was mapped.
        seconds: of this run.
    """

    windows: int
    empty: int
    resumed: int
    left_out: int
    notes: tuple[str, ...]
    seconds: float


def predict(
    model: WindowModel,
    files: Mapping[str, Sequence[str | Path]],
    out: str | Path,
    *,
    overlap: float = 0.5,
    batch: int = 8,
    form: str = "",
    progress: Callable[[int, int], None] = lambda done, windows: None,
) -> Summary | None:
    """Writes the map of a scene; several processes share the windows, and the first one writes.

    Args:
        model: of `windows.window_model`.
        files: rasters by sensor, one a date.
        out: the map.
        overlap: share of a window that the next one shows too, 0 to below 1.
        batch: windows that the model is shown at a time; every batch is filled up to it.
        form: "cog", or "parquet" for embeddings; "" goes by the ending of `out`.
        progress: called with windows done and windows in all.

    Returns:
        What was done, or None: the map is there already, from the same settings.

    Raises:
        UserError: files that the model cannot read, settings out of their range, or a file that is in the way.
    """
    started, out, first = time.perf_counter(), Path(out), processes.number() == 0
    form = form or (PARQUET if out.suffix == ".parquet" else COG)
    _check(model, files, batch, form)
    settings = _settings(model, files, overlap, batch, form)
    with Stack(files, model.sensors) as stack:
        if processes.from_first(lambda: maps.is_finished(out, settings)):
            return None
        job = _Job(model, stack, overlap, batch, form)
        draft = Draft(out, settings, job.columns.size, job.stored, job.layers.dtype) if first else None
        with draft or contextlib.nullcontext():
            resumed = job.run(draft, progress)
            left_out = processes.from_first(lambda: job.write(draft, out))
        notes = tuple(note for scenes in stack.scenes.values() for scene in scenes for note in scene.notes)
        if not resumed and not job.mapped:
            notes += (f"the map holds nothing but no data: no pixel was observed by every one of {', '.join(files)}",)
    return Summary(job.shown, job.empty, resumed, left_out, notes, time.perf_counter() - started)


class _Strip(NamedTuple):
    """A finished strip: rows of the map, windows that the model saw, others, cells where something is known."""

    rows: np.ndarray
    shown: int
    empty: int
    mapped: int


class _Job:
    """One pass over a scene, strip by strip."""

    def __init__(self, model: WindowModel, stack: Stack, overlap: float, batch: int, form: str):
        self.model, self.stack, self.batch, self.form = model, stack, batch, form
        images = {name: ahead.Images(batch, len(scenes), model.size) for name, scenes in stack.scenes.items()}
        _, cells, _, self.channels = jax.eval_shape(model.answer, ahead.batch_shapes(model.sensors, images)).shape
        if model.size % cells:
            raise DataError(f"the model gives {cells} answers along a window of {model.size} pixels: wanted a divisor")
        self.rows = Lattice.of(stack.grid.height, model.size, overlap, cells)
        self.columns = Lattice.of(stack.grid.width, model.size, overlap, cells)
        self.layers = model.layers(self.channels)
        self.stored = len(self.layers.names) + (form == PARQUET)
        self.shown = self.empty = self.mapped = 0
        self._blend, self._next = Blend(self.rows, self.columns, self.channels), 0

    def run(self, draft: Draft | None, progress: Callable[[int, int], None]) -> int:
        """Goes on from the strips that the draft holds; the first process has it. Gives their number."""
        begun, windows = processes.from_first(lambda: draft.strips), self.rows.windows
        size = self._block_size(windows - begun)
        blocks = [range(first, min(first + size, windows)) for first in range(begun, windows, size)]
        own = (self._block(blocks[i]) for i in processes.turns(len(blocks)))
        done = begun
        for strip in itertools.chain.from_iterable(processes.in_turn(own)):
            if draft:
                draft.append(strip.rows)
            self.shown, self.empty = self.shown + strip.shown, self.empty + strip.empty
            self.mapped, done = self.mapped + strip.mapped, done + 1
            progress(done * self.columns.windows, windows * self.columns.windows)
        return begun

    def _block_size(self, left: int) -> int:
        """Strips of a block: one where a process has all of them, for then it sees none again."""
        if processes.count() == 1:
            return 1
        strip = self.rows.stride * self.columns.size * self.stored * np.dtype(self.layers.dtype).itemsize
        return max(1, min(BLOCK, BLOCK_BYTES // strip, -(-left // processes.count())))

    def _block(self, rows: range) -> list[_Strip]:
        """Strips of the map; those before them that reach into the first are seen, unless that was the last one."""
        finished, begin = [], rows.start
        if begin != self._next:
            self._blend, begin = Blend(self.rows, self.columns, self.channels), max(0, begin - self.rows.reach)
        for row in range(begin, rows.stop):
            strip = self.stack.strip(self.rows.start(row), self.model.size)
            starts = {column: self.columns.start(column) for column in range(self.columns.windows)}
            seen = [column for column, start in starts.items() if strip.seen(start, self.model.size)]
            for column, answers in self._answers(strip, row, starts, seen):
                self._blend.add(row, column, answers)
            values = self._blend.finish(row)
            if row in rows:
                observed = self._observed(strip, row)
                counts = (len(seen), len(starts) - len(seen), int((observed > 0).sum()))
                finished.append(_Strip(self._encoded(values, observed), *counts))
        self._next = rows.stop
        return finished

    def write(self, draft: Draft, out: Path) -> int:
        """The map of a whole draft, which is then removed; gives the rows that a GeoParquet leaves out."""
        grid, left_out = self.stack.grid.coarser(self.rows.cell), 0
        if self.form == PARQUET:
            left_out = maps.write_geoparquet(draft, out, grid, self.layers.tags)
        else:
            maps.write_cog(draft, out, grid, self.layers)
        draft.remove()
        return left_out

    def _answers(self, strip: Strip, row: int, starts: Mapping[int, int], seen: Sequence[int]):
        """(column, [h, w, K]) of the windows of a strip in which something was observed."""
        for i in range(0, len(seen), self.batch):
            chosen = seen[i : i + self.batch]
            answers = np.asarray(self.model.answer(strip.batch([starts[column] for column in chosen], self.batch)))
            if not np.isfinite(answers[: len(chosen)]).all():
                raise DataError(f"the model's answers are not finite in strip {row}, windows {chosen}: a broken run?")
            yield from zip(chosen, answers, strict=False)

    def _observed(self, strip: Strip, row: int) -> np.ndarray:
        """[n, columns.size]: which share of the pixels of the map's finished cells was observed."""
        cell, (top, bottom) = self.rows.cell, self.rows.finished(row)
        first, last = top * cell, min(bottom * cell, self.rows.length)
        inside = strip.observed(self.model.every_date)[first - strip.first : last - strip.first]
        padding = ((0, (bottom - top) * cell - len(inside)), (0, self.columns.size * cell - self.columns.length))
        count = np.ones_like(inside)
        seen, pixels = (
            np.pad(x, padding).reshape(bottom - top, cell, self.columns.size, cell).sum((1, 3)) for x in (inside, count)
        )
        return seen / pixels

    def _encoded(self, values: np.ndarray, observed: np.ndarray) -> np.ndarray:
        """Blended numbers [n, w, K] as the draft stores them."""
        if self.model.is_classes:
            values = values.argmax(-1)[..., None]
        values = np.where(observed[..., None] > 0, values, self.layers.no_data)
        if self.form == PARQUET:
            values = np.concatenate([values, observed[..., None]], -1)
        return values.astype(self.layers.dtype)


# ---- What was asked for -------------------------------------------------------------------------------


def _check(model: WindowModel, files: Mapping[str, Sequence], batch: int, form: str) -> None:
    for name in files:
        if name not in model.sensors:
            raise ConfigError(f'the run knows no sensor "{name}": {nearest(name, model.sensors)}')
    if model.complete and (missing := [name for name in model.sensors if name not in files]):
        raise ConfigError(
            f"the run reads {', '.join(model.sensors)}: give {missing[0]}=FILE too; where there is none, "
            f"a run of the sensors that are there maps the place (experiments.finetune --sensors)"
        )
    for name, paths in files.items():
        if (dates := model.dates.get(name, len(paths))) != len(paths):
            raise ConfigError(f"{len(paths)} files of {name}, but the run was trained on {dates}: one a date")
    if batch < 1:
        raise ConfigError(f"batch = {batch}: wanted 1 or more windows")
    if form not in (COG, PARQUET):
        raise ConfigError(f'format "{form}" does not exist: {nearest(form, (COG, PARQUET))}')
    if form == PARQUET and model.names:
        raise ConfigError(f'--format parquet is for {EMBEDDINGS}, this run gives {model.output}: use "{COG}"')


def _settings(model: WindowModel, files: Mapping[str, Sequence], overlap: float, batch: int, form: str) -> dict:
    """All that decides what is written."""
    scenes = {}
    for name, paths in files.items():
        for path in map(Path, paths):
            if not path.exists():
                raise DataError(f"{path} does not exist: wanted a raster of {name}")
        scenes[name] = [[str(Path(p).absolute()), Path(p).stat().st_size, Path(p).stat().st_mtime_ns] for p in paths]
    chosen = dict(output=model.output, overlap=overlap, batch=batch, format=form)
    return dict(model.facts) | chosen | {"scenes": scenes, "versions": versions()}
