"""What a linear probe costs: the path of penalties beside scikit-learn's solver, and several probes side by side."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from ringmoe_jax import clock
from ringmoe_jax.evaluate import logistic, probes
from ringmoe_jax.evaluate.probes import PENALTIES, Split

SEVERAL = 8  # probes at the same time: of encoders, stages and draws
PATH, PEER, PRODUCTS = "path of penalties", "scikit-learn", "products alone"
TURNS, TOGETHER = f"{SEVERAL} in turn", f"{SEVERAL} side by side"


def tiles(count: int, width: int, classes: int, seed: int = 0) -> Split:
    """Drawn features with the spectrum of an encoder's, variances that fall as 1 / k, and classes that overlap."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, count)
    mixing = np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    centres = np.random.default_rng(1).normal(size=(classes, width))
    spread = np.sqrt(width / np.arange(1, width + 1))
    drawn = (generator.normal(size=(count, width)) + 0.3 * centres[labels]) * spread @ mixing
    return Split(drawn / drawn.std(axis=0), labels, np.arange(count))


def measure(count: int, width: int, classes: int, repeats: int) -> dict[str, Any]:
    """Times probes of drawn features.

    Args:
        count: tiles to fit, and a quarter as many to score.
        width: D of the features.
        classes: C.
        repeats: timed turns of every job.

    Returns:
        Median seconds by job, and their ratios: by how much the path is faster than the peer, slower than its products
        alone, and probes side by side faster than in turn. That the path finds what the peer finds is a test's.
    """
    train, test = tiles(count, width, classes), tiles(count // 4, width, classes, seed=2)
    path = logistic.LogisticPath(train.features, train.labels, classes)
    for penalty in PENALTIES:
        path.fit(penalty)

    def ours() -> None:
        probes.logistic(train, test.features, PENALTIES, classes)

    def peer() -> None:
        model = LogisticRegression(warm_start=True, max_iter=logistic.ITERATIONS)
        for penalty in PENALTIES:
            model.set_params(C=penalty).fit(train.features, train.labels).predict_proba(test.features)

    def products() -> None:
        """As many as the path takes: logits, and gradients of the weights."""
        features, weights = train.features.astype(np.float32), np.ones((width, classes), np.float32)
        for _ in range(path.evaluations):
            features.T @ (features @ weights)

    def one() -> list[probes.Probe]:
        return probes.probe(train, test, [str(c) for c in range(classes)], ("linear", "knn5"), resamples=200)

    jobs = {PATH: _on_one_core(ours), PEER: _on_one_core(peer), PRODUCTS: _on_one_core(products)}
    jobs |= {TURNS: lambda: [one() for _ in range(SEVERAL)], TOGETHER: lambda: probes.side_by_side([one] * SEVERAL)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the peer, at the weakest penalties
        seconds = clock.interleaved(jobs, repeats, warmup=1)
    return {
        "tiles": count,
        "width": width,
        "classes": classes,
        "evaluations": path.evaluations,
        "seconds": seconds,
        "ratio": {PEER: seconds[PEER] / seconds[PATH], PRODUCTS: seconds[PATH] / seconds[PRODUCTS]}
        | {TOGETHER: seconds[TURNS] / seconds[TOGETHER]},
    }


def _on_one_core(job):
    """As `probes.probe` computes."""
    return threadpool_limits.wrap(limits=1)(job)
