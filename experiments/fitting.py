"""A run from its first or last checkpoint to its last step; pre-training and fine-tuning alike."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optax

from input_pipeline.reader import BatchIterator
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
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    mesh=None,
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
        evaluate: validation metrics of a state; not called where `train.evaluate_every` is 0.
        mesh: None is one device.

    Returns:
        The state after the last step.

    Raises:
        UserError: the checkpoint is of another configuration, or training failed; nothing that was saved is lost.
    """
    checkpointer = Checkpointer(workdir, keep=train.keep_checkpoints)
    if checkpointer.latest is not None:
        saved = checkpointer.record()
        for section in sections:
            own = record["config"].get(section)
            check_same({section: saved["config"].get(section)}, {section: own}, "config")
        check_same(saved["statistics"], record["statistics"], "statistics")
        state = checkpointer.restore(state)
        data.set_state(saved["data"])
        print(f"resuming {workdir} at step {int(state.step)}")
    writer = MetricsWriter(workdir, resume_step=int(state.step))
    train_step = step.make_train_step(
        pretext, objectives, optimizer, learning_rate, seed=train.seed, accumulate=train.accumulate, mesh=mesh
    )
    try:
        state = loop.train(
            state,
            train_step,
            data,
            train,
            checkpointer,
            writer,
            record=record,
            evaluate=evaluate if train.evaluate_every else None,
            mesh=mesh,
        )
    finally:
        writer.close()
        data.close()
    checkpointer.close()
    if data.bad_records:
        print(f"{data.bad_records} broken records were skipped, see the messages above")
    return state


def once(values: Mapping[str, Any], workdir: Path, name: str, run: Callable[[], Any]) -> None:
    """Does one run of a grid of them, unless its record says that it was done; what it prints goes to `log.txt`.

    Args:
        values: configuration of the run.
        workdir: its folder.
        name: of the record, a file in it.
        run: does it.

    Raises:
        ConfigError: the folder holds a run of another configuration.
    """
    record = workdir / name
    plain = json.loads(json.dumps(values))
    done = json.loads(record.read_text()) if record.exists() else None
    if done and done["config"] != plain:
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
