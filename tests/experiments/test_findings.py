"""What the report says in sentences, of numbers made up here."""

import re

import numpy as np
import pytest

from experiments.reports import evaluation as report
from experiments.reports import pretraining
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.evaluate.routing import GroupSummary
from ringmoe_jax.run.evaluation import ComparisonRow, Evaluation, ProbeRow, RankRow, SpecialisationRow, chosen


def bare(**rows):
    """An evaluation that holds nothing else."""
    parts = dict(checkpoint="", step=0, protocol="", seed=0, parameters=None, seconds=0.0, modalities=())
    return Evaluation(versions={}, date="", devices="", **parts, **rows)


def between(low, high):
    return Score((low + high) / 2, low, high)


def test_findings_need_intervals_that_leave_out_zero():
    def row(name, low, high):
        where = dict(dataset="", objective=name, sensor="rgb")
        return ComparisonRow({}, "image mean", between(low, high), 5, 5, **where)

    rows = (row("a", -2, -1), row("b", -1, 1), row("c", 1, 2), row("d", -3, -2))
    (sentence,) = pretraining.findings(bare(reconstruction=rows))
    assert sentence.endswith("better for a and d; worse for c; not to be told apart for b.")


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ((0.6, 0.7), (0.4, 0.5), "the pre-trained encoder beats random weights: accuracy 0.650"),
        ((0.4, 0.5), (0.6, 0.7), "the pre-trained encoder loses to random weights: accuracy 0.450"),
        ((0.5, 0.7), (0.4, 0.6), "is ahead of random weights, but their intervals overlap: accuracy 0.600"),
        ((0.4, 0.6), (0.5, 0.7), "is behind random weights, but their intervals overlap: accuracy 0.500"),
        ((0.4, 0.6), (0.4, 0.6), "is level with random weights"),
    ],
)
def test_findings_say_who_wins(ours, theirs, words):
    def row(encoder, score, protocol="linear"):
        where = dict(dataset="set", label="crops", features="s2_12", encoder=encoder)
        return ProbeRow(protocol, 1.0, 1, {"accuracy": score}, (), 20, 5, 5, 0, **where)

    weak = between(0.0, 0.1)
    rows = (row("pre-trained", between(*ours)), row("pre-trained", weak, "knn5"), row("image statistics", weak))
    (sentence,) = pretraining.findings(bare(probes=(*rows, row("random weights", between(*theirs)))))
    assert words in sentence
    assert sentence.startswith("set, crops: ")
    assert sentence.endswith(
        "(s2_12, linear, chosen without the scored tiles; s2_12, linear, the best of the baselines)."
    )


def test_findings_begin_with_the_best_encoder_and_run_beside_is_no_baseline():
    def row(encoder, low, high):
        where = dict(dataset="set", label="crops", features="rgb", encoder=encoder)
        return ProbeRow("knn5", 1.0, 1, {"accuracy": between(low, high)}, (), 20, 5, 5, 0, **where)

    rows = (row("pre-trained", 0.1, 0.2), row("adapted", 0.7, 0.8), row("image statistics", 0.3, 0.4))
    first, second = pretraining.findings(bare(probes=rows))
    assert first.startswith('set, crops: "adapted" beats image statistics: accuracy 0.750')
    assert second.startswith("set, crops: the pre-trained encoder loses to image statistics")


def leveled(level, validation, score, protocol="knn5", encoder="pre-trained"):
    where = dict(dataset="set", label="crops", features="rgb", encoder=encoder, level=level)
    scores = {"accuracy": between(score - 0.1, score + 0.1)}
    return ProbeRow(protocol, 1.0, 1, scores, (), 20, 5, 5, 0, **where, validation=validation)


def test_nothing_is_found_where_nothing_stands_beside():
    """As in the runs of a study, whose baseline is another arm."""
    assert not list(pretraining.findings(bare(probes=(leveled("pooled", 0.5, 0.9),))))


def test_levels_are_chosen_on_validation_tiles_whatever_their_scores(capsys):
    rows = (
        *(leveled("pooled", 0.5, 0.9), leveled("stage 1", 0.8, 0.3), leveled("all stages", 0.8, 0.7)),
        *(leveled("pooled", 0.9, 0.4, "linear"), leveled("stage 1", np.nan, 0.95, "linear")),
        leveled("pooled", np.nan, 0.2, "knn5", "random weights"),
    )
    best = [(row.encoder, row.protocol, row.level) for row in chosen(rows)]
    assert best == [
        *(("pre-trained", "knn5", "stage 1"), ("pre-trained", "linear", "pooled")),
        ("random weights", "knn5", "pooled"),
    ]
    (sentence,) = pretraining.findings(bare(probes=rows))
    assert "ahead of random weights, but their intervals overlap: accuracy 0.400" in sentence  # the linear probe's
    assert "(rgb, linear, chosen without the scored tiles; rgb, knn5, the best of the baselines)" in sentence
    table = pretraining.ProbeTable(rows)
    assert [row.shown for row in table.chosen] == ["rgb, stage 1", "rgb"]
    assert table.rows["rgb, stage 1", "pre-trained"].keys() == {"knn5", "linear"}
    report.show(bare(probes=rows))
    printed = capsys.readouterr().out
    assert re.search(r"rgb +pre-trained +0.300 \(0.200 to 0.400\) stage 1 +0.400 \(0.300 to 0.500\) pooled", printed)


def test_findings_name_undecided_routers_and_dead_experts():
    def group(entropy, dead=()):
        load = np.full((2, 2, 4), 0.25)
        load[:, 1] = np.nan  # a modality that was not seen
        one = np.array([[entropy, np.nan]] * 2)
        return GroupSummary(load, np.zeros_like(one), one, one, dead, np.array([9.0, 0.0]))

    (sentence,) = pretraining.findings(bare(routing={"shared": group(1.38)}))
    assert sentence == "Shared routers are undecided: entropy 1.380 of at most 1.386 nats."
    (sentence,) = pretraining.findings(bare(routing={"shared": group(0.5, ((0, 1), (0, 2)))}))
    assert sentence == (
        "Shared routers prefer some experts: entropy 0.500 of at most 1.386 nats; 2 experts in 1 layer are "
        "dead, they get no token."
    )


@pytest.mark.parametrize(
    ("kind", "chance", "words"),
    [
        (
            "crops",
            0.01,
            "set: collaborative experts tell kinds of crops apart: 0.300 nats in layer 2, 0.010 by chance.",
        ),
        ("modality", 0.1, "set: collaborative experts hardly tell modalities apart: 0.300 nats in layer 2, 0.100 by"),
    ],
)
def test_findings_say_what_experts_tell_apart(kind, chance, words):
    rows = dict(dataset="set", group="collaborative", kind=kind, use=(4.0, 3.0), experts=4)
    row = SpecialisationRow(**rows, information=(0.1, 0.3), shuffled=(0.0, chance))
    (sentence,) = pretraining.findings(bare(specialisation=(row,)))
    assert sentence.startswith(words)


def test_findings_warn_of_features_that_lost_directions():
    def row(encoder, rank):
        return RankRow(dataset="set", features="rgb", encoder=encoder, width=64, rank=rank)

    (sentence,) = pretraining.findings(bare(ranks=(row("pre-trained", 2.0), row("random weights", 9.0))))
    assert sentence.endswith("which fill fewer directions than random weights: 2.0 against 9.0 (set, rgb).")
    assert not list(pretraining.findings(bare(ranks=(row("pre-trained", 5.0), row("random weights", 9.0)))))


# ---- Files --------------------------------------------------------------------------------------------
