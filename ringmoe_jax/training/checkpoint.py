"""Checkpoints: the only module that talks to Orbax.

A checkpoint is one folder per step, complete or absent: Orbax writes beside it and renames, so a run
that is killed or meets a full disk keeps every checkpoint it had. Next to the arrays lies a JSON record
with all that is needed to use them: config, sensor statistics, data position, versions; and the checksums of all
files, with which they are compared before they are read. Of a damaged checkpoint a line says so, and the one before it
is taken.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from ringmoe_jax import files, remote
from ringmoe_jax.config import check_modules, first_difference
from ringmoe_jax.errors import ConfigError, DataError, TrainingError
from ringmoe_jax.parallel import mesh as meshes
from ringmoe_jax.parallel import processes, sharding
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.training.state import TrainState

SCHEMA = 1
SHARE = 0.5  # of a device's memory that a model may take to lie on one: the rest is its activations' (our choice)
BESIDE = 2**20  # bytes of a checkpoint that are no arrays, at most
UNFINISHED = ".orbax-checkpoint-tmp"  # what Orbax calls a checkpoint that is being written
TIMES = "_CHECKPOINT_METADATA"  # when it was written, which Orbax says last
PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")


class _Repeated(logging.Filter):
    """Drops what Orbax logs of failures, with tracebacks: they are raised again where one waits for a checkpoint."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in record.pathname


logging.getLogger("absl").addFilter(_Repeated())


