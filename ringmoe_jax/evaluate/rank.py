"""How many directions features fill: the sign of a collapse that no label is needed for."""

from __future__ import annotations

import numpy as np


def rankme(features: np.ndarray) -> float:
    """Effective rank exp(-sum p ln p), with p the singular values divided by their sum (Garrido et al. 2023).

    Args:
        features: [N, D], not centred, as in the source.

    Returns:
        1 (all rows are multiples of one vector) to min(N, D); 0 where all features are 0.
    """
    values = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    share = values / max(values.sum(), np.finfo(np.float64).tiny)
    share = share[share > 0]
    return float(np.exp(-np.sum(share * np.log(share)))) if len(share) else 0.0
