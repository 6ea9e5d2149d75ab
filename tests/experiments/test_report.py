"""`experiments.report` on fine-tuned runs: a tiny encoder, two seeds of one step, and a data set made up here."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from experiments import report as report_script
from experiments.reports import task as task_page
from experiments.reports.task import BETTER, OPEN, WORSE, Row, TaskRun
from experiments.run.finetune import several
from experiments.run.score import score
from input_pipeline.builder import write_dataset
from input_pipeline.schema import CLASSES, Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import run as runs
from ringmoe_jax import sensors
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics import HeightMetric, Score, SegmentationMetric, TrackingMetric
from ringmoe_jax.models.adaptation import AdaptationConfig
from ringmoe_jax.run import Run, results
from ringmoe_jax.run.evaluation import TASK_SCORE, EncoderSummary, TaskScore

SIZE = 8
SCORED = 6  # validation samples, far from each other


def samples(count):
    for i in range(count):
        pixels = np.random.default_rng(i).normal(size=(1, SIZE, SIZE, 2)).astype(np.float32)
        yield Sample(f"{count}/{i}", {"s1_grd": Image(pixels)}, float(i), 0.0, {"kind": i % 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds of a classification."""
    folder = tmp_path_factory.mktemp("report")
    info = dataclasses.replace(SensorInfo.of(sensors.get("s1_grd"), (1, SIZE, SIZE), 10.0), simulated=True)
    labels = {"kind": LabelInfo(CLASSES, ("even", "odd", "neither"), "parity of the sample's number")}
    metadata = Metadata("made_up", {"s1_grd": info}, "noise", "CC0-1.0", "tests", labels=labels)
    write_dataset(folder / "data", {"train": samples(8), "validation": samples(SCORED)}, metadata)
    whole = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0]}
    values = {
        "task": {"name": "classification", "target": "kind"},
        "model": {"name": "ringmoe", "sensors": ["s1_grd"], "width": 8, "depths": [1], "head_width": 8}
        | {"image_size": SIZE, "patch": 4, "window": 2, "moe": {"specialised": 0, "collaborative": 0}},
        "data": {"streams": {"data": {"directory": str(folder / "data"), "sensors": ["s1_grd"], **whole}}}
        | {"image_size": SIZE, "batch_size": 8, "mask_unit": 0, "shuffle_seed": 0},
        "optimizer": {"warmup_steps": 0},
        "train": {"steps": 1, "log_every": 1, "seed": 0},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_mesh", lambda config: None)  # a page is not about meshes, which take long to compile
        several(values, str(folder / "runs"), (0, 1))
    return folder / "runs"


@pytest.fixture(scope="module")
def run(folder):
    return TaskRun.load(folder / "seed0")


def with_result(run, **changes):
    own = dataclasses.replace(run.own, result=dataclasses.replace(run.own.result, **changes))
    return dataclasses.replace(run, own=own)


def alone(page):
    """Whether a page needs nothing else."""
    outside = re.search(r"<script|<link|<a |@import|url\(", page)
    return not outside and all(s.startswith("data:image/png;base64,") for s in re.findall(r'src="([^"]*)"', page))


def text(page):
    """What a reader sees of a page."""
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split())


def test_the_page_says_what_was_trained_on_what(folder, run):
    page = report_script.report(str(folder / "seed0")).read_text()
    assert alone(page)
    assert page.count("<img") == 2  # confusion matrix and losses
    seen = text(page)
    result = run.own.result
    for wanted in (
        "encoder ringmoe, new, not pre-trained",
        "adaptation full: all of the encoder is trained",
        f"{result.parameters.trained:,} of {result.parameters.total:,} parameters (100 %)",
        f"{SCORED} samples of the split validation",
        "licence CC0-1.0; source: tests",
        "SIMULATED data: pixels of at least one sensor were computed",
        "Here: The most frequent class.",
    ):
        assert wanted in seen
    for name, value in result.scores.items():
        assert f"{name} ↑" in seen
        assert f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]" in seen
    assert "neither 0 \N{EN DASH}" in seen  # no such sample: its recall is not defined


