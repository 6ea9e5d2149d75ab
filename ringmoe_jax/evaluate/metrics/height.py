"""Errors of heights or depths, pixel by pixel."""

from __future__ import annotations

import numpy as np

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics.base import METRICS, Quantity, Sums, check_finite, error, ratio

FLOOR = 1.0  # metres; below it a relative error says nothing (our choice)


@METRICS.register("height")
class HeightMetric(Sums):
    """Heights or depths in metres.

    Metrics: "RMSE" and "MAE" in metres; "NRMSE", RMSE as a share of the range of the drawn images' truth; and,
    over pixels whose truth is above `floor`, "REL", the mean of |error| / truth, and "delta 1" to "delta 3", the share
    of pixels with max(truth / predicted, predicted / truth) < 1.25^k (Eigen et al., NeurIPS 2014); a prediction of 0
    or less is outside all of them. Heights above ground are 0 on most pixels, hence the floor (our choice).

    Args:
        floor: metres, at least 0.
    """

    def __init__(self, floor: float = FLOOR):
        super().__init__()
        self.floor = floor
        self._limits: list[tuple[float, float]] = []

    def add(self, truth: np.ndarray, predicted: np.ndarray, valid: np.ndarray) -> None:
        """Adds one image.

        Args:
            truth: [H, W] metres.
            predicted: [H, W] metres.
            valid: [H, W] bool, True where the truth is known: other pixels count for nothing.

        Raises:
            DataError: shapes differ, or a valid pixel is not finite.
        """
        truth, predicted, valid = np.asarray(truth), np.asarray(predicted), np.asarray(valid, bool)
        if not truth.shape == predicted.shape == valid.shape:
            raise DataError(
                f"truth, prediction and valid have shapes {truth.shape}, {predicted.shape} and {valid.shape}, "
                "wanted the same"
            )
        truth, predicted = truth[valid].astype(np.float64), predicted[valid].astype(np.float64)
        check_finite("valid height", truth)
        check_finite("predicted height", predicted)
        off, tall = np.abs(predicted - truth), truth > self.floor
        reached, high = predicted[tall], truth[tall]
        factor = np.full(len(high), np.inf)
        positive = reached > 0
        factor[positive] = np.maximum(high[positive] / reached[positive], reached[positive] / high[positive])
        close = [(factor < 1.25**k).sum() for k in (1, 2, 3)]
        relative = (off[tall] / high).sum()
        self.rows.append(np.array([len(truth), (off**2).sum(), off.sum(), len(high), relative, *close]))
        self._limits.append((truth.min(initial=np.inf), truth.max(initial=-np.inf)))

    @property
    def quantities(self) -> dict[str, Quantity]:
        """See `Metric.quantities`."""
        close = {f"delta {k}": Quantity(f"share of pixels within a factor of 1.25^{k} of the truth") for k in (1, 2, 3)}
        return {
            "RMSE": error("root of the mean squared error", "m"),
            "MAE": error("mean absolute error", "m"),
            "REL": error("mean error as a share of the true height"),
            **close,
            "NRMSE": error("RMSE as a share of the range of true heights"),
        }

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.values`."""
        count, squares, absolute, tall, relative, *close = self.totals(weights).T
        low, high = np.array(self._limits).T
        lowest = np.where(weights > 0, low, np.inf).min(axis=1)
        highest = np.where(weights > 0, high, -np.inf).max(axis=1)
        rmse = np.sqrt(ratio(squares, count))
        return {
            "RMSE": rmse,
            "MAE": ratio(absolute, count),
            "REL": ratio(relative, tall),
            **{f"delta {k}": ratio(inside, tall) for k, inside in enumerate(close, start=1)},
            "NRMSE": ratio(rmse, np.where(count > 0, highest - lowest, 0)),
        }
