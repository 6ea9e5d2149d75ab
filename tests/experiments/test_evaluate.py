"""`experiments.evaluate` and `experiments.report` on a tiny model and a data set made up here."""

import dataclasses
import json
import re
import types

import jax
import numpy as np
import pytest

from experiments import evaluate as evaluate_script
from experiments import report as report_script
from experiments.reports.evaluation import routers
from experiments.run import score, tables
from experiments.run.evaluate import evaluate
from input_pipeline.builder import write_dataset
from input_pipeline.schema import CLASSES, MULTILABEL, Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import run as runs
from ringmoe_jax import sensors
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.run import PretrainConfig, Run, results
from ringmoe_jax.run.evaluation import (
    EVALUATION,
    Evaluation,
)
from ringmoe_jax.training import optimizer
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.metrics import MetricsWriter
from ringmoe_jax.training.state import TrainState
from tests.helpers import tiny, tiny_runs

SIZE = 16
DAY = 18_779  # 2021-06-01
TRAIN, VALIDATION = 20, 5  # with batches of 5, which training tiles fill evenly


def samples(split, count):
    generator = np.random.default_rng(count)
    for i in range(count):
        kind = i % 2
        backscatter = generator.normal(-12 - 6 * kind, 1, (1, SIZE, SIZE, 2)).astype(np.float32)
        height = generator.normal(100, 50, (1, SIZE, SIZE, 1)).astype(np.float32)
        images = {"s1_grd": Image(backscatter, time=np.array([DAY], np.int32)), "dem": Image(height)}
        labels = {"class": kind, "cover": [kind, 1 - kind, 0]}
        yield Sample(f"{split}/{i}", images, 47.0 + 0.2 * i, 8.05, labels)


def made(folder, **counts):
    """Folder and metadata of a data set with so many samples a split."""
    metadata = Metadata(
        name="made_up",
        sensors={name: SensorInfo.of(sensors.get(name), (1, SIZE, SIZE), 10.0) for name in ("s1_grd", "dem")},
        description="Noise of two powers.",
        licence="none",
        source="tests",
        labels={
            "class": LabelInfo(CLASSES, ("bright", "dark"), "mean backscatter"),
            "cover": LabelInfo(MULTILABEL, ("dark", "bright", "never"), "the same"),
        },
    )
    splits = {split: samples(split, count) for split, count in counts.items()}
    return folder / "made_up", write_dataset(folder / "made_up", splits, metadata, shards=2)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    return made(tmp_path_factory.mktemp("data"), train=TRAIN, validation=VALIDATION)


def finish(folder, metadata, values, logged, change=lambda state: state):
    """Writes the one checkpoint of a run that was never trained and some metrics, and reports it."""
    config = PretrainConfig.of(values)
    statistics = {n: sensors.Statistics(i.mean, i.std, "test") for n, i in metadata.sensors.items()}
    parts = runs.pretraining(config, statistics)
    state = change(tiny_runs.drawn(parts.model, parts.pretext, optimizer.build(config.optimizer, 10)))
    checkpointer = Checkpointer(folder)
    checkpointer.save(10, state, {"config": values, "statistics": {n: s.to_json() for n, s in statistics.items()}})
    checkpointer.wait()
    checkpointer.close()
    writer = MetricsWriter(folder)
    speed = {"perf/images_per_second": 10.0, "perf/input_wait": 0.25, "perf/step_seconds": 0.4}
    for step in (5, 10):
        writer.write(step, {name: value / step for name, value in logged.items()} | {"validation/loss": 0.3} | speed)
    writer.close()
    report_script.report(str(folder))
    return folder


@pytest.fixture(scope="module")
def workdir(made_up, tmp_path_factory):
    """A run of one made-up checkpoint, evaluated and reported."""
    directory, metadata = made_up
    stream = {"directory": str(directory), "sensors": ["s1_grd", "dem"], "split": "train"}
    values = {
        "model": {"name": "ringmoe", "sensors": ["s1_grd", "dem"], "width": 8, "depths": [1, 1], "head_width": 8}
        | {"image_size": SIZE, "patch": 4, "window": 4},
        "objectives": {"backscatter": {"name": "masked_l1", "sensor": "s1_grd"}, "balance": {"name": "balance"}},
        "data": {"streams": {"pairs": stream}, "image_size": SIZE, "batch_size": 4, "mask_unit": 8, "mask_ratio": 0.5},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
        "pretext": {"name": "masked"},
    }
    return finish(tmp_path_factory.mktemp("run"), metadata, values, {"loss": 2.0, "loss/backscatter": 1.0})