class Checkpointer:
    """Saves and restores training states under `<workdir>/checkpoints`.

    Args:
        workdir: folder of the run, on a disk or of a bucket, see `ringmoe_jax.remote`.
        keep: newest checkpoints to keep; 0 keeps all.
        read_only: changes nothing in the folder, whoever else is writing to it.
    """

    def __init__(self, workdir: str | Path, keep: int = 2, *, read_only: bool = False):
        self.directory = remote.place(workdir) / remote.CHECKPOINTS
        self.workdir, self._in_bucket = workdir, remote.is_remote(self.directory)
        self._checked: dict[int, str] = {}  # what is wrong with a checkpoint that was looked at; "" where nothing is
        if read_only:  # whoever writes there now keeps what it has begun, and processes read without each other
            own = jax.process_index()
            alone = ocp.options.MultiprocessingOptions(own, {own}, barrier_sync_key_prefix=f"reader{own}")
            options = ocp.CheckpointManagerOptions(
                read_only=True, save_interval_steps=0, create=False, multiprocessing_options=alone
            )
        else:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=keep or None,
                enable_async_checkpointing=True,
                cleanup_tmp_directories=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
            )
        handlers = {
            "params": ocp.StandardCheckpointHandler(),
            "pretext": ocp.StandardCheckpointHandler(),
            "state": ocp.StandardCheckpointHandler(),
            "record": ocp.JsonCheckpointHandler(),
        }
        with _quiet(read_only):
            self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    @classmethod
    def open(cls, workdir: str | Path) -> Checkpointer:
        """Opens an existing run for reading.

        Raises:
            DataError: the folder holds no checkpoint.
        """
        if Path(workdir).is_file():
            raise DataError(f"{workdir} is a file: experiments.convert {workdir} --out FOLDER makes a run of weights")
        if not cls.exists(workdir):
            raise DataError(f"no checkpoint in {workdir}: give the folder of a run, or train one there first")
        return cls(workdir, read_only=True)

    @staticmethod
    def exists(workdir: str | Path) -> bool:
        """Whether checkpoints were begun in a folder, whole or not."""
        folder = remote.place(workdir) / remote.CHECKPOINTS
        if not remote.is_remote(folder):
            return folder.is_dir()
        with remote.reached(folder.parent):
            return bool(remote.listed(folder))

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None. Whether it is whole says `newest_whole`."""
        return self._manager.latest_step()

    def newest_whole(self) -> int | None:
        """Step of the newest checkpoint that is what was written; None where there is none at all.

        A line names every newer one that is damaged.

        Raises:
            DataError: all of them are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            if not (damage := self._damage(step)):
                return step
            print(f"checkpoint {step} is damaged, the one before it is taken: {damage}", flush=True)
        if steps:
            raise DataError(f"no checkpoint in {self.directory} is whole, see above: copy the run again")
        return None

    def set_aside_after(self, step: int) -> None:
        """Moves checkpoints that are newer than `step` out of the way of those to come, to `damaged/` beside them."""
        aside = self.directory.parent / "damaged"
        newer = [number for number in self._manager.all_steps() if number > step]
        for number in newer if processes.number() == 0 else ():
            aside.mkdir(exist_ok=True)
            (self.directory / str(number)).rename(aside / f"{number}-{time.time_ns()}")
        processes.exchange(None)  # the others look once they are gone
        for number in newer:
            self._checked.pop(number, None)
        if newer:
            self._manager.reload()

    def _damage(self, step: int) -> str:
        """What is wrong with the files of a checkpoint, one line; "" where they are what was written.

        A bucket compares what it holds with checksums of its own.
        """
        if self._in_bucket:
            return ""
        if step not in self._checked:
            try:
                files.verify(self.directory / str(step))
                self._checked[step] = ""
            except DataError as error:
                self._checked[step] = str(error)
        return self._checked[step]

    def _chosen(self, step: int | None) -> int:
        """The step that was asked for, or the newest whole one.

        Raises:
            DataError: there is none, or it is damaged.
        """
        if step is None and (step := self.newest_whole()) is None:
            raise DataError(f"no checkpoint in {self.directory}: give the folder of a run, or train one there first")
        if damage := self._damage(step):
            others = [number for number in self._manager.all_steps() if number != step]
            raise DataError(f"checkpoint {step} is damaged: {damage}; others: {', '.join(map(str, others)) or 'none'}")
        return step

    def _seal(self) -> None:
        """Adds the checksums to a checkpoint whose files are all written, before Orbax gives the folder its name."""
        if processes.number() or self._in_bucket:
            return
        for folder in self.directory.glob(f"*{UNFINISHED}"):
            inside = (path for path in folder.rglob("*") if path.is_file() and path.name != TIMES)
            files.seal(folder, [path.relative_to(folder).as_posix() for path in inside])

    def save(self, step: int, state: TrainState, record: Mapping[str, Any]) -> None:
        """Starts saving in the background; a failure shows at the next call or at `wait`.

        Args:
            step: optimiser steps taken.
            state: what to save.
            record: JSON types; see the module's text.

        Raises:
            TrainingError: this or the previous save failed; the checkpoints before it are whole.
        """
        if step == self.latest:
            return
        record = {"schema": SCHEMA, "step": step, "versions": versions()} | dict(record)
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        with _explained(self):
            self._manager.wait_until_finished()
            remote.send(self.workdir)  # metrics are never behind a checkpoint
            if not self._in_bucket:
                files.check_room(self.directory, sum(leaf.nbytes for leaf in jax.tree.leaves(_items(state))) + BESIDE)
            self._manager.save(step, args=ocp.args.Composite(record=ocp.args.JsonSave(record), **items))

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
            TrainingError: a save failed.
        """
        with _explained(self):
            self._manager.wait_until_finished()

    def record(self, step: int | None = None) -> dict[str, Any]:
        """The JSON record of a checkpoint, by default the newest that is whole.

        Raises:
            DataError: there is no checkpoint, a damaged one, or one of another schema; or it names modules whose code
                nobody asked for, see `ringmoe_jax.config.check_modules`.
        """
        step = self._chosen(step)
        record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
        if record.get("schema") != SCHEMA:
            raise DataError(f"checkpoint {step} in {self.directory} has schema {record.get('schema')}, wanted {SCHEMA}")
        check_modules(record, self.directory.parent)
        return record

    def restore(self, like: TrainState, step: int | None = None) -> TrainState:
        """Reads a state into the shapes, dtypes and placements of `like`.

        Args:
            like: arrays or `jax.ShapeDtypeStruct` with shardings.
            step: default the newest that is whole.
        """
        step = self._chosen(step)
        return _state(self._restore(step, jax.tree.map(ocp.utils.to_shape_dtype_struct, _items(like))))

    def restore_model(self, step: int | None = None) -> tuple[Any, Any]:
        """Reads the trained parameters and the pretext task's state, nested dicts on this process's devices.

        They lie on the first device; what would take more than `SHARE` of its memory is split over all of them.
        """
        step = self._chosen(step)
        stored = self._manager.item_metadata(step)
        trees = {name: stored[name] for name in ("params", "pretext") if stored.get(name) is not None}
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), trees)
        restored = self._restore(step, _place(shapes, jax.local_devices()))
        return restored["params"], restored.get("pretext", {})

    def _restore(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        items = {name: ocp.args.StandardRestore(tree) for name, tree in like.items()}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**items)).items())

    def close(self) -> None:
        """Waits for background work and frees threads."""
        with _explained(self):
            self._manager.close()


def _place(shapes: Mapping[str, Any], devices: Sequence[jax.Device], memory: float | None = None) -> dict[str, Any]:
    """Shapes with a place: the first device, or all of them as the rules of training split parameters."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    memory = memory or (devices[0].memory_stats() or {}).get("bytes_limit", math.inf)
    if size <= SHARE * memory:
        places = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(devices[0]), shapes)
    else:
        places = sharding.shardings(shapes, meshes.make(MeshConfig(data=1, fsdp=len(devices)), devices))
    return sharding.placed(shapes, places)


