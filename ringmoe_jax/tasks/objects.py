"""Tasks with an answer for every object: detection, and tracking by detection."""

from __future__ import annotations

import abc
import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from matplotlib.figure import Figure

from ringmoe_jax.contracts import BOX_UNITS, BOXES, TRACK, TRACKS, Meaning
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import task_figures
from ringmoe_jax.evaluate.metrics.boxes import nms
from ringmoe_jax.evaluate.metrics.detection import MOST, DetectionMetric
from ringmoe_jax.evaluate.metrics.tracking import TrackingMetric
from ringmoe_jax.models.downstream import HeadSpec
from ringmoe_jax.models.heads.detection import DetectionConfig, decode
from ringmoe_jax.models.heads.neck import EACH, MEAN
from ringmoe_jax.tasks.base import Example, Target, Task, register
from ringmoe_jax.tasks.joining import Place, Scene, Tile, moved
from ringmoe_jax.tasks.tracker import TrackerConfig, track

SURE = 0.3  # least score of a box in a picture
PARTS = ("boxes", "scores", "classes")
NOTHING = (np.zeros((0, 5)), np.zeros(0), np.zeros(0, np.int64))  # of these


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objects(Task):
    """Boxes with classes and scores.

    Attributes:
        rotated: boxes have an angle, and overlaps are those of the rotated boxes.
        most: boxes of an image before non-maximum suppression. Several points find each object, so it bounds how many
            objects of a dense scene are found; 2000 is what is usual for rotated boxes (MMRotate's configurations).
        threshold: least score of a box.
        listing: further columns of what is written of a scene, with their dtypes.
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
    finds: ClassVar = True
    listing: ClassVar[Mapping[str, str]]
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
        return dict(zip(PARTS, NOTHING, strict=True))

    def kept(self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Boxes [n, 5], scores and classes of one image that are left by non-maximum suppression, the best first."""
        used = classes >= 0
        boxes, scores, classes = boxes[used], scores[used], classes[used]
        chosen = nms(boxes, scores, classes, self.overlap, self.rotated)
        return boxes[chosen], scores[chosen], classes[chosen]

    def gathered(self, scene: Scene, tiles: Iterable[Tile], most: int = sys.maxsize):
        """Boxes of tiles where they lie in their scene, and its objects that some tile shows, each once.

        Args:
            scene: with its objects.
            tiles: one after the other.
            most: boxes of one class and date that a tile keeps, the best.

        Returns:
            By whoever answers boxes, scores and classes of every date, a list: all that tiles keep, so `kept` has yet
            to choose among those of different tiles; and rows of objects.
        """
        found: dict[str, list[list[tuple]]] = {}
        shown = np.zeros(len(scene.objects), np.bool_)
        for tile in tiles:
            shown |= tile.place.holds(scene.objects)
            for name, answer in tile.answers.items():
                dates = found.setdefault(name, [])
                for date, placed in self.placed(answer, tile.place, most):
                    dates += [[NOTHING] for _ in range(date + 1 - len(dates))]
                    dates[date].append(placed)
        joined = {n: [tuple(map(np.concatenate, zip(*f, strict=True))) for f in dates] for n, dates in found.items()}
        return joined, scene.objects[shown]

    def placed(self, answer: Mapping[str, np.ndarray], place: Place, most: int = sys.maxsize):
        """Dates of a scene, and what a tile keeps on them: boxes where they lie in the scene, scores and classes."""
        for date, frame in self.frames(answer, place):
            boxes, scores, classes = self.kept(*frame)
            best = np.sort([i for c in np.unique(classes) for i in np.flatnonzero(classes == c)[:most]])
            best = best.astype(np.int64)
            yield date, (moved(boxes[best], place), scores[best], classes[best])

    @abc.abstractmethod
    def listed(self, found: Iterable[tuple[int, tuple]]) -> Iterable[dict[str, np.ndarray]]:
        """What is written of a scene, part by part: boxes [n, 5], classes [n], and columns `listing` [n].

        Args:
            found: dates, and boxes, scores and classes on them after non-maximum suppression, in any order of dates.
        """

    def frames(self, answer: Mapping[str, np.ndarray], place: Place) -> Iterable[tuple[int, tuple]]:
        """Dates of the scene, and a tile's boxes, scores and classes on them."""
        yield 0, tuple(answer[name] for name in PARTS)


