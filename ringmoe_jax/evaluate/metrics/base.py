"""What every metric is: entries of images, values for many weightings of them, and bootstrap intervals from those."""

from __future__ import annotations

import abc
import dataclasses
import math

import numpy as np

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import bootstrap
from ringmoe_jax.registry import Registry

COUNT = "count"  # unit of a quantity of whole numbers
ELEMENTS = 4_000_000  # of one array of a step over resamples: bounds the memory (32 MB in float64)


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Quantity:
    """What one value of a metric is.

    Attributes:
        meaning: for people, in a few words.
        unit: "" for a share, `COUNT`, or a physical unit such as "m" or "px".
        low: least possible value.
        high: largest possible value.
        higher_is_better: the direction.
        comparable: whether it says on its own which of two answers is better, as parts of another value do not.
    """

    meaning: str
    unit: str = ""
    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True
    comparable: bool = True


def error(meaning: str, unit: str = "") -> Quantity:
    """A quantity of 0 and more, of which less is better."""
    return Quantity(meaning, unit, 0.0, math.inf, higher_is_better=False)


class Metric(abc.ABC):
    """A metric of N images (or sequences), which an `add` of its own takes one after the other."""

    @property
    @abc.abstractmethod
    def quantities(self) -> dict[str, Quantity]:
        """What every key of `values` is: {metric: direction, unit and range}, the main metric first."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """N, how many images were added; one without any label counts as well."""

    @abc.abstractmethod
    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Values for many weightings of the images at once.

        Args:
            weights: [R, N] how often each image was drawn in each of R resamples; all ones give the score itself.

        Returns:
            {metric: [R] float64}, the main metric first; NaN where the drawn images do not define it.
        """


METRICS = Registry("metric", Metric)


class Sums(Metric):
    """A metric of sums over images. An `add` appends an array of sums to `rows`, always of one shape."""

    def __init__(self):
        self.rows: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.rows)

    def totals(self, weights: np.ndarray) -> np.ndarray:
        """Sums over the drawn images: weights [R, N] -> [R, ...], the shape of a row."""
        return np.tensordot(weights, np.stack(self.rows), axes=1)


def score(
    metric: Metric, groups: np.ndarray | None = None, seed: int = 0, resamples: int = bootstrap.RESAMPLES
) -> dict[str, Score]:
    """Every metric with its interval, the main metric first.

    Args:
        metric: N images.
        groups: [N] int, images of one group are drawn together, see `bootstrap.blocks`; None draws single images.
            Of a single group there is no interval: NaN.
        seed: of the draws.
        resamples: how many.

    Raises:
        DataError: there are no images, `groups` has another length, or the images do not define the main metric.
    """
    count = len(metric)
    if not count:
        raise DataError("the metric holds no images, wanted at least one: is the split empty?")
    groups = np.arange(count) if groups is None else np.asarray(groups)
    if groups.shape != (count,):
        raise DataError(f"groups have shape {groups.shape}, wanted ({count},): one for each image that was added")
    point = metric.values(np.ones((1, count)))
    main = next(iter(point))
    if np.isnan(point[main][0]):
        raise DataError(
            f'"{main}" of {count} images is undefined, wanted some labels: are all of them void or unknown?'
        )
    if len(np.unique(groups)) < 2:  # nothing to resample
        return {name: Score(float(value[0]), float("nan"), float("nan")) for name, value in point.items()}
    spread = metric.values(bootstrap.draw(groups, resamples, seed))
    return {name: Score(float(point[name][0]), *bootstrap.interval(spread[name])) for name in point}


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts pairs of classes where the truth is known.

    Args:
        truth: [...] int class index, -1 where void or unknown.
        predicted: [...] int class index, the same shape.
        classes: C.

    Returns:
        [C, C] int64: rows are the truth, columns what was predicted.

    Raises:
        DataError: shapes differ, or a value is no class.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise DataError(f"the prediction has shape {predicted.shape}, wanted the shape of the truth, {truth.shape}")
    check_classes("label", truth, classes)
    check_classes("prediction", predicted, classes, least=0)
    known = truth >= 0
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def check_classes(what: str, classes: np.ndarray, count: int, least: int = -1) -> None:
    """Raises DataError unless `classes` are integers from `least` to `count` - 1."""
    if classes.dtype.kind not in "iu":
        raise DataError(f"a {what} is {classes.dtype}, wanted integers {least} to {count - 1}")
    if classes.size and not (least <= classes.min() and classes.max() < count):
        bad = classes.min() if classes.min() < least else classes.max()
        raise DataError(f"a {what} is {bad}, wanted {least} to {count - 1}: are there {count} classes?")


def check_finite(what: str, values: np.ndarray) -> None:
    """Raises DataError unless all `values` are finite."""
    if not (finite := np.isfinite(values)).all():
        raise DataError(
            f"a {what} is {np.asarray(values)[~finite][0]}, wanted finite numbers: did the training diverge?"
        )


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole` in float64, NaN where `whole` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), whole)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)


def mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over classes [R, C] -> [R] of those that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0).sum(axis=1), known.sum(axis=1))


def portions(weights: np.ndarray, width: int) -> list[np.ndarray]:
    """Weights [R, N] cut along R, so that [part, width] stays below `ELEMENTS`."""
    return np.array_split(weights, max(1, min(len(weights), -(-len(weights) * width // ELEMENTS))))