def test_a_run_whose_step_was_not_scored_is_scored_first(folder, tmp_path, run, capsys):
    shutil.copytree(folder / "seed0", tmp_path / "run")
    path = tmp_path / "run" / "report" / TASK_SCORE
    results.write(path, dataclasses.replace(run.own.result, step=0, scores={}))
    report_script.report(str(tmp_path / "run"))
    assert "step 1 of" in capsys.readouterr().out
    again = results.load(TaskScore, path)
    assert (again.step, again.scores) == (1, run.own.result.scores)


@pytest.mark.slow
def test_the_page_shows_every_split_that_was_scored(folder, tmp_path):
    shutil.copytree(folder / "seed0", tmp_path / "run")
    score(Run.open(tmp_path / "run"), split="train")
    page = report_script.report(str(tmp_path / "run")).read_text()
    seen = text(page)
    assert f"{SCORED} samples of the split validation" in seen  # the run's own split is the one that counts
    assert "made_up, train split 8 samples in 8 blocks" in seen
    assert page.count("<img") == 4  # two confusion matrices, losses, all splits side by side
    stale = tmp_path / "run" / "report" / "train" / TASK_SCORE
    results.write(stale, dataclasses.replace(results.load(TaskScore, stale), step=0))
    assert "train split" not in text(report_script.report(str(tmp_path / "run")).read_text())


def test_a_score_of_another_version_is_one_line(folder, tmp_path):
    shutil.copytree(folder / "seed0", tmp_path / "run")
    path = tmp_path / "run" / "report" / TASK_SCORE
    values = json.loads(path.read_text())
    del values["encoder"]["init_from"]
    path.write_text(json.dumps(values))
    with pytest.raises(
        DataError, match=r"task.json was written by another version .*: evaluate the run again .*init_from"
    ):
        report_script.report(str(tmp_path / "run"))


def test_the_page_of_seeds_holds_means_and_every_run(folder):
    page = report_script.report(str(folder)).read_text()
    joined = json.loads((folder / "seeds.json").read_text())
    assert alone(page)
    assert page.count("<img") == 4
    seen = text(page)
    assert all(words in seen for words in ("accuracy, mean over seeds", "Seed 0", "Seed 1"))
    first, second = (one["scores"]["accuracy"]["value"] for one in joined["runs"])
    half = 12.706 * abs(first - second) / 2  # t of one degree of freedom; the mean's standard error is |a - b| / 2
    centre = (first + second) / 2
    interval = f"{centre:.3f} [{centre - half:.3f}, {centre + half:.3f}]".replace("-", "\u2212")
    assert interval in seen


def test_seeds_that_went_on_are_an_error(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "runs")
    joined = json.loads((tmp_path / "runs" / "seeds.json").read_text())
    joined["runs"][1]["step"] = 7
    (tmp_path / "runs" / "seeds.json").write_text(json.dumps(joined))
    with pytest.raises(DataError, match=r"of step 7, but seed 1 is at 1: .*--seeds 0 1 again"):
        report_script.report(str(tmp_path / "runs"))


def value(low, high):
    return Score((low + high) / 2, low, high)


NAN = float("nan")


@pytest.mark.parametrize(
    ("metric", "name", "model", "constant", "verdict"),
    [
        (SegmentationMetric("ab"), "mIoU", (0.4, 0.6), (0.1, 0.3), BETTER),
        (SegmentationMetric("ab"), "mIoU", (0.1, 0.3), (0.4, 0.6), WORSE),
        (SegmentationMetric("ab"), "mIoU", (0.4, 0.6), (0.1, 0.4), OPEN),  # they touch
        (SegmentationMetric("ab"), "mIoU", (0.4, 0.6), (0.45, 0.5), OPEN),
        (HeightMetric(), "RMSE", (1.0, 2.0), (3.0, 4.0), BETTER),
        (HeightMetric(), "RMSE", (3.0, 4.0), (1.0, 2.0), WORSE),
        (TrackingMetric(), "MOTP", (0.5, 0.6), (NAN, NAN), ""),
        (TrackingMetric(), "FP", (10.0, 20.0), (0.0, 0.0), ""),  # who says nothing has none
    ],
)
def test_a_verdict_needs_intervals_apart(metric, name, model, constant, verdict):
    assert Row(name, value(*model), value(*constant), metric.quantities[name]).verdict == verdict


