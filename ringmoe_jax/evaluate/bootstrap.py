"""Bootstrap intervals: resample tiles, or whole blocks of tiles that are not independent.

A resample is a row of counts, "how often was this tile drawn", so that any metric that takes weights
is evaluated on all resamples at once.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
ROW = 10**8  # numbers from a block to the one north of it, more than there are columns
BLOCK_DEGREES = 0.1  # about 11 km of latitude: wider than a tile or a scene cut-out (our choice)


def draw(groups: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Draws as many groups as there are, with replacement.

    Args:
        groups: [N] group of each tile; tiles of one group are drawn together. `np.arange(N)` makes
            every tile its own group, which is right only where tiles do not overlap.
        resamples: R.
        seed: of the draws.

    Returns:
        [R, N] float64, how often each tile was drawn.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    uniform = np.full(len(sizes), 1 / len(sizes))
    return np.random.default_rng(seed).multinomial(len(sizes), uniform, size=resamples)[:, group].astype(np.float64)


def interval(values: np.ndarray) -> tuple[float, float]:
    """2.5 and 97.5 percentiles of a metric's resamples [R]; a resample where it is undefined (NaN) is left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def blocks(location: np.ndarray, degrees: float = BLOCK_DEGREES) -> np.ndarray:
    """Groups tiles by where they lie (our choice).

    Args:
        location: [N, 2] latitude and longitude in degrees, NaN where unknown.
        degrees: side of a block.

    Returns:
        [N] int64 group >= 0, the same for the same ground in every split; a tile without a location is a
        group of its own, numbered -1, -2, ...
    """
    shifted = np.add(location, (90.0, 180.0))
    known = np.isfinite(shifted).all(axis=1)
    groups = -1 - np.arange(len(shifted))
    rows, columns = np.floor(shifted[known] / degrees).astype(np.int64).T
    groups[known] = rows * ROW + columns
    return groups


def touching(groups: np.ndarray, others: np.ndarray) -> int:
    """How many distinct blocks of `groups` are, or share a border or corner with, a block of `others`."""
    shifts = np.add.outer(np.array([-ROW, 0, ROW]), np.array([-1, 0, 1]))
    blocks, others = np.unique(groups[groups >= 0]), others[others >= 0]
    return int(np.isin(np.add.outer(blocks, shifts), others).any(axis=(1, 2)).sum())
