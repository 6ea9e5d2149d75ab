"""Accuracy of one label an image, average precision of several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics.base import (
    METRICS,
    Metric,
    Quantity,
    check_classes,
    check_finite,
    confusion,
    mean_known,
    portions,
    ratio,
)


@METRICS.register("classification")
class ClassificationMetric(Metric):
    """One class an image.

    Metrics: "accuracy" (overall accuracy, OA), "macro" (mean recall of the classes that the images hold) and, where
    there are more than five classes, "top-5". All in 0..1.

    Args:
        names: C class names.
    """

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)
        self._labels, self._predicted, self._ranks = [], [], []

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """Adds one image, or n of them.

        Args:
            scores: [C] or [n, C], logits or probabilities; of equal ones the first class wins.
            labels: int or [n] class index, -1 where unknown: such an image counts for nothing.

        Raises:
            DataError: a score is not finite, or a label is no class.
        """
        labels = np.atleast_1d(labels)
        scores = _checked(scores, (len(labels), len(self.names)))
        check_classes("label", labels, len(self.names))
        own = np.take_along_axis(scores, np.maximum(labels, 0)[:, None], axis=1)
        before = np.arange(len(self.names)) < labels[:, None]
        self._labels.extend(labels)
        self._predicted.extend(scores.argmax(axis=1))
        self._ranks.extend(((scores > own) | (scores == own) & before).sum(axis=1))

    @property
    def quantities(self) -> dict[str, Quantity]:
        """See `Metric.quantities`."""
        stated = {
            "accuracy": Quantity("share of images whose class is right"),
            "macro": Quantity("recall, mean over classes"),
        }
        if len(self.names) > 5:
            stated["top-5"] = Quantity("share of images whose class is among the five likeliest")
        return stated

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.values`."""
        members = weights @ self._one_hot(np.inf)  # [R, C]
        hits = weights @ self._one_hot(1)
        found = {"accuracy": ratio(hits.sum(axis=1), members.sum(axis=1)), "macro": mean_known(ratio(hits, members))}
        if len(self.names) > 5:
            found["top-5"] = ratio((weights @ self._one_hot(5)).sum(axis=1), members.sum(axis=1))
        return found

    def confusion(self) -> np.ndarray:
        """[C, C] int64 images by class: rows are the truth, columns what was predicted."""
        labels, predicted = np.array(self._labels, np.int64), np.array(self._predicted, np.int64)
        return confusion(labels, predicted, len(self.names))

    def table(self) -> dict[str, np.ndarray]:
        """Columns by name, one row a class: its images, recall, precision and F1."""
        counts = self.confusion()
        hits, truth, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
        return {
            "class": np.array(self.names),
            "images": truth,
            "recall": ratio(hits, truth),
            "precision": ratio(hits, predicted),
            "F1": ratio(2 * hits, truth + predicted),
        }

    def _one_hot(self, best: float) -> sparse.csr_array:
        """[N, C], 1 at the class of every image whose class is among its `best` highest scores."""
        labels = np.array(self._labels, np.int64)
        chosen = np.flatnonzero((labels >= 0) & (np.array(self._ranks) < best))
        shape = len(labels), len(self.names)
        return sparse.csr_array((np.ones(len(chosen)), (chosen, labels[chosen])), shape)


@METRICS.register("multilabel")
class MultiLabelMetric(Metric):
    """Any number of classes an image.

    Metrics: "mAP micro" (of all pairs of image and class), "mAP macro" (mean over the classes that the images hold),
    both as scikit-learn's `average_precision_score`, and "F1 macro" (mean over the classes that are true or predicted
    somewhere). All in 0..1.

    Args:
        names: C class names.
        threshold: score from which on a class is predicted, for F1: 0.5 for probabilities, 0 for logits.
    """

    def __init__(self, names: Sequence[str], threshold: float = 0.5):
        self.names, self.threshold = tuple(names), threshold
        self._scores, self._labels = [], []

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """Adds one image, or n of them.

        Args:
            scores: [C] or [n, C].
            labels: [C] or [n, C] of 0 and 1.

        Raises:
            DataError: a score is not finite, or a label is neither 0 nor 1.
        """
        labels = np.atleast_2d(labels)
        if not np.isin(labels, (0, 1)).all():
            raise DataError(f"labels hold {labels[~np.isin(labels, (0, 1))][0]}, wanted 0 or 1 for each class")
        self._scores.extend(_checked(scores, (len(labels), len(self.names))))
        self._labels.extend(labels)

    @property
    def quantities(self) -> dict[str, Quantity]:
        """See `Metric.quantities`."""
        return {
            "mAP micro": Quantity("average precision over all pairs of image and class"),
            "mAP macro": Quantity("average precision, mean over classes"),
            "F1 macro": Quantity("F1, mean over classes"),
        }

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.values`."""
        scores, labels = self._arrays()
        classes = labels.shape[1]
        micro = [
            average_precision(labels.ravel(), scores.ravel(), np.repeat(part, classes, axis=1))
            for part in portions(weights, labels.size)
        ]
        macro = [average_precision(y, s, weights) for y, s in zip(labels.T, scores.T, strict=True)]
        hits, truth, predicted = (weights @ counts for counts in self._counts())
        return {
            "mAP micro": np.concatenate(micro),
            "mAP macro": mean_known(np.stack(macro, axis=1)),
            "F1 macro": mean_known(ratio(2 * hits, truth + predicted)),
        }

    def table(self) -> dict[str, np.ndarray]:
        """Columns by name, one row a class: its images, average precision, recall, precision and F1."""
        scores, labels = self._arrays()
        hits, truth, predicted = (counts.sum(axis=0) for counts in self._counts())
        one = np.ones((1, len(self)))
        return {
            "class": np.array(self.names),
            "images": truth.astype(np.int64),
            "AP": np.array([average_precision(y, s, one)[0] for y, s in zip(labels.T, scores.T, strict=True)]),
            "recall": ratio(hits, truth),
            "precision": ratio(hits, predicted),
            "F1": ratio(2 * hits, truth + predicted),
        }

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores and labels, [N, C] float64 each."""
        shape = len(self), len(self.names)
        return np.array(self._scores, np.float64).reshape(shape), np.array(self._labels, np.float64).reshape(shape)

    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hits, truth and predictions of each image and class, [N, C] of 0 and 1."""
        scores, labels = self._arrays()
        predicted = (scores >= self.threshold).astype(np.float64)
        return labels * predicted, labels, predicted


def average_precision(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the precision-recall curve as scikit-learn sums it, for many weightings at once.

    Args:
        truth: [N] of 0 and 1.
        scores: [N]; equal scores are one threshold.
        weights: [R, N] weight of every image.

    Returns:
        [R] float64; NaN where no positive image has weight.
    """
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # last image of every threshold
    weights = weights[:, order]
    hits = np.cumsum(weights * truth[order], axis=1)[:, last]
    drawn = np.cumsum(weights, axis=1)[:, last]
    gain = np.diff(hits, axis=1, prepend=0)
    return ratio(np.sum(gain * hits / np.maximum(drawn, 1e-12), axis=1), hits[:, -1])


def _checked(scores: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The scores as [n, C] float, if they are finite."""
    scores = np.atleast_2d(scores)
    if scores.shape != shape:
        raise DataError(f"scores have shape {scores.shape}, wanted {shape}: one for each image and class")
    check_finite("score", scores)
    return scores
