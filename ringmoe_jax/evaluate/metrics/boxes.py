"""Overlap of boxes, upright and rotated, and non-maximum suppression, on the host.

Boxes are rows (x, y, width, height, angle) in pixels and radians, as in a data set's labels: x and y of the centre,
`width` along `angle`, which turns from the x axis towards the y axis. Rows without an angle are upright.
"""

from __future__ import annotations

import numpy as np

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics.base import check_finite


def corners(boxes: np.ndarray) -> np.ndarray:
    """Corners in order around the box: boxes [n, 5] or [n, 4] -> [n, 4, 2] float64, x and y in pixels."""
    x, y, width, height, angle = _columns(boxes)
    cos, sin = np.cos(angle) / 2, np.sin(angle) / 2
    along = np.stack([width * cos, width * sin], axis=-1)
    across = np.stack([-height * sin, height * cos], axis=-1)
    centre = np.stack([x, y], axis=-1)
    return np.stack([centre + a * along + b * across for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))], axis=1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of upright boxes; a rotated one counts as the smallest upright box that holds it.

    Args:
        a: [n, 5] or [n, 4], see the module's text.
        b: [m, 5] or [m, 4].

    Returns:
        [n, m] float64 in 0..1; 0 where both boxes are empty.
    """
    (low, high), others = limits(a), limits(b)
    return _upright((low[:, None], high[:, None]), others)


def rotated_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Exact intersection over union of rotated boxes, from the polygon that they share.

    Args:
        a: [n, 5] or [n, 4], see the module's text.
        b: [m, 5] or [m, 4].

    Returns:
        [n, m] float64 in 0..1; 0 where both boxes are empty.
    """
    a, b = (np.stack(_columns(boxes), axis=1) for boxes in (a, b))
    reach = np.hypot(*a[:, 2:4].T)[:, None] + np.hypot(*b[:, 2:4].T)  # diameters of the circles around the boxes
    apart = np.hypot(a[:, None, 0] - b[:, 0], a[:, None, 1] - b[:, 1])
    i, j = np.nonzero(2 * apart < reach)
    overlap = np.zeros((len(a), len(b)))
    overlap[i, j] = _rotated(a[i], b[j])
    return overlap


def nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float, rotated: bool) -> np.ndarray:
    """Greedy non-maximum suppression: drops boxes that overlap a better one of their class.

    Args:
        boxes: [n, 5] or [n, 4], see the module's text.
        scores: [n], higher is better; among equal ones the first wins.
        classes: [n] int; boxes of different classes never suppress each other.
        threshold: in 0..1; a box goes where its overlap with a kept one is larger.
        rotated: overlap by `rotated_iou` instead of `iou`.

    Returns:
        [k] int64 indices of the boxes that stay, best first.

    Raises:
        DataError: a box or score is not finite, or a side is negative.
    """
    boxes, scores, classes = check(boxes, scores), np.asarray(scores), np.asarray(classes)
    overlap = rotated_iou if rotated else iou
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        same = np.flatnonzero(classes[left] == classes[best])
        worse = overlap(boxes[[best]], boxes[left[same]])[0] > threshold
        left = np.delete(left, same[worse])
    return np.array(kept, np.int64)