def with_metric(run, metric, rows):
    """The run as if another metric had scored it; `rows` are {metric: (of the model, of the constant answer)}."""
    scores, constant = ({name: value(*both[i]) for name, both in rows.items()} for i in (0, 1))
    other = with_result(run, scores=scores, constant=constant, classes={})
    return dataclasses.replace(other.own, quantities=metric.quantities)


def test_less_is_better_of_errors_and_of_distances(run):
    rows = dict.fromkeys(("HOTA", "MOTP", "FN"), ((0.1, 0.2), (0.1, 0.2)))
    tracked = with_metric(run, TrackingMetric(), rows).rows
    assert [row.metric for row in tracked if row.less] == ["FN"]
    assert [row.digits for row in tracked] == [3, 3, 0]
    far = with_metric(run, TrackingMetric(distance=5.0), rows).rows
    assert [row.metric for row in far if row.less] == ["MOTP", "FN"]
    assert [row.title for row in far] == ["HOTA", "MOTP, px", "FN"]


def test_findings_claim_no_more_than_intervals_do(run):
    def said(metric=SegmentationMetric("ab"), **rows):  # noqa: B008
        return list(task_page._compared(with_metric(run, metric, rows)))

    apart, over = ((0.4, 0.6), (0.1, 0.2)), ((0.4, 0.6), (0.5, 0.7))
    (better,) = said(mIoU=apart, OA=apart)
    assert better.startswith(
        "The model's mIoU is 0.500 [0.400, 0.600], the best constant answer's 0.150 [0.100, 0.200]"
    )
    assert better.endswith("the model beats an answer that looks at no image.")
    assert said(mIoU=apart, OA=over)[1] == "By OA it is not to be told apart."
    nothing, best = said(mIoU=over, OA=apart)
    assert best == "By OA it is better."
    assert f"these {SCORED} samples do not show that the model beats" in nothing
    (worse,) = said(HeightMetric(), RMSE=apart)
    assert re.search(r"\(less is better\).* the model loses to", worse)


def test_classes_that_are_never_right_are_named(run):
    table = {"class": ["a", "b", "c"], "pixels": [5, 5, 0], "IoU": [0.5, 0.0, 0.0], "precision": [1, None, 0.0]}
    assert list(task_page._compared(with_result(run, classes=table).own))[-1] == "Nothing is right of b (IoU 0)."


def test_cautions(run):
    real = dataclasses.replace(run.own.result.dataset, simulated=False)
    fine = {"dataset": real, "split": "test", "blocks": 50}
    pretrained = EncoderSummary(model="ringmoe", init_from="runs/x", step=800, weights="checkpoint")
    fresh = dataclasses.replace(pretrained, weights="random")
    assert not list(task_page._cautions(with_result(run, **fine, encoder=pretrained)))
    assert len(list(task_page._cautions(run))) == 4  # simulated, not pre-trained, few blocks, validation
    (stopped,) = task_page._cautions(with_result(run, **fine, encoder=pretrained, step=0))
    assert stopped == "The training was stopped at step 0 of 1."
    setup = dict(task_page._setup(with_result(run, encoder=pretrained)))
    assert setup["encoder"] == "ringmoe, pre-trained: step 800 of runs/x"
    setup = dict(task_page._setup(with_result(run, encoder=fresh)))
    assert setup["encoder"] == "ringmoe, the one of runs/x with fresh weights, as if it had not been pre-trained"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (AdaptationConfig("frozen"), "only neck and head are trained"),
        (AdaptationConfig("lora", rank=4), "changes of rank 4 to the kernels that match (query|value)/kernel$"),
        (
            AdaptationConfig("convpass", hidden=6, also="norm/"),
            "in every block; and parameters that match norm/",
        ),
    ],
)
def test_adaptation_is_said_in_words(config, words):
    assert words in task_page._adaptation(config)
