"""The loop: batches in, steps, metrics one step late, callbacks, checkpoints, and a clean stop at any time."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from ringmoe_jax.errors import ConfigError, TrainingError
from ringmoe_jax.parallel.mesh import batch_sharding
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.goodput import INPUT, SAVING, Goodput
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


Step = Callable[[TrainState, Mapping], tuple[TrainState, dict]]
Evaluate = Callable[[TrainState], dict[str, float]]


@dataclasses.dataclass
class Training:
    """A run while it trains, as callbacks see it; they may replace `state`, `train_step`, `evaluate` and `record`.

    Attributes:
        state: after the last step.
        train_step: from `make_train_step`; donates its state.
        record: config, statistics and so on, saved with every checkpoint.
        writer: where metrics go.
        config: how long.
        evaluate: validation metrics of a state; None where there is no validation.
        step: optimiser steps taken.
        goodput: what the time went into; checkpoints' records hold it as "seconds".
    """

    state: TrainState
    train_step: Step
    record: dict[str, Any]
    writer: MetricsWriter
    config: TrainConfig
    evaluate: Evaluate | None = None
    step: int = 0
    goodput: Goodput = dataclasses.field(default_factory=Goodput)

    @property
    def done(self) -> bool:
        """Whether the last step was taken."""
        return self.step == self.config.steps


class Callback(Protocol):
    """What watches or changes a run while it trains: validation, pruning, pictures. Its time counts for no rate.

    Attributes:
        name: of what it does; its time is logged as that.
        watches: whether it leaves the run as it is. It is then called after the checkpoint of a step was saved, so that
            what goes wrong in it costs no step; and before the first step, if it is due there.
    """

    name: str
    watches: bool

    def due(self, training: Training) -> bool:
        """Whether to be called after the step that was just taken; looks at `step` and `config`, costs nothing."""

    def __call__(self, training: Training) -> None:
        """Acts; metrics of the step have been checked. Host and device may exchange arrays here."""


@dataclasses.dataclass(frozen=True)
class Validation:
    """Logs validation metrics before the first step, every `train.evaluate_every` steps and after the last one.

    Attributes:
        logged: step of the newest validation metrics that are written already, of a run that is resumed.
    """

    logged: int = -1
    name = "validation"
    watches = True

    def due(self, training: Training) -> bool:
        """See `Callback`."""
        every, step = training.config.evaluate_every, training.step
        asked = training.evaluate is not None and every > 0 and step > self.logged
        return asked and (training.done or step % every == 0)

    def __call__(self, training: Training) -> None:
        """See `Callback`."""
        scalars = training.evaluate(training.state)
        training.writer.write(training.step, {f"validation/{name}": value for name, value in scalars.items()})
        width = 2 * len(str(training.config.steps)) + 6
        print(f"{'validation':<{width}} | loss {describe_losses(scalars)}", flush=True)


def train(
    training: Training,
    data: DataIterator,
    checkpointer: Checkpointer,
    callbacks: Sequence[Callback] = (),
    *,
    mesh=None,
) -> TrainState:
    """Trains from `training.state.step` to `training.config.steps`.

    SIGTERM and SIGINT finish the step, save, and return; of several processes all finish the same one, whichever was
    asked. A loss or gradient that is not finite stops the run before anything is saved.

    Args:
        training: a new or restored state and what it is trained with.
        data: batches of this process; its position goes into checkpoints.
        checkpointer: where states go.
        callbacks: called in this order after the steps for which they are due: those that change the run before its
            checkpoint is saved, those that watch it after that.
        mesh: None is one device.

    Raises:
        TrainingError: a metric is not finite (names it and the step), or a checkpoint cannot be written.
    """
    config, goodput, training.step = training.config, training.goodput, int(training.state.step)
    progress = _Progress(config, training.writer, training.step, goodput)

    def act(due: Sequence[Callback]) -> None:
        for callback in due:
            with goodput.on(callback.name):
                progress.without(lambda callback=callback: callback(training))

    def save() -> None:
        with goodput.on(SAVING):
            record = training.record | {"data": data.get_state(), "seconds": goodput.seconds}
            checkpointer.save(training.step, training.state, record)

    goodput.start()
    try:
        with Stop() as stop, jax.transfer_guard("disallow"):
            act([callback for callback in callbacks if callback.watches and callback.due(training)])
            if not training.done:
                told = "0.5 to 6 minutes on two CPU cores, seconds where it is cached; nothing is printed meanwhile"
                print(f"compiling    the first step: {told}", flush=True)
            stopping = stop.after(training.step)
            if stopping:
                save()
            while not (training.done or stopping):
                with goodput.on(INPUT):
                    batch = place(next(data), mesh)
                training.step += 1
                annotation = jax.profiler.StepTraceAnnotation("train", step_num=training.step)
                with annotation, goodput.calling(training.train_step):
                    training.state, metrics = training.train_step(training.state, batch)
                progress.after_step(training.step, metrics, images=count_images(batch))
                stopping = stop.after(training.step)
                due = [callback for callback in callbacks if callback.due(training)]
                saving = training.done or stopping or training.step % config.checkpoint_every == 0
                if due or saving:
                    progress.flush()  # a state whose metrics are not finite is never looked at and never saved
                act([callback for callback in due if not callback.watches])
                if saving:
                    save()
                if not stopping:  # what is asked to stop has little time; who goes on watches first
                    act([callback for callback in due if callback.watches])
            if stopping and not training.done:
                print(f"stopped at step {training.step} as asked; the same command goes on from here")
    finally:
        with goodput.on(SAVING):
            checkpointer.wait()  # whatever happened, a save that was under way is finished
    print(f"time        {goodput}", flush=True)
    return training.state


def place(batch: Mapping, mesh) -> Mapping:
    """Puts a batch of this process on its devices; arrays that lie on the only one stay where they are.

    With a mesh, arrays of a device pass through the host, which works for any number of hosts.
    """
    if mesh is None:
        return jax.device_put(batch)
    sharding = batch_sharding(mesh)
    with jax.transfer_guard("allow"):  # it is what is meant, but counts as implicit where there are several processes
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, jax.device_get(x)), batch)


def count_images(batch: Mapping) -> int:
    """Images in a batch: samples times dates, over all sensors and views."""
    views = (batch["sensors"], *batch.get("views", {}).values())
    return sum(int(np.prod(entry["pixels"].shape[:2])) for view in views for entry in view.values())


class _Progress:
    """Fetches metrics one step late, so that the device never waits for the host."""

    def __init__(self, config: TrainConfig, writer: MetricsWriter, first: int, goodput: Goodput):
        self.config, self.writer, self.goodput = config, writer, goodput
        self.pending: tuple[int, dict] | None = None
        self.first, self.began = first, None
        self._reset()

    def _reset(self):
        self.images, self.steps, self.since = 0, 0, time.perf_counter()
        self.waited = self.goodput.seconds.get(INPUT, 0.0)

    def after_step(self, step: int, metrics: dict, *, images: int) -> None:
        self.flush()  # the wait for this step's batch lies before that, its own work after it
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
        logged = step % self.config.log_every == 0 or step == self.config.steps
        if self.began is None:  # the first step compiles: keep it out of every rate
            print(f"first step took {now - self.since:.1f} s (compilation)", flush=True)
            self.began, self.first = now, step
            if logged:
                self.writer.write(step, scalars, tables)
            self._reset()
            return
        if not logged:
            return
        elapsed = max(now - self.since, 1e-9)
        scalars |= {
            "perf/images_per_second": self.images / elapsed,
            "perf/input_wait": (self.goodput.seconds[INPUT] - self.waited) / elapsed,
            "perf/step_seconds": elapsed / max(self.steps, 1),
            **self.goodput.scalars,
        }
        self.writer.write(step, scalars, tables)
        self._print(step, scalars, now)
        self._reset()

    def _print(self, step: int, scalars: dict, now: float) -> None:
        remaining = (now - self.began) / max(step - self.first, 1) * (self.config.steps - step)
        width = len(str(self.config.steps))
        print(
            f"step {step:>{width}}/{self.config.steps} | loss {describe_losses(scalars)} | "
            f"{scalars['perf/images_per_second']:.0f} images/s, input wait {scalars['perf/input_wait']:.0%} | "
            f"{int(remaining) // 60}:{int(remaining) % 60:02d} left",
            flush=True,
        )

    def without(self, act: Callable[[], Any]) -> None:
        """Does something whose time counts for no rate, and that may move arrays between host and device."""
        started = time.perf_counter()
        with jax.transfer_guard("allow"):
            act()
        spent = time.perf_counter() - started
        self.since += spent
        self.began = None if self.began is None else self.began + spent


def describe_losses(scalars: Mapping[str, float]) -> str:
    """The total and its terms, each times its weight, as they add up: "1.250 = rgb 1.000 + balance 0.250"."""
    terms = {name.removeprefix("weighted/"): v for name, v in scalars.items() if name.startswith("weighted/")}
    parts = [f"{label} {value:.3f}" for label, value in terms.items()]
    return f"{scalars['loss']:.3f} = {' + '.join(parts)}"


class Stop:
    """Whether to stop after a step: SIGTERM or SIGINT came. It restores the handlers afterwards.

    Of several processes the one that was asked tells the others, by the service of JAX for that, which takes SIGTERM.
    """

    def __init__(self):
        self._requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        handlers = {signal.SIGTERM: self._request, signal.SIGINT: self._request}
        if jax.process_count() > 1:
            handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
        for number, handler in handlers.items():
            try:
                self._previous[number] = signal.signal(number, handler)
            except ValueError:  # not the main thread, for example in a notebook's worker: leave signals alone
                break
        return self

    def after(self, step: int) -> bool:
        """Whether to stop after this step; processes of one job have to ask after every step, and hear the same."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested

    def _request(self, *_):
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