@pytest.fixture(scope="module")
def evaluation(workdir):
    return results.load(Evaluation, workdir / "report" / EVALUATION)


def test_every_label_encoder_and_set_of_sensors_is_probed(evaluation):
    probes = evaluation.probes
    keys = {(r.label, r.features, r.encoder, r.protocol) for r in probes}
    assert len(keys) == len(probes) == 2 * 3 * 4 * 3
    assert {r.features for r in probes} == {"s1_grd", "dem", "s1_grd + dem"}
    for r in probes:
        assert (r.train, r.test, r.blocks, r.near) == (TRAIN, VALIDATION, VALIDATION, VALIDATION)
        assert r.left_out == (("never",) if r.label == "cover" else ())
    easy = [r for r in probes if (r.features, r.encoder) == ("s1_grd", "image statistics")]
    assert all(r.score.value == 1.0 for r in easy)  # 6 dB apart


def test_reconstruction_of_noise_is_not_better_than_a_mean(evaluation):
    (row,) = evaluation.reconstruction
    assert (row.objective, row.tiles) == ("backscatter", VALIDATION)
    assert set(row.losses) == {"model", "image mean", "image median", "training mean"}
    # Two clouds 6 dB apart with unit noise: std = sqrt(1 + 9), and E|noise| = 0.798.
    assert row.losses["image mean"].value == pytest.approx(0.798 / np.sqrt(10), rel=0.1)
    assert row.losses["training mean"].value == pytest.approx(3 / np.sqrt(10), rel=0.1)
    assert row.difference.low > 0


def test_routing_counts_every_token_once(evaluation):
    # 4 x 4 tokens in the first stage and 2 x 2 in the second, for each of the two modalities.
    for group in evaluation.routing.values():
        assert group.tokens.tolist() == [VALIDATION * 20] * 2
        assert np.nansum(group.load, axis=-1) == pytest.approx(1)


def test_what_experts_tell_apart_stands_beside_chance(evaluation, workdir):
    kinds = {(row.group, row.kind) for row in evaluation.specialisation}
    assert kinds == {("specialised", "class"), ("collaborative", "class"), ("collaborative", "modality")}
    for row in evaluation.specialisation:
        assert len(row.information) == len(row.shuffled) == len(row.use) == 2  # layers
        assert min(row.information) >= 0
        assert max(row.use) <= row.experts
    assert len(evaluation.figures["atlas"]) == 2
    assert "What experts tell apart" in (workdir / "report.html").read_text()


def test_the_page_needs_nothing_else(workdir, evaluation):
    page = (workdir / "report.html").read_text()
    assert not re.search(r"<script|<link|@import|url\(", page)
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', page))
    assert page.count("<img") == sum(map(len, evaluation.figures.values())) + 1  # and the losses
    for text in ("Noise of two powers.", "backscatter", "image median", "25 %", f"{jax.__version__}"):
        assert text in page
    assert "5 of the 5 blocks hold or border on training tiles" in page


