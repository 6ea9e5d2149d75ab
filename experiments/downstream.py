"""What a fine-tuning config says, and what it builds: a pre-trained encoder, a head, a task on a data set's label."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments import common
from input_pipeline.dataset import Dataset, open_dataset
from ringmoe_jax import config as configuration
from ringmoe_jax import models, objectives, tasks
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.models import Model, Params
from ringmoe_jax.models.adaptation import AdaptationConfig
from ringmoe_jax.models.downstream import ENCODER, attach
from ringmoe_jax.models.heads.neck import NeckConfig
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.pretext import Pretext
from ringmoe_jax.pretext.supervised import supervised
from ringmoe_jax.sensors import Sensor, Statistics
from ringmoe_jax.tasks import SENSOR, Target, Task
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.loop import TrainConfig
from ringmoe_jax.training.optimizer import OptimizerConfig

CHECKPOINT, RANDOM, DATASET = "checkpoint", "random", "dataset"


@dataclasses.dataclass(frozen=True)
class DownstreamConfig:
    """All keys of a fine-tuning configuration file.

    Attributes:
        task: `name` and the fields of that task's dataclass, see `ringmoe_jax.tasks`.
        data: what is read; one stream, whose sensors show the same place.
        init_from: folder of a pre-training run, whose newest checkpoint gives the encoder.
        weights: "checkpoint", or "random": the same encoder with fresh parameters, as if it had never been trained.
        model: without `init_from`: the whole encoder, trained from scratch.
        override: with `init_from`: what differs from the checkpoint's model, for example its drop_path or moe.engine.
        head: `name` and the fields of that head's dataclass; {} is the task's default.
        neck: how sensors are fused.
        adaptation: what of the encoder is trained.
        objectives: {label: {"name": ..., fields}}; {} is the task's own.
        statistics: "checkpoint" keeps the normalisation that the encoder knows, "dataset" takes the data set's.
        optimizer: AdamW, its schedule, and `layer_decay`.
        train: how long.
        mesh: devices along each axis.
        modules: Python modules to import first, for example one that registers a sensor or task of your own.
    """

    task: dict[str, Any]
    data: DataConfig
    init_from: str = ""
    weights: str = CHECKPOINT
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    override: dict[str, Any] = dataclasses.field(default_factory=dict)
    head: dict[str, Any] = dataclasses.field(default_factory=dict)
    neck: NeckConfig = NeckConfig()
    adaptation: AdaptationConfig = AdaptationConfig()
    objectives: dict[str, Any] = dataclasses.field(default_factory=dict)
    statistics: str = CHECKPOINT
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    modules: tuple[str, ...] = ()

    def __post_init__(self):
        for name, wanted in (("weights", (CHECKPOINT, RANDOM)), ("statistics", (CHECKPOINT, DATASET))):
            if getattr(self, name) not in wanted:
                raise ConfigError(
                    f'{name} = "{getattr(self, name)}" does not exist: {nearest(getattr(self, name), wanted)}'
                )
        if len(self.data.streams) != 1:
            raise ConfigError(f"data.streams has {len(self.data.streams)} streams: a task reads one data set")
        if not self.init_from and not self.model:
            raise ConfigError(
                'give init_from = "runs/..." (a pre-training run), or a whole model to train from scratch'
            )

    @staticmethod
    def of(values: Mapping[str, Any]) -> DownstreamConfig:
        """Checks every key and type of a configuration (a `ConfigDict`'s `to_dict()`)."""
        configuration.import_modules(values.get("modules", ()))
        return configuration.build(DownstreamConfig, values)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A pre-trained (or new) encoder as a config describes it.

    Attributes:
        model: `name` and fields.
        bands: that it reads, by sensor; all of the table's where absent.
        statistics: normalisation by sensor as it was trained; {} for a new one.
        step: of the checkpoint, 0 for a new one.
    """

    model: dict[str, Any]
    bands: dict[str, tuple[str, ...]]
    statistics: dict[str, Statistics]
    step: int = 0

    @staticmethod
    def of(config: DownstreamConfig) -> Encoder:
        """What the config's `init_from`, `model` and `override` say; it takes images of the size that data shows."""
        changes = {"adapter": config.adaptation.hidden} if config.adaptation.method == "convpass" else {}
        if not config.init_from:
            return Encoder(_sized(config.model | changes, config.data), config.data.bands, {})
        checkpointer = Checkpointer.open(config.init_from)
        record = checkpointer.record()
        checkpointer.close()
        saved = record["config"]
        if "task" in saved:
            raise ConfigError(f"init_from = {config.init_from} is a fine-tuned run: give the pre-trained one before it")
        return Encoder(
            _sized(_merge(saved["model"], config.override) | changes, config.data),
            {name: tuple(of) for name, of in saved["data"].get("bands", {}).items()},
            {name: Statistics(**s) for name, s in record["statistics"].items()},
            record["step"],
        )

    def to_json(self) -> dict[str, Any]:
        """JSON types for a checkpoint's record, from which `from_json` makes the same."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Encoder:
        """Inverse of `to_json`."""
        statistics = {name: Statistics(**s) for name, s in values["statistics"].items()}
        bands = {name: tuple(of) for name, of in values["bands"].items()}
        return Encoder(values["model"], bands, statistics, values["step"])

    @property
    def sensors(self) -> dict[str, Sensor]:
        """The model's sensors with the bands that it reads."""
        return common.sensors_of(self.model, self.bands)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a config and a data set build.

    Attributes:
        task: what is learnt.
        target: from what truth.
        sensors: that the encoder is shown.
        statistics: their normalisation.
        model: encoder and head.
        objectives: terms of the loss by label.
        pretext: forward passes.
        mesh: None on one device.
    """

    task: Task
    target: Target
    sensors: dict[str, Sensor]
    statistics: dict[str, Statistics]
    model: Model
    objectives: dict[str, objectives.Objective]
    pretext: Pretext
    mesh: jax.sharding.Mesh | None


def open_data(config: DownstreamConfig, encoder: Encoder) -> Dataset:
    """The data set of the config's stream.

    Raises:
        ConfigError: it is to show a sensor that the encoder does not know.
        DataError: it does not hold what it is asked for.
    """
    (stream,) = config.data.streams.values()
    truth = config.task.get("target")
    unknown = [name for name in stream.sensors if name not in encoder.sensors and name != truth]
    if unknown or not set(stream.sensors) - {truth}:
        where = f"the checkpoint {config.init_from}" if config.init_from else "config.model"
        odd = f'"{unknown[0]}"' if unknown else "no sensor beside the truth"
        raise ConfigError(
            f"data.streams shows {odd}, but {where} reads {', '.join(encoder.sensors)}: "
            "name sensors that both have, or pre-train an encoder with this one"
        )
    bands = {name: of for name, of in encoder.bands.items() if name in stream.sensors}
    return open_dataset(stream.directory, stream.sensors, bands)


def with_bands(data: DataConfig, encoder: Encoder) -> DataConfig:
    """What is read, with the bands that the encoder reads; those of a truth as the config says."""
    shown = [name for stream in data.streams.values() for name in stream.sensors]
    return dataclasses.replace(data, bands=data.bands | {n: b for n, b in encoder.bands.items() if n in shown})


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a model is built for, as the data set describes it; a checkpoint's record keeps it.

    Attributes:
        target: what the task learns to say.
        dates: T of every sensor that is read, in the stream's order.
    """

    target: Target
    dates: dict[str, int]

    @staticmethod
    def of(config: DownstreamConfig, dataset: Dataset) -> Subject:
        """The target that the config's task names in a data set.

        Raises:
            ConfigError: the data set has no such label or sensor, or the task cannot learn it.
        """
        task = tasks.build(config.task)
        name, labels = task.target, dataset.labels
        dates = {sensor: config.data.frames.get(sensor, dataset.shape(sensor)[0]) for sensor in dataset.sensors}
        if name in labels:
            shown = labels[name].sensor or next(iter(dataset.sensors))
            if shown not in dataset.sensors:
                raise ConfigError(f'the label "{name}" lies on "{shown}", which data.streams does not show: add it')
            label = labels[name]
            target = Target(name, label.kind, label.names, label.sensor, dates[shown], label.colours)
        elif name in dataset.sensors:
            target = Target(name, SENSOR, (), name, dates[name])
        else:
            known = ", ".join(f"{label} ({info.kind})" for label, info in labels.items()) or "none"
            raise ConfigError(
                f'{dataset.directory} has no label "{name}": its labels are {known}; set config.task.target to one of '
                f"them, or to a sensor whose pixels are the truth ({', '.join(dataset.metadata.sensors)})"
            )
        task.check(target)
        return Subject(target, dates)

    def to_json(self) -> dict[str, Any]:
        """JSON types for a checkpoint's record, from which `from_json` makes the same."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Subject:
        """Inverse of `to_json`."""
        return Subject(Target.from_json(values["target"]), dict(values["dates"]))


def build(config: DownstreamConfig, encoder: Encoder, subject: Subject, statistics, mesh=None) -> Parts:
    """Builds encoder, head, task, objectives and forward passes.

    Args:
        config: checked configuration.
        encoder: of `Encoder.of`, or of a checkpoint's record.
        subject: of `Subject.of`, or of a checkpoint's record.
        statistics: normalisation by sensor.
        mesh: see `common.make_mesh`.
    """
    task, target = tasks.build(config.task), subject.target
    shown = {name: encoder.sensors[name] for name in subject.dates if name in encoder.sensors}
    purpose = task.purpose(target)
    purpose = purpose if purpose.sensor else dataclasses.replace(purpose, sensor=next(iter(shown)))
    known = {name: s for name, s in statistics.items() if name in encoder.sensors}
    model = models.build(encoder.model, sensors=encoder.sensors, statistics=known, mesh=mesh)
    attached = attach(
        model,
        config.head,
        config.neck,
        purpose,
        {"sensors": {name: _entry(config, sensor, subject.dates[name]) for name, sensor in shown.items()}},
        dtype=encoder.model.get("dtype", "float32"),
        train_encoder=config.adaptation.method != "frozen" or bool(config.adaptation.also),
    )
    return Parts(
        task,
        target,
        shown,
        {name: known.get(name, sensor.statistics) for name, sensor in encoder.sensors.items()},
        attached,
        objectives.build(config.objectives or task.objectives(target, config.head)),
        supervised(attached, config.adaptation),
        mesh,
    )


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A fine-tuned run, ready to use on one device.

    Attributes:
        config: of the run.
        encoder: what it started from.
        subject: what it learnt.
        parts: task, model and the rest.
        params: whole, as `parts.model` takes them.
        step: optimiser steps that were taken.
        trained: number of trained parameters.
    """

    config: DownstreamConfig
    encoder: Encoder
    subject: Subject
    parts: Parts
    params: Params
    step: int
    trained: int

    @staticmethod
    def load(workdir: str, engine: str = "") -> Adapted:
        """The newest checkpoint of a fine-tuned run.

        Args:
            workdir: folder of the run.
            engine: that computes the experts, default the run's.

        Raises:
            DataError: there is none, or it is one of a pre-training.
        """
        checkpointer = Checkpointer.open(workdir)
        record = checkpointer.record()
        if "encoder" not in record:
            raise DataError(f"{workdir} is a pre-training run, wanted one of experiments.finetune")
        config, encoder = DownstreamConfig.of(record["config"]), Encoder.from_json(record["encoder"])
        if engine:
            encoder = dataclasses.replace(encoder, model=models.with_engine(encoder.model, engine))
        subject = Subject.from_json(record["subject"])
        parts = build(config, encoder, subject, {name: Statistics(**s) for name, s in record["statistics"].items()})
        params, state = checkpointer.restore_model(record["step"])
        checkpointer.close()
        whole = parts.pretext.export(params, state)
        return Adapted(config, encoder, subject, parts, whole, record["step"], models.count(params))


def fill(state, params: Params):
    """A new state with the encoder's parameters of a checkpoint in it, where they were.

    Parameters that the encoder does not have (decoders of the pre-training) are left out; those that it has and the
    checkpoint lacks (bypasses) stay new.

    Args:
        state: of `training.state.create` for `pretext.supervised`.
        params: as `common.load` gives them.
    """

    def filled(new, old):
        if not isinstance(new, Mapping):
            return jax.device_put(np.asarray(old), new.sharding)
        return {name: filled(part, old[name]) if name in old else part for name, part in new.items()}

    trained, frozen = state.params.get(ENCODER, {}), state.pretext.get("frozen", {})
    parts = state.params | ({ENCODER: filled(trained, params)} if trained else {})
    pretext = {"frozen": filled(frozen, params)} if frozen else {}
    return dataclasses.replace(state, params=parts, pretext=pretext)


def statistics_of(config: DownstreamConfig, encoder: Encoder, own: Mapping[str, Statistics]) -> dict[str, Statistics]:
    """Normalisation: the checkpoint's where it is known and wanted, else the data set's `own`."""
    kept = encoder.statistics if config.statistics == CHECKPOINT else {}
    return dict(own) | kept


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


def _entry(config: DownstreamConfig, sensor: Sensor, dates: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one sensor in a batch of two samples."""
    shape = (2, dates, *[config.data.size(sensor.name)] * 2)
    return {
        "pixels": jax.ShapeDtypeStruct((*shape, sensor.channels), np.float32),
        "valid": jax.ShapeDtypeStruct(shape, np.bool_),
        "time": jax.ShapeDtypeStruct(shape[:2], np.int32),
        "location": jax.ShapeDtypeStruct((2, 2), np.float32),
    }