def _items(state: TrainState) -> dict[str, Any]:
    """Items of a checkpoint: what a model is made of can be read without the optimiser's state."""
    items = {"params": state.params, "state": {"step": state.step, "optimizer": state.optimizer}}
    return items | ({"pretext": state.pretext} if state.pretext else {})  # Orbax stores no empty tree


def _state(items: Mapping[str, Any]) -> TrainState:
    """Inverse of `_items`."""
    return TrainState(params=items["params"], pretext=items.get("pretext", {}), **items["state"])


class _explained:
    """Turns a failed write into one line that says what is safe."""

    def __init__(self, checkpointer: Checkpointer):
        self.checkpointer = checkpointer

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is None or not isinstance(error, Exception):
            return
        step = self.checkpointer.latest
        safe = f"the checkpoint of step {step} is whole" if step is not None else "there is no earlier checkpoint"
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0] or type(error).__name__
        if code := re.search(r"os_error_code='(\d+)'", reason):  # in a page of what TensorStore knows beside it
            reason = os.strerror(int(code[1]))
        raise TrainingError(
            f"could not write a checkpoint to {self.checkpointer.directory}: {reason}; {safe}; "
            f"free space or fix the folder, then run the same command again"
        ) from error


def versions() -> dict[str, str]:
    """Versions of the packages that a checkpoint depends on."""
    from ringmoe_jax import __version__

    return {"ringmoe_jax": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES}


def check_same(saved: Mapping, current: Mapping, where: str) -> None:
    """Compares two JSON trees that must agree when a run is resumed.

    Raises:
        ConfigError: names the first value that differs, both values and the fix.
    """
    if difference := first_difference(saved, current, where):
        path, a, b = difference
        raise ConfigError(
            f"{path} is {b!r}, but the checkpoint was made with {a!r}: set it back to resume, or choose a new --workdir"
        )


@contextlib.contextmanager
def _quiet(on: bool) -> Iterator[None]:
    """Keeps Orbax from warning, at every opening, that a folder which is opened for reading is read."""
    log = logging.getLogger("absl")
    level = log.level
    try:
        log.setLevel(logging.ERROR if on else level)
        yield
    finally:
        log.setLevel(level)
