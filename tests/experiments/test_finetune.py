"""Every task from a data set to scores and pictures; adaptation of a checkpoint; what a user did wrong, in one line."""

import json
import types

import numpy as np
import pytest

from experiments.run import cli, finetune, score
from experiments.run import data as run_data
from experiments.run.encoder import encoder_of
from experiments.run.pretrain import pretrain
from input_pipeline.synthetic import dataset as synthetic
from ringmoe_jax import run as runs
from ringmoe_jax import tasks
from ringmoe_jax.contracts import CLASSES
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.run import FinetuneConfig, Run, results
from tests.helpers import tiny_data
from tests.helpers.tiny import RINGMOE

SIZE = 32
MODEL = RINGMOE | dict(depths=(1, 1), image_size=SIZE)
TASKS = {
    "classification": dict(target="dominant"),
    "multilabel": dict(target="present"),
    "segmentation": dict(target="land_cover"),
    "pyramid": dict(name="segmentation", target="land_cover"),
    "change": dict(target="change"),
    "height": dict(target="ndsm"),
    "detection": dict(target="boxes"),
    "rotated": dict(name="detection", target="oriented", rotated=True),
    "tracking": dict(target="tracks", rotated=True),
}
HEADS = {
    "segmentation": dict(name="fcn", channels=8),
    "pyramid": dict(name="upernet", channels=8, auxiliary=8),
    "change": dict(name="change_transformer", channels=8, heads=2, decoder_depth=1),
    "height": dict(channels=8, bins=8, max_height=30.0),
    "detection": dict(channels=8, depth=1, groups=2),
    "rotated": dict(channels=8, depth=1, groups=2, finer=1),
    "tracking": dict(channels=8, depth=1, groups=2),
}


