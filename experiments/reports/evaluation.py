"""What an evaluation shows: pictures and printed tables."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure

from experiments.reports import arms, figures
from experiments.run.tables import table, with_interval
from ringmoe_jax.evaluate import reconstruction, style
from ringmoe_jax.evaluate.locations import Row
from ringmoe_jax.evaluate.quicklook import Strip
from ringmoe_jax.evaluate.seeds import ArmScores
from ringmoe_jax.run.evaluation import (
    FEW_LABELS,
    ComparisonRow,
    Evaluation,
    LikelihoodRow,
    LocationRow,
    ProbeRow,
    RankRow,
    SpecialisationRow,
    chosen,
)

GRID = 0.1  # share of variance from which a grid is mentioned (our choice)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Strips:
    """Tiles of one objective, masked and reconstructed.

    Attributes:
        dataset: name of the data set.
        objective: its label in the configuration.
        sensor: that it reconstructs.
        ground: metres across a tile.
        rows: painted tiles.
    """

    dataset: str
    objective: str
    sensor: str
    ground: float
    rows: list[Strip]


@dataclasses.dataclass(frozen=True)
class Places:
    """Tiles of one data set, whose locations are shown.

    Attributes:
        ground: metres across a tile.
        rows: painted tiles.
    """

    ground: float
    rows: Sequence[Row]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What is drawn of an evaluation beside its numbers.

    Attributes:
        strips: tiles by data set and objective.
        places: locations by data set.
        atlas: by data set and router group a layer, and painted tiles for each of its experts.
        captions: of sensors, see `quicklook.caption`.
    """

    strips: Sequence[Strips]
    places: Mapping[str, Places]
    atlas: Mapping[tuple[str, str], tuple[int, Sequence[Sequence[np.ndarray]]]]
    captions: Mapping[str, str]


def grouped(rows: Iterable[T], *names: str) -> dict[tuple, list[T]]:
    """Rows by the values of some of their attributes, in the order in which these come."""
    groups: dict[tuple, list[T]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row, name) for name in names), []).append(row)
    return groups


# ---- Pictures -----------------------------------------------------------------------------------------


def draw(folder: Path, evaluation: Evaluation, pictures: Pictures) -> Evaluation:
    """Writes every picture as PNG, and gives the evaluation that names the files."""
    drawn: dict[str, tuple[str, ...]] = {}

    def add(kind: str, name: str, figure: Figure) -> None:
        drawn[kind] = (*drawn.get(kind, ()), style.save(figure, folder / f"{name}.png").name)

    captions = {
        data.name: {k: pictures.captions[k] + " (SIMULATED)" * sensor.simulated for k, sensor in data.sensors.items()}
        for data in evaluation.datasets
    }
    for strips in pictures.strips:
        if strips.rows:
            caption = captions[strips.dataset][strips.sensor]
            title = f"{strips.dataset}, {strips.objective}: {caption}"
            figure = figures.reconstruction(title, strips.rows, strips.ground)
            add("reconstruction", f"reconstruction_{strips.dataset}_{strips.objective}", figure)
    for row in evaluation.locations:
        name = row.dataset
        places = pictures.places[name]
        add("locations", f"locations_{name}", figures.locations(name, captions[name], places.rows, places.ground))
        add("similarity", f"similarity_{row.dataset}", figures.similarity(row))
    if evaluation.reconstruction:
        add("comparison", "reconstruction_losses", figures.comparisons(evaluation.reconstruction))
    for (dataset, label), rows in grouped(evaluation.probes, "dataset", "label").items():
        add("probes", f"probes_{dataset}_{label}", figures.probes(f"{dataset}: {label}", rows))
        if curves := _few_labels(evaluation, dataset, label):
            figure = arms.labels(f"{dataset}: {label}, {rows[0].metric}", curves)
            add("labels", f"labels_{dataset}_{label}", figure)
    for group, summary in evaluation.routing.items():
        if any(summary.tokens):  # experts of a modality have no tokens where all sensors are new to them
            add("experts", f"experts_{group}", figures.experts(group, summary, evaluation.modalities))
    for (dataset, group), (layer, liked) in pictures.atlas.items():
        title = f"{dataset}, {group} experts of layer {layer}: tiles that each likes best"
        add("atlas", f"atlas_{dataset}_{group}", figures.atlas(title, liked))
    return dataclasses.replace(evaluation, figures=drawn)


