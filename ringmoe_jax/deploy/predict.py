"""The map or the objects of a scene of any size, in the memory of some strips of windows; of several processes, of one
block of strips.

Windows as large as the images that a run was trained on overlap; what they say of a place is averaged with weights that
fall smoothly towards a window's rim, and at the borders of the scene it is mirrored. What they find counts once, see
`objects.Objects`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from ringmoe_jax.deploy import maps
from ringmoe_jax.deploy.canvas import Canvas
from ringmoe_jax.deploy.maps import Draft
from ringmoe_jax.deploy.objects import Objects
from ringmoe_jax.deploy.passes import Pass, Product
from ringmoe_jax.deploy.scenes import Stack
from ringmoe_jax.deploy.windows import WindowModel
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.parallel import processes
from ringmoe_jax.planning import ahead
from ringmoe_jax.training.checkpoint import versions

MOST = 64  # windows at a time: more were not faster on a CPU
HOST_BYTES = 2**28  # that windows at a time may need, on a device that does not say what it has (our choice)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a prediction did.

    Attributes:
        windows: that the model was shown, in this run, of the strips that it finished.
        empty: of these strips, windows in which nothing was observed: the model was not asked.
        resumed: strips that an earlier, stopped run had finished.
        notes: what files declare otherwise than the sensor table, and that nothing was mapped.
        batch: windows that the model was shown at a time.
        seconds: of this run.
        busy: seconds by what went on at the same time, see `Pass.seconds`.
        left_out: rows that a GeoParquet does not have, for nothing was observed there.
        found: boxes, or boxes of tracks, that were written.
    """

    windows: int
    empty: int
    resumed: int
    batch: int
    notes: tuple[str, ...]
    seconds: float
    busy: Mapping[str, float]
    left_out: int = 0
    found: int = 0


def predict(
    model: WindowModel,
    files: Mapping[str, Sequence[str | Path]],
    out: str | Path,
    *,
    overlap: float = 0.5,
    batch: int | None = None,
    form: str = "",
    progress: Callable[[int, int], None] = lambda done, windows: None,
) -> Summary | None:
    """Writes the map of a scene; several processes share the windows, and the first one writes.

    Args:
        model: of `windows.window_model`.
        files: rasters by sensor, one a date.
        out: the map.
        overlap: share of a window that the next one shows too, 0 to below 1.
        batch: windows that the model is shown at a time, to which every batch is filled up; None: by memory.
        form: "cog", or "parquet" for embeddings; "" goes by the ending of `out`.
        progress: called with windows done and windows in all.

    Returns:
        What was done, or None: the map is there already, from the same settings.

    Raises:
        UserError: files that the model cannot read, settings out of their range, or a file that is in the way.
    """
    started, out, first = time.perf_counter(), Path(out), processes.number() == 0
    _check(model, files, batch)
    form = (Objects if model.objects else Canvas).form(model, form, out)
    scenes = _identities(files)
    with Stack(files, model.sensors) as stack:
        shapes = lambda count: _shapes(model, stack, count)  # noqa: E731
        if model.objects:
            product = Objects(model, stack.grid, overlap)
        else:
            product = Canvas(model, stack.grid, jax.eval_shape(model.answer, shapes(1)), overlap, form)
        batch = batch or _batch(ahead.live_bytes(model.answer, shapes(1)), product)
        chosen = dict(output=model.output, overlap=overlap, batch=batch, format=form)
        settings = dict(model.facts) | chosen | {"scenes": scenes, "versions": versions()}
        if processes.from_first(lambda: maps.is_finished(out, settings)):
            return None
        work = Pass(model, stack, product, batch)
        draft = Draft(out, settings, *product.shape, product.dtype) if first else None
        with draft or contextlib.nullcontext():
            resumed = work.run(draft, progress)
            counted = processes.from_first(lambda: _written(product, draft, out, work.seconds))
        notes = tuple(note for scenes in stack.scenes.values() for scene in scenes for note in scene.notes)
        if not resumed and not work.mapped:
            notes += (f"the map holds nothing but no data: no pixel was observed by every one of {', '.join(files)}",)
    counted |= dict(windows=work.shown, empty=work.empty, resumed=resumed, batch=batch)
    return Summary(**counted, notes=notes, seconds=time.perf_counter() - started, busy=work.seconds)


def _written(product: Product, draft: Draft, out: Path, seconds: dict[str, float]) -> dict[str, int]:
    """Writes a whole draft, which is then removed, and adds to the seconds of writing."""
    started = time.perf_counter()
    counted = product.write(draft, out)
    draft.remove()
    seconds["writing"] += time.perf_counter() - started
    return counted


# ---- Windows at a time --------------------------------------------------------------------------------


def _shapes(model: WindowModel, stack: Stack, count: int) -> dict:
    images = {name: ahead.Images(count, len(scenes), model.size) for name, scenes in stack.scenes.items()}
    return ahead.batch_shapes(model.sensors, images)


def _batch(needed: int, product: Product) -> int:
    """Windows at a time, of `needed` bytes each: few batches of a strip, or of some strips, with hardly a gap.

    The same on every run of a machine, whatever else needs memory there, for a draft goes on with its batches only.
    """
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 4 * HOST_BYTES)
    most, across = max(1, min(MOST, memory // 4 // needed)), product.columns.windows
    if across >= most:
        return -(-across // -(-across // most))
    groups = -(-product.rows.windows // (most // across))
    return across * -(-product.rows.windows // groups)


# ---- What was asked for -------------------------------------------------------------------------------


def _check(model: WindowModel, files: Mapping[str, Sequence], batch: int | None) -> None:
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
    if batch is not None and batch < 1:
        raise ConfigError(f"batch = {batch}: wanted 1 or more windows")


def _identities(files: Mapping[str, Sequence]) -> dict[str, list]:
    """Path, size and time of every file."""
    scenes = {}
    for name, paths in files.items():
        for path in map(Path, paths):
            if not path.exists():
                raise DataError(f"{path} does not exist: wanted a raster of {name}")
        scenes[name] = [[str(Path(p).absolute()), Path(p).stat().st_size, Path(p).stat().st_mtime_ns] for p in paths]
    return scenes
