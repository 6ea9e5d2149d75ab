"""Bootstrap intervals: resample tiles, or whole blocks of tiles that are not independent.

A resample is a row of counts, "how often was this tile drawn", so that any metric that takes weights
is evaluated on all resamples at once.
"""

from __future__ import annotations

import numpy as np

RESAMPLES = 1000
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
        [N] int64 group; a tile without a location is a group of its own.
    """
    cells = np.floor(np.asarray(location, np.float64) / degrees)
    known = np.isfinite(cells).all(axis=1)
    groups = np.arange(len(cells))
    if known.any():
        groups[known] = len(cells) + np.unique(cells[known], axis=0, return_inverse=True)[1].reshape(-1)
    return groups