def _few_labels(evaluation: Evaluation, dataset: str, label: str) -> list[ArmScores]:
    """Scores of one label by encoder and share of the labels, one for each set of sensors and protocol."""
    if not evaluation.few_labels:
        return []
    rows = [r for r in (*evaluation.few_labels, *evaluation.probes) if (r.dataset, r.label) == (dataset, label)]
    return [
        ArmScores(arm=arm, fraction=fraction, scores={f"{r.shown}, {r.protocol}": r.score for r in group})
        for (arm, fraction), group in grouped(rows, "encoder", "fraction").items()
    ]


# ---- Tables -------------------------------------------------------------------------------------------


def show(evaluation: Evaluation) -> None:
    """Prints the tables."""
    for name, origin in evaluation.origins.items():
        print(f"weights     {name}: {origin['source']}, licence {origin['licence']} ({origin['citation']})")
    if evaluation.probes:
        _show_probes(evaluation.probes)
    if evaluation.few_labels:
        _show_few_labels([*evaluation.few_labels, *evaluation.probes])
    if evaluation.ranks:
        _show_ranks(evaluation.ranks)
    if evaluation.reconstruction:
        _show_reconstruction(evaluation.reconstruction)
    if evaluation.likelihood:
        _show_likelihood(evaluation.likelihood)
    if evaluation.locations:
        _show_locations(evaluation.locations)
    if evaluation.routing:
        _show_routing(evaluation)
    if evaluation.specialisation:
        _show_specialisation(evaluation.specialisation)


def _show_probes(probes: Sequence[ProbeRow]) -> None:
    first = probes[0]
    few = f" of {100 * first.fraction:g} % of the labels, means over {first.draws} draws" if first.fraction < 1 else ""
    print(f"\nFrozen-feature probes{few}, main metric with 95 % interval")
    protocols = list(dict.fromkeys(row.protocol for row in probes))
    rows = []
    for key, group in grouped(probes, "dataset", "label", "metric", "shown", "encoder").items():
        cells = {row.protocol: with_interval(row.score) for row in group}
        rows.append(("/".join(key[:2]), *key[2:], *(cells.get(protocol, "") for protocol in protocols)))
    print(table(("data set/label", "metric", "features", "encoder", *protocols), rows))
    if len({row.level for row in probes}) > 1:
        print("\nThe level of each that the validation tiles like best")
        rows = []
        for key, group in grouped(chosen(probes), "dataset", "label", "metric", "features", "encoder").items():
            cells = {row.protocol: f"{with_interval(row.score)} {row.level}" for row in group}
            rows.append(("/".join(key[:2]), *key[2:], *(cells.get(protocol, "") for protocol in protocols)))
        print(table(("data set/label", "metric", "sensors", "encoder", *protocols), rows))


def _show_few_labels(probes: Sequence[ProbeRow]) -> None:
    print("\n" + FEW_LABELS.format(draws=probes[0].draws))
    fractions = sorted({row.fraction for row in probes})
    rows = []
    for key, encoders in grouped(probes, "dataset", "label", "metric", "shown", "protocol").items():
        for (encoder,), group in grouped(encoders, "encoder").items():
            cells = {row.fraction: f"{with_interval(row.score)} of {row.train}" for row in group}
            rows.append(("/".join(key[:2]), *key[2:], encoder, *(cells.get(fraction, "") for fraction in fractions)))
    shares = (f"{100 * fraction:g} %, of tiles" for fraction in fractions)
    print(table(("data set/label", "metric", "features", "probe", "encoder", *shares), rows))


def _show_ranks(ranks: Sequence[RankRow]) -> None:
    print("\nEffective rank of the features of the scored tiles (RankMe); near 1 is a collapse")
    encoders = list(dict.fromkeys(row.encoder for row in ranks))
    rows = []
    for key, group in grouped(ranks, "dataset", "features").items():
        cells = {row.encoder: f"{row.rank:.1f} of {row.width}" for row in group}
        rows.append((*key, *(cells.get(encoder, "") for encoder in encoders)))
    print(table(("data set", "features", *encoders), rows))


