"""`experiments.report` on fine-tuned runs: a tiny encoder, two seeds of one step, and a data set made up here."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest

from experiments import report as report_script
from experiments import scoring, task_report
from experiments.finetune import several
from experiments.task_report import BETTER, OPEN, WORSE, Row, Run
from input_pipeline.builder import write_dataset
from input_pipeline.schema import CLASSES, Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics import HeightMetric, SegmentationMetric, TrackingMetric
from ringmoe_jax.models.adaptation import AdaptationConfig

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
    several(values, str(folder / "runs"), (0, 1))
    return folder / "runs"


@pytest.fixture(scope="module")
def run(folder):
    return Run.load(folder / "seed0")


def with_result(run, **changes):
    return dataclasses.replace(run, result={**run.result, **changes})


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
    trained, total = run.result["parameters"].values()
    for wanted in (
        "encoder ringmoe, new, not pre-trained",
        "adaptation full: all of the encoder is trained",
        f"{trained:,} of {total:,} parameters (100 %)",
        f"{SCORED} samples of the split validation",
        "licence CC0-1.0; source: tests",
        "SIMULATED data: pixels of at least one sensor were computed",
        "Here: The most frequent class.",
    ):
        assert wanted in seen
    for name, value in run.result["scores"].items():
        assert f"{name} ↑" in seen
        assert f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" in seen
    assert "neither 0 \N{EN DASH}" in seen  # no such sample: its recall is not defined


def test_a_run_whose_step_was_not_scored_is_scored_first(folder, tmp_path, run, capsys):
    shutil.copytree(folder / "seed0", tmp_path / "run")
    found = tmp_path / "run" / "report" / scoring.RESULT
    found.write_text(json.dumps(run.result | {"step": 0, "scores": {}}))
    report_script.report(str(tmp_path / "run"))
    assert "step 1 of" in capsys.readouterr().out
    again = json.loads(found.read_text())
    assert (again["step"], again["scores"]) == (1, run.result["scores"])


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
    return {"value": None if low is None else (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("metric", "name", "model", "constant", "verdict"),
    [
        (SegmentationMetric("ab"), "mIoU", (0.4, 0.6), (0.1, 0.3), BETTER),
        (SegmentationMetric("ab"), "mIoU", (0.1, 0.3), (0.4, 0.6), WORSE),
        (SegmentationMetric("ab"), "mIoU", (0.4, 0.6), (0.1, 0.4), OPEN),  # they touch
        (SegmentationMetric("ab"), "mIoU", (0.4, 0.6), (0.45, 0.5), OPEN),
        (HeightMetric(), "RMSE", (1.0, 2.0), (3.0, 4.0), BETTER),
        (HeightMetric(), "RMSE", (3.0, 4.0), (1.0, 2.0), WORSE),
        (TrackingMetric(), "MOTP", (0.5, 0.6), (None, None), ""),
        (TrackingMetric(), "FP", (10.0, 20.0), (0.0, 0.0), ""),  # who says nothing has none
    ],
)
def test_a_verdict_needs_intervals_apart(metric, name, model, constant, verdict):
    assert Row(name, value(*model), value(*constant), metric.quantities[name]).verdict == verdict


def of_task(run, task, rows):
    """The run as if it had learnt another task; `rows` are {metric: (of the model, of the constant answer)}."""
    scores, constant = ({name: value(*both[i]) for name, both in rows.items()} for i in (0, 1))
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, task=task | {"target": "kind"}))
    return with_result(other, scores=scores, constant=constant, classes={})


def test_less_is_better_of_errors_and_of_distances(run):
    rows = dict.fromkeys(("HOTA", "MOTP", "FN"), ((0.1, 0.2), (0.1, 0.2)))
    tracked = of_task(run, {"name": "tracking"}, rows).rows
    assert [row.metric for row in tracked if row.less] == ["FN"]
    assert [row.digits for row in tracked] == [3, 3, 0]
    far = of_task(run, {"name": "tracking", "distance": 5.0}, rows).rows
    assert [row.metric for row in far if row.less] == ["MOTP", "FN"]
    assert far[1].meaning == "mean distance of matches from the truth, px"


def test_findings_claim_no_more_than_intervals_do(run):
    def said(task="segmentation", **rows):
        return list(task_report._compared(of_task(run, {"name": task}, rows)))

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
    (worse,) = said("height", RMSE=apart)
    assert re.search(r"\(less is better\).* the model is worse than", worse)


def test_classes_that_are_never_right_are_named(run):
    table = {"class": ["a", "b", "c"], "pixels": [5, 5, 0], "IoU": [0.5, 0.0, 0.0], "precision": [1, None, 0.0]}
    assert list(task_report._compared(with_result(run, classes=table)))[-1] == "Nothing is right of b (IoU 0)."


def test_cautions(run):
    fine = {"dataset": run.result["dataset"] | {"simulated": False}, "split": "test", "blocks": 50}
    pretrained = {"model": "ringmoe", "from": "runs/x", "step": 800, "weights": "checkpoint"}
    assert not list(task_report._cautions(with_result(run, **fine, encoder=pretrained)))
    assert len(list(task_report._cautions(run))) == 4  # simulated, not pre-trained, few blocks, validation
    (stopped,) = task_report._cautions(with_result(run, **fine, encoder=pretrained, step=0))
    assert stopped == "The training was stopped at step 0 of 1."
    setup = dict(task_report._setup(with_result(run, encoder=pretrained)))
    assert setup["encoder"] == "ringmoe, pre-trained: step 800 of runs/x"
    setup = dict(task_report._setup(with_result(run, encoder=pretrained | {"weights": "random"})))
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
    assert words in task_report._adaptation(config)
