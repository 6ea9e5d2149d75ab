"""The leaderboard's rows, from a run's record, log and evaluation."""

import csv
import dataclasses

import pytest

from experiments import report as command
from experiments.reports import leaderboard
from experiments.run.checkout import commit
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.run import PretrainConfig, results
from ringmoe_jax.run.evaluation import EVALUATION, DataSummary, EvaluatedData, Evaluation, ProbeRow

CONFIG = """
from ml_collections import ConfigDict


def get_config():
    model = {"name": "ringmoe", "sensors": ["rgb"], "width": 8, "depths": [1, 1], "head_width": 8, "image_size": 16}
    streams = {"rgb": {"directory": "data", "sensors": ["rgb"], "split": "train"}}
    return ConfigDict(
        {
            "model": model | {"patch": 4, "window": 4},
            "pretext": {"name": "masked"},
            "objectives": {"rgb": {"name": "masked_l1", "sensor": "rgb"}},
            "data": {"streams": streams, "image_size": 16, "batch_size": 4, "mask_unit": 8},
            "optimizer": {"learning_rate": 1e-3},
        }
    )
"""


def probe(encoder, level, protocol, score, validation):
    where = dict(dataset="fields", label="crop", features="rgb", encoder=encoder, level=level)
    scores = {"accuracy": Score(score, score - 0.1, score + 0.1)}
    return ProbeRow(protocol, 1.0, 1, scores, (), 20, 5, 5, 0, **where, validation=validation)


PROBES = (
    *(probe("pre-trained", "pooled", "knn5", 0.5, 0.6), probe("pre-trained", "stage 1", "knn5", 0.625, 0.5)),
    *(probe("pre-trained", "pooled", "linear", 0.55, 0.1), probe("pre-trained", "stage 1", "linear", 0.65, 0.9)),
    *(probe("random weights", "pooled", "knn5", 0.3, 0.1), probe("random weights", "stage 1", "knn5", 0.35, 0.1)),
    probe("image statistics", "pooled", "knn5", 0.45, 0.1),
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """An evaluated run without a checkpoint: its record is told."""
    (tmp_path / "recipe.py").write_text(CONFIG)
    values = leaderboard.cli.read_config(str(tmp_path / "recipe.py"))
    values["model"]["width"], values["train"] = 16, {"seed": 3}
    record = {"step": 30, "commit": "abc123+", "config": results.plain(PretrainConfig.of(values).complete())}
    monkeypatch.setattr(leaderboard, "read_record", lambda *_: record)
    about = {field.name: "" for field in dataclasses.fields(DataSummary)} | {"name": "fields", "samples": {}}
    about |= {"split": "test", "protocol": "", "sensors": {}, "labels": {}, "notes": (), "simulated": False}
    parts = dict(
        checkpoint="", step=30, protocol="", seed=0, parameters=results.Parameters(1), seconds=0.0, modalities=()
    )
    parts |= dict(versions={}, date="2026-11-27 17:00 UTC", devices="1 x cpu")
    evaluation = Evaluation(**parts, datasets=(EvaluatedData(**about),), probes=PROBES)
    results.write(tmp_path / "run/report/fields,test" / EVALUATION, evaluation)
    # 10 steps of 8 images at 0.5 s after one that compiled, then 20 of 8 at 1 s.
    lines = '{"step": 1}\n{"step": 10, "perf/images_per_second": 16, "perf/step_seconds": 0.5}\n'
    (tmp_path / "run/metrics.jsonl").write_text(
        lines + '{"step": 30, "perf/images_per_second": 8, "perf/step_seconds": 1.0}\n'
    )
    return tmp_path


def test_rows_say_what_was_run_and_how_good_every_kind_of_features_is(run, capsys):
    table, config = run / "docs/leaderboard.csv", str(run / "recipe.py")
    arguments = ["--workdir", str(run / "run"), "--leaderboard", str(table), "--config", config]
    for times in (1, 2):
        with pytest.raises(SystemExit) as status:
            command.main(arguments)
        assert status.value.code == 0
        assert "leaderboard.csv: 2 rows more" in capsys.readouterr().out
        rows = list(csv.DictReader(table.read_text().splitlines()))
        assert len(rows) == 2 * times
    assert set(rows[0]) == set(leaderboard.COLUMNS)
    facts = {"date": "2026-11-27", "commit": "abc123+", "views": "240", "minutes": "0.4", "device": "1 x cpu"}
    facts |= {"seed": "3", "data": "fields/crop test", "recipe": f"{config} model.width=16"}
    pooled, stage = rows[:2]
    for row in (pooled, stage):
        assert facts.items() <= row.items()
        assert row["image statistics knn5"] == "0.4500"  # one kind of features alone
        assert row["random convolutions knn5"] == row["knn20"] == ""
    assert (pooled["feature"], pooled["chosen by"], pooled["knn5"], pooled["linear"]) == (
        *("rgb", "knn5"),
        *("0.5000", "0.5500"),
    )
    assert (stage["feature"], stage["chosen by"], stage["knn5"], stage["linear"]) == (
        *("rgb, stage 1", "linear"),
        *("0.6250", "0.6500"),
    )
    assert (pooled["random weights knn5"], stage["random weights knn5"]) == ("0.3000", "0.3500")


def test_what_does_not_belong_together_is_refused(run, capsys):
    table = run / "other.csv"
    table.write_text("date,score\n")
    with pytest.raises(DataError, match=r"other.csv has the columns date,score: wanted date,commit,recipe"):
        leaderboard.append(table, run / "run", str(run / "recipe.py"))
    with pytest.raises(DataError, match=r"step 30 of .* has no evaluation with probes: run experiments.evaluate"):
        leaderboard.append(table, run / "nothing", str(run / "recipe.py"))
    assert table.read_text() == "date,score\n"
    with pytest.raises(SystemExit):
        command.main(["--workdir", str(run / "run"), "--leaderboard", str(table)])
    assert "--leaderboard and --config go together" in capsys.readouterr().err


def test_the_commit_is_that_of_the_checkout(monkeypatch):
    assert commit().rstrip("+").isalnum()
    monkeypatch.setenv("PATH", "")
    assert commit() == ""
