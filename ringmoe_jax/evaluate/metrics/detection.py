"""Average precision of detected boxes, upright or rotated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ringmoe_jax.contracts import UNLABELLED
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics import boxes as geometry
from ringmoe_jax.evaluate.metrics.base import METRICS, Metric, Quantity, mean_known, portions, ratio

# Exactly pycocotools' numbers: where a recall equals a step of the grid, the last bit decides.
OVERLAPS = np.linspace(0.5, 0.95, 10)
COCO = np.linspace(0, 1, 101)
VOC07 = np.arange(11) / 10
MOST = 100  # detections of one class in one image (COCO's maxDets)


@METRICS.register("detection")
class DetectionMetric(Metric):
    """Boxes with classes and scores.

    Metrics, means over the classes that the drawn images hold, in 0..1: "AP" over the overlaps 0.50, 0.55, ... 0.95,
    "AP50" and "AP75" by COCO's interpolation at 101 recalls; "AP50 (07)" by PASCAL VOC 2007's at 11 and "AP50 (12)" by
    2012's area under the envelope, which sets of rotated boxes report. Matching is COCO's for all of them: in order of
    score, each detection takes the free true box of its class in its image that it overlaps most, if enough.
    (VOC's own code never turns to the second best box, and asks for more than 0.5 where COCO asks for at least.)

    Args:
        names: C class names.
        rotated: overlap of the rotated boxes instead of the upright ones around them.
        most: detections of one class that count in one image, those of the highest score.
    """

    def __init__(self, names: Sequence[str], rotated: bool = False, most: int = MOST):
        self.names, self.rotated, self.most = tuple(names), rotated, most
        self._truth: list[np.ndarray] = []  # an image: boxes of each class, [C]
        self._scores: list[list[np.ndarray]] = [[] for _ in self.names]  # a class, an image: [n], descending
        self._hits: list[list[np.ndarray]] = [[] for _ in self.names]  # likewise: [n, len(OVERLAPS)] bool

    def __len__(self) -> int:
        return len(self._truth)

    def add(self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, truth: np.ndarray) -> None:
        """Adds one image.

        Args:
            boxes: [n, 5] or [n, 4] detections: x, y, width, height in pixels, angle in radians.
            scores: [n]; among equal ones the first wins.
            classes: [n] int; rows of class -1 are not used.
            truth: [m, 6], class and box; rows of class -1 are not used.

        Raises:
            DataError: shapes do not fit, a number is not finite or a side negative, or a class is unknown.
        """
        truth, classes, scores = np.asarray(truth, np.float64), np.asarray(classes), np.asarray(scores, np.float64)
        if truth.ndim != 2 or truth.shape[1] != 6:
            raise DataError(f"true boxes have shape {truth.shape}, wanted [m, 6]: class, x, y, width, height, angle")
        truth = truth[truth[:, 0] != UNLABELLED]
        boxes = geometry.check(boxes, scores)
        true_boxes = geometry.check(truth[:, 1:], np.ones(len(truth)))
        if classes.shape != scores.shape:
            raise DataError(f"classes have shape {classes.shape}, wanted {scores.shape}: one a box")
        for labels in (classes, truth[:, 0]):
            if not np.isin(labels, np.arange(-1, len(self.names))).all():
                raise DataError(f"classes are {np.unique(labels)}, wanted whole numbers -1 to {len(self.names) - 1}")
        overlap = geometry.rotated_iou if self.rotated else geometry.iou
        for index in range(len(self.names)):
            mine = np.flatnonzero(classes == index)
            mine = mine[np.argsort(-scores[mine], kind="stable")][: self.most]
            self._scores[index].append(scores[mine])
            self._hits[index].append(match(overlap(boxes[mine], true_boxes[truth[:, 0] == index])))
        self._truth.append((truth[:, :1] == np.arange(len(self.names))).sum(axis=0))

    @property
    def quantities(self) -> dict[str, Quantity]:
        """See `Metric.quantities`."""
        return {
            "AP": Quantity("average precision, mean over overlaps 0.50, 0.55, ... 0.95 and over classes"),
            "AP50": Quantity("average precision at an overlap of 0.5"),
            "AP75": Quantity("average precision at an overlap of 0.75"),
            "AP50 (07)": Quantity("the same at 0.5 by the rules of PASCAL VOC 2007"),
            "AP50 (12)": Quantity("the same at 0.5 by the rules of PASCAL VOC 2012"),
        }

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.values`."""
        per_class = [self._class_values(index, weights) for index in range(len(self.names))]
        return {name: mean_known(np.stack([v[name] for v in per_class], axis=1)) for name in per_class[0]}

    def table(self) -> dict[str, np.ndarray]:
        """Columns by name, one row a class: its true boxes, detections, and the metrics of `values`."""
        per_class = [self._class_values(index, np.ones((1, len(self)))) for index in range(len(self.names))]
        return {
            "class": np.array(self.names),
            "boxes": np.sum(self._truth, axis=0),
            "detections": np.array([sum(map(len, scores)) for scores in self._scores]),
            **{name: np.array([v[name][0] for v in per_class]) for name in per_class[0]},
        }

    def left_out(self) -> tuple[str, ...]:
        """Classes of no true box: not part of the means, whatever was detected."""
        return tuple(np.array(self.names)[np.sum(self._truth, axis=0) == 0].tolist())

    def _class_values(self, index: int, weights: np.ndarray) -> dict[str, np.ndarray]:
        """The metrics of one class, {metric: [R]}; NaN where the drawn images hold no such box."""
        scores = np.concatenate(self._scores[index])
        order = np.argsort(-scores, kind="stable")
        image = np.repeat(np.arange(len(self)), [len(found) for found in self._scores[index]])[order]
        hits = np.concatenate(self._hits[index])[order]
        truth = np.stack(self._truth)[:, index]
        parts = [_average_precisions(hits, image, truth, part) for part in portions(weights, len(scores))]
        coco, voc07, voc12 = (np.concatenate(found) for found in zip(*parts, strict=True))
        return {
            "AP": coco.mean(axis=1),
            "AP50": coco[:, 0],
            "AP75": coco[:, 5],
            "AP50 (07)": voc07,
            "AP50 (12)": voc12,
        }


def match(overlap: np.ndarray) -> np.ndarray:
    """Which detections find a true box, as COCO matches them.

    Args:
        overlap: [n, m] of detections, best score first, with true boxes.

    Returns:
        [n, len(OVERLAPS)] bool.
    """
    count, everyone = overlap.shape[1], np.arange(len(OVERLAPS))
    free = np.ones((len(OVERLAPS), count), bool)
    hits = np.zeros((len(overlap), len(OVERLAPS)), bool)
    for i in np.flatnonzero((overlap >= OVERLAPS[0]).any(axis=1)):
        left = np.where(free, overlap[i], -1)
        best = count - 1 - left[:, ::-1].argmax(axis=1)  # of equal ones the last, as in COCO
        hits[i] = left[everyone, best] >= OVERLAPS
        free[everyone[hits[i]], best[hits[i]]] = False
    return hits


def average_precision(precision: np.ndarray, recall: np.ndarray, grid: np.ndarray | None = None) -> np.ndarray:
    """Mean over recalls of the best precision at that recall or a larger one.

    Args:
        precision: [R, P] at the true positives in order of score.
        recall: [R, P], ascending.
        grid: ascending recalls to take the mean over; None integrates over all recalls.

    Returns:
        [R] float64.
    """
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    if grid is not None:  # how much of the grid is reached
        recall = np.searchsorted(grid, recall, side="right") / len(grid)
    return (envelope * np.diff(recall, axis=1, prepend=0)).sum(axis=1)


def _average_precisions(hits: np.ndarray, image: np.ndarray, truth: np.ndarray, weights: np.ndarray):
    """COCO [R, overlaps], VOC 2007 [R] and VOC 2012 [R] of one class.

    Only true positives are points of the curve: between them, precision falls and recall stays.

    Args:
        hits: [D, overlaps] bool, of all images' detections, best score first.
        image: [D] int, where each was found.
        truth: [N] true boxes of each image.
        weights: [R, N].
    """
    positives = weights @ truth
    drawn = np.cumsum(weights[:, image], axis=1)
    coco = np.empty((len(weights), len(OVERLAPS)))
    for i, hit in enumerate(hits.T):
        found = np.cumsum(weights[:, image[hit]], axis=1)
        curve = found / np.maximum(drawn[:, hit], 1e-12), ratio(found, positives[:, None])
        coco[:, i] = average_precision(*curve, COCO)
        if i == 0:
            voc = average_precision(*curve, VOC07), average_precision(*curve)
    return [np.where(positives > 0, v.T, np.nan).T for v in (coco, *voc)]
