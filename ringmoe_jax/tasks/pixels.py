"""Tasks with an answer for every pixel: segmentation, change, height."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ringmoe_jax.contracts import MAP, UNLABELLED, Meaning
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.evaluate import task_figures
from ringmoe_jax.evaluate.metrics.base import Metric
from ringmoe_jax.evaluate.metrics.height import FLOOR, HeightMetric
from ringmoe_jax.evaluate.metrics.segmentation import SegmentationMetric
from ringmoe_jax.models.downstream import HeadSpec
from ringmoe_jax.models.heads.base import PIXEL_LOGITS, ROWS_COLUMNS
from ringmoe_jax.models.heads.height import HeightConfig
from ringmoe_jax.models.heads.neck import MEAN, PAIR
from ringmoe_jax.tasks import base
from ringmoe_jax.tasks.base import SENSOR, Example, Target, Task, register
from ringmoe_jax.tasks.joining import Scene, Tile, mosaic

AUXILIARY = 0.4  # weight of the auxiliary head's loss (released SkySense; common practice)
DEEPEST = "a pixel counts once, with the answer of the tile in whose inside it lies deepest"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Map(Task):
    """One class a pixel."""

    kinds: ClassVar = (MAP,)
    answers: ClassVar = {
        "classes": Meaning(ROWS_COLUMNS, "index of the most likely class of every pixel", of_classes=True)
    }
    stac_task: ClassVar = "semantic-segmentation"
    maps: ClassVar = (base.CLASSES, base.PROBABILITIES)
    joined: ClassVar = DEEPEST
    head: ClassVar[str]
    dates: ClassVar[str]

    def head_spec(self, target: Target) -> HeadSpec:
        return HeadSpec(self.head, {"logits": PIXEL_LOGITS.axes}, len(target.names), self.dates, target.sensor)

    def objectives(self, target: Target, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return {"cross_entropy": dict(name="cross_entropy", label=self.target)}

    def answer(self, predictions: Mapping[str, jax.Array], target: Target) -> dict[str, jax.Array]:
        return {"classes": jnp.argmax(predictions["logits"], axis=-1).astype(jnp.int16)}

    def windows(self, predictions: Mapping[str, jax.Array]) -> jax.Array:
        """Probabilities of the classes of every pixel."""
        return jax.nn.softmax(predictions["logits"].astype(jnp.float32))

    def add(self, metric: Metric, answer: Mapping[str, np.ndarray], truth: Any) -> None:
        metric.add(truth, answer["classes"])

    def join(self, scene: Scene, tiles: Iterable[Tile]) -> tuple[dict[str, Any], Any]:
        """What no tile shows is void."""
        return mosaic(scene, tiles, UNLABELLED)

    def constant(self, truths: Sequence[Any], target: Target) -> dict[str, np.ndarray]:
        """The most frequent class everywhere."""
        counts = sum(np.bincount(truth[truth >= 0], minlength=len(target.names)) for truth in truths)
        return {"classes": np.full(truths[0].shape, np.argmax(counts), np.int16)}


@register("segmentation")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Segmentation(_Map):
    """Land cover and the like; void is -1. Scores: mean IoU, overall accuracy, mean F1; IoU of every class.

    Attributes:
        ignore: classes that are learnt, but left out of the means, such as the clutter of ISPRS.
    """

    ignore: tuple[str, ...] = ()
    head: ClassVar = "upernet"
    dates: ClassVar = MEAN

    def objectives(self, target: Target, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        terms = super().objectives(target, head)
        deep = self.head_spec(target).chosen(head).deep_supervision
        return terms | {name: terms["cross_entropy"] | dict(output=name, scale=AUXILIARY) for name in deep}

    def check(self, target: Target) -> None:
        super().check(target)
        for name in self.ignore:
            if name not in target.names:
                raise ConfigError(
                    f'task.ignore names "{name}", no class of "{target.name}": {nearest(name, target.names)}'
                )
        if len(set(target.names) - set(self.ignore)) < 2:
            raise ConfigError(f"task.ignore = {self.ignore}: wanted two classes or more that are scored")

    def metric(self, target: Target) -> SegmentationMetric:
        ignored = (self.ignore,) if self.ignore else ()
        return self.metric_class("segmentation")(target.names, *ignored)

    def constant(self, truths: Sequence[Any], target: Target) -> dict[str, np.ndarray]:
        """The most frequent class everywhere.

        Raises:
            DataError: there is no other.
        """
        answer = super().constant(truths, target)
        (only,) = np.unique(answer["classes"])
        if all(np.isin(truth, (-1, only)).all() for truth in truths):
            raise DataError(
                f'the truth of "{target.name}" is void or "{target.names[only]}" everywhere in training: a score of '
                "one class says nothing; is another value void that means a class (prepare --ignore)?"
            )
        return answer

    def figures(
        self, title: str, metric: SegmentationMetric, examples: Sequence[Example], target: Target
    ) -> dict[str, Figure]:
        rows = [(e.images[0], e.truth, e.answer["classes"]) for e in examples]
        return {
            "masks": task_figures.masks(title, rows, target.names, target.colours, examples[0].ground),
            "confusion": task_figures.confusion_matrix(title, metric.confusion(), target.names),
        }


@register("change")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Change(_Map):
    """What changed from the first date to the last. Scores of two classes: F1, IoU, precision and recall of the
    second; of more: as segmentation."""

    head: ClassVar = "change_difference"
    dates: ClassVar = PAIR

    def check(self, target: Target) -> None:
        super().check(target)
        if target.dates < 2:
            raise ConfigError(
                f'task.target = "{target.name}": "{target.sensor}" has one date, change needs two: write the data set '
                "with two images a sample, or raise data.frames"
            )

    def metric(self, target: Target) -> Metric:
        if len(target.names) == 2:
            return self.metric_class("change")()
        return self.metric_class("segmentation")(target.names)

    def constant(self, truths: Sequence[Any], target: Target) -> dict[str, np.ndarray]:
        """Change everywhere, for "nothing changed" has an F1 of 0; of several classes the most frequent one."""
        if len(target.names) == 2:
            return {"classes": np.ones(truths[0].shape, np.int16)}
        return super().constant(truths, target)

    def figures(self, title: str, metric: Metric, examples: Sequence[Example], target: Target) -> dict[str, Figure]:
        rows = [(e.images[0], e.images[-1], e.truth, e.answer["classes"]) for e in examples]
        drawn = {"changes": task_figures.changes(title, rows, examples[0].ground)}
        if len(target.names) > 2:
            drawn["confusion"] = task_figures.confusion_matrix(title, metric.confusion(), target.names)
        return drawn


@register("height")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Height(Task):
    """Heights in metres; the truth is the last date of a sensor such as "ndsm", where it is valid.

    Scores: RMSE, also as a share of the range, mean absolute and relative error, delta < 1.25^k.

    Attributes:
        floor: metres; relative errors are those of pixels above it.
    """

    floor: float = FLOOR
    kinds: ClassVar = (SENSOR,)
    answers: ClassVar = HeightConfig.gives
    stac_task: ClassVar = "regression"
    maps: ClassVar = (base.HEIGHTS,)
    joined: ClassVar = DEEPEST

    def head_spec(self, target: Target) -> HeadSpec:
        return HeadSpec("height", {"height": ROWS_COLUMNS}, 1, MEAN, target.sensor)

    def objectives(self, target: Target, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return {
            "height": dict(name="height_regression", sensor=self.target),
            "bins": dict(name="bin_chamfer", sensor=self.target, scale=0.1),
        }

    def answer(self, predictions: Mapping[str, jax.Array], target: Target) -> dict[str, jax.Array]:
        return {"height": predictions["height"]}

    def windows(self, predictions: Mapping[str, jax.Array]) -> jax.Array:
        """Metres."""
        return predictions["height"].astype(jnp.float32)[..., None]

    def map_names(self, target: Target) -> tuple[str, ...]:
        """One number."""
        return ("height",)

    def truth(self, batch: Mapping) -> tuple[np.ndarray, np.ndarray]:
        """Heights [B, H, W] and where they are known, bool."""
        pixels, valid = jax.device_get([batch["sensors"][self.target][key] for key in ("pixels", "valid")])
        return pixels[:, -1, ..., 0], valid[:, -1]

    def check_truth(self, truth: Any, target: Target) -> None:
        """Any height may be."""

    def metric(self, target: Target) -> HeightMetric:
        return self.metric_class("height")(self.floor)

    def add(self, metric: HeightMetric, answer: Mapping[str, np.ndarray], truth: Any) -> None:
        height, valid = truth
        metric.add(height, answer["height"], valid)

    def join(self, scene: Scene, tiles: Iterable[Tile]) -> tuple[dict[str, Any], Any]:
        """What no tile shows is unknown."""
        return mosaic(scene, tiles, (0, False))

    def constant(self, truths: Sequence[Any], target: Target) -> dict[str, np.ndarray]:
        """The mean height."""
        total = sum(height[valid].sum(dtype=np.float64) for height, valid in truths)
        mean = total / max(1, sum(valid.sum() for _, valid in truths))
        return {"height": np.full(truths[0][0].shape, mean, np.float32)}

    def figures(
        self, title: str, metric: HeightMetric, examples: Sequence[Example], target: Target
    ) -> dict[str, Figure]:
        rows = [(e.images[0], *e.truth, e.answer["height"]) for e in examples]
        truth, valid, answer = (np.concatenate([row[i].ravel() for row in rows]) for i in (1, 2, 3))
        return {
            "heights": task_figures.heights(title, rows, examples[0].ground),
            "errors": task_figures.height_errors(f"{title}, pixels of these samples", truth, valid, answer),
        }
