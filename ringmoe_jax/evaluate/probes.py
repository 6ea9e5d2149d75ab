"""Frozen-feature probes: k nearest neighbours and logistic regression, of all labels or few, with bootstrap intervals.

Protocol of torchgeo-bench (snapshot 0660813): L2 neighbours among the training tiles alone; L-BFGS logistic regression
whose C is chosen on validation tiles by fits on training tiles, then refitted on both. Where the validation tiles are
those that are scored, C comes from an inner split of the training tiles instead: a tile that is scored is never used
for fitting, nor for a choice between features, which rests on the same tiles as that of C (`Probe.validation`). Our
choice: features are z-scored on the tiles that are fitted; spatial blocks are never split, neither by the inner split
nor by the bootstrap; and a share of the labels is a share of the validation tiles' as well.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.evaluate import bootstrap
from ringmoe_jax.evaluate.logistic import LogisticPath
from ringmoe_jax.evaluate.metrics import ClassificationMetric, Metric, MultiLabelMetric, Score

KNN, LINEAR = ("knn5", "knn20"), ("linear",)
PENALTIES = tuple(10.0**e for e in range(-6, 5))  # inverse regularisation C; torchgeo-bench: 40 over the same range
INNER_SHARE = 0.2
MOST_JOBS = 8  # at the same time: each holds copies of its features


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
        """The tiles where `keep` [N] is True, or at the positions `keep` [M]."""
        return Split(self.features[keep], self.labels[keep], self.groups[keep])

    def share(self, fraction: float, seed: int) -> Split:
        """A random share of the tiles, see `draw`."""
        return self if fraction == 1 else self.where(draw(self.labels, fraction, seed))

    def joined(self, other: Split) -> Split:
        """These tiles and those of the other."""
        return Split(*(np.concatenate([getattr(s, f.name) for s in (self, other)]) for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Probe:
    """Result of one protocol on one label.

    Attributes:
        protocol: "linear", or "knn5" of 5 neighbours, "knn20" and so on.
        fraction: share of the labels that was used.
        draws: how many such shares were drawn, each fitted and scored.
        scores: by metric, the main one first, of `ClassificationMetric` or `MultiLabelMetric`: the mean over draws,
            and the central 95 % of all draws' bootstrap resamples pooled, which covers the choice of the test tiles
            and that of the labels (our choice).
        left_out: several labels a tile: classes that are not scored, for a split has them on no tile or on
            every tile. One label a tile: classes that a split lacks; test tiles of a class that was never
            fitted count as errors.
        train: tiles that were fitted in a draw, validation tiles among them where C was refitted on both.
        test: tiles that were scored.
        blocks: blocks among the test tiles, what the interval rests on.
        near: those of them that hold or border on fitted tiles of some draw; there a probe may recognise the place.
        penalty: chosen C of the linear probe, the median over draws; else None.
        validation: main metric on the tiles that choose C, of a probe that was fitted without them, mean over draws:
            what to choose features by. NaN where these tiles say nothing.
    """

    protocol: str
    fraction: float
    draws: int
    scores: dict[str, Score]
    left_out: tuple[str, ...]
    train: int
    test: int
    blocks: int
    near: int
    penalty: float | None = None
    validation: float = math.nan


@threadpool_limits.wrap(limits=1)  # tiles are few and products small: threads of one probe only wait for each other
def probe(
    train: Split,
    test: Split,
    names: Sequence[str],
    protocols: Sequence[str] = KNN + LINEAR,
    *,
    validation: Split | None = None,
    fraction: float = 1.0,
    draws: int = 1,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> list[Probe]:
    """Fits each protocol and scores it on `test`.

    Args:
        train: tiles to fit.
        test: tiles to score; nothing of them is used for fitting or choosing.
        names: class names.
        protocols: "linear" and "knn<k>" of k neighbours.
        validation: tiles on which the linear probe chooses C, and is then refitted as well; None leaves a fifth of
            the training tiles out to choose it.
        fraction: share of the tiles of `train`, and of `validation`, whose labels are used; above 0, at most 1.
        draws: how many such shares are drawn, by the seeds `seed`, `seed` + 1, ...; all labels are drawn once.
        seed: of the draws, the inner split and the bootstrap.
        resamples: of the bootstrap.

    Raises:
        ConfigError: `fraction` or `draws` is out of its range, or there is no such protocol.
        DataError: fewer than two classes can be told apart in the tiles that are left.
    """
    if not 0 < fraction <= 1 or draws < 1:
        raise ConfigError(f"fraction = {fraction}, draws = {draws}: wanted a share above 0, at most 1, and draws > 0")
    check(protocols)
    train, validation, test, left_out = _usable(train, validation, test, names)
    seeds = range(seed, seed + (draws if fraction < 1 else 1))
    shares = [(train.share(fraction, s), validation and validation.share(fraction, s)) for s in seeds]
    drawn = [_fits(protocols, *share, test.features, len(names), seed) for share in shares]
    results = []
    for protocol in protocols:
        fits = [fits[protocol] for fits in drawn]
        scores = _pooled([_metric(fit.scores, test.labels) for fit in fits], test.groups, seed, resamples)
        near = bootstrap.touching(test.groups, np.concatenate([fit.tiles.groups for fit in fits]))
        tiles = len(fits[0].tiles.labels), len(test.labels), len(np.unique(test.groups)), near
        penalty = None if fits[0].penalty is None else float(np.median([fit.penalty for fit in fits]))
        quality = float(np.mean([fit.validation for fit in fits]))
        results.append(Probe(protocol, fraction, len(fits), scores, left_out, *tiles, penalty, quality))
    return results


@threadpool_limits.wrap(limits=1)  # around all of them: in threads, limits that begin and end would undo each other
def side_by_side(jobs: Sequence[Callable[[], list[Probe]]]) -> list[list[Probe] | DataError]:
    """Runs several probes at the same time, each on one core.

    Args:
        jobs: each calls `probe`.

    Returns:
        What each gave, or the `DataError` that it raised.
    """

    def run(job):
        try:
            return job()
        except DataError as error:
            return error

    with ThreadPoolExecutor(min(MOST_JOBS, os.cpu_count() or 1)) as pool:
        return list(pool.map(run, jobs))


def check(protocols: Sequence[str]) -> None:
    """Raises a `ConfigError` unless these are protocols of `probe`."""
    for name in protocols:
        if name not in LINEAR and not re.fullmatch(r"knn[1-9]\d*", name):
            raise ConfigError(f'there is no probe "{name}": wanted linear, or knn5, knn20 and the like')


def draw(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draws a share of the tiles for a probe of few labels, by the rule of `input_pipeline.subset`.

    Of the n tiles of every class, or of all n where a tile has several labels, the first max(1, round(fraction n)) of
    a random order are taken: no class is lost, and a larger fraction holds the smaller ones.

    Args:
        labels: [N] class index, all known, or [N, C] of 0 and 1.
        fraction: above 0, at most 1.
        seed: 0 or more.

    Returns:
        Positions, int64, ascending.
    """
    several = labels.ndim == 2
    groups = [np.arange(len(labels))] if several else [np.flatnonzero(labels == c) for c in np.unique(labels)]
    rng = np.random.Generator(np.random.Philox(seed))
    return np.sort(np.concatenate([rng.permutation(g)[: max(1, round(fraction * len(g)))] for g in groups]))


