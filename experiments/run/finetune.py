"""Fine-tuning: an encoder (pre-trained or new), a head and a task on a label, to the last step and a score."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.run import data as run_data
from experiments.run import score
from experiments.run.fit import fit, new_state, require_done
from input_pipeline.reader import BatchIterator
from ringmoe_jax import models
from ringmoe_jax import run as runs
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.evaluate import seeds
from ringmoe_jax.models import Params, count, resampling
from ringmoe_jax.models.downstream import DECODER, ENCODER
from ringmoe_jax.run import (
    CHECKPOINT,
    FEATURES,
    IMPORTED,
    TASK,
    Encoder,
    FinetuneConfig,
    Parts,
    Run,
    kind_of,
    read_record,
    results,
)
from ringmoe_jax.run.evaluation import SEED_SCORES, SeedScores, TaskScore
from ringmoe_jax.sensors import Statistics
from ringmoe_jax.training.goodput import Goodput
from ringmoe_jax.training.state import TrainState

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
    state = new_state(parts, config)
    if config.init_from and config.weights == CHECKPOINT:
        state = fill(state, Run.open(config.init_from).params)
    describe(config, encoder, parts, state, data)

    record = {
        "config": config.complete(),
        "statistics": {name: s.to_json() for name, s in parts.statistics.items()},
        "encoder": dataclasses.asdict(encoder),
        "subject": dataclasses.asdict(spec),
    }
    state = fit(workdir, state, CheckedTruth(data, parts), parts, config, record, SECTIONS, goodput=goodput)
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


def encoder_of(config: FinetuneConfig) -> Encoder:
    """What the config's `init_from`, `model` and `override` say; it takes images of the size that data shows.

    Raises:
        ConfigError: `init_from` is a fine-tuned run, or data shows images of several sizes.
    """
    changes = {"adapter": config.adaptation.hidden} if config.adaptation.method == "convpass" else {}
    if not config.init_from:
        return Encoder(_sized(config.model | changes, config.data), config.data.bands, {})
    record = read_record(config.init_from)
    if kind_of(record) not in FEATURES:
        raise ConfigError(f"init_from = {config.init_from} is a fine-tuned run: give the pre-trained one before it")
    saved = record["config"]
    return Encoder(
        _sized(_merge(saved["model"], config.override) | changes, config.data),
        {name: tuple(chosen) for name, chosen in saved["data"].get("bands", {}).items()},
        {name: Statistics(**s) for name, s in record["statistics"].items()},
        record["step"],
        record.get(IMPORTED, {}),
    )


def fill(state: TrainState, params: Params) -> TrainState:
    """A new state with the encoder's parameters of a checkpoint in it, where they were.

    Parameters that the encoder does not have (decoders of the pre-training) are left out; those that it has and the
    checkpoint lacks (bypasses) stay new.

    Args:
        state: of `new_state`.
        params: of the pre-training run.

    Raises:
        DataError: a parameter has another shape, and is no position table, which is resampled, see
            `ringmoe_jax.models.resampling`.
    """

    def filled(new, old, where):
        if isinstance(new, Mapping):
            return {k: filled(part, old[k], f"{where}/{k}") if k in old else part for k, part in new.items()}
        fitting = resampling.fitted(np.asarray(old), new.shape, where)
        return jax.make_array_from_callback(new.shape, new.sharding, lambda part: fitting[part])

    trained, frozen = state.params.get(ENCODER, {}), state.pretext.get("frozen", {})
    parts = state.params | ({ENCODER: filled(trained, params, ENCODER)} if trained else {})
    pretext = {"frozen": filled(frozen, params, ENCODER)} if frozen else {}
    return dataclasses.replace(state, params=parts, pretext=pretext)


class CheckedTruth:
    """Batches for training whose truth is looked at before it is learnt; otherwise as the iterator it wraps."""

    def __init__(self, data: BatchIterator, parts: Parts):
        self._data, self._parts = data, parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def __iter__(self) -> Iterator[Mapping]:
        return self

    def __next__(self) -> Mapping:
        batch = next(self._data)
        score.check_truth(batch, self._parts)
        return batch


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


def _merge(base: Mapping, changes: Mapping) -> dict:
    """Nested dicts, the second one's values over the first one's."""
    return dict(base) | {
        k: _merge(base[k], v) if isinstance(v, Mapping) and isinstance(base.get(k), Mapping) else v
        for k, v in changes.items()
    }


def _sized(model: Mapping[str, Any], data: DataConfig) -> dict[str, Any]:
    """A model that takes images of the size that the data shows it."""
    (stream,) = data.streams.values()
    sizes = {data.size(name) for name in models.image_sizes(model) if name in stream.sensors}
    if len(sizes) > 1:
        raise ConfigError(f"data shows images of {sorted(sizes)} px to an encoder that takes one size: set data.sizes")
    return dict(model) | ({"image_size": sizes.pop()} if sizes else {})
