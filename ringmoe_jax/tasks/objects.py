"""Tasks with an answer for every object: detection, and tracking by detection."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from matplotlib.figure import Figure

from ringmoe_jax.contracts import BOX_UNITS, BOXES, TRACKS, Meaning
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import task_figures
from ringmoe_jax.evaluate.metrics.boxes import nms
from ringmoe_jax.evaluate.metrics.detection import MOST, DetectionMetric
from ringmoe_jax.evaluate.metrics.tracking import TrackingMetric
from ringmoe_jax.models.downstream import HeadSpec
from ringmoe_jax.models.heads.detection import DetectionConfig, decode
from ringmoe_jax.models.heads.neck import EACH, MEAN
from ringmoe_jax.tasks.base import Example, Target, Task, register
from ringmoe_jax.tasks.tracker import TrackerConfig, track

SURE = 0.3  # least score of a box in a picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Objects(Task):
    """Boxes with classes and scores.

    Attributes:
        rotated: boxes have an angle, and overlaps are those of the rotated boxes.
        most: boxes of an image before non-maximum suppression. Several points find each object, so it bounds how many
            objects of a dense scene are found; 2000 is what is usual for rotated boxes (MMRotate's configurations).
        threshold: least score of a box.
        overlap: IoU from which the better of two boxes of a class suppresses the other; 0.3 was better than 0.5 for
            ships and vehicles of simulated scenes.
    """

    rotated: bool = False
    most: int = 2000
    threshold: float = 0.05
    overlap: float = 0.3
    answers: ClassVar = {
        "boxes": Meaning(("object", "parameter"), f"the best boxes before non-maximum suppression: {BOX_UNITS}"),
        "scores": Meaning(("object",), "their scores in 0..1, descending"),
        "classes": Meaning(("object",), "their classes' indices, -1 for rows not to use", of_classes=True),
    }
    stac_task: ClassVar = "object-detection"
    dates: ClassVar[str]

    def head_spec(self, target: Target) -> HeadSpec:
        reads = {name: DetectionConfig.gives[name].axes for name in ("class", "box", "centreness")}
        return HeadSpec("fcos", reads, len(target.names), self.dates, target.sensor, {"rotated": self.rotated})

    def objectives(self, target: Target, head: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        return {"fcos": dict(name="fcos", label=self.target)}

    def answer(self, predictions: Mapping[str, jax.Array], target: Target) -> dict[str, jax.Array]:
        boxes, scores, classes = decode(predictions, self.most, self.threshold)
        return {"boxes": boxes, "scores": scores, "classes": classes}

    def check_truth(self, truth: Any, target: Target) -> None:
        super().check_truth(truth[..., 0].astype(np.int64), target)
        bad = (truth[..., 0] >= 0) & ((truth[..., 3] <= 0) | (truth[..., 4] <= 0))
        if bad.any():
            raise DataError(f'{bad.sum()} boxes of the label "{target.name}" have no area: write the data set again')

    def constant(self, truths: Sequence[Any], target: Target) -> dict[str, np.ndarray]:
        """Nothing."""
        return {"boxes": np.zeros((0, 5)), "scores": np.zeros(0), "classes": np.zeros(0, int)}

    def kept(self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Boxes [n, 5], scores and classes of one image that are left by non-maximum suppression, the best first."""
        used = classes >= 0
        boxes, scores, classes = boxes[used], scores[used], classes[used]
        chosen = nms(boxes, scores, classes, self.overlap, self.rotated)
        return boxes[chosen], scores[chosen], classes[chosen]


@register("detection")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection(_Objects):
    """Horizontal or rotated boxes. Scores: COCO's AP, AP50, AP75, and AP50 by the rules of VOC 2007 and 2012.

    Attributes:
        scored: detections of one class that count in one image, COCO's maxDets; DOTA and its like know no limit.
    """

    scored: int = MOST
    kinds: ClassVar = (BOXES,)
    dates: ClassVar = MEAN

    def metric(self, target: Target) -> DetectionMetric:
        return self.metric_class("detection")(target.names, self.rotated, self.scored)

    def add(self, metric: DetectionMetric, answer: Mapping[str, np.ndarray], truth: Any) -> None:
        metric.add(*self.kept(answer["boxes"], answer["scores"], answer["classes"]), truth)

    def figures(
        self, title: str, metric: DetectionMetric, examples: Sequence[Example], target: Target
    ) -> dict[str, Figure]:
        rows = []
        for e in examples:
            found, scores, classes = self.kept(e.answer["boxes"], e.answer["scores"], e.answer["classes"])
            sure = scores >= SURE
            rows.append((e.images[0], e.truth, found[sure], scores[sure], classes[sure]))
        title = f"{title}, scores of {SURE} and more"
        return {"boxes": task_figures.boxes(title, rows, target.names, ground=examples[0].ground)}


@register("tracking")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracking(_Objects):
    """Detection on every date, then association. Scores: HOTA, MOTA, MOTP, IDF1 and the counts behind them.

    Attributes:
        tracker: thresholds of the association.
        distance: pixels; where above 0, a track meets the truth where their centres are this close (for objects that
            are known as points), else where boxes overlap.
    """

    tracker: TrackerConfig = TrackerConfig()
    distance: float = 0.0
    kinds: ClassVar = (TRACKS,)
    dates: ClassVar = EACH

    def answer(self, predictions: Mapping[str, jax.Array], target: Target) -> dict[str, jax.Array]:
        found = super().answer(predictions, target)
        return {name: x.reshape(-1, target.dates, *x.shape[1:]) for name, x in found.items()}

    def metric(self, target: Target) -> TrackingMetric:
        return self.metric_class("tracking")(self.rotated, self.distance or None)

    def add(self, metric: TrackingMetric, answer: Mapping[str, np.ndarray], truth: Any) -> None:
        metric.add(truth, self.tracks(answer))

    def constant(self, truths: Sequence[Any], target: Target) -> dict[str, np.ndarray]:
        """Nothing on any date."""
        nothing = super().constant(truths, target)
        return {name: np.stack([x] * target.dates) for name, x in nothing.items()}

    def tracks(self, answer: Mapping[str, np.ndarray]) -> np.ndarray:
        """[m, 8] rows of tracks in one sample's detections."""
        frames = zip(answer["boxes"], answer["scores"], answer["classes"], strict=True)
        return track([self.kept(*frame) for frame in frames], self.tracker)

    def figures(
        self, title: str, metric: TrackingMetric, examples: Sequence[Example], target: Target
    ) -> dict[str, Figure]:
        return {
            f"tracks_{e.index}": task_figures.tracks(title, e.images, e.truth, self.tracks(e.answer), ground=e.ground)
            for e in examples
        }
