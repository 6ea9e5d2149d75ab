"""Frozen-feature probes: k nearest neighbours and logistic regression, with bootstrap intervals.

Protocol of torchgeo-bench (z-scored features, L2 neighbours, L-BFGS logistic regression, C chosen on held-out
tiles and refitted on all). Our choice: C comes from an inner split of the training tiles, so that the tiles
that are scored are never used for fitting; spatial blocks are never split, neither there nor by the bootstrap.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import bootstrap

KNN, LINEAR = ("knn5", "knn20"), ("linear",)
PENALTIES = tuple(10.0**e for e in range(-6, 5))  # inverse regularisation C; torchgeo-bench: 40 over the same range
INNER_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Split:
    """Tiles with features and one label.

    Attributes:
        features: [N, D] float.
        labels: [N] int class index, -1 where unknown, or [N, C] of 0 and 1 for several labels a tile.
        groups: [N] int, block of each tile, see `bootstrap.blocks`; tiles of one block stay together.
    """

    features: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    def where(self, keep: np.ndarray) -> Split:
        """The tiles where `keep` [N] is True."""
        return Split(self.features[keep], self.labels[keep], self.groups[keep])


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric in 0..1 with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Probe:
    """Result of one protocol on one label.

    Attributes:
        protocol: "knn5", "knn20" or "linear".
        scores: by metric, the main one first. "accuracy" and "macro" (mean recall of the classes that the test
            tiles hold), or "mAP micro" and "mAP macro".
        left_out: several labels a tile: classes that are not scored, for a split has them on no tile or on
            every tile. One label a tile: classes that a split lacks; test tiles of a class that was never
            fitted count as errors.
        train: tiles that were fitted.
        test: tiles that were scored.
        blocks: blocks among the test tiles, what the interval rests on.
        near: those of them that hold or border on training tiles; there a probe may recognise the place.
        penalty: chosen C of the linear probe, else None.
    """

    protocol: str
    scores: dict[str, Score]
    left_out: tuple[str, ...]
    train: int
    test: int
    blocks: int
    near: int
    penalty: float | None = None


@threadpool_limits.wrap(limits=1)  # tiles are few and products small: threads only wait for each other
def probe(
    train: Split,
    test: Split,
    names: Sequence[str],
    protocols: Sequence[str] = KNN + LINEAR,
    *,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> list[Probe]:
    """Fits each protocol on `train` and scores it on `test`.

    Args:
        train: tiles to fit.
        test: tiles to score.
        names: class names.
        protocols: of `KNN` and `LINEAR`.
        seed: of the inner split and the bootstrap.
        resamples: of the bootstrap.

    Raises:
        DataError: fewer than two classes can be told apart in the tiles that are left.
    """
    several = train.labels.ndim == 2
    if not several:
        train, test = (split.where(split.labels >= 0) for split in (train, test))
    if not len(train.labels) or not len(test.labels):
        raise DataError(f"{len(train.labels)} labelled training and {len(test.labels)} test tiles: wanted some of each")
    present = [_present(split.labels, len(names)) for split in (train, test)]
    usable = present[0] & present[1]
    left_out = tuple(name for name, good in zip(names, usable, strict=True) if not good)
    if several:
        if not usable.any():
            raise DataError("no class is on some but not all tiles of both splits: give more tiles to probe")
        train, test = (dataclasses.replace(s, labels=s.labels[:, usable]) for s in (train, test))
    elif present[0].sum() < 2:
        raise DataError("the training tiles hold a single class: a probe needs at least two")
    train, test = _standardised(train, test)
    weights = bootstrap.draw(test.groups, resamples, seed)
    blocks = len(np.unique(test.groups)), bootstrap.touching(test.groups, train.groups)
    results = []
    for protocol in protocols:
        penalty = None
        if protocol.startswith("knn"):
            scores = neighbours(train, test.features, int(protocol.removeprefix("knn")), len(names))
        else:
            penalty = choose_penalty(train, len(names), seed)
            scores = logistic(train, test.features, penalty, len(names))
        metrics = _metrics(scores, test.labels, weights)
        results.append(Probe(protocol, metrics, left_out, len(train.labels), len(test.labels), *blocks, penalty))
    return results


def neighbours(train: Split, features: np.ndarray, k: int, classes: int) -> np.ndarray:
    """Shares of the k nearest training tiles (L2) that hold each class; ties go to the nearer tiles.

    Returns:
        [N, C] float64 in 0..1.
    """
    k = min(k, len(train.features))
    nearest = NearestNeighbors(n_neighbors=k).fit(train.features).kneighbors(features, return_distance=False)
    vote = 1 - 1e-6 * np.arange(k)
    return np.einsum("nkc,k->nc", _one_hot(train.labels, classes)[nearest], vote / vote.sum())


def logistic(train: Split, features: np.ndarray, penalty: float, classes: int) -> np.ndarray:
    """Class probabilities [N, C] of L2-regularised logistic regression: multinomial, or one a class."""

    def fit(labels):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # weak penalties on separable tiles; C is chosen anyway
            return LogisticRegression(C=penalty, max_iter=300).fit(train.features, labels)

    if train.labels.ndim == 1:
        model = fit(train.labels)
        scores = np.zeros((len(features), classes))
        scores[:, model.classes_] = model.predict_proba(features)
        return scores
    scores = np.empty((len(features), train.labels.shape[1]))
    for i, labels in enumerate(train.labels.T):
        varies = labels.min() < labels.max()
        scores[:, i] = fit(labels).predict_proba(features)[:, 1] if varies else labels[0]
    return scores


def choose_penalty(train: Split, classes: int, seed: int) -> float:
    """C with the best main metric on a fifth of the training blocks; the strongest penalty among equals."""
    groups = np.random.default_rng(seed).permutation(np.unique(train.groups))
    held = np.isin(train.groups, groups[: max(1, round(INNER_SHARE * len(groups)))])
    if len(groups) < 3:  # too few blocks to hold one out: neighbouring tiles have to do
        held = np.random.default_rng(seed).permutation(len(held)) < INNER_SHARE * len(held)
    inner, outer = train.where(~held), train.where(held)
    if not len(outer.labels) or (inner.labels.ndim == 1 and len(np.unique(inner.labels)) < 2):
        return 1.0
    one = np.ones((1, len(outer.labels)))
    quality = [
        next(iter(_values(logistic(inner, outer.features, c, classes), outer.labels, one).values()))[0]
        for c in PENALTIES
    ]
    return PENALTIES[int(np.argmax(np.nan_to_num(quality, nan=-1.0)))]


def average_precision(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the precision-recall curve as scikit-learn sums it, for many weightings at once.

    Args:
        truth: [N] of 0 and 1.
        scores: [N]; equal scores are one threshold.
        weights: [R, N] weight of every tile.

    Returns:
        [R] float64; NaN where no positive tile has weight.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # last tile of every threshold
    weights = weights[:, order]
    hits = np.cumsum(weights * truth[order], axis=1)[:, last]
    drawn = np.cumsum(weights, axis=1)[:, last]
    gain = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore"):
        return np.sum(gain * hits / np.maximum(drawn, 1e-12), axis=1) / hits[:, -1]


def _metrics(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, Score]:
    point = _values(scores, labels, np.ones((1, len(labels))))
    spread = _values(scores, labels, weights)
    return {name: Score(float(point[name][0]), *bootstrap.interval(spread[name])) for name in point}


def _values(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Every metric for every weighting, {metric: [R]}; the main metric first."""
    if labels.ndim == 1:
        right = np.argmax(scores, axis=1) == labels
        member = np.eye(scores.shape[1])[labels][:, np.unique(labels)]  # [N, classes in the test tiles]
        with np.errstate(invalid="ignore"):
            recall = (weights @ (member * right[:, None])) / (weights @ member)
        return {"accuracy": (weights @ right) / weights.sum(axis=1), "macro": _mean(recall)}
    macro = np.stack([average_precision(y, s, weights) for y, s in zip(labels.T, scores.T, strict=True)], axis=1)
    parts = np.array_split(weights, -(-weights.size * labels.shape[1] // 4_000_000))  # bounds the memory
    micro = [average_precision(labels.ravel(), scores.ravel(), np.repeat(w, labels.shape[1], axis=1)) for w in parts]
    return {"mAP micro": np.concatenate(micro), "mAP macro": _mean(macro)}


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over classes [R, C] -> [R], without those that a resample does not hold."""
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def _present(labels: np.ndarray, classes: int) -> np.ndarray:
    """[C] bool: classes that some tiles hold and, with several labels a tile, some do not."""
    if labels.ndim == 1:
        return np.isin(np.arange(classes), labels)
    return (labels > 0).any(axis=0) & (labels == 0).any(axis=0)


def _one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes)[labels] if labels.ndim == 1 else labels


def _standardised(train: Split, *others: Split) -> list[Split]:
    """Zero mean and unit variance over the training tiles; a constant feature becomes 0."""
    features = train.features.astype(np.float64)
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = np.where(std > 1e-9 * np.maximum(np.abs(mean), 1), 1 / np.maximum(std, 1e-30), 0)
    return [dataclasses.replace(s, features=(s.features - mean) * scale) for s in (train, *others)]
