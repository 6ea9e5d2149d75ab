"""The grid of arms and fractions: what differs between them, what is compared, and resuming. Training is faked."""

import json

import numpy as np
import pytest

from experiments.run import few_labels
from ringmoe_jax.contracts import CLASSES
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.evaluate.seeds import FewLabels
from ringmoe_jax.run import FinetuneConfig, results
from ringmoe_jax.run.evaluation import DataSummary, EncoderSummary, TaskScore
from ringmoe_jax.run.results import Parameters
from ringmoe_jax.tasks import Target

VALUES = dict(
    task=dict(name="classification", target="kind"),
    init_from="runs/x",
    data=dict(streams=dict(data=dict(directory="d", sensors=("rgb",))), image_size=16, batch_size=2, mask_unit=0),
)

TEXTS = dict.fromkeys(("name", "directory", "description", "licence", "source", "citation"), "")


def scored(value, constant):
    """The score of a run with two metrics."""
    score = lambda v: {"accuracy": Score(v, v, v), "macro": Score(v, v, v)}  # noqa: E731
    return TaskScore(
        task="classification",
        target=Target("kind", CLASSES, ("a", "b")),
        step=1,
        encoder=EncoderSummary(model="ringmoe", init_from="runs/x", step=1, weights="checkpoint"),
        parameters=Parameters(1),
        dataset=DataSummary(**TEXTS, simulated=False, samples={}),
        split="test",
        samples=1,
        blocks=1,
        scores=score(value),
        constant=score(constant),
        seconds=0.0,
        **results.provenance(),
    )


@pytest.fixture
def trained(monkeypatch):
    """Configurations that were trained. Accuracy is 0.1 for pre-trained, 0.1 for adapted, and half the fraction."""
    seen = []

    def fake(values, workdir):
        config = FinetuneConfig.of(values)
        (stream,) = config.data.streams.values()
        good = (config.weights == "checkpoint") + (config.adaptation.method == "full")
        seen.append(config)
        return scored(0.1 * good + stream.fraction / 2 + config.train.seed / 100, 0.05)

    monkeypatch.setattr(few_labels, "finetune", fake)
    monkeypatch.setattr(few_labels, "_stratified", lambda config: config.task["target"])
    return seen


def test_every_arm_sees_the_same_labels_and_budget(trained, tmp_path):
    few_labels.study(VALUES, str(tmp_path), [0.1, 1.0], [3, 4])
    assert len(trained) == 2 * 2 * len(few_labels.ARMS)
    for i in range(0, len(trained), len(few_labels.ARMS)):
        arms = trained[i : i + len(few_labels.ARMS)]
        assert len({(a.weights, a.adaptation.method) for a in arms}) == len(arms)
        streams = {str(a.data) for a in arms}
        assert len(streams) == 1
        assert len({(a.train, a.optimizer) for a in arms}) == 1
    (stream,) = trained[0].data.streams.values()
    assert (stream.fraction, stream.fraction_label, stream.subset_seed) == (0.1, "kind", 3)
    assert trained[0].train.seed == 3


def test_shares_of_scenes_are_not_of_every_class(trained, tmp_path):
    few_labels.study(VALUES, str(tmp_path), [0.1], [3], of="scenes")
    (stream,) = trained[0].data.streams.values()
    assert (stream.fraction, stream.fraction_label, stream.fraction_of) == (0.1, "", "scenes")


def test_scores_are_means_over_seeds_and_all_is_written(trained, tmp_path):
    summary = few_labels.study(VALUES, str(tmp_path), [0.1, 1.0], [0, 2])
    best = next(r for r in summary.results if r.arm == "pre-trained, fine-tuned" and r.fraction == 1)
    assert best.scores["accuracy"].value == pytest.approx(0.2 + 0.5 + 0.01)
    half = 12.7062 * np.std([0, 0.02], ddof=1) / np.sqrt(2)  # Student's t, one degree of freedom
    assert best.scores["accuracy"].high == pytest.approx(0.71 + half, abs=1e-4)
    table = (tmp_path / "few_labels.md").read_text()
    assert "| pre-trained, fine-tuned | 0.260" in table
    assert "10 % of labels" in table
    assert few_labels.CONSTANT in table
    assert (tmp_path / "few_labels.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "few_labels.json").read_text()) == results.plain(summary)
    assert results.load(FewLabels, tmp_path / "few_labels.json").results == summary.results


def test_what_was_done_is_not_done_again(trained, tmp_path):
    few_labels.study(VALUES, str(tmp_path), [1.0], [0])
    before = len(trained)
    few_labels.study(VALUES, str(tmp_path), [1.0], [0, 1])
    assert len(trained) == before + len(few_labels.ARMS)
    with pytest.raises(ConfigError, match="holds another run: config was"):
        few_labels.study(VALUES | {"head": dict(name="mlp")}, str(tmp_path), [1.0], [0])


def test_a_study_needs_something_pre_trained(tmp_path):
    own = {k: v for k, v in VALUES.items() if k != "init_from"} | {"model": dict(name="ringmoe")}
    with pytest.raises(ConfigError, match="init_from"):
        few_labels.study(own, str(tmp_path), [1.0], [0])
