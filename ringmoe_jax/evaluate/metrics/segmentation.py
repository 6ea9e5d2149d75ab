"""Agreement of maps of classes: one class a pixel, binary change, semantic change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics.base import METRICS, Quantity, Sums, confusion, mean_known, ratio

CHANGE = ("unchanged", "changed")


@METRICS.register("segmentation")
class SegmentationMetric(Sums):
    """One class a pixel.

    Metrics: "mIoU", "mF1" (means over classes) and "OA" (overall accuracy), from the pixels of all drawn images
    together, in 0..1. A class that is on no pixel, neither in truth nor in prediction, is left out of the means; one
    that is only predicted counts 0.

    Args:
        names: C class names.
        ignore: of them, that the means leave out; their pixels count for the other classes and for OA. ISPRS leaves
            clutter out of mF1 so.
    """

    def __init__(self, names: Sequence[str], ignore: Sequence[str] = ()):
        super().__init__()
        self.names, self.ignore = tuple(names), tuple(ignore)
        self._confusion = np.zeros((len(self.names),) * 2, np.int64)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Adds one image.

        Args:
            truth: [H, W] int class index, -1 where void: such pixels count for nothing.
            predicted: [H, W] int class index.

        Raises:
            DataError: shapes differ, or a value is no class.
        """
        pairs = confusion(truth, predicted, len(self.names))
        self.rows.append(margins(pairs))
        self._confusion += pairs

    @property
    def quantities(self) -> dict[str, Quantity]:
        """See `Metric.quantities`."""
        over = "mean over classes" + (f" without {', '.join(self.ignore)}" if self.ignore else "")
        return {
            "mIoU": Quantity(f"intersection over union, {over}"),
            "mF1": Quantity(f"F1, {over}"),
            "OA": Quantity("share of pixels whose class is right"),
        }

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.values`."""
        hits, truth, predicted = np.moveaxis(self.totals(weights), 1, 0)
        scored = [name not in self.ignore for name in self.names]
        return {
            "mIoU": mean_known(ratio(hits, truth + predicted - hits)[:, scored]),
            "mF1": mean_known(ratio(2 * hits, truth + predicted)[:, scored]),
            "OA": ratio(hits.sum(axis=1), truth.sum(axis=1)),
        }

    def confusion(self) -> np.ndarray:
        """[C, C] int64 pixels by class: rows are the truth, columns what was predicted."""
        return self._confusion.copy()

    def table(self) -> dict[str, np.ndarray]:
        """Columns by name, one row a class: its pixels, IoU, F1, recall and precision."""
        hits, truth, predicted = margins(self._confusion)
        return {
            "class": np.array(self.names),
            "pixels": truth,
            "IoU": ratio(hits, truth + predicted - hits),
            "F1": ratio(2 * hits, truth + predicted),
            "recall": ratio(hits, truth),
            "precision": ratio(hits, predicted),
        }

    def left_out(self) -> tuple[str, ...]:
        """Classes on no pixel, neither in truth nor in prediction: not part of the means."""
        _, truth, predicted = margins(self._confusion)
        return tuple(np.array(self.names)[truth + predicted == 0].tolist())


@METRICS.register("change")
class ChangeMetric(SegmentationMetric):
    """Changed or not, a pixel.

    Metrics: "F1", "IoU", "precision" and "recall" of the class "changed", and "OA". `add` takes maps of 0 (unchanged),
    1 (changed) and, in the truth, -1 (void).
    """

    def __init__(self):
        super().__init__(CHANGE)

    @property
    def quantities(self) -> dict[str, Quantity]:
        """See `Metric.quantities`."""
        return {
            "F1": Quantity("of changed pixels: harmonic mean of precision and recall"),
            "IoU": Quantity("of changed pixels: intersection over union"),
            "precision": Quantity("share of what was called changed that is"),
            "recall": Quantity("share of what changed that was found"),
            "OA": Quantity("share of pixels whose class is right"),
        }

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.values`."""
        hits, truth, predicted = np.moveaxis(self.totals(weights), 1, 0)
        found, true, claimed = hits[:, 1], truth[:, 1], predicted[:, 1]
        return {
            "F1": ratio(2 * found, true + claimed),
            "IoU": ratio(found, true + claimed - found),
            "precision": ratio(found, claimed),
            "recall": ratio(found, true),
            "OA": ratio(hits.sum(axis=1), truth.sum(axis=1)),
        }


@METRICS.register("semantic_change")
class SemanticChangeMetric(Sums):
    """Where a series of maps changes, and into what (DynamicEarthNet: Toker et al., CVPR 2022, section 5).

    Metrics: "SCS" = (BC + SC) / 2; "BC", IoU of binary change, a pixel being changed where two consecutive maps
    differ; "SC", mean IoU of the classes after the change over the pixels that truly changed. As in the authors' code,
    SC is the mean over the classes that those pixels truly hold. Pixels that are void before or after count for
    nothing.

    Args:
        names: C class names.
    """

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = tuple(names)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Adds the series of one place.

        Args:
            truth: [T, H, W] int class index of T >= 2 dates, -1 where void.
            predicted: [T, H, W] int class index.

        Raises:
            DataError: there is no second date, shapes differ, or a value is no class.
        """
        truth, predicted = np.asarray(truth), np.asarray(predicted)
        if truth.ndim != 3 or len(truth) < 2:
            raise DataError(f"maps have shape {truth.shape}, wanted [T, H, W] with two dates or more")
        classes = len(self.names)
        confusion(truth, predicted, classes)  # the checks
        known = (truth[:-1] >= 0) & (truth[1:] >= 0)
        true, claimed = truth[:-1] != truth[1:], predicted[:-1] != predicted[1:]
        binary = margins(confusion(np.where(known, true, -1), claimed.astype(np.int64), 2))[:, 1:]
        after = margins(confusion(np.where(known & true, truth[1:], -1), predicted[1:], classes))
        self.rows.append(np.concatenate([binary, after], axis=1))

    @property
    def quantities(self) -> dict[str, Quantity]:
        """See `Metric.quantities`."""
        return {
            "SCS": Quantity("mean of BC and SC"),
            "BC": Quantity("intersection over union of changed pixels"),
            "SC": Quantity("of truly changed pixels: intersection over union of what they became, mean over classes"),
        }

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.values`."""
        iou = self._iou(self.totals(weights))
        bc, sc = iou[:, 0], mean_known(iou[:, 1:])
        return {"SCS": (bc + sc) / 2, "BC": bc, "SC": sc}

    def table(self) -> dict[str, np.ndarray]:
        """Columns by name, one row a class: the pixels that truly changed into it, and their IoU."""
        totals = np.sum(self.rows, axis=0)
        return {"class": np.array(self.names), "pixels": totals[1, 1:], "IoU": self._iou(totals[None])[0, 1:]}

    @staticmethod
    def _iou(totals: np.ndarray) -> np.ndarray:
        """[R, 3, 1 + C] -> [R, 1 + C]: of change, and of the classes that the truth holds after one."""
        hits, truth, predicted = np.moveaxis(totals, 1, 0)
        iou = ratio(hits, truth + predicted - hits)
        iou[:, 1:][truth[:, 1:] == 0] = np.nan
        return iou


def margins(pairs: np.ndarray) -> np.ndarray:
    """Hits, truth and predictions of each class: confusion [C, C] -> [3, C]."""
    return np.stack([pairs.diagonal(), pairs.sum(axis=1), pairs.sum(axis=0)])
