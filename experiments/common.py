"""What the scripts share: configs to objects, checkpoints to models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments.run.cli import entry_point, keep_compiled, read_config, read_run  # noqa: F401  (on the way out)
from ringmoe_jax import config as configuration
from ringmoe_jax import models, objectives, pretext
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.compress.online import PruningConfig
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models import Model, Params
from ringmoe_jax.parallel import mesh as meshes
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.sensors import Sensor, Statistics
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.loop import TrainConfig
from ringmoe_jax.training.optimizer import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """All keys of a configuration file.

    Attributes:
        model: `name` and the fields of that model's dataclass.
        objectives: {label: {"name": ..., fields of that objective}}.
        data: what is read.
        pretext: which forward passes are made: `name` and the fields of that task's dataclass.
        optimizer: AdamW and its schedule.
        train: how long.
        mesh: devices along each axis.
        pruning: which experts go while the model trains; none by default.
        modules: Python modules to import first, for example one that registers a sensor of your own.
    """

    model: dict[str, Any]
    objectives: dict[str, Any]
    data: DataConfig
    pretext: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "masked"})
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    pruning: PruningConfig = PruningConfig()
    modules: tuple[str, ...] = ()

    @staticmethod
    def of(values: Mapping[str, Any]) -> ExperimentConfig:
        """Checks every key and type of a configuration (a `ConfigDict`'s `to_dict()`, or a checkpoint's)."""
        config = configuration.build(ExperimentConfig, values)
        configuration.import_modules(config.modules)
        for sensor, size in models.image_sizes(config.model).items():
            if (shown := config.data.size(sensor)) != size:
                raise ConfigError(
                    f'config.model.image_size = {size}, but data shows "{sensor}" at {shown} pixels: set '
                    f"config.data.image_size (or config.data.sizes.{sensor}) to the same number"
                )
        return config

    def complete(self) -> dict[str, Any]:
        """A nested dict with every default filled in, as a checkpoint's record keeps it; `of` makes the same of it.

        Raises:
            ConfigError: an objective, the pretext task or the model has no such key.
        """
        terms = objectives.build(self.objectives)
        return dataclasses.asdict(self) | {
            "model": models.complete(self.model),
            "pretext": pretext.complete(self.pretext),
            "objectives": {
                label: {"name": self.objectives[label]["name"]} | dataclasses.asdict(term)
                for label, term in terms.items()
            },
            "pruning": dataclasses.asdict(self.pruning if self.pruning.every else PruningConfig()),
        }

    @property
    def sensors(self) -> dict[str, Sensor]:
        """The model's sensors with the bands that `data.bands` selects."""
        return sensors_of(self.model, self.data.bands)


def sensors_of(model: Mapping[str, Any], bands: Mapping[str, Sequence[str]]) -> dict[str, Sensor]:
    """The sensors that a model's config names, by name, with the bands that are selected; all where there are none."""
    selected = {name: sensor_table.get(name).select(chosen) for name, chosen in bands.items()}
    return sensor_table.resolve(tuple(model.get("sensors", ())), selected)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a config builds.

    Attributes:
        sensors: by name, as the model takes them.
        statistics: normalisation by sensor.
        model: pure functions.
        objectives: terms of the loss by label.
        pretext: forward passes.
        mesh: None on one device.
    """

    sensors: dict[str, Sensor]
    statistics: dict[str, Statistics]
    model: Model
    objectives: dict[str, objectives.Objective]
    pretext: pretext.Pretext
    mesh: jax.sharding.Mesh | None


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh | None:
    """The mesh over all devices, or None where there is one device."""
    mesh = meshes.make(config)
    return mesh if mesh.size > 1 else None


def build(config: ExperimentConfig, statistics: Mapping[str, Statistics], mesh=None) -> Parts:
    """Builds model, objectives and pretext task.

    Args:
        config: checked configuration.
        statistics: normalisation of every sensor of the model.
        mesh: see `make_mesh`.
    """
    sensors = config.sensors
    terms, heads = build_objectives(config)
    statistics = {name: statistics[name] for name in sensors if name in statistics}
    model = models.build(config.model, sensors=sensors, statistics=statistics, heads=heads, mesh=mesh)
    wanted = pretext.Wanted(config.train.steps, objectives.collect_projections(terms))
    return Parts(sensors, statistics, model, terms, pretext.build(config.pretext, model, wanted), mesh)


def check_streams(config: ExperimentConfig) -> None:
    """Raises a `ConfigError` where the model has a sensor that no stream reads, or a stream reads one it lacks."""
    model, streams = config.model.get("sensors", ()), config.data.streams
    read = {name for stream in streams.values() for name in stream.sensors}
    both = [name for name in model if name in read]
    fix = f"take the sensor out everywhere with --sensors {' '.join(both)}, or " if both else ""
    for name in model:
        if name not in read:
            raise ConfigError(f'config.model.sensors has "{name}", which no stream reads: {fix}add a stream')
    for label, stream in streams.items():
        for name in stream.sensors:
            if name not in model:
                raise ConfigError(
                    f'config.data.streams.{label} reads "{name}", which config.model.sensors lacks: {fix}add it there'
                )


def build_objectives(config: ExperimentConfig) -> tuple[dict[str, objectives.Objective], dict[str, dict[str, int]]]:
    """Objectives by label and the decoder outputs that they need, {sensor: {head: channels}}.

    Raises:
        ConfigError: an objective does not exist, does not suit the model's sensors or the streams of data.
    """
    terms = objectives.build(config.objectives)
    for label, term in terms.items():
        if term.together() and not any(set(term.together()) <= set(s.sensors) for s in config.data.streams.values()):
            raise ConfigError(
                f"objective {label} compares {' and '.join(term.together())} of the same place, but no stream of "
                "config.data.streams holds them all: name them in one stream's sensors"
            )
        unit = config.data.mask_unit
        if isinstance(term, objectives.Reconstruction) and unit and term.footprint > unit:
            side = f"{term.footprint} x {term.footprint}"
            raise ConfigError(
                f"objective {label} needs {side} hidden pixels, but data.mask_unit = {unit} hides fewer at a time: "
                "every target would be left out"
            )
    return terms, objectives.collect_heads(terms, config.sensors)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint, ready to use on one device.

    Attributes:
        config: of the run.
        parts: model and objectives with the statistics of the checkpoint.
        params: what `parts.model` takes: trained parameters, or those that the pretext task exports (a teacher's).
        step: optimiser steps that were taken.
    """

    config: ExperimentConfig
    parts: Parts
    params: Params
    step: int


def load(workdir: str, step: int | None = None) -> Trained:
    """Opens the newest checkpoint of a run, or the one of `step`, on the default device.

    Raises:
        DataError: there is none.
    """
    checkpointer = Checkpointer.open(workdir)
    record = checkpointer.record(step)
    config = ExperimentConfig.of(record["config"])
    parts = build(config, {name: Statistics(**s) for name, s in record["statistics"].items()})
    params, state = checkpointer.restore_model(record["step"])
    checkpointer.close()
    return Trained(config, parts, parts.pretext.export(params, state), record["step"])
