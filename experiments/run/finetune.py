"""Fine-tuning: an encoder (pre-trained or new), a head and a task on a label, to the last step and a score."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.run import data as run_data
from experiments.run import score
from experiments.run.encoder import encoder_of
from experiments.run.fit import fit, new_shapes, new_state, require_done
from input_pipeline.reader import BatchIterator
from ringmoe_jax import run as runs
from ringmoe_jax.evaluate import seeds
from ringmoe_jax.models import count
from ringmoe_jax.models.downstream import DECODER, ENCODER
from ringmoe_jax.run import CHECKPOINT, TASK, Encoder, FinetuneConfig, Parts, Run, results
from ringmoe_jax.run.evaluation import SEED_SCORES, SeedScores, TaskScore
from ringmoe_jax.training.goodput import Goodput
from ringmoe_jax.training.state import TrainState, known_of

SECTIONS = ("task", "head", "neck", "adaptation", "objectives", "model", "override", "data", "optimizer")


def finetune(values: Mapping[str, Any], workdir: str) -> TaskScore:
    """Runs a configuration to its last step and scores the result.

    Args:
        values: nested dict of a configuration file.
        workdir: folder of the run; a checkpoint found there is resumed, exactly.

    Raises:
        UserError: bad configuration, data or checkpoint; nothing that was saved is lost.
    """
    goodput, config = Goodput(), FinetuneConfig.of(values)
    mesh = runs.make_mesh(config.mesh)
    encoder = encoder_of(config)
    dataset = run_data.open_labelled(config, encoder)
    data = run_data.open_training(encoder.data(config.data), mesh, config.train.accumulate)

    kept = encoder.statistics if config.statistics == CHECKPOINT else {}
    spec = run_data.task_spec(config, dataset)
    parts = runs.finetuning(config, encoder, spec, dict(data.statistics) | kept, mesh)
    describe(config, encoder, parts, new_shapes(parts, config), data)

    def create() -> TrainState:
        trained = config.init_from and config.weights == CHECKPOINT
        known = known_of(parts.model, {ENCODER: Run.open(config.init_from).params}) if trained else {}
        return new_state(parts, config, known)

    record = {
        "config": config.complete(),
        "statistics": {name: s.to_json() for name, s in parts.statistics.items()},
        "encoder": dataclasses.asdict(encoder),
        "subject": dataclasses.asdict(spec),
    }
    state = fit(workdir, create, CheckedTruth(data, parts), parts, config, record, SECTIONS, goodput=goodput)
    require_done(state, config.train.steps, workdir)
    return score.score(Run.open(workdir, kinds=(TASK,)))


def several(values: Mapping[str, Any], workdir: str, numbers: Sequence[int]) -> SeedScores:
    """The same configuration with several seeds, each in `<workdir>/seed<n>`; means and intervals over seeds.

    Raises:
        UserError: see `finetune`.
    """
    scored = []
    for seed in numbers:
        own = FinetuneConfig.of(values).complete()
        own["train"]["seed"] = seed
        own["data"]["shuffle_seed"] = seed
        scored.append(finetune(own, str(Path(workdir) / f"seed{seed}")))
    means = {name: seeds.mean([result.scores[name].value for result in scored]) for name in scored[0].scores}
    joined = SeedScores(seeds=tuple(numbers), task=scored[0].task, scores=means, runs=tuple(scored))
    results.write(Path(workdir) / SEED_SCORES, joined)
    return joined


class CheckedTruth:
    """Batches for training whose truth is looked at before it is learnt; otherwise as the iterator it wraps.

    One batch is read ahead: where a device computes batches, what is asked of one waits for all that was asked before,
    a training step among it.
    """

    def __init__(self, data: BatchIterator, parts: Parts):
        self._data, self._parts = data, parts
        self._ahead: Mapping | None = None
        self._position = data.get_state()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def __iter__(self) -> Iterator[Mapping]:
        return self

    def __next__(self) -> Mapping:
        batch = next(self._data) if self._ahead is None else self._ahead
        self._position = self._data.get_state()
        self._ahead = next(self._data)
        score.check_truth(batch, self._parts)
        return batch

    def get_state(self) -> dict:
        """The position behind the batch that was given last."""
        return self._position

    def set_state(self, state: Mapping) -> None:
        """Goes on behind that batch."""
        self._data.set_state(state)
        self._position, self._ahead = self._data.get_state(), None


def describe(config: FinetuneConfig, encoder: Encoder, parts: Parts, state: TrainState, data: BatchIterator) -> None:
    """Prints what is about to be trained, on what, from which data."""
    (name,) = data.datasets
    shown = jax.process_count() * data.sizes[name]
    source = f"{config.init_from} at step {encoder.step}" if config.init_from else "new"
    if encoder.origin:
        source += f" ({encoder.origin['source']}, {encoder.origin['licence']})"
    fresh = ", but fresh weights" if config.init_from and config.weights != CHECKPOINT else ""
    print(f"devices     {len(jax.devices())} x {jax.devices()[0].device_kind}")
    print(f"encoder     {encoder.model['name']} of {source}{fresh}; shown {', '.join(parts.sensors)}")
    print(f"parameters  {count(state.params):,} trained, {count(state.pretext):,} frozen")
    for part in (ENCODER, "lora", DECODER):
        if part in state.params:
            print(f"            {count(state.params[part]):>14,} {part}")
    names = f": {', '.join(parts.target.names)}" if parts.target.names else ""
    print(f"task        {config.task['name']} of {parts.target.name}{names}")
    print(f"data        {data.samples[name]} samples of {data.datasets[name].directory}, {shown} a step")
    for label, objective in parts.objectives.items():
        print(f"objective   {label}: {objective}")