class Suppression:
    """What `nms` keeps of boxes that come from top to bottom, in the memory of those that are not decided yet.

    A box is decided once no later one can lie on it, and all better ones that it overlaps are.

    Args:
        threshold: see `nms`.
        rotated: likewise.
    """

    def __init__(self, threshold: float, rotated: bool):
        self._threshold, self._overlap = threshold, _rotated if rotated else lambda a, b: _upright(limits(a), limits(b))
        self._open = np.zeros((0, 5)), np.zeros(0), np.zeros(0, np.int64)

    def decided(self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, frontier: float) -> tuple:
        """Takes further boxes, and gives those that stay for good.

        Args:
            boxes: [n, 5].
            scores: [n], higher is better; among equal ones the first wins.
            classes: [n] int.
            frontier: y in pixels; nothing of later boxes lies above it. Infinity: there are none.

        Returns:
            Boxes [k, 5], scores and classes, the best first.
        """
        rows = [np.concatenate(pair) for pair in zip(self._open, (boxes, scores, classes), strict=True)]
        better = self._better(*rows)
        bottom, fate = limits(rows[0])[1][:, 1], np.zeros(len(rows[1]), np.int8)  # 0: open, 1: stays, -1: goes
        order = np.argsort(-rows[1], kind="stable")
        for i in order:
            others = [fate[j] for j in better.get(i, ())]
            if 1 in others:
                fate[i] = -1
            elif 0 not in others and bottom[i] <= frontier:
                fate[i] = 1
        self._open = tuple(x[fate == 0] for x in rows)
        chosen = order[fate[order] == 1]
        return tuple(x[chosen] for x in rows)

    def _better(self, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> dict[int, list[int]]:
        """By box the better ones of its class that it overlaps."""
        import shapely

        low, high = limits(boxes)
        around = shapely.box(*low.T, *high.T)
        i, j = shapely.STRtree(around).query(around)
        first = (scores[j] > scores[i]) | ((scores[j] == scores[i]) & (j < i))
        i, j = (x[first & (classes[i] == classes[j])] for x in (i, j))
        found: dict[int, list[int]] = {}
        for a, b in zip(
            *(x[self._overlap(boxes[i], boxes[j]) > self._threshold].tolist() for x in (i, j)), strict=True
        ):
            found.setdefault(a, []).append(b)
        return found


def check(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The boxes as float64 [n, 5], if they and their scores can be used.

    Raises:
        DataError: a box or score is not finite, a side is negative, or there is not one score a box.
    """
    boxes = np.stack(_columns(boxes), axis=1)
    check_finite("box's number", boxes)
    if boxes.size and (least := boxes[:, 2:4].min()) < 0:
        raise DataError(f"a box has a side of {least:g} pixels, wanted 0 or more: give width and height, not corners")
    if np.shape(scores) != (len(boxes),):
        raise DataError(f"scores have shape {np.shape(scores)}, wanted ({len(boxes)},): one a box")
    check_finite("score", scores)
    return boxes


def _columns(boxes: np.ndarray) -> tuple[np.ndarray, ...]:
    """x, y, width, height and angle, each [n] float64."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 5):
        raise DataError(f"boxes have shape {boxes.shape}, wanted [n, 5] of x, y, width, height, angle, or [n, 4]")
    x, y, width, height, *angle = boxes.T
    return x, y, width, height, angle[0] if angle else np.zeros(len(boxes))


def _upright(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Intersection over union of boxes by their limits [..., 2]."""
    (low_a, high_a), (low_b, high_b) = a, b
    shared = np.maximum(np.minimum(high_a, high_b) - np.maximum(low_a, low_b), 0).prod(axis=-1)
    return _ratio(shared, (high_a - low_a).prod(axis=-1) + (high_b - low_b).prod(axis=-1) - shared)


def _rotated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n] exact intersection over union of rotated boxes a[i] and b[i], [n, 5]."""
    import shapely  # where a box is turned: programs that score none do without it

    shared = shapely.area(shapely.intersection(shapely.polygons(corners(a)), shapely.polygons(corners(b))))
    return _ratio(shared, a[:, 2] * a[:, 3] + b[:, 2] * b[:, 3] - shared)


def limits(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper (x, y), [n, 2] each, of the smallest upright boxes that hold `boxes`."""
    x, y, width, height, angle = _columns(boxes)
    cos, sin = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    half = np.stack([width * cos + height * sin, width * sin + height * cos], axis=1) / 2
    centre = np.stack([x, y], axis=1)
    return centre - half, centre + half


def _ratio(shared: np.ndarray, union: np.ndarray) -> np.ndarray:
    return np.clip(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0), 0, 1)