@register("detection")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Detection(Objects):
    """Horizontal or rotated boxes. Scores: COCO's AP, AP50, AP75, and AP50 by the rules of VOC 2007 and 2012.

    Attributes:
        scored: detections of one class that count in one image, COCO's maxDets; DOTA and its like know no limit.
    """

    scored: int = MOST
    kinds: ClassVar = (BOXES,)
    maps: ClassVar = (BOXES,)
    listing: ClassVar = {"score": "float32"}
    dates: ClassVar = MEAN
    joined: ClassVar = (
        "an object counts once, whole, and boxes of all tiles suppress each other (task.overlap); task.scored bounds "
        "them in every tile, not in a scene"
    )

    def metric(self, target: Target) -> DetectionMetric:
        return self.metric_class("detection")(target.names, self.rotated, self.scored)

    def scene_metric(self, target: Target) -> DetectionMetric:
        """Without a limit: `join` applies it tile by tile."""
        return dataclasses.replace(self, scored=sys.maxsize).metric(target)

    def join(self, scene: Scene, tiles: Iterable[Tile]) -> tuple[dict[str, Any], Any]:
        """Boxes of all tiles; `add` suppresses those that another tile found better."""
        found, objects = self.gathered(scene, tiles, self.scored)
        return {name: dict(zip(PARTS, dates[0], strict=True)) for name, dates in found.items()}, objects

    def add(self, metric: DetectionMetric, answer: Mapping[str, np.ndarray], truth: Any) -> None:
        metric.add(*self.kept(*(answer[name] for name in PARTS)), truth)

    def listed(self, found: Iterable[tuple[int, tuple]]) -> Iterable[dict[str, np.ndarray]]:
        """Boxes with their scores, as they come."""
        for _, (boxes, scores, classes) in found:
            yield {"box": boxes, "class": classes, "score": scores.astype("float32")}

    def figures(
        self, title: str, metric: DetectionMetric, examples: Sequence[Example], target: Target
    ) -> dict[str, Figure]:
        rows = []
        for e in examples:
            found, scores, classes = self.kept(*(e.answer[name] for name in PARTS))
            sure = scores >= SURE
            rows.append((e.images[0], e.truth, found[sure], scores[sure], classes[sure]))
        title = f"{title}, scores of {SURE} and more"
        return {"boxes": task_figures.boxes(title, rows, target.names, ground=examples[0].ground)}


@register("tracking")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracking(Objects):
    """Detection on every date, then association. Scores: HOTA, MOTA, MOTP, IDF1 and the counts behind them.

    Attributes:
        tracker: thresholds of the association.
        distance: pixels; where above 0, a track meets the truth where their centres are this close (for objects that
            are known as points), else where boxes overlap.
    """

    tracker: TrackerConfig = TrackerConfig()
    distance: float = 0.0
    kinds: ClassVar = (TRACKS,)
    maps: ClassVar = (TRACKS,)
    listing: ClassVar = {"track": "int32", "date": "int32"}
    dates: ClassVar = EACH
    joined: ClassVar = (
        "boxes of all tiles suppress each other (task.overlap), and tracks run through the whole series, whose objects "
        "count once"
    )

    def answer(self, predictions: Mapping[str, jax.Array], target: Target) -> dict[str, jax.Array]:
        found = super().answer(predictions, target)
        return {name: x.reshape(-1, target.dates, *x.shape[1:]) for name, x in found.items()}

    def metric(self, target: Target) -> TrackingMetric:
        return self.metric_class("tracking")(self.rotated, self.distance or None)

    def add(self, metric: TrackingMetric, answer: Mapping[str, np.ndarray], truth: Any) -> None:
        metric.add(truth, self.tracks(answer))

    def join(self, scene: Scene, tiles: Iterable[Tile]) -> tuple[dict[str, Any], Any]:
        """Boxes of all tiles on all dates of the series; `add` suppresses and follows them."""
        found, objects = self.gathered(scene, tiles)
        return {n: dict(zip(PARTS, zip(*dates, strict=True), strict=True)) for n, dates in found.items()}, objects

    def frames(self, answer: Mapping[str, np.ndarray], place: Place) -> Iterable[tuple[int, tuple]]:
        """See `Objects.frames`; dates on which nothing was observed, behind the end of a series, are left out."""
        for date in np.flatnonzero(place.observed):
            yield place.date + int(date), tuple(answer[name][date] for name in PARTS)

    def constant(self, truths: Sequence[Any], target: Target) -> dict[str, np.ndarray]:
        """Nothing on any date."""
        nothing = super().constant(truths, target)
        return {name: np.stack([x] * target.dates) for name, x in nothing.items()}

    def tracks(self, answer: Mapping[str, np.ndarray]) -> np.ndarray:
        """[m, 8] rows of tracks in one sample's detections."""
        frames = zip(*(answer[name] for name in PARTS), strict=True)
        return track([self.kept(*frame) for frame in frames], self.tracker)

    def listed(self, found: Iterable[tuple[int, tuple]]) -> Iterable[dict[str, np.ndarray]]:
        """A box a track and date on which it was seen, both counted from 0."""
        dates: dict[int, list[tuple]] = {}
        for date, frame in found:
            dates.setdefault(date, [NOTHING]).append(frame)
        whole = {date: tuple(map(np.concatenate, zip(*frames, strict=True))) for date, frames in dates.items()}
        rows = track([whole.get(date, NOTHING) for date in range(max(whole, default=-1) + 1)], self.tracker)
        columns = {name: rows[:, TRACK.index(name)].astype(dtype) for name, dtype in self.listing.items()}
        yield {"box": rows[:, 1:6], "class": rows[:, 0].astype(np.int64)} | columns

    def figures(
        self, title: str, metric: TrackingMetric, examples: Sequence[Example], target: Target
    ) -> dict[str, Figure]:
        return {
            f"tracks_{e.index}": task_figures.tracks(title, e.images, e.truth, self.tracks(e.answer), ground=e.ground)
            for e in examples
        }
