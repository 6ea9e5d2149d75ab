"""What an evaluation of a run says: of an encoder, of a task, of several seeds of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from ringmoe_jax.evaluate.features import POOLED, at
from ringmoe_jax.evaluate.likelihood import HeldOut
from ringmoe_jax.evaluate.locations import Agreement
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.evaluate.probes import Probe
from ringmoe_jax.evaluate.reconstruction import Comparison
from ringmoe_jax.evaluate.routing import GroupSummary
from ringmoe_jax.run.results import Parameters, Provenance
from ringmoe_jax.tasks import Target

EVALUATION = "evaluation.json"  # an `Evaluation`
TASK_SCORE = "task.json"  # a `TaskScore`
SEED_SCORES = "seeds.json"  # a `SeedScores`
TRAINED = "pre-trained"  # encoder of a probe
BASELINES = ("random weights", "random convolutions", "image statistics")  # encoders that nobody trained
MODALITY = "modality"  # kind of a token, beside the labels of tiles
PLAIN = "fused without context"  # features: fused, less what was read for the place's coordinates
FEW_LABELS = (
    "Few labels: a share of the tiles of every class, but one at least, or of all tiles where they have several "
    "labels. Means over {draws} draws; intervals of the bootstrap resamples of all draws together."
)


# ---- Data sets ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSummary:
    """A data set in words.

    Attributes:
        name: of the data set.
        directory: where it lies.
        description: what it shows.
        licence: of the data.
        source: where it comes from.
        citation: how to cite it, "" where nobody said.
        simulated: whether any sensor that is read was computed, not measured.
        samples: by split.
    """

    name: str
    directory: str
    description: str
    licence: str
    source: str
    citation: str
    simulated: bool
    samples: dict[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SensorSummary:
    """A sensor of a data set.

    Attributes:
        bands: that are read.
        unit: of the pixels.
        gsd: metres between pixels.
        shape: of a stored tile, T, H and W.
        simulated: computed, not measured.
    """

    bands: tuple[str, ...]
    unit: str
    gsd: float
    shape: tuple[int, ...]
    simulated: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedData(DataSummary):
    """A data set of an evaluation.

    Attributes:
        split: that was scored.
        protocol: which tiles were used for what.
        sensors: that were read.
        labels: what each says.
        notes: what a reader has to know before believing the numbers.
    """

    split: str
    protocol: str
    sensors: dict[str, SensorSummary]
    labels: dict[str, str]
    notes: tuple[str, ...]


# ---- Encoders -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeRow(Probe):
    """A probe, and of what.

    Attributes:
        dataset: name of the data set.
        label: that was predicted.
        features: sensors whose mean tokens were joined, or the kind of fused feature.
        encoder: whose features they are.
        level: "pooled", what the model gives for the whole tile; "stage 1", the finest, and so on; "all
            stages"; or "all stages and their spread", see `features.stage_moments`.
    """

    dataset: str
    label: str
    features: str
    encoder: str
    level: str = POOLED

    @property
    def shown(self) -> str:
        """Features and level in words: "rgb", or "rgb, stage 2"."""
        return at(self.features, self.level)

    @property
    def metric(self) -> str:
        """The main metric."""
        return next(iter(self.scores))

    @property
    def score(self) -> Score:
        """Of the main metric; more is better."""
        return self.scores[self.metric]


def chosen(probes: Iterable[ProbeRow]) -> list[ProbeRow]:
    """The level that validation tiles like best: a probe for each data set, label, features, encoder and protocol.

    The first of equals, and where the validation tiles say nothing. Scores play no part.
    """
    best: dict[tuple[str, ...], ProbeRow] = {}
    for row in probes:
        key = row.dataset, row.label, row.features, row.encoder, row.protocol
        if key not in best or row.validation > best[key].validation:
            best[key] = row
    return list(best.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonRow(Comparison):
    """Masked losses, and of what.

    Attributes:
        dataset: name of the data set.
        objective: its label in the configuration.
        sensor: that it reconstructs.
    """

    dataset: str
    objective: str
    sensor: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class LikelihoodRow(HeldOut):
    """A held-out likelihood, and of what.

    Attributes:
        dataset: name of the data set.
        objective: its label in the configuration.
        sensor: whose pixels the density is of.
        unit: of these pixels.
    """

    dataset: str
    objective: str
    sensor: str
    unit: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankRow:
    """How many directions the features of the scored tiles fill.

    Attributes:
        dataset: name of the data set.
        features: sensor, or kind of fused feature.
        encoder: whose features they are.
        width: numbers of a feature.
        rank: effective rank, 1 to `width`.
    """

    dataset: str
    features: str
    encoder: str
    width: int
    rank: float


@dataclasses.dataclass(frozen=True)
class PlaceSummary:
    """Prototypes of one tile.

    Attributes:
        index: position in the split.
        region: row of the geo-context's bank, -1 without one.
        used: prototypes that some location attends to most.
        offered: prototypes of a region; 0 for a model without geo-context.
    """

    index: int
    region: int
    used: int
    offered: int


@dataclasses.dataclass(frozen=True)
class Lattice:
    """A regular grid in fused features, see `ringmoe_jax.evaluate.locations.lattice`.

    Attributes:
        share: of the variance within places, 0 to 1.
        period: in locations.
    """

    share: float
    period: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocationRow:
    """Fused features of single locations and of single frames.

    Attributes:
        dataset: name of the data set.
        tiles: that were looked at.
        explained: share of the variance along each of the three components that are drawn.
        lattice: the strongest grid.
        frames: how many were compared.
        labels: of the first F of them, which are drawn.
        places: positions in the split of the first F.
        similarity: [F, F] centred cosines of the first F.
        agreement: mean similarity within and between places, of all frames first, then by sensors.
    """

    dataset: str
    tiles: tuple[PlaceSummary, ...]
    explained: tuple[float, ...]
    lattice: Lattice
    frames: int
    labels: tuple[str, ...]
    places: tuple[int, ...]
    similarity: np.ndarray
    agreement: tuple[Agreement, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialisationRow:
    """What the experts of one router group tell apart.

    Attributes:
        dataset: name of the data set.
        group: of routers.
        kind: label of the tiles, or "modality".
        information: of chosen expert and kind, layer by layer, in nats; see `evaluate.specialisation`.
        shuffled: the same by chance.
        use: perplexity of the experts' use, layer by layer.
        experts: of a layer that the tiles' tokens could choose from.
    """

    dataset: str
    group: str
    kind: str
    information: tuple[float, ...]
    shuffled: tuple[float, ...]
    use: tuple[float, ...]
    experts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Provenance):
    """What `evaluation.json` holds: how good an encoder is.

    Attributes:
        checkpoint: folder of the run.
        step: optimiser steps of the checkpoint.
        protocol: of the probes, for a reader.
        seed: of random baselines, inner splits, draws and the bootstrap.
        parameters: of the model.
        seconds: that the evaluation took.
        modalities: names along M of `routing`.
        without: sensors that were hidden.
        datasets: that were evaluated.
        probes: of the largest share of the labels.
        few_labels: probes of the smaller shares.
        ranks: of features.
        reconstruction: masked losses of the run's objectives beside trivial predictors.
        likelihood: what objectives say of hidden pixels.
        locations: of models with a fusion.
        routing: by router group.
        specialisation: what experts tell apart.
        figures: file names of pictures by what they show.
        origins: where imported weights come from, by encoder of a probe, see `Run.origin`.
    """

    checkpoint: str
    step: int
    protocol: str
    seed: int
    parameters: Parameters
    seconds: float
    modalities: tuple[str, ...]
    without: tuple[str, ...] = ()
    datasets: tuple[EvaluatedData, ...] = ()
    probes: tuple[ProbeRow, ...] = ()
    few_labels: tuple[ProbeRow, ...] = ()
    ranks: tuple[RankRow, ...] = ()
    reconstruction: tuple[ComparisonRow, ...] = ()
    likelihood: tuple[LikelihoodRow, ...] = ()
    locations: tuple[LocationRow, ...] = ()
    routing: dict[str, GroupSummary] = dataclasses.field(default_factory=dict)
    specialisation: tuple[SpecialisationRow, ...] = ()
    figures: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    origins: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


# ---- Tasks --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSummary:
    """The encoder of a fine-tuned run.

    Attributes:
        model: its name.
        init_from: folder of the pre-training; "" of a new encoder.
        step: of that pre-training.
        weights: "checkpoint", or "random" of one that starts anew.
    """

    model: str
    init_from: str
    step: int
    weights: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskScore(Provenance):
    """What `task.json` holds: how good a fine-tuned run is on one split of one data set.

    Attributes:
        task: its name.
        target: what was learnt.
        step: optimiser steps that were taken.
        encoder: that the head is put on.
        parameters: of the model.
        dataset: that was scored.
        split: that was scored.
        without: sensors that were hidden.
        samples: how many were scored.
        scenes: that they are tiles of and were joined to, see `Task.join`; 0 where each was scored by itself.
        blocks: of neighbouring samples or scenes, what intervals rest on.
        scores: by metric, the main one first.
        constant: the same of the best answer that looks at no image.
        classes: a table by column, where the metric has one; "class" is the first column.
        left_out: classes that are not scored, because no sample holds them.
        notes: what a reader has to know before believing the numbers.
        figures: file names of pictures by what they show.
        seconds: that the scoring took.
    """

    task: str
    target: Target
    step: int
    encoder: EncoderSummary
    parameters: Parameters
    dataset: DataSummary
    split: str
    samples: int
    blocks: int
    scores: dict[str, Score]
    constant: dict[str, Score]
    seconds: float
    scenes: int = 0
    without: tuple[str, ...] = ()
    classes: dict[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    figures: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def main(self) -> str:
        """The main metric."""
        return next(iter(self.scores))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedScores:
    """What `seeds.json` holds: several seeds of one fine-tuning.

    Attributes:
        seeds: of the runs, which lie in `seed<n>`.
        task: its name.
        scores: means over seeds by metric, with 95 % t intervals.
        runs: scores of each.
    """

    seeds: tuple[int, ...]
    task: str
    scores: dict[str, Score]
    runs: tuple[TaskScore, ...]
