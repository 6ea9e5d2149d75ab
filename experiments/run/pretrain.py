"""Pre-training, from a configuration to its last step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from experiments.run import data as run_data
from experiments.run.data import VALIDATION
from experiments.run.encoder import begun
from experiments.run.fit import fit, new_shapes, new_state, with_experts_left
from input_pipeline.evaluation import EvalBatches
from input_pipeline.reader import BatchIterator
from ringmoe_jax import run as runs
from ringmoe_jax.contracts import check_outputs
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models import count
from ringmoe_jax.planning.plan import batch_shapes, rows_of
from ringmoe_jax.pretext.distilled import distilled
from ringmoe_jax.run import CHECKPOINT, FEATURES, ORIGIN, Parts, PretrainConfig, Run
from ringmoe_jax.sensors import Statistics
from ringmoe_jax.training.goodput import Goodput
from ringmoe_jax.training.state import TrainState, known_of

SECTIONS = ("model", "pretext", "teacher", "objectives", "data", "optimizer", "pruning")  # what a resumed run shares
VALIDATION_BATCHES = 4


def pretrain(values: Mapping, workdir: str) -> TrainState:
    """Runs a configuration to its last step.

    Args:
        values: nested dict of a configuration file.
        workdir: folder of the run; a checkpoint found there is resumed, exactly.

    Raises:
        UserError: bad configuration, data or checkpoint; nothing that was saved is lost.
    """
    goodput = Goodput()
    config, data, parts = open_parts(values, workdir)
    begins = Run.open(config.init_from, kinds=FEATURES) if config.init_from else None

    def create() -> TrainState:
        known = known_of(parts.model, begins.params) if begins else {}
        if begins:
            terms = f" ({begins.origin['licence']})" if begins.origin else ""
            print(f"begins with {begins.folder} at step {begins.step}{terms}: {count(known):,} of the parameters")
        return new_state(parts, config, known)

    describe(parts, new_shapes(parts, config), data)
    return fit(
        workdir,
        create,
        data,
        parts,
        config,
        {
            "config": config.complete(),
            "statistics": {name: s.to_json() for name, s in parts.statistics.items()},
            ORIGIN: begins.origin if begins else {},
        },
        SECTIONS,
        goodput=goodput,
        held_out=validation_batches(config.data, parts.mesh) if config.train.evaluate_every else (),
        rebuild=_rebuilder(config, data, parts.mesh) if config.pruning.every else None,
    )


def open_parts(values: Mapping, workdir: str) -> tuple[PretrainConfig, BatchIterator, Parts]:
    """The checked configuration, batches of its data and the parts that it builds, on all devices.

    Raises:
        UserError: see `pretrain`.
    """
    config, encoder = begun(values)
    config.check_streams()
    if config.pruning.every:
        config = PretrainConfig.of(with_experts_left(config.complete(), workdir))
    mesh = runs.make_mesh(config.mesh)
    data = run_data.open_training(config.data, mesh, config.train.accumulate)
    kept = encoder.statistics if encoder and config.statistics == CHECKPOINT else {}
    parts = _built(config, dict(data.statistics) | kept, mesh)
    rows = rows_of(config, mesh.size if mesh else 1)
    check_outputs(parts.model, parts.pretext, parts.objectives, batch_shapes(config, rows))
    return config, data, parts


def _rebuilder(config: PretrainConfig, data: BatchIterator, mesh):
    """Builds the parts of the same run for a model with fewer experts."""

    def rebuild(model: dict[str, Any]) -> Parts:
        return _built(dataclasses.replace(config, model=model), data.statistics, mesh)

    return rebuild


def _built(config: PretrainConfig, statistics: Mapping[str, Statistics], mesh: jax.sharding.Mesh | None) -> Parts:
    """The parts of a configuration, under its teacher where it names one."""
    parts = runs.pretraining(config, statistics, mesh)
    if not config.teacher:
        return parts
    teacher = Run.open(config.teacher, kinds=FEATURES).frozen
    for name in config.sensors:
        if name not in teacher.sensors:
            known = nearest(name, teacher.sensors)
            raise ConfigError(f'config.teacher = "{config.teacher}" does not read "{name}": {known}')
    return dataclasses.replace(parts, pretext=distilled(parts.pretext, teacher.build(mesh).model, teacher.params))


def validation_batches(data: DataConfig, mesh: jax.sharding.Mesh | None) -> list[dict]:
    """This host's rows of the same batches every time, which split evenly over the devices.

    They show whole tiles side by side, or the first drawn views where training sees views.
    """
    host, hosts = jax.process_index(), jax.process_count()
    if data.views:
        streams = {name: dataclasses.replace(stream, split=VALIDATION) for name, stream in data.streams.items()}
        drawn = run_data.open_training(dataclasses.replace(data, streams=streams), mesh, 1)
        batches = [next(drawn) for _ in range(VALIDATION_BATCHES)]
        drawn.close()
        return [{"sensors": batch["sensors"], "views": batch["views"]} for batch in batches]
    rows = data.batch_size // hosts
    where = dict(split=VALIDATION, batch_size=rows, masked=True, host=host, hosts=hosts)
    readers = [EvalBatches.of(data, stream.directory, stream.sensors, **where) for stream in data.streams.values()]
    parts = [[batch for batch, _ in zip(reader, range(VALIDATION_BATCHES), strict=False)] for reader in readers]
    return [
        {"sensors": {name: entry for batch in side_by_side for name, entry in batch["sensors"].items()}}
        for side_by_side in zip(*parts, strict=False)
    ]


def describe(parts: Parts, state: TrainState, data: BatchIterator) -> None:
    """Prints what is about to be trained, on what, from which data."""
    devices, hosts = jax.devices(), jax.process_count()
    mesh = f", mesh {dict(parts.mesh.shape)}" if parts.mesh else ""
    print(f"devices     {len(devices)} x {devices[0].device_kind}{mesh}")
    print(f"parameters  {count(state.params):,} in all")
    for name, part in sorted(state.params.items(), key=lambda item: -count(item[1])):
        print(f"            {count(part):>14,} {name}")
    for name, dataset in data.datasets.items():
        sensors = ", ".join(f"{s} ({len(x.bands)} bands, {x.unit})" for s, x in dataset.sensors.items())
        print(f"stream      {name}: {hosts * data.sizes[name]} images a step of {sensors} from {dataset.directory}")
    for label, objective in parts.objectives.items():
        print(f"objective   {label}: {objective}")
