"""The page of a pre-training run: losses, reconstructions, probes beside baselines, what the routers did."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.reports import curves, page
from experiments.reports.evaluation import GRID, grouped, routers
from ringmoe_jax import objectives
from ringmoe_jax.contracts import FUSED
from ringmoe_jax.evaluate import reconstruction, routing, style
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.evaluate.routing import GroupSummary
from ringmoe_jax.run import FEATURES, PretrainConfig, read_record
from ringmoe_jax.run.evaluation import (
    BASELINES,
    MODALITY,
    PLAIN,
    TRAINED,
    ComparisonRow,
    Evaluation,
    LocationRow,
    ProbeRow,
    RankRow,
    SpecialisationRow,
    chosen,
)
from ringmoe_jax.training import metrics

KINDS = (
    "losses",
    "collapse",
    "reconstruction",
    "comparison",
    "locations",
    "similarity",
    "probes",
    "labels",
    "routers",
    "experts",
    "atlas",
)  # of pictures, which the template names
LOSSES = {
    "self_distillation": "self-distillation: cross-entropy in nats from the teacher's targets to the student's "
    "predictions, mean over the pairs that both views show",
    "alignment": "alignment: InfoNCE in nats between features of two sensors at one location",
    "balance": "the balance loss: a sum over layers and router groups, with 1 for each that is perfectly balanced",
}  # what the curves are; all other objectives look at hidden pixels
UNDECIDED = 0.95  # of the largest entropy, from which on a router prefers no expert (our choice)
CLEAR = 5  # times what chance gives, from which on experts tell kinds apart (our choice)
POOR = 0.5  # of the rank of random weights, below which features have lost something (our choice)


def page_of(workdir: Path, evaluation: Evaluation) -> str:
    """Draws what the run logged, and gives the page as text.

    Args:
        workdir: folder of the run, with the pictures of the evaluation in `report/`.
        evaluation: of its newest checkpoint.
    """
    record, records, folder = read_record(workdir, FEATURES), metrics.read(workdir), workdir / "report"
    config = PretrainConfig.of(record["config"])
    figures = dict.fromkeys(KINDS, ()) | evaluation.figures
    for kind, name, figure in _logged(evaluation, config, records):
        figures[kind] = (*figures[kind], style.save(figure, folder / f"{name}.png").name)
    return page.render(
        "pretraining.html.j2",
        workdir=str(workdir),
        record=record,
        config=config.complete(),
        sensors=list(config.sensors),
        losses=_losses(config, evaluation),
        grid=GRID,
        settings=json.dumps(record["config"], indent=2),
        evaluation=evaluation,
        images={kind: [page.embedded(folder / name) for name in names] for kind, names in figures.items()},
        findings=list(findings(evaluation)),
        speed=page.speed(records),
        probes=[ProbeTable(rows) for rows in grouped(evaluation.probes, "dataset", "label").values()],
        ranks=_rank_table(evaluation.ranks),
        routers=routers(evaluation),
        predictors=(reconstruction.MODEL, *reconstruction.TRIVIAL),
        meanings=reconstruction.TRIVIAL,
        trained=TRAINED,
    )


def _logged(
    evaluation: Evaluation, config: PretrainConfig, records: Sequence[Mapping]
) -> Iterator[tuple[str, str, Figure]]:
    """Pictures of the training with kind and name."""
    if records:
        yield "losses", "losses", curves.losses(records)
    for group, series in routing.history(records).items():
        yield "routers", f"routers_{group}", curves.routers(group, series, evaluation.modalities)
    logged = {name for line in records for name in line}
    terms = objectives.build(config.objectives).items() if config.objectives else ()
    if watched := {label: (term.stream, term.level) for label, term in terms if f"{label}/usage" in logged}:
        yield "collapse", "collapse", curves.collapse(records, watched)


def _losses(config: PretrainConfig, evaluation: Evaluation) -> str:
    """Caption of the loss curves: what each kind of objective of the run is."""
    names = {term["name"] for term in config.objectives.values()}
    parts = [text for name, text in LOSSES.items() if name in names]
    if evaluation.reconstruction:
        parts.insert(0, "reconstruction: means over hidden, valid pixels in standardised units")
    described = "; ".join(parts)
    return f"Loss by optimiser step: the weighted total, and every objective. {described[:1].upper()}{described[1:]}."


# ---- Sentences ----------------------------------------------------------------------------------------


def findings(evaluation: Evaluation) -> Iterator[str]:
    """What the numbers say, in sentences: a difference counts where intervals say so."""
    if evaluation.reconstruction:
        yield _reconstructed(evaluation.reconstruction)
    for rows in grouped(evaluation.probes, "dataset", "label").values():
        yield from _probed(rows)
    yield from _narrowed(evaluation.ranks)
    for row in evaluation.locations:
        yield from _located(row)
    for name, group in evaluation.routing.items():
        yield _routed(name, group)
    for row in evaluation.specialisation:
        yield _specialised(row)


def _reconstructed(rows: Sequence[ComparisonRow]) -> str:
    better = [row.objective for row in rows if row.difference.high < 0]
    worse = [row.objective for row in rows if row.difference.low > 0]
    others = [row.objective for row in rows if row.objective not in better + worse]
    parts = [f"better for {page.listed(better)}"] if better else []
    parts += [f"worse for {page.listed(worse)}"] if worse else []
    parts += [f"not to be told apart for {page.listed(others)}"] if others else []
    return f"Masked reconstruction, against the best trivial predictor: {'; '.join(parts)}."


def _probed(rows: Sequence[ProbeRow]) -> Iterator[str]:
    """For every trained encoder, the best first: the probe that validation tiles like best against any baseline's."""
    told = FUSED if any(row.features == PLAIN for row in rows) else ""  # where a tile lies: no merit of features
    base = max((row for row in rows if row.encoder in BASELINES), key=lambda row: row.score.value, default=None)
    if base is None:  # a run of a study, whose baseline is another arm
        return
    own = [row for row in rows if row.encoder not in BASELINES and row.features != told]
    liked = lambda row: row.validation if math.isfinite(row.validation) else -1.0  # noqa: E731
    best = [max(group, key=liked) for group in grouped(own, "encoder").values()]
    for ours in sorted(best, key=lambda row: -row.score.value):
        yield _against(ours, base)


