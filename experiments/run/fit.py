"""A run from its first or last checkpoint to its last step; pre-training, fine-tuning and distillation alike."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.run.checkout import COMMIT, commit
from input_pipeline.reader import BatchIterator
from ringmoe_jax import files, remote
from ringmoe_jax.compress import online
from ringmoe_jax.compress.online import OnlinePruning
from ringmoe_jax.errors import ConfigError, TrainingError
from ringmoe_jax.parallel import processes
from ringmoe_jax.parallel.lock import lock
from ringmoe_jax.run import COMPRESSED, IMPORTED, FinetuneConfig, Parts, PretrainConfig, claim, kind_of
from ringmoe_jax.training import loop, metrics, optimizer, step
from ringmoe_jax.training.checkpoint import Checkpointer, check_same, versions
from ringmoe_jax.training.goodput import Goodput
from ringmoe_jax.training.loop import Evaluate, Step, Training, Validation
from ringmoe_jax.training.metrics import MetricsWriter
from ringmoe_jax.training.state import TrainState, create, shapes

REQUEST = "request.json"  # of one run of a grid


def new_state(
    parts: Parts, config: PretrainConfig | FinetuneConfig, known: Mapping[str, Any] | None = None
) -> TrainState:
    """A state at step 0, in its place on the mesh; it begins with `known` parameters, see `training.state.known_of`."""
    rule = optimizer.build(config.optimizer, config.train.steps, parts.model.blocks_above)
    return create(parts.model, parts.pretext, rule, seed=config.train.seed, mesh=parts.mesh, known=known)


def new_shapes(parts: Parts, config: PretrainConfig | FinetuneConfig) -> TrainState:
    """Shapes, dtypes and places of `new_state`, without making it."""
    rule = optimizer.build(config.optimizer, config.train.steps, parts.model.blocks_above)
    return shapes(parts.model, parts.pretext, rule, parts.mesh)


def fit(
    workdir: str | Path,
    create: Callable[[], TrainState],
    data: BatchIterator,
    parts: Parts,
    config: PretrainConfig | FinetuneConfig,
    record: Mapping[str, Any],
    sections: Sequence[str],
    *,
    goodput: Goodput,
    held_out: Sequence[Mapping] = (),
    rebuild: Callable[[dict[str, Any]], Parts] | None = None,
) -> TrainState:
    """Trains, going on from the newest checkpoint of `workdir` where there is one, exactly.

    Args:
        workdir: folder of the run.
        create: makes a new state, where there is no checkpoint.
        data: batches.
        parts: forward passes, objectives, mesh.
        config: optimiser, length and, with `rebuild`, which experts go.
        record: JSON types that are saved with every checkpoint; holds "config", complete, and "statistics".
        sections: of the config that must be those of the checkpoint.
        goodput: made when the run was begun.
        held_out: validation batches, passed over every `train.evaluate_every` steps.
        rebuild: `rebuild(model) -> parts` of a `config.model` with fewer experts; None where none go.

    Returns:
        The state after the last step.

    Raises:
        UserError: the checkpoint is of another configuration, or training failed; nothing that was saved is lost.
    """

    def passes(built: Parts) -> tuple[Step, Evaluate | None]:
        rule = optimizer.build(config.optimizer, config.train.steps, built.model.blocks_above)
        rate = optimizer.schedule(config.optimizer, config.train.steps)
        options = dict(seed=config.train.seed, accumulate=config.train.accumulate, mesh=built.mesh)
        train_step = step.make_train_step(built.pretext, built.objectives, rule, rate, **options)
        return train_step, validation(built, held_out) if held_out else None

    record = {**record, COMMIT: commit()}
    processes.agree({**record, "versions": versions(), "data": data.get_state()}, "run")
    with lock(workdir):
        checkpointer = Checkpointer(workdir, keep=config.train.keep_checkpoints)
        if checkpointer.latest is None:
            state = create()
        else:
            state = _resume(checkpointer, new_shapes(parts, config), data, config, record, sections, goodput)
            print(f"resuming {remote.shown(workdir)} at step {int(state.step)}")
        writer = MetricsWriter(workdir, resume_step=int(state.step))
        callbacks: list[loop.Callback] = [Validation(processes.from_first(lambda: _validated(workdir)))]
        if rebuild:
            callbacks.append(OnlinePruning(config.pruning, lambda model: passes(rebuild(model)), parts.mesh))
        train_step, evaluate = passes(parts)
        training = Training(state, train_step, dict(record), writer, config.train, evaluate, goodput=goodput)
        try:
            state = loop.train(training, data, checkpointer, callbacks, mesh=parts.mesh)
        finally:
            writer.close()
            data.close()
        checkpointer.close()
    if data.bad_records:
        print(f"{data.bad_records} broken records were skipped, see the messages above")
    return state


def _validated(workdir: str | Path) -> int:
    """The newest step whose validation metrics are written; -1 without any."""
    return max((record["step"] for record in metrics.read(workdir) if "validation/loss" in record), default=-1)


def _seconds(workdir: str | Path) -> float:
    """Of the run so far, by its newest metrics; 0 without any."""
    return max((record.get("perf/seconds", 0.0) for record in metrics.read(workdir)), default=0.0)


def validation(parts: Parts, batches: Sequence[Mapping]) -> Evaluate:
    """Builds the pass over validation batches."""
    evaluate_batch = step.make_eval_step(parts.pretext, parts.objectives, parts.mesh)

    def evaluate(state: TrainState) -> dict[str, float]:
        sums = [jax.device_get(evaluate_batch(state, loop.place(batch, parts.mesh))) for batch in batches]
        return step.mean_losses(sums, parts.objectives)

    return evaluate


def require_done(state: TrainState, steps: int, workdir: str | Path) -> None:
    """Raises a `TrainingError` where a run was stopped before its last step: what comes after it has to wait."""
    if int(state.step) < steps:
        raise TrainingError(f"{remote.shown(workdir)} was stopped as asked: the same command goes on from there")


def _resume(
    checkpointer: Checkpointer,
    like: TrainState,
    data: BatchIterator,
    config: PretrainConfig | FinetuneConfig,
    record: Mapping[str, Any],
    sections: Sequence[str],
    goodput: Goodput,
) -> TrainState:
    """The newest state, in the places of `like`; batches go on from there. Defaults that a checkpoint does not state
    are filled in."""
    step = processes.from_first(checkpointer.newest_whole)
    saved = checkpointer.record(step)
    if (kind := kind_of(saved)) in (COMPRESSED, IMPORTED):
        raise ConfigError(
            f"{checkpointer.workdir} holds a model that is {kind}, without an optimiser state to resume "
            "from: choose a new --workdir"
        )
    before, now = type(config).of(saved["config"]).complete(), config.complete()
    for section in sections:
        check_same({section: before[section]}, {section: now[section]}, "config")
    check_same(saved["statistics"], record["statistics"], "statistics")
    state = checkpointer.restore(like, step)
    checkpointer.set_aside_after(step)
    data.set_state(saved["data"])
    goodput.resume(saved.get("seconds", {}), processes.from_first(lambda: _seconds(checkpointer.workdir)))
    return state


def with_experts_left(values: Mapping[str, Any], workdir: str) -> Mapping[str, Any]:
    """A configuration with the experts that the newest checkpoint of `workdir` has left; as it is where there is none.

    Args:
        values: nested dict of a configuration with online pruning.
        workdir: folder of the run.
    """

    def saved() -> dict[str, Any]:
        if not Checkpointer.exists(workdir):
            return {}
        checkpointer = Checkpointer.open(workdir)
        model = checkpointer.record()["config"].get("model", {}) if checkpointer.latest is not None else {}
        checkpointer.close()
        return model

    return {**values, "model": online.taken_over(values["model"], processes.from_first(saved))}


def once(values: Mapping[str, Any], workdir: Path, result: str, run: Callable[[], Any]) -> None:
    """Does one run of a grid of them, unless its result is there; what it prints goes to `log.txt`.

    Args:
        values: configuration of the run.
        workdir: its folder.
        result: the file in it that `run` writes last.
        run: does it, or goes on with it.

    Raises:
        ConfigError: the folder holds a run of another configuration.
    """
    claim(workdir, REQUEST, {"config": json.loads(json.dumps(values))})
    if processes.from_first((workdir / result).exists):
        return
    started = time.perf_counter()
    print(f"{remote.shown(workdir)}  ...", end="", flush=True)
    with logged(workdir, "a"):
        run()
    print(f" {time.perf_counter() - started:.0f} s", flush=True)


@contextlib.contextmanager
def logged(folder: Path, mode: str) -> Iterator[None]:
    """What is printed goes to `log.txt`; of several processes the first one prints.

    Raises:
        DataError: it cannot be written.
    """
    if processes.number():
        yield
        return
    with files.writing(folder / "log.txt"):
        folder.mkdir(parents=True, exist_ok=True)
        log = io.TextIOWrapper(io.BufferedWriter(_Log(folder / "log.txt", mode)))
    with log, contextlib.redirect_stdout(log):
        yield


class _Log(io.FileIO):
    """A file that says its name when it cannot be written, as no `OSError` of a write does."""

    def write(self, data) -> int:
        with files.writing(Path(self.name)):
            return super().write(data)
