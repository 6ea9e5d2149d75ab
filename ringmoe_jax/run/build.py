"""From a configuration to the parts that train and predict."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ringmoe_jax import models, objectives, pretext, tasks
from ringmoe_jax.compress import online
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models import Model
from ringmoe_jax.models.downstream import attach
from ringmoe_jax.parallel import mesh as meshes
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.pretext import Pretext
from ringmoe_jax.pretext.averaged import averaged
from ringmoe_jax.pretext.balanced import balanced
from ringmoe_jax.pretext.supervised import supervised
from ringmoe_jax.run.config import FinetuneConfig, PretrainConfig, sensors_of
from ringmoe_jax.sensors import Sensor, Statistics
from ringmoe_jax.tasks import Target, Task


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a configuration builds.

    Attributes:
        sensors: that the model is shown, by name, with the bands that it reads.
        statistics: normalisation by sensor.
        model: pure functions.
        objectives: terms of the loss by label.
        pretext: forward passes.
        mesh: None on one device.
        task: what a fine-tuned run learns; None in a pre-training.
        target: of the task, as the data set describes it; None in a pre-training.
    """

    sensors: dict[str, Sensor]
    statistics: dict[str, Statistics]
    model: Model
    objectives: dict[str, objectives.Objective]
    pretext: Pretext
    mesh: jax.sharding.Mesh | None = None
    task: Task | None = None
    target: Target | None = None


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A pre-trained (or new) encoder as a fine-tuned run describes it.

    Attributes:
        model: `name` and fields.
        bands: that it reads, by sensor; all of the table's where absent.
        statistics: normalisation by sensor as it was trained; {} for a new one.
        step: of the checkpoint, 0 for a new one.
        origin: see `Run.origin`.
    """

    model: dict[str, Any]
    bands: dict[str, tuple[str, ...]]
    statistics: dict[str, Statistics]
    step: int = 0
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Encoder:
        """Inverse of `dataclasses.asdict`, after a way through JSON."""
        statistics = {name: Statistics(**s) for name, s in values["statistics"].items()}
        bands = {name: tuple(chosen) for name, chosen in values["bands"].items()}
        return Encoder(values["model"], bands, statistics, values["step"], values.get("origin", {}))

    @property
    def sensors(self) -> dict[str, Sensor]:
        """The model's sensors with the bands that it reads."""
        return sensors_of(self.model, self.bands)

    def data(self, data: DataConfig) -> DataConfig:
        """A data config with the bands that the encoder reads, whatever the config says."""
        shown = [name for stream in data.streams.values() for name in stream.sensors]
        return dataclasses.replace(data, bands=data.bands | {n: b for n, b in self.bands.items() if n in shown})


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """What a head is built for, as the data set describes it; a checkpoint's record keeps it.

    Attributes:
        target: what the task learns to say.
        dates: T of every sensor that is read, in the stream's order.
    """

    target: Target
    dates: dict[str, int]

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> TaskSpec:
        """Inverse of `dataclasses.asdict`, after a way through JSON."""
        return TaskSpec(Target.from_json(values["target"]), dict(values["dates"]))


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh | None:
    """The mesh over all devices, or None where there is one device."""
    mesh = meshes.make(config)
    return mesh if mesh.size > 1 else None


def pretraining(config: PretrainConfig, statistics: Mapping[str, Statistics], mesh=None) -> Parts:
    """Model, objectives and pretext task; where experts may go, the pretext task counts who chooses them.

    Args:
        config: checked configuration.
        statistics: normalisation by sensor; the sensor table's where absent.
        mesh: see `make_mesh`.

    Raises:
        ConfigError: parts that do not suit each other, see `build_objectives`.
    """
    sensors = config.sensors
    terms, heads = build_objectives(config)
    statistics = {name: statistics[name] for name in sensors if name in statistics}
    model = models.build(config.model, sensors=sensors, statistics=statistics, heads=heads, mesh=mesh)
    spec = pretext.PretextSpec(config.train.steps, objectives.collect_projections(terms))
    passes = pretext.build(config.pretext, model, spec)
    if config.optimizer.average and config.pruning.every:
        raise ConfigError("optimizer.average and pruning.every: experts that go have no average, set one of them to 0")
    rate = models.read(config.model).bias_rate
    if rate and config.pruning.every:
        raise ConfigError("model.moe.bias_rate and pruning.every: biases leave no expert unused, set one of them to 0")
    passes = balanced(averaged(passes, config.optimizer.average), model, rate)
    if config.pruning.every:
        passes = online.counted(passes, config.model, config.pruning)
    return Parts(sensors, statistics, model, terms, passes, mesh)


def encoding(config: PretrainConfig, statistics: Mapping[str, Statistics], mesh=None) -> Parts:
    """A model without objectives, whose weights came from elsewhere."""
    sensors = config.sensors
    model = models.build(config.model, sensors=sensors, statistics=statistics, mesh=mesh)

    def apply(params, state, batch, *, key, train):
        return model.apply(params, batch, key=key, train=train), state

    return Parts(sensors, dict(statistics), model, {}, Pretext(apply), mesh)


def build_objectives(config: PretrainConfig) -> tuple[dict[str, objectives.Objective], dict[str, dict[str, int]]]:
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


def finetuning(config: FinetuneConfig, encoder: Encoder, spec: TaskSpec, statistics, mesh=None) -> Parts:
    """Encoder with a head, task, objectives and forward passes.

    Args:
        config: checked configuration.
        encoder: that the head is put on.
        spec: what the head is for.
        statistics: normalisation by sensor.
        mesh: see `make_mesh`.

    Raises:
        ConfigError: a head, task or objective does not exist or does not suit the others.
    """
    task, target = tasks.build(config.task), spec.target
    shown = {name: encoder.sensors[name] for name in spec.dates if name in encoder.sensors}
    head = task.head_spec(target)
    head = head if head.sensor else dataclasses.replace(head, sensor=next(iter(shown)))
    known = {name: s for name, s in statistics.items() if name in encoder.sensors}
    model = models.build(encoder.model, sensors=encoder.sensors, statistics=known, mesh=mesh)
    attached = attach(
        model,
        config.head,
        config.neck,
        head,
        {"sensors": {name: _entry(config, sensor, spec.dates[name]) for name, sensor in shown.items()}},
        dtype=encoder.model.get("dtype", "float32"),
        train_encoder=config.adaptation.method != "frozen" or bool(config.adaptation.also),
    )
    return Parts(
        shown,
        {name: known.get(name, sensor.statistics) for name, sensor in encoder.sensors.items()},
        attached,
        objectives.build(config.objectives or task.objectives(target, config.head)),
        averaged(supervised(attached, config.adaptation), config.optimizer.average),
        mesh,
        task,
        target,
    )


def _entry(config: FinetuneConfig, sensor: Sensor, dates: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one sensor in a batch, as large as in training: an encoder may want token groups of equal size."""
    shape = (config.data.batch_size, dates, *[config.data.size(sensor.name)] * 2)
    return {
        "pixels": jax.ShapeDtypeStruct((*shape, sensor.channels), np.float32),
        "valid": jax.ShapeDtypeStruct(shape, np.bool_),
        "time": jax.ShapeDtypeStruct(shape[:2], np.int32),
        "location": jax.ShapeDtypeStruct((shape[0], 2), np.float32),
    }