def test_what_cannot_be_evaluated_is_said_in_one_line(workdir, tmp_path, capsys):
    with pytest.raises(ConfigError, match=r'"knm" does not exist: did you mean "knn"'):
        evaluate(str(workdir), protocol="knm")
    with pytest.raises(DataError, match="no checkpoint"):
        report_script.report(str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        evaluate_script.main(["--checkpoint", str(tmp_path)])
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("error: no checkpoint in")


def run(*arguments):
    """Exit status of `experiments.evaluate`."""
    with pytest.raises(SystemExit) as stop:
        evaluate_script.main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.mark.slow
def test_a_test_split_is_scored_with_few_labels_and_without_a_sensor(workdir, tmp_path, capsys):
    directory, _ = made(tmp_path, train=TRAIN, validation=10, test=VALIDATION)
    options = ["--fractions", 0.1, 1, "--draws", 2, "--without", "dem", "--out", tmp_path / "out"]
    assert run("--checkpoint", workdir, "--dataset", directory, *options) == 0
    printed = capsys.readouterr().out
    evaluation = results.load(Evaluation, tmp_path / "out" / EVALUATION)
    (where,) = evaluation.datasets
    assert where.split == "test"
    assert where.protocol in printed
    assert where.protocol.endswith(
        "fitted on train, with C chosen on validation and refitted on both, and scored on test without dem"
    )
    keys = {(r.label, r.encoder, r.protocol): r for r in evaluation.probes}
    few = {(r.label, r.encoder, r.protocol): r for r in evaluation.few_labels}
    assert set(keys) == set(few)
    assert len(keys) == len(evaluation.probes) == len(evaluation.few_labels) == 2 * 4 * 3
    assert {r.features for r in evaluation.probes} == {"s1_grd"}
    for (_, _, protocol), r in keys.items():
        assert (r.fraction, r.draws, r.test) == (1, 1, VALIDATION)
        assert r.train == TRAIN + (10 if protocol == "linear" else 0)
    for (_, _, protocol), r in few.items():
        assert (r.fraction, r.draws) == (0.1, 2)
        assert r.train == 2 + (protocol == "linear") * (2 if r.label == "class" else 1)  # of every class one
    assert evaluation.figures["labels"] == ("labels_made_up_class.png", "labels_made_up_cover.png")
    assert re.search(r"10 %, of tiles +100 %, of tiles", printed)
    (row,) = evaluation.reconstruction
    assert row.tiles == VALIDATION


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "tset"], 'has no split "tset"'),
        (["--split", "train"], "--split train: probes are fitted on it"),
        (["--without", "dme"], '--without "dme": did you mean "dem"'),
        (["--without", "dem", "s1_grd"], "--without dem s1_grd leaves no sensor"),
        (["--fractions", "0"], "--fractions 0.0: wanted shares above 0"),
        (["--draws", "0"], "--draws 0: wanted 1 or more"),
        (["--features", "stage"], '--features "stage" does not exist: did you mean "stages"'),
        (["--neighbours", "5", "0"], "--neighbours 5 0: wanted numbers from 1"),
    ],
)
def test_a_bad_option_is_one_line(workdir, options, message, capsys):
    assert run("--checkpoint", workdir, *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.fixture
def fine_tuned(tmp_path, monkeypatch):
    """A run whose record has an encoder, and the calls of a scoring that computes nothing."""
    state = TrainState(np.int32(10), *({part: np.zeros(2, np.float32)} for part in ("params", "optimizer", "pretext")))
    checkpointer = Checkpointer(tmp_path / "seg")
    checkpointer.save(10, state, {"config": {}, "statistics": {}, "encoder": {}})
    checkpointer.wait()
    checkpointer.close()
    calls = []
    monkeypatch.setattr(Run, "open", staticmethod(lambda folder: f"run in {folder}"))
    monkeypatch.setattr(score, "score", lambda *given, **options: calls.append((given, options)))
    monkeypatch.setattr(score, "show", lambda result: print("a table"))
    return tmp_path / "seg", calls


def test_a_fine_tuned_run_is_scored_by_its_task(fine_tuned, capsys):
    folder, calls = fine_tuned
    assert run("--checkpoint", folder) == 0
    assert "a table" in capsys.readouterr().out
    options = ["--dataset", "d", "--split", "test", "--without", "dem", "--seed", 3, "--out", "o"]
    assert run("--checkpoint", folder, *options) == 0
    given = (f"run in {folder}",)
    asked = {"datasets": ["d"], "split": "test", "without": ["dem"], "seed": 3, "out": "o"}
    assert calls == [(given, {}), (given, asked)]


@pytest.mark.parametrize(
    "options",
    [["--protocol", "knn"], ["--fractions", "0.1"], ["--max_tiles", "5"], ["--draws", "2"], ["--features", "stages"]],
)
def test_options_of_probes_make_no_sense_for_a_task(fine_tuned, options, capsys):
    folder, calls = fine_tuned
    assert run("--checkpoint", folder, *options) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert options[0] in line
    assert not calls


def test_a_task_is_scored_on_one_data_set_at_a_time():
    with pytest.raises(DataError, match=r"--dataset a b: a fine-tuned run is scored on one data set at a time"):
        score.score(types.SimpleNamespace(parts=None), ["a", "b"])


@pytest.mark.slow
def test_every_stage_is_probed_beside_random_weights(workdir, tmp_path, capsys):
    optical = tiny_runs.pretraining(tmp_path / "optical", tiny.RINGMOE | dict(sensors=("rgb",), depths=(1,)))
    stages = evaluate(
        str(workdir), features="stages", neighbours=(3,), protocol="knn", out=str(tmp_path), beside=[str(optical)]
    )
    assert "note        made_up: optical reads rgb, and is left out there" in capsys.readouterr().out
    assert "optical" not in {row.encoder for row in stages.probes}
    levels = ["pooled", "stage 1", "stage 2", "all stages", "all stages and their spread"]
    for encoder, wanted in {
        "pre-trained": levels,
        "random weights": levels,
        "random convolutions": ["pooled"],
        "image statistics": ["pooled"],
    }.items():
        for features in ("s1_grd", "dem", "s1_grd + dem"):
            rows = [r for r in stages.probes if (r.encoder, r.features, r.label) == (encoder, features, "class")]
            assert [r.level for r in rows] == wanted
            assert {r.protocol for r in rows} == {"knn3"}
    widths = {(row.features, row.encoder): row.width for row in stages.ranks}
    assert widths["s1_grd, stage 1", "pre-trained"] == 8
    assert widths["s1_grd, stage 2", "random weights"] == 16
    assert results.load(Evaluation, tmp_path / EVALUATION).probes[1].level == "stage 1"


@pytest.mark.slow
def test_experts_of_a_modality_that_no_tile_has_are_left_out(made_up, tmp_path):
    moe = dict(specialised=2, collaborative=2, engine="dense")
    model = tiny.RINGMOE | dict(depths=(1,), sensors=("s2_10",), stem="physics", moe=moe)
    run = tiny_runs.pretraining(tmp_path / "optical", model)
    radar = evaluate(
        str(run), [str(made_up[0])], sensors=("s1_grd",), neighbours=(3,), protocol="knn", out=str(tmp_path)
    )
    assert {row.group for row in radar.specialisation} == {"collaborative"}
    assert radar.figures["experts"] == ("experts_collaborative.png",)
    assert {row.group for row in routers(radar)} == {"collaborative"}


def test_json_holds_no_nan():
    assert results.plain({"a": np.array([np.nan, 1.0]), "b": (np.int64(2), float("inf"))}) == {
        "a": [None, 1.0],
        "b": [2, None],
    }


def test_a_result_comes_back_from_its_file(workdir, evaluation):
    path = workdir / "report" / EVALUATION
    assert results.plain(evaluation) == json.loads(path.read_text())
    assert isinstance(evaluation.routing["specialised"].load, np.ndarray)
    assert isinstance(evaluation.reconstruction[0].difference, Score)
    assert results.load(Evaluation, path, evaluation.step + 1) is None
    assert results.load(Evaluation, path.with_name("nothing.json")) is None


def test_a_result_of_another_version(workdir, tmp_path):
    values = json.loads((workdir / "report" / EVALUATION).read_text())
    del values["few_labels"]  # has a default
    (tmp_path / "old.json").write_text(json.dumps(values | {"more": 1}))
    assert results.load(Evaluation, tmp_path / "old.json").few_labels == ()
    del values["probes"][0]["encoder"]
    (tmp_path / "old.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"another version of this library: evaluate the run again .*encoder"):
        results.load(Evaluation, tmp_path / "old.json")


def test_columns_line_up():
    lines = tables.table(("a", "bb"), [("long", "x"), ("", "y")]).split("\n")
    assert lines == ["a     bb", "long  x", "      y"]


@pytest.fixture(scope="module")
def contrastive(made_up, tmp_path_factory):
    """A SkySense run with experts in its fusion and a visited geo-context, and its page."""
    directory, metadata = made_up
    stream = {"directory": str(directory), "sensors": ["s1_grd", "dem"], "split": "train"}
    blocks = {"width": 8, "depth": 1, "heads": 2, "drop_path": 0.0}
    values = {
        "model": {"name": "skysense", "sensors": ["s1_grd", "dem"], "high_resolution": "", "width": 8, "depths": [1]}
        | {"frame": blocks, "frame_patch": 4, "frame_size": 8, "fusion": blocks}
        | {"geo_context": {"regions": 64, "prototypes": 4}}
        | {"moe": {"specialised": 0, "collaborative": 2, "shared": True}},
        "objectives": {
            "whole": {"name": "self_distillation", "stream": "fused", "level": "image"},
            "dots": {"name": "self_distillation", "stream": "fused", "level": "pixel"},
            "align": {"name": "alignment", "sensors": ["s1_grd", "dem"], "projected": True},
            "balance": {"name": "balance"},
        },
        "data": {"streams": {"pairs": stream}, "image_size": 8, "batch_size": 4, "mask_unit": 0}
        | {"views": {"grid": "s1_grd"}},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
        "pretext": {"name": "contrastive", "image_outputs": 8, "local_outputs": 8, "hidden": 8, "bottleneck": 8},
    }
    logged = {"loss": 2.0, "whole/teacher_entropy": 1.0, "whole/usage": 1.0}

    def visited(state):
        bank = state.pretext["geo_context"]
        bank = bank | {"visits": jax.numpy.ones_like(bank["visits"])}
        return dataclasses.replace(state, pretext=state.pretext | {"geo_context": bank})

    folder = finish(tmp_path_factory.mktemp("contrastive"), metadata, values, logged, visited)
    return results.load(Evaluation, folder / "report" / EVALUATION), (folder / "report.html").read_text()


@pytest.mark.slow
def test_a_contrastive_run_has_locations(contrastive):
    evaluation, page = contrastive
    (row,) = evaluation.locations
    assert [tile.index for tile in row.tiles] == list(range(VALIDATION))
    assert all(0 < tile.used <= tile.offered == 4 for tile in row.tiles)
    assert row.labels == ("s1_grd 2021-06-01", "dem undated") * VALIDATION
    assert np.diag(row.similarity) == pytest.approx(1)
    pairs = {pair.sensors: pair for pair in row.agreement}
    assert set(pairs) == {(), ("dem", "dem"), ("dem", "s1_grd"), ("s1_grd", "s1_grd")}
    assert np.isnan(pairs["dem", "dem"].within)
    assert [len(evaluation.figures[kind]) for kind in ("locations", "similarity")] == [1, 1]
    assert page.count("<img") == sum(map(len, evaluation.figures.values())) + 2  # the losses and the collapse watch
    for text in (
        "contrastive pre-training",
        "Collapse watch",
        "Locations",
        "One frame at a time",
        "Rank of the features",
    ):
        assert text in page
    assert "Self-distillation: cross-entropy in nats" in page
    assert "two views of every sample" in page


@pytest.mark.slow
def test_a_contrastive_page_says_nothing_of_masks_and_decoders(contrastive):
    _, page = contrastive
    body = page.split("<details>")[0]  # the configuration lists all keys
    for word in ("masked", "decoder", "hidden pixels", "cells hidden", "econstruction"):
        assert word not in body


@pytest.mark.slow
def test_features_of_a_fusion_are_probed_with_and_without_context(contrastive):
    evaluation, _ = contrastive
    widths = {(r.features, r.encoder): r.width for r in evaluation.ranks}
    assert widths["fused", "pre-trained"] == 2 * widths["fused without context", "pre-trained"] == 16
    assert {"fused", "fused without context"} < {r.features for r in evaluation.probes}


@pytest.mark.slow
def test_routers_of_a_fusion_know_its_own_token_and_the_sensors(contrastive):
    evaluation, page = contrastive
    assert evaluation.modalities == ("fused", "s1_grd", "dem")
    (group,) = evaluation.routing.values()
    assert group.tokens.tolist() == [VALIDATION * 8 * 8] * 3
    assert "Share of each modality" in page