def _against(ours: ProbeRow, base: ProbeRow) -> str:
    who = "the pre-trained encoder" if ours.encoder == TRAINED else f'"{ours.encoder}"'
    open_ = ", but their intervals overlap"
    if ours.score.low > base.score.high:
        said = f"beats {base.encoder}"
    elif ours.score.high < base.score.low:
        said = f"loses to {base.encoder}"
    elif ours.score.value > base.score.value:
        said = f"is ahead of {base.encoder}{open_}"
    elif ours.score.value < base.score.value:
        said = f"is behind {base.encoder}{open_}"
    else:
        said = f"is level with {base.encoder}"
    return (
        f"{ours.dataset}, {ours.label}: {who} {said}: {ours.metric} {page.score(ours.score)} against "
        f"{page.score(base.score)} ({ours.shown}, {ours.protocol}, chosen without the scored tiles; "
        f"{base.shown}, {base.protocol}, the best of the baselines)."
    )


def _narrowed(rows: Sequence[RankRow]) -> Iterator[str]:
    lost = []
    for (dataset, features), encoders in grouped(rows, "dataset", "features").items():
        ranks = {row.encoder: row.rank for row in encoders}
        trained, random = ranks.get(TRAINED, 0.0), ranks.get("random weights", 0.0)
        if trained < POOR * random:
            lost.append(f"{trained:.1f} against {random:.1f} ({dataset}, {features})")
    if lost:
        yield f"Training has narrowed the features, which fill fewer directions than random weights: {', '.join(lost)}."


def _located(row: LocationRow) -> Iterator[str]:
    every = row.agreement[0]
    if np.isfinite([every.within, every.between]).all():
        yield (
            f"{row.dataset}: frames that the model sees one at a time have a mean centred cosine of "
            f"{every.within:.2f} where they show one place and of {every.between:.2f} where they show "
            f"different ones ({len(row.tiles)} places).".replace("-", page.MINUS)
        )


def _routed(name: str, group: GroupSummary) -> str:
    seen = group.tokens > 0
    entropy, most = (np.nanmean(values[:, seen]) for values in (group.entropy, group.most_entropy))
    undecided = entropy >= UNDECIDED * most
    says = "are undecided" if undecided else "prefer some experts"
    parts = [f"{name.capitalize()} routers {says}: entropy {entropy:.3f} of at most {most:.3f} nats"]
    if group.dead:
        layers = len({layer for layer, _ in group.dead})
        parts.append(f"{len(group.dead)} experts in {layers} layer{'s' * (layers > 1)} are dead, they get no token")
    return "; ".join(parts) + "."


def _specialised(row: SpecialisationRow) -> str:
    layer = int(np.argmax(row.information))
    told, chance = row.information[layer], row.shuffled[layer]
    says = "tell" if told > CLEAR * chance else "hardly tell"
    kinds = "modalities" if row.kind == MODALITY else f"kinds of {row.kind}"
    return (
        f"{row.dataset}: {row.group} experts {says} {kinds} apart: {told:.3f} nats in layer {layer + 1}, "
        f"{chance:.3f} by chance."
    )


# ---- Tables -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ProbeTable:
    """Probes of one label: rows are features and encoders, columns are protocols."""

    results: Sequence[ProbeRow]

    @property
    def first(self) -> ProbeRow:
        """A probe; number of tiles and the like are those of all."""
        return self.results[0]

    @property
    def protocols(self) -> list[str]:
        """Columns."""
        return list(dict.fromkeys(row.protocol for row in self.results))

    @property
    def rows(self) -> dict[tuple[str, str], dict[str, Score]]:
        """{(features, encoder): {protocol: score}}."""
        groups = grouped(self.results, "shown", "encoder").items()
        return {key: {row.protocol: row.score for row in group} for key, group in groups}

    @property
    def chosen(self) -> list[ProbeRow]:
        """Of several levels of the pre-trained encoder those that validation tiles like best."""
        own = [row for row in self.results if row.encoder == TRAINED]
        return chosen(own) if len({row.level for row in own}) > 1 else []

    @property
    def best(self) -> dict[str, float]:
        """{protocol: the best score}."""
        groups = grouped(self.results, "protocol").items()
        return {protocol: max(row.score.value for row in group) for (protocol,), group in groups}


def _rank_table(ranks: Sequence[RankRow]) -> dict[str, Any]:
    """Rows are kinds of features, columns encoders."""
    rows = {key: {row.encoder: row for row in group} for key, group in grouped(ranks, "dataset", "features").items()}
    return {"encoders": list(dict.fromkeys(row.encoder for row in ranks)), "rows": rows}