def neighbours(train: Split, features: np.ndarray, counts: Sequence[int], classes: int) -> list[np.ndarray]:
    """Shares of the k nearest training tiles (L2) that hold each class; ties go to the nearer tiles.

    Args:
        train: tiles to look among.
        features: [N, D] of others.
        counts: every k that is wanted; one search serves all.
        classes: C, number of classes.

    Returns:
        [N, C] float64 in 0..1 for every k.
    """
    counts = [min(k, len(train.features)) for k in counts]
    found = NearestNeighbors(n_neighbors=max(counts)).fit(train.features).kneighbors(features, return_distance=False)
    holds = _one_hot(train.labels, classes)
    votes = [1 - 1e-6 * np.arange(k) for k in counts]
    return [np.einsum("nkc,k->nc", holds[found[:, : len(vote)]], vote / vote.sum()) for vote in votes]


def logistic(train: Split, features: np.ndarray, penalties: Sequence[float], classes: int) -> list[np.ndarray]:
    """Class probabilities [N, C] of other features [N, D] for every C, see `LogisticPath`; ascending C are fastest."""
    path = LogisticPath(train.features, train.labels, classes)
    return [path.fit(penalty).probabilities(features) for penalty in penalties]


def choose_penalty(inner: Split, outer: Split, classes: int) -> tuple[float, float]:
    """C with the best main metric, and that; the strongest penalty among equals, but 1 where all are equal.

    Args:
        inner: tiles to fit.
        outer: tiles to score.
        classes: number of classes.
    """
    if not _can_choose(inner, outer):
        return 1.0, math.nan
    tiles, features = _standardised(inner, outer.features)
    quality = [_quality(scores, outer.labels) for scores in logistic(tiles, features, PENALTIES, classes)]
    ranked = np.nan_to_num(quality, nan=-1.0)
    best = int(np.argmax(ranked))
    return (PENALTIES[best] if np.ptp(ranked) else 1.0), quality[best]


def _can_choose(inner: Split, outer: Split) -> bool:
    """Whether tiles can be fitted and others scored."""
    return bool(len(outer.labels) and len(inner.labels) and (inner.labels.ndim == 2 or np.ptp(inner.labels)))


def _quality(scores: np.ndarray, labels: np.ndarray) -> float:
    """Main metric of scores [N, C]."""
    values = _metric(scores, labels).values(np.ones((1, len(labels))))
    return float(next(iter(values.values()))[0])


