"""A run from its first or last checkpoint to its last step; pre-training and fine-tuning alike."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optax

from input_pipeline.reader import BatchIterator
from ringmoe_jax.compress import online
from ringmoe_jax.compress.online import Dropped, Evaluate, OnlinePruning, PruningConfig
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives import Objective
from ringmoe_jax.pretext import Pretext
from ringmoe_jax.training import loop, step
from ringmoe_jax.training.checkpoint import Checkpointer, check_same
from ringmoe_jax.training.loop import TrainConfig
from ringmoe_jax.training.metrics import MetricsWriter
from ringmoe_jax.training.state import TrainState


def fit(
    workdir: str,
    state: TrainState,
    data: BatchIterator,
    *,
    pretext: Pretext,
    objectives: Mapping[str, Objective],
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    train: TrainConfig,
    record: Mapping[str, Any],
    sections: Sequence[str],
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    evaluate: Evaluate | None = None,
    mesh=None,
    pruning: PruningConfig = PruningConfig(),  # noqa: B008
    rebuild: Callable[[dict[str, Any]], tuple[Pretext, Evaluate | None]] | None = None,
) -> TrainState:
    """Trains, going on from the newest checkpoint of `workdir` where there is one, exactly.

    Args:
        workdir: folder of the run.
        state: a new one.
        data: batches.
        pretext: forward passes.
        objectives: terms of the loss by label.
        optimizer: update rule.
        learning_rate: of the rule, for the metrics.
        train: how long.
        record: JSON types that are saved with every checkpoint; holds "config" and "statistics".
        sections: of the config that must be those of the checkpoint.
        complete: fills the defaults in, in the config of a checkpoint that states fewer keys, or more, than this one.
        evaluate: validation metrics of a state; not called where `train.evaluate_every` is 0.
        mesh: None is one device.
        pruning: which experts go on the way; where any do, `pretext` is `online.counted`, and checkpoints say
            in their record's config.model what is left.
        rebuild: `rebuild(model) -> (pretext, evaluate)` of a `config.model` with fewer experts.

    Returns:
        The state after the last step.

    Raises:
        UserError: the checkpoint is of another configuration, or training failed; nothing that was saved is lost.
    """
    checkpointer = Checkpointer(workdir, keep=train.keep_checkpoints)
    if checkpointer.latest is not None:
        state = _resume(checkpointer, state, data, record, sections, complete)
        print(f"resuming {workdir} at step {int(state.step)}")
    writer = MetricsWriter(workdir, resume_step=int(state.step))
    make_step = functools.partial(
        step.make_train_step,
        objectives=objectives,
        optimizer=optimizer,
        learning_rate=learning_rate,
        seed=train.seed,
        accumulate=train.accumulate,
        mesh=mesh,
    )
    evaluate = evaluate if train.evaluate_every else None
    if pruning.every:
        record = dict(record)  # will tell of the experts that are left
        train_step = _losing_experts(make_step, rebuild, pruning, record, writer, step=int(state.step), mesh=mesh)
        evaluate = evaluate and train_step.evaluate
    else:
        train_step = make_step(pretext)
    try:
        state = loop.train(
            state,
            train_step,
            data,
            train,
            checkpointer,
            writer,
            record=record,
            evaluate=evaluate,
            mesh=mesh,
        )
    finally:
        writer.close()
        data.close()
    checkpointer.close()
    if data.bad_records:
        print(f"{data.bad_records} broken records were skipped, see the messages above")
    return state


def _resume(
    checkpointer: Checkpointer,
    state: TrainState,
    data: BatchIterator,
    record: Mapping[str, Any],
    sections: Sequence[str],
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> TrainState:
    """The newest state; batches go on from there."""
    saved = checkpointer.record()
    if "compressed" in saved:
        raise ConfigError(
            f"{checkpointer.directory.parent} holds a compressed model, which has no optimiser state to resume from: "
            "choose a new --workdir"
        )
    before, now = complete(saved["config"]), complete(record["config"])
    for section in sections:
        check_same({section: before[section]}, {section: now[section]}, "config")
    check_same(saved["statistics"], record["statistics"], "statistics")
    state = checkpointer.restore(state)
    data.set_state(saved["data"])
    return state


def _losing_experts(
    make_step: Callable, rebuild: Callable, pruning: PruningConfig, record: dict, writer: MetricsWriter, **where
) -> OnlinePruning:
    """The step of a model that loses experts, which is built again for those that are left; see `fit`."""

    def passes(model: dict[str, Any]):
        pretext, evaluate = rebuild(model)
        return make_step(pretext), evaluate

    report = functools.partial(_report, record, writer)
    return OnlinePruning(pruning, record["config"]["model"], passes, report, **where)


def _report(record: dict[str, Any], writer: MetricsWriter, dropped: Dropped) -> None:
    """Says what the end of a window took, in the record of coming checkpoints, in the metrics and on the screen."""
    record["config"] = {**record["config"], "model": dropped.model}
    scalars = {"experts": dropped.count, "parameters": dropped.parameters, "bytes": dropped.nbytes}
    writer.write(
        dropped.step,
        {f"pruning/{name}": value for name, value in scalars.items()},
        {f"pruning/{group}/left": counts for group, counts in dropped.left.items()},
    )
    if not dropped.count:
        print(f"pruning     step {dropped.step}: every expert was used", flush=True)
        return
    for group, layers in dropped.experts.items():
        went = "; ".join(f"layer {layer}: {', '.join(map(str, numbers))}" for layer, numbers in layers.items())
        print(f"pruning     step {dropped.step}: unused {group} experts went ({went})")
    left = sum(int(counts.sum()) for counts in dropped.left.values())
    print(
        f"            {dropped.count} experts with {dropped.parameters:,} parameters, with the optimiser's state "
        f"{dropped.nbytes / 1e6:,.1f} MB; {left} experts are left",
        flush=True,
    )


def with_experts_left(values: Mapping[str, Any], workdir: str) -> Mapping[str, Any]:
    """A configuration with the experts that the newest checkpoint of `workdir` has left; as it is where there is none.

    Args:
        values: nested dict of a configuration with online pruning.
        workdir: folder of the run.
    """
    if not (Path(workdir) / "checkpoints").is_dir():
        return values
    checkpointer = Checkpointer.open(workdir)
    saved = checkpointer.record()["config"] if checkpointer.latest is not None else {}
    checkpointer.close()
    return {**values, "model": online.taken_over(values["model"], saved.get("model", {}))}


def once(
    values: Mapping[str, Any],
    workdir: Path,
    name: str,
    run: Callable[[], Any],
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> None:
    """Does one run of a grid of them, unless its record says that it was done; what it prints goes to `log.txt`.

    Args:
        values: configuration of the run.
        workdir: its folder.
        name: of the record, a file in it.
        run: does it.
        complete: see `fit`.

    Raises:
        ConfigError: the folder holds a run of another configuration.
    """
    record = workdir / name
    done = json.loads(record.read_text()) if record.exists() else None
    plain = json.loads(json.dumps(complete(values)))
    if done and json.loads(json.dumps(complete(done["config"]))) != plain:
        raise ConfigError(f"{workdir} holds a run of another configuration: choose another folder, or delete it")
    if done:
        return
    workdir.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    print(f"{workdir}  ...", end="", flush=True)
    with (workdir / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
        run()
    seconds = time.perf_counter() - started
    draft = record.with_suffix(".draft")
    draft.write_text(json.dumps({"config": plain, "seconds": seconds}, indent=1) + "\n")
    draft.replace(record)  # a record is whole, or it is not there
    print(f" {seconds:.0f} s", flush=True)
