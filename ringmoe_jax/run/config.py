"""What a configuration file says: of a pre-training, and of a task on an encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ringmoe_jax import config as configuration
from ringmoe_jax import models, objectives, pretext, tasks
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.compress.online import PruningConfig
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.adaptation import AdaptationConfig
from ringmoe_jax.models.heads import HEADS
from ringmoe_jax.models.heads.neck import NeckConfig
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.sensors import Sensor
from ringmoe_jax.training.loop import TrainConfig
from ringmoe_jax.training.optimizer import OptimizerConfig

CHECKPOINT, RANDOM, DATASET = "checkpoint", "random", "dataset"  # where weights and normalisation come from


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """All keys of a pre-training configuration.

    Attributes:
        objectives: {label: {"name": ..., fields of that objective}}.
        data: what is read.
        model: without `init_from`: `name` and the fields of that model's dataclass.
        init_from: folder of a run that is no task, whose newest checkpoint gives the model and what it has of the
            parameters; "" begins with new ones.
        override: with `init_from`: what differs from the checkpoint's model, for example its sensors.
        statistics: with `init_from`: "checkpoint" keeps the normalisation that it knows, "dataset" takes the data's.
        pretext: which forward passes are made: `name` and the fields of that task's dataclass.
        teacher: folder of a run that is no task and knows the sensors that are read; objectives such as
            `relation_matching` compare with what it says of the first view. Its weights do not change, and the
            run's checkpoints hold them.
        optimizer: AdamW and its schedule.
        train: how long.
        mesh: devices along each axis.
        pruning: which experts go while the model trains; none by default.
        modules: Python modules to import first, for example one that registers a sensor of your own.
    """

    objectives: dict[str, Any]
    data: DataConfig
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    init_from: str = ""
    override: dict[str, Any] = dataclasses.field(default_factory=dict)
    statistics: str = CHECKPOINT
    pretext: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "masked"})
    teacher: str = ""
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    pruning: PruningConfig = PruningConfig()
    modules: tuple[str, ...] = ()

    def __post_init__(self):
        _check_beginning(self)
        self.optimizer.warmup(self.train.steps)

    @staticmethod
    def of(values: Mapping[str, Any]) -> PretrainConfig:
        """Checks every key and type of a configuration (a `ConfigDict`'s `to_dict()`, or a checkpoint's).

        Raises:
            ConfigError: names the key, what it was and what it may be.
        """
        config = configuration.build(PretrainConfig, values)
        configuration.import_modules(config.modules)
        for sensor, size in {} if config.init_from else models.image_sizes(config.model).items():
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
        return dataclasses.asdict(self) | {
            "model": models.complete(self.model) if self.model else {},
            "pretext": pretext.complete(self.pretext),
            "objectives": _complete_objectives(self.objectives),
            "pruning": dataclasses.asdict(self.pruning if self.pruning.every else PruningConfig()),
        }

    def check_streams(self) -> None:
        """Raises a `ConfigError` where the model has a sensor that no stream reads, or a stream reads one it lacks.

        A model that goes on with sensors that it had not seen need not be shown those that it had.
        """
        model, streams = names_of(self.model), self.data.streams
        read = {name for stream in streams.values() for name in stream.sensors}
        both = [name for name in model if name in read]
        fix = f"take the sensor out everywhere with --sensors {' '.join(both)}, or " if both else ""
        for name in model:
            if name not in read and not self.model.get("unseen"):
                raise ConfigError(f'config.model.sensors has "{name}", which no stream reads: {fix}add a stream')
        for label, stream in streams.items():
            for name in stream.sensors:
                if name not in model:
                    raise ConfigError(
                        f'config.data.streams.{label} reads "{name}", which config.model.sensors lacks: {fix}add it '
                        "there"
                    )

    @property
    def sensors(self) -> dict[str, Sensor]:
        """The model's sensors with the bands that `data.bands` selects."""
        return sensors_of(self.model, self.data.bands)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """All keys of a fine-tuning configuration.

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
        _check_choice("weights", self.weights, (CHECKPOINT, RANDOM))
        if len(self.data.streams) != 1:
            raise ConfigError(f"data.streams has {len(self.data.streams)} streams: a task reads one data set")
        _check_beginning(self)
        self.optimizer.warmup(self.train.steps)

    @staticmethod
    def of(values: Mapping[str, Any]) -> FinetuneConfig:
        """Checks every key and type of a configuration (a `ConfigDict`'s `to_dict()`, or a checkpoint's).

        Raises:
            ConfigError: names the key, what it was and what it may be.
        """
        configuration.import_modules(values.get("modules", ()))
        return configuration.build(FinetuneConfig, values)

    def complete(self) -> dict[str, Any]:
        """A nested dict with every default filled in, as a checkpoint's record keeps it; `of` makes the same of it.

        Of the head it keeps what differs from its defaults, for the task decides some of its fields.

        Raises:
            ConfigError: the task, an objective, the model or the head has no such key.
        """
        return dataclasses.asdict(self) | {
            "task": {"name": self.task.get("name"), **dataclasses.asdict(tasks.build(self.task))},
            "model": models.complete(self.model) if self.model else {},
            "head": _complete_head(self.head),
            "objectives": _complete_objectives(self.objectives),
        }


def _check_beginning(config: PretrainConfig | FinetuneConfig) -> None:
    _check_choice("statistics", config.statistics, (CHECKPOINT, DATASET))
    if not config.init_from and not config.model:
        raise ConfigError('give init_from = "runs/..." (a pre-training run), or a whole model to train from scratch')


def _check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f'{name} = "{value}" does not exist: {nearest(value, known)}')


def _complete_objectives(values: Mapping[str, Any]) -> dict[str, Any]:
    terms = objectives.build(values) if values else {}
    return {label: {"name": values[label]["name"]} | dataclasses.asdict(term) for label, term in terms.items()}


def _complete_head(head: Mapping[str, Any]) -> dict[str, Any]:
    """A head's config without the values that are its defaults; as it is where the task chooses the head."""
    if "name" not in head:
        return dict(head)
    stated = HEADS.build(head, "config.head")
    defaults = {field.name: field.default for field in dataclasses.fields(stated)}
    return {"name": head["name"]} | {
        key: value for key, value in dataclasses.asdict(stated).items() if value != defaults[key]
    }


def names_of(model: Mapping[str, Any]) -> tuple[str, ...]:
    """The sensors that a model's config names, those that were not there in training among them."""
    return sensor_table.own_names((*model.get("sensors", ()), *model.get("unseen", ())))


def sensors_of(model: Mapping[str, Any], bands: Mapping[str, Sequence[str]]) -> dict[str, Sensor]:
    """The sensors that a model's config names, by name, with the bands that are selected; all where there are none."""
    selected = {name: sensor_table.get(name).select(chosen) for name, chosen in bands.items()}
    return sensor_table.resolve(names_of(model), selected)
