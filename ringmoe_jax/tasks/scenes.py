"""Scene classification: one class an image, or several."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from ringmoe_jax.contracts import CLASSES, MULTILABEL, Meaning
from ringmoe_jax.evaluate import task_figures
from ringmoe_jax.evaluate.metrics.classification import ClassificationMetric, MultiLabelMetric
from ringmoe_jax.models.downstream import HeadSpec
from ringmoe_jax.models.heads.base import IMAGE_LOGITS
from ringmoe_jax.models.heads.neck import MEAN
from ringmoe_jax.tasks import base
from ringmoe_jax.tasks.base import Example, Target, Task, register

READS = {"logits": ("class",)}


@register("classification")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """One class an image. Scores: overall accuracy, mean recall; a confusion matrix.

    Attributes:
        smoothing: of the labels, where the config names no objectives (released RingMo: 0.1).
    """

    smoothing: float = 0.0
    kinds: ClassVar = (CLASSES,)
    answers: ClassVar = {"logits": IMAGE_LOGITS}
    stac_task: ClassVar = "scene-classification"
    maps: ClassVar = (base.CLASSES, base.PROBABILITIES)

    def head_spec(self, target: Target) -> HeadSpec:
        return HeadSpec("linear", READS, len(target.names), MEAN)

    def objectives(self, target: Target, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return {"cross_entropy": dict(name="cross_entropy", label=self.target, smoothing=self.smoothing)}

    def answer(self, predictions: Mapping[str, jax.Array], target: Target) -> dict[str, jax.Array]:
        return {"logits": predictions["logits"]}

    def windows(self, predictions: Mapping[str, jax.Array]) -> jax.Array:
        """Probabilities of the classes of a whole window."""
        return jax.nn.softmax(predictions["logits"].astype(jnp.float32))[:, None, None]

    def metric(self, target: Target) -> ClassificationMetric:
        return self.metric_class("classification")(target.names)

    def add(self, metric: ClassificationMetric, answer: Mapping[str, np.ndarray], truth: Any) -> None:
        metric.add(answer["logits"], truth)

    def constant(self, truths: Sequence[Any], target: Target) -> dict[str, np.ndarray]:
        """The most frequent class."""
        labels = np.asarray(truths)
        return {"logits": np.bincount(labels[labels >= 0], minlength=len(target.names)).astype(np.float64)}

    def figures(
        self, title: str, metric: ClassificationMetric, examples: Sequence[Example], target: Target
    ) -> dict[str, Figure]:
        return {"confusion": task_figures.confusion_matrix(title, metric.confusion(), target.names)}


@register("multilabel")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLabel(Task):
    """Any number of classes an image. Scores: mean average precision, micro and macro; macro F1."""

    kinds: ClassVar = (MULTILABEL,)
    answers: ClassVar = {"probability": Meaning(("class",), "probability of every class, each on its own", (), True)}
    stac_task: ClassVar = "scene-classification"
    maps: ClassVar = (base.PROBABILITIES,)

    def head_spec(self, target: Target) -> HeadSpec:
        return HeadSpec("linear", READS, len(target.names), MEAN)

    def objectives(self, target: Target, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return {"binary_cross_entropy": dict(name="binary_cross_entropy", label=self.target)}

    def answer(self, predictions: Mapping[str, jax.Array], target: Target) -> dict[str, jax.Array]:
        return {"probability": jax.nn.sigmoid(predictions["logits"])}

    def windows(self, predictions: Mapping[str, jax.Array]) -> jax.Array:
        """The probability of every class on its own, of a whole window."""
        return jax.nn.sigmoid(predictions["logits"].astype(jnp.float32))[:, None, None]

    def metric(self, target: Target) -> MultiLabelMetric:
        return self.metric_class("multilabel")(target.names)

    def add(self, metric: MultiLabelMetric, answer: Mapping[str, np.ndarray], truth: Any) -> None:
        metric.add(answer["probability"], truth)

    def constant(self, truths: Sequence[Any], target: Target) -> dict[str, np.ndarray]:
        """Every class by how often it is there."""
        return {"probability": np.mean(truths, axis=0)}

    def figures(
        self, title: str, metric: MultiLabelMetric, examples: Sequence[Example], target: Target
    ) -> dict[str, Figure]:
        return {"classes": task_figures.class_scores(title, target.names, "AP", metric.table()["AP"])}
