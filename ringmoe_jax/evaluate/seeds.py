"""Means over training seeds and paired differences between arms of a comparison, with Student's t intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import t

from ringmoe_jax.evaluate.metrics import Score


def mean(values: Sequence[float]) -> Score:
    """Mean of n values with its 95 % t interval, NaN where n < 2."""
    values = np.asarray(values, np.float64)
    centre = float(values.mean())
    if len(values) < 2:
        return Score(centre, float("nan"), float("nan"))
    half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Score(centre, centre - half, centre + half)


@dataclasses.dataclass(frozen=True)
class Summary:
    """One arm by one metric.

    Attributes:
        mean: over seeds.
        difference: from the baseline, paired by seed; None of the baseline itself or where it has no such metric.
        values: by seed.
    """

    mean: Score
    difference: Score | None
    values: tuple[float, ...]


def summarise(values: Sequence[float], baseline: Sequence[float] | None) -> Summary:
    """Summary of an arm.

    Args:
        values: one a seed.
        baseline: the baseline's, in the same order of seeds, or None.
    """
    difference = None if baseline is None else mean(np.subtract(values, baseline))
    return Summary(mean(values), difference, tuple(map(float, values)))


@dataclasses.dataclass(frozen=True)
class Ablation:
    """One study of `experiments.ablate`.

    Attributes:
        baseline: the arm that the others are compared with.
        seeds: of the runs of every arm.
        metrics: {metric: {arm: its summary}}, the baseline first.
    """

    baseline: str
    seeds: tuple[int, ...]
    metrics: dict[str, dict[str, Summary]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArmScores:
    """Scores of one arm of a comparison on one task.

    Attributes:
        arm: its name.
        scores: by metric, the main one first.
        fraction: of the labels that were used in training, above 0, at most 1.
    """

    arm: str
    scores: dict[str, Score]
    fraction: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewLabels:
    """What `few_labels.json` of `experiments.few_labels` holds.

    Attributes:
        title: task, target and number of seeds.
        seeds: of every arm and share.
        config: of the fine-tuning, a nested dict.
        results: means over seeds, by share and arm.
    """

    title: str
    seeds: tuple[int, ...]
    config: dict[str, Any]
    results: tuple[ArmScores, ...]

    @property
    def metric(self) -> str:
        """The main metric."""
        return next(iter(self.results[0].scores))