def fast_first(values, *fast):
    """Parameters of a test that takes long; all but a few are slow tests."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture(autouse=True)
def one_device(request, monkeypatch):
    """Most of these tests are about anything but meshes, which take long to compile for."""
    if "eight" not in request.node.name:
        monkeypatch.setattr(runs, "make_mesh", lambda config: None)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return str(synthetic.prepare(folder, scenes=9, size=SIZE, sensors=("rgb", "s1_grd", "ndsm"), dates=2, gsd=2.5))


@pytest.fixture(scope="module")
def pretrained(scenes, tmp_path_factory):
    """A RingMoE of both sensors that saw three batches."""
    workdir = str(tmp_path_factory.mktemp("runs") / "pretrained")
    model = MODEL | dict(sensors=("rgb", "s1_grd"))
    stream = dict(directory=scenes, sensors=("rgb", "s1_grd"), crop_scale=(1.0, 1.0))
    pretrain(
        dict(
            model=model,
            objectives={n: dict(name="masked_l1", sensor=n) for n in ("rgb", "s1_grd")},
            data=dict(streams=dict(all=stream), image_size=SIZE, batch_size=8, mask_unit=8),
            optimizer=dict(warmup_steps=1),
            train=dict(steps=3, checkpoint_every=3),
        ),
        workdir,
    )
    return workdir


def config(scenes, task, *, sensors=("rgb",), steps=2, **changes):
    """A configuration of three small steps on the scenes."""
    values = dict(name=task) | TASKS[task]
    shown = (*sensors, "ndsm") if task == "height" else sensors
    stream = dict(directory=scenes, sensors=shown, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    return (
        dict(
            task=values,
            head=HEADS.get(task, {}),
            model=MODEL | dict(sensors=sensors),
            data=dict(streams=dict(data=stream), image_size=SIZE, batch_size=8, mask_unit=0),
            optimizer=dict(learning_rate=1e-3, warmup_steps=1),
            train=dict(steps=steps, checkpoint_every=1, log_every=1),
        )
        | changes
    )


@pytest.mark.parametrize("task", fast_first(TASKS, "segmentation"))
def test_every_task_trains_scores_and_draws(task, scenes, tmp_path):
    result = finetune.finetune(config(scenes, task), str(tmp_path))
    assert result.samples == 1  # the validation scene
    assert result.scores.keys() == result.constant.keys()
    for values in result.scores.values():
        assert isinstance(values, Score)
    assert result.figures
    for name in result.figures.values():
        assert (tmp_path / "report" / name).stat().st_size > 5000
    assert json.loads((tmp_path / "report" / "task.json").read_text()) == results.plain(result)


@pytest.mark.slow
def test_eight_devices_train_as_one(scenes, tmp_path, monkeypatch):
    """Heights, for the gradient of a minimum was once wrong on a mesh and only there."""
    eight = finetune.finetune(config(scenes, "height"), str(tmp_path / "eight"))
    monkeypatch.setattr(runs, "make_mesh", lambda config: None)
    one = finetune.finetune(config(scenes, "height"), str(tmp_path / "one"))
    assert eight.scores["RMSE"].value == pytest.approx(one.scores["RMSE"].value, rel=1e-4)


@pytest.mark.slow
def test_scoring_a_checkpoint_again_gives_the_same(scenes, tmp_path):
    first = finetune.finetune(config(scenes, "segmentation"), str(tmp_path))
    again = score.score(Run.open(tmp_path), split="validation")
    assert results.plain(again.scores) == results.plain(first.scores)
    trained = score.score(Run.open(tmp_path), split="train", out=str(tmp_path / "x"))
    assert trained.samples == 9


@pytest.mark.parametrize("method", fast_first(("full", "frozen", "lora", "convpass")))
def test_a_checkpoint_is_adapted_and_what_is_frozen_stays(method, scenes, pretrained, tmp_path):
    own = config(
        scenes, "classification", init_from=pretrained, model={}, adaptation=dict(method=method, rank=2, hidden=2)
    )
    finetune.finetune(own, str(tmp_path))
    before = Run.open(pretrained).params
    adapted = Run.open(tmp_path)
    assert adapted.encoder.step == 3
    after = adapted.params["encoder"]
    blocks = lambda tree: tree["backbone"]["stages"]["stage0"]["blocks"]["run0"]  # noqa: E731
    kernel = lambda tree: np.asarray(blocks(tree)["attention"]["query"]["kernel"])  # noqa: E731
    stem = lambda tree: np.asarray(tree["stems"]["rgb"]["project"]["kernel"])  # noqa: E731
    assert np.array_equal(stem(before), stem(after)) == (method != "full")
    assert np.array_equal(kernel(before), kernel(after)) == (method in ("frozen", "convpass"))
    np.testing.assert_allclose(kernel(before), kernel(after), atol=0.02)  # it started there
    assert "decoders" not in after


@pytest.mark.slow
def test_random_weights_are_not_the_checkpoint_s(scenes, pretrained, tmp_path):
    own = config(
        scenes, "classification", init_from=pretrained, model={}, weights="random", adaptation=dict(method="frozen")
    )
    finetune.finetune(own, str(tmp_path))
    stem = lambda tree: np.asarray(tree["stems"]["rgb"]["project"]["kernel"])  # noqa: E731
    after = Run.open(tmp_path).params["encoder"]
    assert np.abs(stem(Run.open(pretrained).params) - stem(after)).max() > 1e-3


@pytest.mark.slow
def test_two_sensors_train_together_and_one_may_be_missing(scenes, pretrained, tmp_path):
    own = config(
        scenes, "segmentation", sensors=("rgb",), init_from=pretrained, model={}, head=dict(name="fcn", channels=8)
    )
    own["data"]["streams"]["data"]["sensors"] = ("rgb", "s1_grd")
    own["neck"] = dict(fusion="gated", modality_dropout=0.3)
    both = finetune.finetune(own, str(tmp_path))
    adapted = Run.open(tmp_path)
    one = score.score(adapted, without=["s1_grd"], out=str(tmp_path / "one"))
    assert results.plain(one.scores) != results.plain(both.scores)
    with pytest.raises(ConfigError, match="leaves no sensor"):
        score.score(adapted, without=["s1_grd", "rgb"])
    with pytest.raises(ConfigError, match="s1_grd"):
        score.score(adapted, without=["s1"])


@pytest.mark.slow
def test_a_run_resumes_where_it_stopped_and_only_as_itself(scenes, tmp_path, capsys):
    finetune.finetune(config(scenes, "classification", steps=2), str(tmp_path / "a"))
    longer = config(scenes, "classification", steps=2)
    longer["train"]["steps"] = 2
    finetune.finetune(longer, str(tmp_path / "a"))
    assert "resuming" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="checkpoint was made with"):
        finetune.finetune(longer | {"adaptation": dict(method="frozen")}, str(tmp_path / "a"))


@pytest.mark.slow
def test_seeds_give_a_mean_and_an_interval(scenes, tmp_path):
    joined = finetune.several(config(scenes, "classification", steps=2), str(tmp_path), [0, 1])
    values = [run.scores["accuracy"].value for run in joined.runs]
    assert joined.scores["accuracy"].value == pytest.approx(np.mean(values))
    assert (tmp_path / "seed1" / "report" / "task.json").exists()


def test_a_map_on_another_sensor_is_learnt_where_its_grid_is_shown(tmp_path):
    """The map lies on rgb; Sentinel-1 has its grid, the complex image a finer one."""
    folder = str(tiny_data.write(tmp_path / "data", "rgb", "s1_grd", "slc_single"))

    def spec(*sensors):
        own = config(folder, "segmentation", sensors=sensors) | {"task": dict(name="segmentation", target="map")}
        parsed = FinetuneConfig.of(own)
        return run_data.task_spec(parsed, run_data.open_labelled(parsed, encoder_of(parsed)))

    assert spec("s1_grd").target.sensor == "s1_grd"
    with pytest.raises(ConfigError, match=r'lies on the pixels of "rgb", .* no sensor that it shows .slc_single. has'):
        spec("slc_single")


def bad(task="classification", **changes):
    return lambda scenes: config(scenes, task, **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            bad(task="classification", sensors=("rgb",), model=MODEL | dict(sensors=("s1_grd",))),
            "name sensors that both have",
        ),
        (bad(model={}), "give init_from"),
        (bad(init_from="nowhere"), "no checkpoint in nowhere"),
        (bad(head=dict(name="fcn")), "does not suit this task"),
        (bad(task="segmentation", head=dict(chanels=3)), "channels"),
        (bad(weights="none"), "does not exist"),
        (bad(adaptation=dict(method="lorra")), "lora"),
    ],
)
def test_bad_settings_are_one_clear_line(make, message, scenes, tmp_path):
    with pytest.raises((ConfigError, DataError), match=message):
        finetune.finetune(make(scenes), str(tmp_path))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (dict(name="segmentation", target="dominant"), "this task learns map"),
        (dict(name="segmentation", target="land_covr"), "land_cover"),
        (dict(name="segmentatoin", target="land_cover"), "segmentation"),
    ],
)
def test_bad_targets_are_named(task, message, scenes, tmp_path):
    with pytest.raises(ConfigError, match=message):
        finetune.finetune(config(scenes, "classification") | {"task": task}, str(tmp_path))


def test_reading_ahead_changes_neither_batches_nor_positions(monkeypatch):
    class Counting:
        """Batches that are numbers, whose position is the next one."""

        number = 0

        def __next__(self):
            self.number += 1
            return {"number": self.number - 1}

        def get_state(self):
            return {"next": self.number}

        def set_state(self, state):
            self.number = state["next"]

    looked = []
    monkeypatch.setattr(score, "check_truth", lambda batch, parts: looked.append(batch["number"]))
    batches = finetune.CheckedTruth(Counting(), None)
    assert batches.get_state() == {"next": 0}
    assert [next(batches)["number"] for _ in range(3)] == looked == [0, 1, 2]
    assert batches.get_state() == {"next": 3}
    batches.set_state({"next": 1})
    assert next(batches)["number"] == looked[-1] == 1
    assert batches.get_state() == {"next": 2}


def test_a_label_that_is_no_class_stops_before_it_is_learnt():
    """The writer refuses such labels; a data set of another program may hold them."""

    class Batches:
        def __next__(self):
            return {"labels": {"kind": np.array([0, 2])}}

        def get_state(self):
            return {}

    target = tasks.Target("kind", CLASSES, ("a", "b"))
    parts = types.SimpleNamespace(task=tasks.Classification(target="kind"), target=target)
    with pytest.raises(DataError, match="holds 2 in row 1"):
        next(finetune.CheckedTruth(Batches(), parts))


def test_change_wants_two_dates(tmp_path):
    folder = str(synthetic.prepare(tmp_path / "one", scenes=8, size=SIZE, sensors=("rgb",), dates=1))
    own = config(folder, "change")
    own["task"] = dict(name="change", target="land_cover")
    with pytest.raises(ConfigError, match="has one date"):
        finetune.finetune(own, str(tmp_path / "run"))


@pytest.mark.parametrize(("name", "kept"), [("multilabel", {}), ("classification", {"pool": "max"})])
def test_the_command_line_may_choose_another_head(name, kept):
    path = f"configs/finetune/{name}.py"
    values = cli.read_config(path, ["--config.head.name=mlp", "--config.head.hidden=32"])
    assert values["head"] == {"name": "mlp", "hidden": 32} | kept


def test_the_command_line_may_not_invent_keys():
    path = "configs/finetune/classification.py"
    for key, near in (("haed.name", "head"), ("optimizer.learning_rat", "learning_rate")):
        with pytest.raises(ConfigError, match=near):
            FinetuneConfig.of(cli.read_config(path, [f"--config.{key}=1"])).complete()
