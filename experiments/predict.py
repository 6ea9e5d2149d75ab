"""Runs a full, compressed or fine-tuned model over a scene of any size, in the memory of one strip of windows.

    python -m experiments.predict --checkpoint runs/seg scene.tif --out map.tif
    python -m experiments.predict --checkpoint runs/seg s2_12=scene_s2.tif s1_grd=scene_s1.tif --out map.tif
    python -m experiments.predict --checkpoint runs/change before.tif after.tif --out map.tif
    python -m experiments.predict --checkpoint runs/micro scene.tif --out tokens.parquet

Windows as large as the images that the run was trained on overlap; what they say of a place is averaged with weights
that fall smoothly towards a window's rim, and at the borders of the scene it is mirrored. Files need the bands, dtype
and units that `experiments.prepare` asks for. Several files of one sensor are its dates. Where a pixel was not
observed, the map holds no data.

Maps are cloud-optimised GeoTIFFs: classes (uint8, 255 = no data, with colours and names), probabilities, heights in
metres, or embeddings (float32, NaN = no data). A classification is one answer a window, for the window's core;
embeddings are one vector a token, also as GeoParquet. The same command goes on where a killed one stopped, and writes
the same bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import common, predict_models
from experiments.predict_models import CLASSES, EMBEDDINGS, WindowModel
from ringmoe_jax.deploy import maps
from ringmoe_jax.deploy.blending import Blend, Lattice
from ringmoe_jax.deploy.maps import Draft
from ringmoe_jax.deploy.scenes import Stack, Strip
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.planning import ahead
from ringmoe_jax.training.checkpoint import versions

COG, PARQUET = "cog", "parquet"
SECONDS = 5.0  # between lines of progress


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a prediction did.

    Attributes:
        windows: that the model was shown, in this run.
        empty: windows in which nothing was observed: the model was not asked.
        resumed: strips that an earlier, stopped run had finished.
        left_out: rows that a GeoParquet does not have, for nothing was observed there.
        notes: what files declare otherwise than the sensor table.
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
    form: str = COG,
    progress: Callable[[int, int], None] = lambda done, windows: None,
) -> Summary | None:
    """Writes the map of a scene.

    Args:
        model: of `predict_models.load`.
        files: rasters by sensor, one a date.
        out: the map.
        overlap: share of a window that the next one shows too, 0 to below 1.
        batch: windows that the model is shown at a time; every batch is filled up to it.
        form: "cog", or "parquet" for embeddings.
        progress: called with windows done and windows in all.

    Returns:
        What was done, or None: the map is there already, from the same settings.

    Raises:
        UserError: files that the model cannot read, settings out of their range, or a file that is in the way.
    """
    started, out = time.perf_counter(), Path(out)
    _check(model, files, batch, form)
    settings = _settings(model, files, overlap, batch, form)
    with Stack(files, model.sensors) as stack:
        if maps.is_finished(out, settings):
            return None
        job = _Job(model, stack, overlap, batch, form)
        draft = Draft(out, settings, job.columns.size, job.stored, job.layers.dtype)
        resumed = draft.strips
        job.run(draft, progress)
        grid = stack.grid.coarser(job.rows.cell)
        left_out = 0
        if form == PARQUET:
            left_out = maps.write_geoparquet(draft, out, grid, job.layers.tags)
        else:
            maps.write_cog(draft, out, grid, job.layers)
        draft.remove()
        notes = tuple(note for of in stack.scenes.values() for scene in of for note in scene.notes)
    return Summary(job.shown, job.empty, resumed, left_out, notes, time.perf_counter() - started)


class _Job:
    """One pass over a scene, strip by strip."""

    def __init__(self, model: WindowModel, stack: Stack, overlap: float, batch: int, form: str):
        self.model, self.stack, self.batch, self.form = model, stack, batch, form
        images = {name: ahead.Images(batch, len(of), model.size) for name, of in stack.scenes.items()}
        _, cells, _, self.channels = jax.eval_shape(model.answer, ahead.batch_shapes(model.sensors, images)).shape
        if model.size % cells:
            raise DataError(f"the model gives {cells} answers along a window of {model.size} pixels: wanted a divisor")
        self.rows = Lattice.of(stack.grid.height, model.size, overlap, cells)
        self.columns = Lattice.of(stack.grid.width, model.size, overlap, cells)
        self.layers = model.layers(self.channels)
        self.stored = len(self.layers.names) + (form == PARQUET)
        self.shown = self.empty = 0

    def run(self, draft: Draft, progress: Callable[[int, int], None]) -> None:
        """Goes on from the strips that the draft holds; those that reach into the next one are seen again."""
        blend, finished = Blend(self.rows, self.columns, self.channels), draft.strips
        if finished == self.rows.windows:
            return
        for row in range(max(0, finished - self.rows.reach), self.rows.windows):
            strip = self.stack.strip(self.rows.start(row), self.model.size)
            for column, answers in self._answers(strip, row):
                blend.add(row, column, answers)
            values = blend.finish(row)
            if row >= finished:
                draft.append(self._encoded(values, self._observed(strip, row)))
            progress((row + 1) * self.columns.windows, self.rows.windows * self.columns.windows)

    def _answers(self, strip: Strip, row: int):
        """(column, [h, w, K]) of every window of a strip in which something was observed."""
        starts = {column: self.columns.start(column) for column in range(self.columns.windows)}
        seen = [column for column, start in starts.items() if strip.seen(start, self.model.size)]
        self.shown, self.empty = self.shown + len(seen), self.empty + len(starts) - len(seen)
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
        if self.model.output == CLASSES:
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
        raise ConfigError(f"the run reads {', '.join(model.sensors)}: give {missing[0]}=FILE too")
    for name, of in files.items():
        if model.dates and len(of) != model.dates[name]:
            raise ConfigError(f"{len(of)} files of {name}, but the run was trained on {model.dates[name]}: one a date")
    if batch < 1:
        raise ConfigError(f"batch = {batch}: wanted 1 or more windows")
    if form not in (COG, PARQUET):
        raise ConfigError(f'format "{form}" does not exist: {nearest(form, (COG, PARQUET))}')
    if form == PARQUET and model.output != EMBEDDINGS:
        raise ConfigError(f'--format parquet is for embeddings, this run gives {model.output}: use "{COG}"')


def _settings(model: WindowModel, files: Mapping[str, Sequence], overlap: float, batch: int, form: str) -> dict:
    """All that decides what is written."""
    scenes = {}
    for name, of in files.items():
        for path in map(Path, of):
            if not path.exists():
                raise DataError(f"{path} does not exist: wanted a raster of {name}")
        scenes[name] = [[str(Path(p).absolute()), Path(p).stat().st_size, Path(p).stat().st_mtime_ns] for p in of]
    chosen = dict(output=model.output, overlap=overlap, batch=batch, format=form)
    return dict(model.facts) | chosen | {"scenes": scenes, "versions": versions()}


def by_sensor(arguments: Sequence[str], model: WindowModel) -> dict[str, list[str]]:
    """Files by sensor, of arguments SENSOR=FILE, or FILE for a model of one sensor.

    Raises:
        ConfigError: a file without a sensor, where the model has several.
    """
    found: dict[str, list[str]] = {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or Path(argument).exists():
            name, path = next(iter(model.sensors)), argument
            if len(model.sensors) > 1:
                raise ConfigError(
                    f'of which sensor is "{argument}"? Give SENSOR={argument}, a sensor of {", ".join(model.sensors)}'
                )
        found.setdefault(name, []).append(path)
    return found


# ---- Command line -------------------------------------------------------------------------------------


class _Progress:
    """Prints a line every few seconds."""

    def __init__(self):
        self._started = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, windows: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, now
        elif now - self._last > SECONDS or done == windows:
            self._last, rate = now, (done - self._first) / max(now - self._started, 1e-9)
            left = (windows - done) / max(rate, 1e-9)
            print(f"  {done} of {windows} windows, {rate:.1f} windows/s, {_clock(left)} left", flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", nargs="+", metavar="[SENSOR=]FILE", help="rasters; several of one sensor are dates")
    parser.add_argument("--checkpoint", required=True, help="folder of a run")
    parser.add_argument("--out", required=True, type=Path, help="file to write")
    parser.add_argument("--overlap", type=float, default=0.5, help="of neighbouring windows, a share (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="windows at a time (%(default)s)")
    outputs = (*dict.fromkeys(name for of in predict_models.OUTPUTS.values() for name in of), EMBEDDINGS)
    parser.add_argument("--output", default="", help=f"{', '.join(outputs)}; default: what the run gives")
    parser.add_argument("--format", choices=(COG, PARQUET), help="default: by the ending of --out")
    return parser


@common.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    common.keep_compiled()
    form = options.format or (PARQUET if options.out.suffix == ".parquet" else COG)
    model = predict_models.load(options.checkpoint, options.output)
    files = by_sensor(options.scenes, model)
    print(f"{options.out}: {model.output} of {', '.join(files)} by {options.checkpoint} at step {model.facts['step']}")
    keywords: dict[str, Any] = dict(overlap=options.overlap, batch=options.batch, form=form, progress=_Progress())
    done = predict(model, files, options.out, **keywords)
    if done is None:
        print(f"{options.out}: is there already, from the same command")
        return 0
    for note in done.notes:
        print(f"note: {note}")
    if done.resumed:
        print(f"went on after {done.resumed} strips of an earlier run")
    print(f"{done.windows} windows in {_clock(done.seconds)}; {done.empty} more hold no data", end="")
    print(f"; {done.left_out} cells without data are left out" if done.left_out else "")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
