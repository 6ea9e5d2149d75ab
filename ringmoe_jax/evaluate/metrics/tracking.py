"""How well objects are found and followed through a sequence: HOTA, CLEAR MOT and identity scores."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.optimize import linear_sum_assignment

from ringmoe_jax.contracts import UNLABELLED
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics import boxes as geometry
from ringmoe_jax.evaluate.metrics.base import COUNT, METRICS, Quantity, Sums, check_finite, error, ratio

ALPHAS = np.arange(0.05, 0.99, 0.05)  # similarities that HOTA averages over
ALIKE = 0.5  # similarity of a match, for CLEAR MOT and identities
SLACK = np.finfo(float).eps  # of both, against rounding


@dataclasses.dataclass(frozen=True)
class _Date:
    """Who is where on one date: n true objects, m hypotheses; tracks are numbered from 0 on."""

    truth: np.ndarray  # [n] int
    predicted: np.ndarray  # [m] int
    similarity: np.ndarray  # [n, m], 0..1


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """Dates in order, and how many rows each true and each predicted track has."""

    dates: list[_Date]
    truth: np.ndarray  # [tracks] int
    predicted: np.ndarray  # [tracks] int


@METRICS.register("tracking")
class TrackingMetric(Sums):
    """Tracks of objects; truth and hypotheses are matched date by date.

    Metrics: "HOTA", "DetA", "AssA" (Luiten et al., IJCV 2021), "MOTA", "MOTP" (Bernardin and Stiefelhagen, 2008),
    "IDF1" (Ristani et al., 2016), and the counts "ID switches", "FP" and "FN" of the CLEAR matching. MOTP is the mean
    similarity of matches, with `distance` their mean distance in pixels (less is better); MOTA may be negative; the
    others are in 0..1. Objects of different classes never match; all classes count together.

    Args:
        rotated: similarity is the overlap of the rotated boxes instead of the upright ones around them.
        distance: pixels; where given, similarity is 1 - d / (2 distance) of centres d apart, so that `distance` is
            the largest of a match (our choice, for objects that are points).

    Raises:
        DataError: `distance` is not positive.
    """

    def __init__(self, rotated: bool = False, distance: float | None = None):
        if distance is not None and not distance > 0:
            raise DataError(f"the distance of a match is {distance}, wanted more than 0 pixels")
        super().__init__()
        self.rotated, self.distance = rotated, distance

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Adds one sequence.

        Args:
            truth: [n, 8], columns class, x, y, width, height, angle, track, date; rows of class -1 are not used.
            predicted: [m, 8], likewise.

        Raises:
            DataError: shapes do not fit, a number is not finite, or a track is twice on one date.
        """
        sequence = self._sequence(_checked(truth, "true"), _checked(predicted, "predicted"))
        lengths = sequence.truth.sum(), sequence.predicted.sum(), _identity(sequence)
        self.rows.append(np.concatenate([lengths, _clear(sequence), _hota(sequence).ravel()]))

    @property
    def quantities(self) -> dict[str, Quantity]:
        """See `Metric.quantities`."""
        part = dataclasses.replace(error("", COUNT), comparable=False)  # who says nothing has no false position
        closeness = Quantity("how closely matches meet the truth")
        return {
            "HOTA": Quantity("geometric mean of detection and association, over overlaps"),
            "DetA": Quantity("how well objects are found"),
            "AssA": Quantity("how well they keep their identity"),
            "MOTA": Quantity(
                "1 \N{MINUS SIGN} (missed + false + switches) / true positions; may be negative", low=-math.inf
            ),
            "MOTP": closeness if self.distance is None else error("mean distance of matches from the truth", "px"),
            "IDF1": Quantity("F1 of positions with the right identity"),
            "ID switches": dataclasses.replace(part, meaning="true tracks that pass to another predicted one"),
            "FP": dataclasses.replace(part, meaning="false positions"),
            "FN": dataclasses.replace(part, meaning="missed positions"),
        }

    def values(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """See `Metric.values`."""
        totals = self.totals(weights)
        truth, predicted, same, hits, switches, similarity = totals[:, :6].T
        found, association = totals[:, 6:].reshape(len(totals), 2, len(ALPHAS)).transpose(1, 0, 2)
        missed, false = truth - hits, predicted - hits
        detection = ratio(found, (truth + predicted)[:, None] - found)
        association = association / np.maximum(found, 1)
        motp = ratio(similarity, hits)
        return {
            "HOTA": np.sqrt(detection * association).mean(axis=1),
            "DetA": detection.mean(axis=1),
            "AssA": association.mean(axis=1),
            "MOTA": 1 - ratio(missed + false + switches, truth),
            "MOTP": motp if self.distance is None else 2 * self.distance * (1 - motp),
            "IDF1": ratio(2 * same, truth + predicted),
            "ID switches": switches,
            "FP": false,
            "FN": missed,
        }

    def _sequence(self, truth: np.ndarray, predicted: np.ndarray) -> _Sequence:
        """Both by date; dates that neither holds are left out."""
        (_, true, lengths), (_, other, other_lengths) = (
            np.unique(rows[:, 6], return_inverse=True, return_counts=True) for rows in (truth, predicted)
        )
        dates = []
        for date in np.unique(np.concatenate([truth[:, 7], predicted[:, 7]])):
            i, j = truth[:, 7] == date, predicted[:, 7] == date
            dates.append(_Date(true[i], other[j], self._similarity(truth[i], predicted[j])))
        return _Sequence(dates, lengths, other_lengths)

    def _similarity(self, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """[n, m] in 0..1, 0 between classes."""
        if self.distance is not None:
            apart = np.hypot(*(truth[:, None, 1:3] - predicted[:, 1:3]).transpose(2, 0, 1))
            similarity = np.maximum(0, 1 - apart / (2 * self.distance))
        else:
            overlap = geometry.rotated_iou if self.rotated else geometry.iou
            similarity = overlap(truth[:, 1:6], predicted[:, 1:6])
        return similarity * (truth[:, None, 0] == predicted[:, 0])


def _clear(sequence: _Sequence) -> np.ndarray:
    """Matches, identity switches, and the sum of the matches' similarities.

    A match of the date before is kept where it still is one; the others are chosen for the largest similarity.
    A true track switches where it is matched to another track than the last time, however long ago.
    """
    current: dict[int, int] = {}  # matches of the date before, true track to predicted
    last: dict[int, int] = {}  # latest match of each true track
    sums = np.zeros(3)
    for date in sequence.dates:
        if not date.similarity.size:  # nobody is there, or nobody is seen: nothing is forgotten
            continue
        before = np.array([current.get(track, -1) for track in date.truth.tolist()])
        gain = date.similarity + 1000 * (before[:, None] == date.predicted)
        gain[date.similarity < ALIKE - SLACK] = 0
        i, j = linear_sum_assignment(gain, maximize=True)
        i, j = i[gain[i, j] > 0], j[gain[i, j] > 0]
        current = dict(zip(date.truth[i].tolist(), date.predicted[j].tolist(), strict=True))
        switches = sum(last.get(track, other) != other for track, other in current.items())
        last |= current
        sums += len(i), switches, date.similarity[i, j].sum()
    return sums


def _identity(sequence: _Sequence) -> float:
    """Rows that are alike under the best one-to-one assignment of whole tracks (IDTP)."""
    alike = np.zeros((len(sequence.truth), len(sequence.predicted)))
    for date in sequence.dates:
        i, j = np.nonzero(date.similarity >= ALIKE - SLACK)
        alike[date.truth[i], date.predicted[j]] += 1
    return alike[linear_sum_assignment(alike, maximize=True)].sum()


def _hota(sequence: _Sequence) -> np.ndarray:
    """[2, alphas]: matches, and the sum of the association scores of all matches.

    Matches favour pairs of tracks that are alike over the whole sequence; one matching serves all alphas.
    """
    alike = np.zeros((len(sequence.truth), len(sequence.predicted)))
    for date in sequence.dates:
        s = date.similarity
        alike[np.ix_(date.truth, date.predicted)] += np.nan_to_num(ratio(s, s.sum(0) + s.sum(1)[:, None] - s))
    rows = sequence.truth[:, None] + sequence.predicted  # of both tracks
    alike /= rows - alike
    pairs, similarities = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for date in sequence.dates:
        i, j = linear_sum_assignment(alike[np.ix_(date.truth, date.predicted)] * date.similarity, maximize=True)
        pairs.append(np.stack([date.truth[i], date.predicted[j]], axis=1))
        similarities.append(date.similarity[i, j])
    pairs, similarities = np.concatenate(pairs), np.concatenate(similarities)
    sums = np.zeros((2, len(ALPHAS)))
    for k, alpha in enumerate(ALPHAS):
        who, often = np.unique(pairs[similarities >= alpha - SLACK], axis=0, return_counts=True)
        sums[:, k] = often.sum(), (often**2 / (rows[who[:, 0], who[:, 1]] - often)).sum()
    return sums


def _checked(rows: np.ndarray, what: str) -> np.ndarray:
    """The rows that are used, [n, 8] float64."""
    rows = np.asarray(rows, np.float64)
    if rows.ndim != 2 or rows.shape[1] != 8:
        raise DataError(
            f"{what} tracks have shape {rows.shape}, wanted [n, 8]: class, x, y, width, height, angle, track, date"
        )
    rows = rows[rows[:, 0] != UNLABELLED]
    check_finite(f"number of {what} tracks", rows)
    geometry.check(rows[:, 1:6], np.ones(len(rows)))
    who, often = np.unique(rows[:, 6:], axis=0, return_counts=True)
    for track, date in who[often > 1][:1]:
        raise DataError(f"the {what} track {track:g} is twice on date {date:g}, wanted once: number tracks uniquely")
    return rows
