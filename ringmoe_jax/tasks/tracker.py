"""Tracking by detection: boxes of single frames become tracks.

Association in two stages as in ByteTrack (Zhang et al. 2022, arXiv 2110.06864, Algorithm 1) over a Kalman filter of
constant velocity. Frames must be registered: the motion of the camera is taken to be removed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Self

import jax
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree

from ringmoe_jax.contracts import UNLABELLED
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.evaluate.metrics.boxes import check, rotated_iou

DISTANCES = ("iou", "centre")
Detections = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes [n, 5], scores [n], classes [n]


@dataclasses.dataclass(frozen=True)
class TrackerConfig:
    """Thresholds of the association, and how far objects may move. Lengths in pixels, times in frames.

    Defaults of `high`, `low`, `birth` and `overlap` are those of the paper's experiments, the others our choice.

    Attributes:
        distance: "iou" (overlap of the predicted box with the detection; the paper's) or "centre" (likelihood of the
            detection's centre under the prediction), for objects that move by more than their size between frames.
        high: least score of a detection of the first stage, 0 to 1.
        low: least score of a detection of the second stage; detections below are not used.
        birth: least score of a detection that starts a track.
        overlap: least IoU of a match, for "iou".
        gate: largest distance of a match in standard deviations of the prediction, for "centre". A Gaussian has
            1 - exp(-gate^2 / 2) of its mass inside: 0.989 for 3.
        lost: frames for which a track is predicted on without a detection.
        hits: detections that a track needs to be given. As long as it has fewer, its first miss ends it.
        jitter: standard deviation of the centre and of the extents of a detection, along each axis.
        speed: standard deviation of the unknown velocity of a new track, pixels a frame along each axis.
        acceleration: standard deviation of the change of velocity from a frame to the next, pixels a frame.
        growth: standard deviation of the change of an extent from a frame to the next.

    Raises:
        ConfigError: a value is out of its range.
    """

    distance: str = "iou"
    high: float = 0.6
    low: float = 0.1
    birth: float = 0.7
    overlap: float = 0.2
    gate: float = 3.0
    lost: int = 5
    hits: int = 2
    jitter: float = 1.0
    speed: float = 10.0
    acceleration: float = 1.5
    growth: float = 0.5

    def __post_init__(self):
        if self.distance not in DISTANCES:
            raise ConfigError(f'distance = "{self.distance}": {nearest(self.distance, DISTANCES)}')
        if not 0 <= self.low <= self.high <= self.birth:
            raise ConfigError(
                f"low, high, birth = {self.low}, {self.high}, {self.birth}: wanted 0 <= low <= high <= birth"
            )
        if not 0 < self.overlap <= 1:
            raise ConfigError(f"overlap = {self.overlap}: wanted more than 0, at most 1")
        for name, least in {"lost": 0, "hits": 1, "speed": 0, "acceleration": 0, "growth": 0}.items():
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} = {getattr(self, name)}: wanted {least} or more")
        for name in ("gate", "jitter"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: wanted more than 0")


def track(frames: Sequence[Detections], config: TrackerConfig) -> np.ndarray:
    """Gives detections of one sequence identities.

    Tracks meet detections of their class only. The order of the detections of a frame does not matter.

    Args:
        frames: of T dates in order: boxes [n, 5] (x, y, width, height in pixels, angle in radians; see
            `input_pipeline.schema.BOX`), scores [n] 0 to 1 and classes [n]. Rows of class -1 are padding.
        config: thresholds.

    Returns:
        [m, 8] float32, columns `input_pipeline.schema.TRACK`, sorted by date and track: one row a track and date with
        a detection. Centre and extents are those of the filter, the angle the detection's. Tracks are numbered from 0.

    Raises:
        DataError: shapes do not fit, or a value is not finite.
    """
    nothing = _Found(np.zeros((0, 5)), np.zeros(0), np.zeros(0))
    tracks, rows, count = _Tracks.born(nothing, 0, config), [np.zeros((0, 8))], 0
    every = [_sorted(*frame, config.low, f"date {date}") for date, frame in enumerate(frames)]
    for date, (found, coming) in enumerate(zip(every, [*every, nothing][1:], strict=True)):
        tracks = tracks.predicted(config)
        strong = np.flatnonzero(found.score >= config.high)
        weak = np.flatnonzero(found.score < config.high)
        which, used = _associate(tracks, np.arange(len(tracks.number)), found, strong, coming, config)
        # A weak detection goes only to tracks that the frame before still had (as in the authors' code).
        left = np.setdiff1d(np.flatnonzero(tracks.misses == 1), which)
        which_weak, used_weak = _associate(tracks, left, found, weak, coming, config)
        which, used = np.append(which, which_weak), np.append(used, used_weak)
        tracks = tracks.replaced(which, tracks.take(which).updated(found.take(used), config))
        new = np.setdiff1d(np.flatnonzero(found.score >= config.birth), used)
        tracks = tracks.joined(_Tracks.born(found.take(new), count, config))
        count += len(new)
        rows.append(tracks.rows(date))
        seen, confirmed = tracks.misses == 0, tracks.hits >= config.hits
        tracks = tracks.take(np.flatnonzero(seen | confirmed & (tracks.misses <= config.lost)))
    return _confirmed(np.concatenate(rows), config.hits)


def _sorted(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, low: float, where: str) -> _Found:
    """Detections of a frame that score `low` or more, checked, in an order that does not depend on the given one."""
    try:
        boxes, scores, classes = check(boxes, scores), np.asarray(scores, np.float64), np.asarray(classes)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    if classes.shape != scores.shape:
        raise DataError(f"{where}: classes have shape {classes.shape}, wanted {scores.shape}: give one a box")
    found = _Found(boxes, scores, classes).take(np.flatnonzero((classes != UNLABELLED) & (scores >= low)))
    return found.take(np.lexsort([*found.box.T, found.kind, -found.score]))


def _associate(
    tracks: _Tracks, which: np.ndarray, found: _Found, candidates: np.ndarray, coming: _Found, config: TrackerConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The matching of least cost between tracks `which` and detections `candidates`: indices of both, [k] each.

    To stay alone costs as much as the worst match that is allowed.
    """
    tracks, found = tracks.take(which), found.take(candidates)
    same = tracks.kind[:, None] == found.kind
    if config.distance == "iou":
        cost, limit = 1 - rotated_iou(tracks.box, found.box), 1 - config.overlap
        allowed = same & (cost <= limit)
    else:
        spread = tracks.motion.spread(config.jitter)[:, None]
        apart = np.square(tracks.motion.position[:, None] - found.box[:, :2]).sum(axis=-1) / spread
        allowed = same & (apart <= config.gate**2)
        cost = apart + 2 * np.log(spread)  # -2 log of a Gaussian density
        limit = 2 * config.gate**2 + 2 * np.log(spread).max(initial=0.0)
        i, j = np.nonzero(allowed)
        cost[i, j] += _astray(tracks.take(i).updated(found.take(j), config).predicted(config), coming, config)
    i, j = linear_sum_assignment(np.where(allowed, cost - limit, 0.0))
    matched = allowed[i, j]
    return which[i[matched]], candidates[j[matched]]


def _astray(led: _Tracks, coming: _Found, config: TrackerConfig) -> np.ndarray:
    """[n] squared distance from where tracks lead to the nearest detection there, in variances, at most `gate`^2.

    A column of vehicles that moved on by one place looks, in two frames, like one that hardly moved. A third frame
    tells them apart, because wrong matches give velocities that do not last; hence this look ahead (our choice).
    """
    apart = np.full(len(led.kind), config.gate**2)
    spread = led.motion.spread(config.jitter)
    for kind in np.unique(coming.kind):
        same = led.kind == kind
        distance, _ = cKDTree(coming.box[coming.kind == kind, :2]).query(led.motion.position[same])
        apart[same] = np.minimum(apart[same], distance**2 / spread[same])
    return apart


def _confirmed(rows: np.ndarray, hits: int) -> np.ndarray:
    """Rows of the tracks with `hits` detections or more, numbered anew from 0."""
    _, track, count = np.unique(rows[:, 6], return_inverse=True, return_counts=True)
    rows = rows[count[track] >= hits]
    rows[:, 6] = np.unique(rows[:, 6], return_inverse=True)[1]
    return rows[np.lexsort([rows[:, 6], rows[:, 7]])].astype(np.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Motion:
    """Kalman filter of n points that move at constant velocity, in pixels and frames.

    Noise is the same along x and y, so that both share one covariance.

    Attributes:
        position: [n, 2] float64, x and y.
        velocity: [n, 2] float64, a frame.
        covariance: [n, 2, 2] float64 of position and velocity, along x as along y.
    """

    position: np.ndarray
    velocity: np.ndarray
    covariance: np.ndarray

    @staticmethod
    def start(position: np.ndarray, jitter: float, speed: float) -> Motion:
        """Points seen once, at rest give or take `speed`: the second detection all but decides their velocity."""
        covariance = np.tile(np.diag([jitter**2, speed**2]).astype(np.float64), (len(position), 1, 1))
        return Motion(position, np.zeros_like(position), covariance)

    def predicted(self, acceleration: float) -> Motion:
        """A frame later; the velocity changes at random (piecewise constant white acceleration)."""
        step = np.array([[1.0, 1.0], [0.0, 1.0]])
        kick = np.array([0.5, 1.0]) * acceleration
        covariance = step @ self.covariance @ step.T + np.outer(kick, kick)
        return Motion(self.position + self.velocity, self.velocity, covariance)

    def spread(self, jitter: float) -> np.ndarray:
        """[n] variance of the coming detection about `position`, along each axis."""
        return self.covariance[:, 0, 0] + jitter**2

    def updated(self, measured: np.ndarray, jitter: float) -> Motion:
        """Every point with its detection, `measured` [n, 2], taken in."""
        spread = self.spread(jitter)[:, None]
        gain = self.covariance[:, 0] / spread
        innovation = measured - self.position
        return Motion(
            self.position + gain[:, :1] * innovation,
            self.velocity + gain[:, 1:] * innovation,
            self.covariance - spread[..., None] * gain[:, :, None] * gain[:, None, :],
        )


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Objects as arrays that all begin with their number, n."""

    def take(self, which: np.ndarray) -> Self:
        return jax.tree.map(lambda x: x[which], self)

    def joined(self, others: Self) -> Self:
        return jax.tree.map(lambda x, y: np.concatenate([x, y]), self, others)

    def replaced(self, which: np.ndarray, others: Self) -> Self:
        """With `others` in the rows `which`."""

        def put(x, y):
            x = x.copy()
            x[which] = y
            return x

        return jax.tree.map(put, self, others)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Found(_Rows):
    """Detections of one frame."""

    box: np.ndarray  # [n, 5]
    score: np.ndarray  # [n]
    kind: np.ndarray  # [n] classes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Tracks(_Rows):
    """Tracks that are alive."""

    motion: Motion
    extent: np.ndarray  # [n, 2] width and height: a random walk, measured with noise
    doubt: np.ndarray  # [n] variance of an extent
    angle: np.ndarray  # [n] of the last detection
    kind: np.ndarray  # [n] classes
    number: np.ndarray  # [n]
    hits: np.ndarray  # [n] detections so far
    misses: np.ndarray  # [n] frames since the last one

    @staticmethod
    def born(found: _Found, first: int, config: TrackerConfig) -> _Tracks:
        """A track for every detection, numbered from `first`."""
        count = len(found.kind)
        return _Tracks(
            motion=Motion.start(found.box[:, :2], config.jitter, config.speed),
            extent=found.box[:, 2:4],
            doubt=np.full(count, config.jitter**2),
            angle=found.box[:, 4],
            kind=found.kind,
            number=first + np.arange(count),
            hits=np.ones(count, int),
            misses=np.zeros(count, int),
        )

    @property
    def box(self) -> np.ndarray:
        """[n, 5]: where the tracks are expected."""
        return np.concatenate([self.motion.position, self.extent, self.angle[:, None]], axis=1)

    def predicted(self, config: TrackerConfig) -> _Tracks:
        """A frame later, not seen so far."""
        return dataclasses.replace(
            self,
            motion=self.motion.predicted(config.acceleration),
            doubt=self.doubt + config.growth**2,
            misses=self.misses + 1,
        )

    def updated(self, found: _Found, config: TrackerConfig) -> _Tracks:
        """Every track with its detection taken in, whose angle and whose idea of width and height it takes over."""
        position, extent, angle = found.box[:, :2], found.box[:, 2:4], found.box[:, 4]
        turned = abs(np.cos(angle - self.angle)) < np.sqrt(0.5)  # what was the width is now called height
        before = np.where(turned[:, None], self.extent[:, ::-1], self.extent)
        gain = self.doubt / (self.doubt + config.jitter**2)
        return dataclasses.replace(
            self,
            motion=self.motion.updated(position, config.jitter),
            extent=before + gain[:, None] * (extent - before),
            doubt=(1 - gain) * self.doubt,
            angle=angle,
            hits=self.hits + 1,
            misses=np.zeros_like(self.misses),
        )

    def rows(self, date: int) -> np.ndarray:
        """[k, 8], columns TRACK, of the k tracks that have a detection at this date."""
        seen = self.take(self.misses == 0)
        return np.column_stack([seen.kind, seen.box, seen.number, np.full(len(seen.number), date)])
