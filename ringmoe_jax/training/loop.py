"""The loop: batches in, steps, metrics one step late, checkpoints, and a clean stop at any time."""

from __future__ import annotations

import dataclasses
import functools
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from ringmoe_jax.errors import ConfigError, TrainingError
from ringmoe_jax.parallel.mesh import batch_sharding
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.metrics import MetricsWriter, not_finite
from ringmoe_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long to train and what to leave behind.

    Attributes:
        steps: optimiser steps.
        accumulate: micro-batches a step.
        log_every: steps between progress lines and metric records.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep_checkpoints: newest checkpoints to keep; 0 keeps all.
        evaluate_every: steps between passes over the validation batches; 0 is never.
        seed: of parameters and of every random decision in a step.
    """

    steps: int = 1000
    accumulate: int = 1
    log_every: int = 10
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    evaluate_every: int = 0
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "accumulate", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} = {getattr(self, name)} must be at least 1")


class DataIterator(Protocol):
    """What the loop needs of a pipeline."""

    def __iter__(self) -> Iterator[Mapping]: ...

    def __next__(self) -> Mapping: ...

    def get_state(self) -> dict: ...


def train(
    state: TrainState,
    step: Callable[[TrainState, Mapping], tuple[TrainState, dict]],
    data: DataIterator,
    config: TrainConfig,
    checkpointer: Checkpointer,
    writer: MetricsWriter,
    *,
    record: Mapping[str, Any],
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    mesh=None,
) -> TrainState:
    """Trains from `state.step` to `config.steps`.

    SIGTERM and SIGINT finish the step, save, and return. A loss or gradient that is not finite stops the
    run before anything is saved.

    Args:
        state: new or restored.
        step: from `make_train_step`.
        data: batches of this process; its position goes into checkpoints.
        config: how long.
        checkpointer: where states go.
        writer: where metrics go.
        record: config, statistics and so on, saved with every checkpoint.
        evaluate: validation metrics of a state.
        mesh: None is one device.

    Raises:
        TrainingError: a metric is not finite (names it and the step), or a checkpoint cannot be written.
    """
    first = int(state.step)
    progress = _Progress(config, writer, first)
    try:
        with _StopSignals() as stop, jax.transfer_guard("disallow"):
            for number in range(first + 1, config.steps + 1):
                started = time.perf_counter()
                batch = place(next(data), mesh)
                waited = time.perf_counter() - started
                with jax.profiler.StepTraceAnnotation("train", step_num=number):
                    state, metrics = step(state, batch)
                progress.after_step(number, metrics, images=count_images(batch), waited=waited)
                done = number == config.steps
                stopping = stop.requested or checkpointer.preempted(number)
                if evaluate and (done or (config.evaluate_every and number % config.evaluate_every == 0)):
                    progress.flush()
                    progress.validation(number, functools.partial(evaluate, state))
                if done or stopping or number % config.checkpoint_every == 0:
                    progress.flush()  # a state whose metrics are not finite is never saved
                    checkpointer.save(number, state, dict(record) | {"data": data.get_state()})
                if stopping and not done:
                    print(f"stopped at step {number} as asked; the same command goes on from here")
                    break
    finally:
        checkpointer.wait()  # whatever happened, a save that was under way is finished
    return state


def place(batch: Mapping, mesh) -> Mapping:
    """Puts a batch of this process on its devices."""
    if mesh is None:
        return jax.device_put(batch)
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def count_images(batch: Mapping) -> int:
    """Images in a batch: samples times dates, over all sensors."""
    return sum(int(np.prod(entry["pixels"].shape[:2])) for entry in batch["sensors"].values())


class _Progress:
    """Fetches metrics one step late, so that the device never waits for the host."""

    def __init__(self, config: TrainConfig, writer: MetricsWriter, first: int):
        self.config, self.writer = config, writer
        self.pending: tuple[int, dict] | None = None
        self.first, self.began = first, None
        self._reset()

    def _reset(self):
        self.images, self.waited, self.steps, self.since = 0, 0.0, 0, time.perf_counter()

    def after_step(self, step: int, metrics: dict, *, images: int, waited: float) -> None:
        self.waited += waited  # this wait lies before the flush, the step's own work after it
        self.flush()
        self.pending = (step, metrics)
        self.images, self.steps = self.images + images, self.steps + 1

    def flush(self) -> None:
        """Checks the last step's metrics, and logs them when their turn has come."""
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending = None
        fetched = jax.device_get(metrics)
        scalars = {name: float(value) for name, value in fetched.items() if not np.ndim(value)}
        tables = {name: value for name, value in fetched.items() if np.ndim(value)}
        bad = not_finite(scalars)
        if bad:
            losses = [name for name in bad if name.startswith("loss/")] or bad
            raise TrainingError(
                f"step {step}: {', '.join(losses)} is not finite; nothing was saved after the last checkpoint. "
                f"Lower the learning rate, or look at the batch of this step"
            )
        now = time.perf_counter()
        if self.began is None:  # the first step compiles: keep it out of every rate
            print(f"first step took {now - self.since:.1f} s (compilation)", flush=True)
            self.began, self.first = now, step
            if step % self.config.log_every == 0:
                self.writer.write(step, scalars, tables)
            self._reset()
            return
        if step % self.config.log_every and step != self.config.steps:
            return
        elapsed = max(now - self.since, 1e-9)
        scalars |= {
            "perf/images_per_second": self.images / elapsed,
            "perf/input_wait": self.waited / elapsed,
            "perf/step_seconds": elapsed / max(self.steps, 1),
        }
        self.writer.write(step, scalars, tables)
        self._print(step, scalars, now)
        self._reset()

    def _print(self, step: int, scalars: dict, now: float) -> None:
        remaining = (now - self.began) / max(step - self.first, 1) * (self.config.steps - step)
        width = len(str(self.config.steps))
        print(
            f"step {step:>{width}}/{self.config.steps} | loss {_losses(scalars)} | "
            f"{scalars['perf/images_per_second']:.0f} images/s, input wait {scalars['perf/input_wait']:.0%} | "
            f"{int(remaining) // 60}:{int(remaining) % 60:02d} left",
            flush=True,
        )

    def validation(self, step: int, evaluate: Callable[[], dict[str, float]]) -> None:
        """Runs and logs a validation pass; its time counts for no rate."""
        started = time.perf_counter()
        scalars = evaluate()
        self.writer.write(step, {f"validation/{name}": value for name, value in scalars.items()})
        width = 2 * len(str(self.config.steps)) + 6
        print(f"{'validation':<{width}} | loss {_losses(scalars)}", flush=True)
        spent = time.perf_counter() - started
        self.since += spent
        self.began = None if self.began is None else self.began + spent


def _losses(scalars: Mapping[str, float]) -> str:
    parts = [f"{name.removeprefix('loss/')} {v:.3f}" for name, v in scalars.items() if name.startswith("loss/")]
    return f"{scalars['loss']:.3f} ({', '.join(parts)})"


class _StopSignals:
    """Remembers SIGTERM and SIGINT instead of dying; restores the handlers afterwards."""

    def __init__(self):
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._request)
            except ValueError:  # not the main thread, for example in a notebook's worker: leave signals alone
                break
        return self

    def _request(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
