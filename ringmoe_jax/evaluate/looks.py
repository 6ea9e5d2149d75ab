"""How many looks a SAR image has, measured: the equivalent number of looks (ENL)."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.optimize import brentq
from scipy.special import digamma
from scipy.stats import gaussian_kde

from ringmoe_jax.errors import DataError

LEAST_WINDOWS = 20


def estimate(intensity: np.ndarray, valid: np.ndarray | None = None, *, window: int = 15) -> float:
    """Equivalent number of looks of an intensity image, without anybody choosing homogeneous areas.

    Every window whose pixels are all valid gives the estimate that maximises the Gamma likelihood,
    ln L - digamma(L) = ln mean(I) - mean(ln I). Structure only ever lowers it, so homogeneous windows pile up at
    the true value: the mode of all windows, on a logarithmic scale, is the answer (Anfinsen, Doulgeris and
    Eltoft 2009). Pixels should be as independent as the product allows: resampled and filtered images count
    more looks than were taken, which is what their likelihood needs.

    Args:
        intensity: [..., H, W] linear power; use 10^(dB / 10) or amplitude^2 first.
        valid: [..., H, W] bool; pixels that are not above 0 and finite never are.
        window: side of a window in pixels; windows overlap by half.

    Returns:
        L > 0.

    Raises:
        DataError: fewer than 20 windows are valid.
    """
    intensity = np.asarray(intensity, np.float64)
    usable = np.isfinite(intensity) & (intensity > 0) & (True if valid is None else valid)
    values = np.where(usable, intensity, 1.0)
    half = window // 2
    centres = (..., slice(half, -half or None, max(half, 1)), slice(half, -half or None, max(half, 1)))
    size = (1,) * (intensity.ndim - 2) + (window, window)
    smooth = lambda x: uniform_filter(x, size)[centres]  # noqa: E731
    whole = smooth(usable.astype(np.float64)) > 1 - 0.5 / window**2
    gaps = (np.log(smooth(values)) - smooth(np.log(values)))[whole]
    gaps = gaps[gaps > 1e-6]
    if len(gaps) < LEAST_WINDOWS:
        raise DataError(
            f"{len(gaps)} windows of {window} x {window} pixels are valid and vary, wanted at least {LEAST_WINDOWS}: "
            "use a smaller window or a larger image"
        )
    looks = np.array([_log_looks(gap) for gap in gaps])
    grid = np.linspace(looks.min(), looks.max(), 1024)
    density = gaussian_kde(looks, lambda kde: 1.5 * kde.scotts_factor())  # smoother: a mode is noisy
    return float(np.exp(grid[np.argmax(density(grid))]))


def _log_looks(gap: float) -> float:
    """Solves ln L - digamma(L) = gap > 0 for ln L."""
    return brentq(lambda x: x - digamma(np.exp(x)) - gap, -10.0, 20.0)