def _show_reconstruction(compared: Sequence[ComparisonRow]) -> None:
    print("\nMasked loss, model and trivial predictors, 95 % interval")
    head = ("objective", "model", *reconstruction.TRIVIAL, "model - best trivial", "tiles (blocks)")
    rows = []
    for row in compared:
        losses = (with_interval(row.losses[name]) for name in (reconstruction.MODEL, *reconstruction.TRIVIAL))
        rows.append((row.objective, *losses, with_interval(row.difference), f"{row.tiles} ({row.blocks})"))
    print(table(head, rows))


def _show_likelihood(stated: Sequence[LikelihoodRow]) -> None:
    print("\nHeld-out -ln p of hidden pixels, nats a pixel in the sensor's unit, 95 % interval; smaller is better")
    rows = [
        (row.objective, row.sensor, with_interval(row.nats), f"{row.noise:.3g}{' (border)' * row.at_border}")
        for row in stated
    ]
    print(table(("objective", "sensor", "nats", "noise, fitted on training tiles"), rows))


def _show_locations(locations: Sequence[LocationRow]) -> None:
    print("\nFrames shown alone: mean cosine of fused features, minus their mean over all frames")
    rows = [
        (
            row.dataset,
            " and ".join(pairs.sensors) or f"all {row.frames} frames",
            *("-" if math.isnan(cosine) else f"{cosine:.2f}" for cosine in (pairs.within, pairs.between)),
        )
        for row in locations
        for pairs in row.agreement
    ]
    print(table(("data set", "pairs of", "same place", "different places"), rows))
    for row in locations:
        if row.lattice.share > GRID:
            grid = f"a grid of {row.lattice.period} locations is {row.lattice.share:.0%} of what varies in a place"
            print(f"note        {row.dataset}: {grid}")


def _show_routing(evaluation: Evaluation) -> None:
    print("\nRouting on the scored tiles")
    rows = [
        (
            row.group,
            row.modality,
            f"{row.entropy:.2f} of {row.most_entropy:.2f}",
            f"{row.gate:.2f}",
            f"{row.busiest:.0%}",
            f"{row.dead} of {row.experts}",
        )
        for row in routers(evaluation)
    ]
    head = ("group", "modality", "entropy, nats", "mean gate", "busiest expert", "dead in group")
    print(table(head, rows))


def _show_specialisation(rows: Sequence[SpecialisationRow]) -> None:
    print("\nWhat experts tell apart: mutual information of expert and kind in the layer that tells most, nats")
    cells = []
    for row in rows:
        layer = int(np.argmax(row.information))
        told, chance, use = (f"{values[layer]:.3f}" for values in (row.information, row.shuffled, row.use))
        cells.append((row.dataset, row.group, row.kind, str(layer + 1), told, chance, f"{use} of {row.experts}"))
    print(table(("data set", "group", "kind", "layer", "information", "by chance", "experts in use"), cells))


@dataclasses.dataclass(frozen=True)
class RouterRow:
    """What the routers of a group did with a modality's tokens, means over layers.

    Attributes:
        group: of routers.
        modality: of tokens.
        entropy: nats.
        most_entropy: nats, of a router that prefers no expert.
        gate: of the chosen experts.
        busiest: share of the tokens that the busiest expert of a layer got.
        dead: experts of the group that no token chose.
        experts: of the group, in all layers.
    """

    group: str
    modality: str
    entropy: float
    most_entropy: float
    gate: float
    busiest: float
    dead: int
    experts: int


def routers(evaluation: Evaluation) -> list[RouterRow]:
    """A row for every router group and modality that was seen."""
    rows = []
    for name, group in evaluation.routing.items():
        for m in np.flatnonzero(group.tokens):
            busiest = np.fmax.reduce(group.load, axis=-1)
            measures = (group.entropy, group.most_entropy, group.gate, busiest)
            means = (float(np.mean(measure[:, m])) for measure in measures)
            experts = group.load.shape[0] * group.load.shape[-1]
            rows.append(RouterRow(name, evaluation.modalities[m], *means, len(group.dead), experts))
    return rows
