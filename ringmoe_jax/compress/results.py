"""What a compression gained and lost: costs, quality and experts of a network before and after."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ringmoe_jax.compress.costs import Costs, Gap, Size
from ringmoe_jax.compress.pruning import pruned_config
from ringmoe_jax.compress.recipe import Recipe
from ringmoe_jax.compress.usage import Usage, importance
from ringmoe_jax.evaluate.metrics.base import Score
from ringmoe_jax.evaluate.reconstruction import MODEL
from ringmoe_jax.models.api import Network
from ringmoe_jax.models.network import layer_tables, read

FULL, PART, INT8 = "checkpoint", "sub-model", "int8"  # what networks are called; others by their method
RESULT, FRONT = "compression.json", "curve.json"  # files in `report`
LINEAR = "linear"  # the protocol of the headline
GAIN_LEFT = "share of the reconstruction gain that is left"


@dataclasses.dataclass(frozen=True)
class ProbeScore:
    """The main metric of one probe of frozen features.

    Attributes:
        dataset: its name.
        label: that is predicted.
        features: sensors, joined by "+".
        protocol: "linear", "knn5", "knn20".
        metric: what the score is.
        score: on the tiles that are scored, with a 95 % interval.
    """

    dataset: str
    label: str
    features: str
    protocol: str
    metric: str
    score: Score


@dataclasses.dataclass(frozen=True)
class ReconstructionGain:
    """How much better a network reconstructs hidden pixels than the best trivial predictor.

    Attributes:
        dataset: its name.
        objective: label of the objective.
        loss: of the network, in the unit of the objective.
        gain: loss of that predictor less that of the network, in the same unit; above 0 the network is better.
    """

    dataset: str
    objective: str
    loss: Score
    gain: Score


@dataclasses.dataclass(frozen=True)
class Quality:
    """What a network is worth.

    Attributes:
        probes: every label, kind of features and protocol.
        gains: every objective that reconstructs.
        protocol: how probes were fitted, for a reader.
        splits: what was scored, a data set each.
        simulated: whether any of the images are.
    """

    probes: tuple[ProbeScore, ...]
    gains: tuple[ReconstructionGain, ...]
    protocol: str
    splits: tuple[str, ...]
    simulated: bool

    @staticmethod
    def from_evaluation(evaluation: Any) -> Quality:
        """From a `ringmoe_jax.run.evaluation.Evaluation`."""
        data = evaluation.datasets
        return Quality(
            tuple(map(_probe, evaluation.probes)),
            tuple(map(_gain, evaluation.reconstruction)),
            evaluation.protocol,
            tuple(f"{d.name}: {d.samples[d.split]} {d.split} tiles" for d in data),
            any(sensor.simulated for d in data for sensor in d.sensors.values()),
        )

    def probe_scores(self) -> dict[str, Score]:
        """Of every label the linear probe (or the first) of all sensors together, by what it says."""
        best: dict[str, ProbeScore] = {}
        for probe in self.probes:
            key = f"{probe.dataset}: {probe.label}, {probe.metric}"
            best[key] = max(best.get(key, probe), probe, key=lambda p: (p.protocol == LINEAR, p.features.count("+")))
        return {key: probe.score for key, probe in best.items()}

    def headline(self) -> dict[str, Score]:
        """The scores to compare networks by: `probe_scores`, and the gain of every objective."""
        return self.probe_scores() | {f"{row.dataset}: {row.objective}, gain": row.gain for row in self.gains}

    def gain_left(self, before: Quality) -> Score:
        """Share of another network's gains that is left: the mean over objectives that had one, with scaled bounds.

        NaN where none had one.
        """
        pairs = [
            (row.gain, old.gain.value) for row, old in zip(self.gains, before.gains, strict=True) if old.gain.value > 0
        ]
        mean = lambda key: sum(getattr(gain, key) / old for gain, old in pairs) / len(pairs)  # noqa: E731
        return Score(*map(mean, ("value", "low", "high"))) if pairs else Score(math.nan, math.nan, math.nan)


def _probe(row: Any) -> ProbeScore:
    about = {key: getattr(row, key) for key in ("dataset", "label", "features", "protocol", "metric", "score")}
    return ProbeScore(**about)


def _gain(row: Any) -> ReconstructionGain:
    less = row.difference
    return ReconstructionGain(row.dataset, row.objective, row.losses[MODEL], Score(-less.value, -less.high, -less.low))


@dataclasses.dataclass(frozen=True)
class KeptExperts:
    """Of one router group, L layers, M modalities, E experts.

    Attributes:
        importance: [L, M, E] >= 0.
        before: [L, M, E] bool, whom a modality could choose in the sub-model.
        kept: [L, M, E] bool, whom it still can.
    """

    importance: np.ndarray
    before: np.ndarray
    kept: np.ndarray


def kept_experts(network: Network, recipe: Recipe, usage: Usage) -> dict[str, KeptExperts]:
    """Which experts of a sub-model a recipe keeps, and why, by router group; those that it then merges stay as well."""
    model = network.model
    if recipe.prunes:
        model = pruned_config(model, recipe.allowed(network, usage))
    before, after = (_stacked(Network(config, {})) for config in (network.model, model))
    measured = importance(usage, recipe.importance)
    groups = [group for group, table in before.items() if table.any()]
    return {group: KeptExperts(measured[group], before[group], after[group]) for group in groups}


def _stacked(network: Network) -> dict[str, np.ndarray]:
    """{router group: who may choose whom [L, M, E] bool}."""
    layers = layer_tables(read(network.model))
    return {group: np.stack([layer[group] for layer in layers]) for group in layers[0]}


@dataclasses.dataclass(frozen=True)
class Compression:
    """One checkpoint made smaller.

    Attributes:
        checkpoint: folder of the run that it was made from.
        step: of that run.
        recipe: what was done.
        sensors: that stay.
        modalities: of these, the axis M of `experts`.
        dropped: sensors that went.
        images: that experts were counted on, by modality; {} where they were not.
        experts: by router group; {} where they were not counted.
        costs: of "checkpoint", "sub-model" and, unless that is all, the result by its method.
        gap: between the features of the first two.
        quality: of "sub-model", the result and, where it was tried, "int8".
        int8_bytes: with eight-bit kernels; 0 where they were not tried.
        provenance: when, on what and with what.
        seconds: that all this took.
    """

    checkpoint: str
    step: int
    recipe: Recipe
    sensors: tuple[str, ...]
    modalities: tuple[str, ...]
    dropped: tuple[str, ...]
    images: dict[str, int]
    experts: dict[str, KeptExperts]
    costs: dict[str, Costs]
    gap: Gap
    quality: dict[str, Quality]
    int8_bytes: int
    provenance: dict[str, Any]
    seconds: float


@dataclasses.dataclass(frozen=True)
class FrontPoint:
    """One network of a front.

    Attributes:
        name: for example "prune-0.25-distil200".
        folder: of its checkpoint.
        recipe: that made it from the sub-model.
        size: parameters, bytes and products.
        quality: what it is worth.
    """

    name: str
    folder: str
    recipe: Recipe
    size: Size
    quality: Quality

    def scores(self, first: FrontPoint) -> dict[str, Score]:
        """Probe scores, and the share that is left of what the first network gained in reconstruction."""
        return self.quality.probe_scores() | {GAIN_LEFT: self.quality.gain_left(first.quality)}


@dataclasses.dataclass(frozen=True)
class Front:
    """Quality and size of many networks made from one.

    Attributes:
        checkpoint: folder of the run that all were made from.
        step: of that run.
        sensors: that stay.
        images: that experts were counted on, by modality.
        distil: optimiser steps of the distilled ones.
        points: the sub-model first.
        provenance: when, on what and with what.
        seconds: that it took; less where points were there before.
    """

    checkpoint: str
    step: int
    sensors: tuple[str, ...]
    images: dict[str, int]
    distil: int
    points: tuple[FrontPoint, ...]
    provenance: dict[str, Any]
    seconds: float

    def scores(self) -> Sequence[dict[str, Score]]:
        """`FrontPoint.scores` of every point."""
        return [point.scores(self.points[0]) for point in self.points]