def _held_out(train: Split, seed: int) -> tuple[Split, Split]:
    """Four fifths and one fifth of the blocks."""
    groups = np.random.default_rng(seed).permutation(np.unique(train.groups))
    held = np.isin(train.groups, groups[: max(1, round(INNER_SHARE * len(groups)))])
    if len(groups) < 3:  # too few blocks to hold one out: neighbouring tiles have to do
        held = np.random.default_rng(seed).permutation(len(held)) < INNER_SHARE * len(held)
    return train.where(~held), train.where(held)


def _usable(train: Split, validation: Split | None, test: Split, names: Sequence[str]):
    """The splits, tiles without a label and classes that cannot be judged left out, and the names of the latter."""
    if train.labels.ndim == 1:
        train, test = (split.where(split.labels >= 0) for split in (train, test))
        validation = validation and validation.where(validation.labels >= 0)
    if not len(train.labels) or not len(test.labels):
        raise DataError(f"{len(train.labels)} labelled training and {len(test.labels)} test tiles: wanted some of each")
    validation = validation if validation and len(validation.labels) else None
    present = [_present(split.labels, len(names)) for split in (train, test)]
    usable = present[0] & present[1]
    if train.labels.ndim == 2:
        if not usable.any():
            raise DataError("no class is on some but not all tiles of both splits: give more tiles to probe")
        of = lambda split: split and dataclasses.replace(split, labels=split.labels[:, usable])  # noqa: E731
        train, validation, test = map(of, (train, validation, test))
    elif present[0].sum() < 2:
        raise DataError("the training tiles hold a single class: a probe needs at least two")
    return train, validation, test, tuple(name for name, good in zip(names, usable, strict=True) if not good)


@dataclasses.dataclass(frozen=True)
class _Fit:
    """Test scores [N, C] of a protocol, the tiles that were fitted, the main metric where features are chosen, C."""

    scores: np.ndarray
    tiles: Split
    validation: float
    penalty: float | None = None


def _fits(
    protocols: Sequence[str], train: Split, validation: Split | None, test: np.ndarray, classes: int, seed: int
) -> dict[str, _Fit]:
    """Every protocol of one draw of the labels."""
    inner, outer = (train, validation) if validation else _held_out(train, seed)
    fits = {}
    if counts := {name: int(name.removeprefix("knn")) for name in protocols if name not in LINEAR}:
        tiles, features = _standardised(train, test)
        scores = neighbours(tiles, features, list(counts.values()), classes)
        quality = [math.nan] * len(counts)
        if _can_choose(inner, outer):
            near, others = _standardised(inner, outer.features)
            quality = [_quality(x, outer.labels) for x in neighbours(near, others, list(counts.values()), classes)]
        fits |= {name: _Fit(*fit) for name, *fit in zip(counts, scores, [tiles] * len(counts), quality, strict=True)}
    for name in (name for name in protocols if name in LINEAR):
        penalty, quality = choose_penalty(inner, outer, classes)
        tiles, features = _standardised(train.joined(validation) if validation else train, test)
        (scores,) = logistic(tiles, features, [penalty], classes)
        fits[name] = _Fit(scores, tiles, quality, penalty)
    return fits


def _pooled(metrics: Sequence[Metric], groups: np.ndarray, seed: int, resamples: int) -> dict[str, Score]:
    """Means over draws of one set of test tiles, and intervals of the resamples of all draws."""
    points = [metric.values(np.ones((1, len(groups)))) for metric in metrics]
    weights = bootstrap.draw(groups, resamples, seed)
    spread = [metric.values(weights) for metric in metrics]
    joined = {name: [np.concatenate([of[name] for of in values]) for values in (points, spread)] for name in points[0]}
    return {name: Score(float(point.mean()), *bootstrap.interval(all_)) for name, (point, all_) in joined.items()}


def _metric(scores: np.ndarray, labels: np.ndarray) -> Metric:
    """The metric that fits the labels, of probabilities [N, C]."""
    kind = ClassificationMetric if labels.ndim == 1 else MultiLabelMetric
    metric = kind([str(i) for i in range(scores.shape[1])])
    metric.add(scores, labels)
    return metric


def _present(labels: np.ndarray, classes: int) -> np.ndarray:
    """[C] bool: classes that some tiles hold and, with several labels a tile, some do not."""
    if labels.ndim == 1:
        return np.isin(np.arange(classes), labels)
    return (labels > 0).any(axis=0) & (labels == 0).any(axis=0)


def _one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes)[labels] if labels.ndim == 1 else labels


def _standardised(train: Split, features: np.ndarray) -> tuple[Split, np.ndarray]:
    """Zero mean and unit variance over the training tiles, of theirs and of other features; a constant one is 0."""
    own = train.features.astype(np.float64)
    mean, std = own.mean(axis=0), own.std(axis=0)
    scale = np.where(std > 1e-9 * np.maximum(np.abs(mean), 1), 1 / np.maximum(std, 1e-30), 0)
    return dataclasses.replace(train, features=(own - mean) * scale), (features - mean) * scale
