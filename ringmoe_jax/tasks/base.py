"""What a downstream task is: what it asks of a head, how predictions become an answer, how answers are scored."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from matplotlib.figure import Figure

from ringmoe_jax.contracts import Meaning
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.evaluate.metrics.base import METRICS, Metric
from ringmoe_jax.models.downstream import HeadSpec
from ringmoe_jax.objectives.supervised import check_labels
from ringmoe_jax.registry import Registry
from ringmoe_jax.tasks.joining import Scene, Tile

CLASSES, PROBABILITIES, HEIGHTS = "classes", "probabilities", "heights"  # what maps of whole scenes hold


@dataclasses.dataclass(frozen=True)
class Target:
    """What a task learns to say, as the data set describes it.

    Attributes:
        name: of the label, or of the sensor whose pixels are the truth.
        kind: of the label, see `ringmoe_jax.contracts`; `SENSOR` where the truth is one.
        names: classes.
        sensor: whose grid maps and boxes lie on; "" where there is none.
        dates: T of that sensor.
        colours: "#rrggbb" of every class, or none.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    sensor: str = ""
    dates: int = 1
    colours: tuple[str, ...] = ()

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Target:
        """Inverse of `dataclasses.asdict`, after a way through JSON."""
        return Target(**dict(values) | {name: tuple(values.get(name, ())) for name in ("names", "colours")})


SENSOR = "sensor"  # kind of a target that is a sensor


@dataclasses.dataclass(frozen=True)
class Example:
    """One scored sample, to be looked at.

    Attributes:
        index: position in the split.
        images: [T] of [H, W, 3] float in 0..1, dates of the sensor that predictions lie on.
        answer: of `Task.answer`, without the batch axis.
        truth: of `Task.truth`, without the batch axis.
        ground: metres from the left to the right edge of the images, 0 where unknown.
    """

    index: int
    images: Sequence[np.ndarray]
    answer: Mapping[str, np.ndarray]
    truth: Any
    ground: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A task on one target. Everything but `answer` and `windows` runs on the host.

    Attributes:
        target: name of the label, or of the sensor, that is the truth.
        scoring: metric instead of the task's own, a name of `METRICS` or `module:Name`, made from the own one.
        kinds: of targets that the task can learn.
        answers: what `answer` gives, for exports.
        stac_task: name in the enumeration of STAC's extension for models; "" where none fits.
        maps: what the task can say of whole scenes, the default first; () where it is not offered for them.
        finds: whether that are objects, as those of `tasks.objects` are: `answer` says them, and not `windows`.
        joined: in words, how `join` makes answers to tiles one to their scene; "" where every tile is scored by itself.
    """

    target: str
    scoring: str = ""
    kinds: ClassVar[tuple[str, ...]]
    answers: ClassVar[Mapping[str, Meaning]] = {}
    stac_task: ClassVar[str] = ""
    maps: ClassVar[tuple[str, ...]] = ()
    finds: ClassVar[bool] = False
    joined: ClassVar[str] = ""

    def check(self, target: Target) -> None:
        """Raises a `ConfigError` unless the task can learn the target."""
        if target.kind not in self.kinds:
            raise ConfigError(
                f'task.target = "{target.name}" is of the kind "{target.kind}", this task learns '
                f"{' or '.join(self.kinds)}: name another label"
            )

    @abc.abstractmethod
    def head_spec(self, target: Target) -> HeadSpec:
        """What the head has to give."""

    @abc.abstractmethod
    def objectives(self, target: Target, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Terms of the loss where a config names none, {label: config}, given the config of the head."""

    @abc.abstractmethod
    def answer(self, predictions: Mapping[str, jax.Array], target: Target) -> dict[str, jax.Array]:
        """What the host needs of a batch's predictions, under `jit`: small arrays [B, ...]."""

    def truth(self, batch: Mapping) -> Any:
        """The truth of a batch on the host, arrays [B, ...]."""
        return np.asarray(jax.device_get(batch["labels"][self.target]))

    def check_truth(self, truth: Any, target: Target) -> None:
        """Raises a `DataError` where the truth of a batch cannot be right, for example a class that does not exist."""
        check_labels({target.name: truth}, {target.name: len(target.names)})

    def windows(self, predictions: Mapping[str, jax.Array]) -> jax.Array:
        """The numbers that are blended between windows of a scene, for one of `maps`, under `jit`.

        Returns:
            [B, h, w, K] float32; h = w divides the window, or is 1: one answer for the whole.
        """
        raise NotImplementedError(f"{type(self).__name__} must define windows(predictions), or leave maps empty")

    def map_names(self, target: Target) -> tuple[str, ...]:
        """Names of the K numbers of `windows`."""
        return target.names

    @abc.abstractmethod
    def metric(self, target: Target) -> Metric:
        """An empty metric."""

    def scene_metric(self, target: Target) -> Metric:
        """An empty metric that takes what `join` gives."""
        return self.metric(target)

    def join(self, scene: Scene, tiles: Iterable[Tile]) -> tuple[dict[str, Any], Any]:
        """Answers to tiles as one to their scene, where everything counts once.

        Args:
            scene: whose tiles they are.
            tiles: one after the other; none is kept.

        Returns:
            By whoever answers, and the truth: each as `add` takes them.
        """
        raise NotImplementedError(f"{type(self).__name__} must define join(scene, tiles), or leave joined empty")

    def metric_class(self, own: str) -> type[Metric]:
        """The class of the metric that `scoring` names, or the task's own.

        Args:
            own: name of the task's own in `METRICS`.

        Raises:
            ConfigError: there is no such metric, or it does not take what the task's own takes.
        """
        where = "config.task.scoring"
        chosen = METRICS.find(self.scoring or own, where)
        if not issubclass(chosen, METRICS[own]):
            raise ConfigError(
                f'{where} = "{self.scoring}" does not take what this task gives: make it from '
                f"{METRICS[own].__module__}.{METRICS[own].__qualname__}"
            )
        return chosen

    @abc.abstractmethod
    def add(self, metric: Metric, answer: Mapping[str, np.ndarray], truth: Any) -> None:
        """Adds one sample: `answer` and `truth` without the batch axis."""

    @abc.abstractmethod
    def constant(self, truths: Sequence[Any], target: Target) -> dict[str, np.ndarray]:
        """The best answer that looks at no image, from the truths of training samples; what a model has to beat."""

    @abc.abstractmethod
    def figures(self, title: str, metric: Metric, examples: Sequence[Example], target: Target) -> dict[str, Figure]:
        """Pictures by name."""


TASKS = Registry("task", Task)
register = TASKS.register


def build(values: Mapping[str, Any]) -> Task:
    """Builds the task that `values["name"]` names from the other keys.

    Raises:
        ConfigError: no such task or key; names the nearest.
    """
    return TASKS.build(values, "config.task")
