"""The verb that exports: tiles of the run's data to compare on, what it prints, errors in one line."""

import pytest

from experiments.export import main
from input_pipeline.dataset import open_dataset
from input_pipeline.synthetic import dataset as synthetic
from ringmoe_jax import deploy
from ringmoe_jax.tasks import Target
from tests.helpers import tiny_runs
from tests.helpers.tiny import RINGMOE

SIZE = 16
MODEL = RINGMOE | dict(depths=(1,), moe=dict(specialised=2, collaborative=2))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    return str(synthetic.prepare(folder, scenes=30, size=SIZE, sensors=("rgb", "s1_grd"), gsd=2.5))


@pytest.fixture(scope="module")
def mixture(scenes, tmp_path_factory):
    return tiny_runs.pretraining(tmp_path_factory.mktemp("runs") / "mixture", MODEL, size=SIZE, directory=scenes)


@pytest.fixture(scope="module")
def segmentation(scenes, tmp_path_factory):
    label = open_dataset(scenes, ("rgb",)).labels["land_cover"]
    values = dict(
        task=dict(name="segmentation", target="land_cover"),
        head=dict(name="fcn", channels=8),
        model=RINGMOE | dict(depths=(1,), sensors=("rgb",)),
        data=tiny_runs.data(("rgb",), SIZE, scenes, mask_unit=0),
    )
    target = Target("land_cover", label.kind, label.names, label.sensor)
    return tiny_runs.finetuning(tmp_path_factory.mktemp("runs") / "cover", values, target, {"rgb": 1})


def test_a_sub_model_of_a_pre_training(scenes, mixture, tmp_path, capsys):
    arguments = ["--checkpoint", mixture, "--out", str(tmp_path / "s1"), "--sensors", "s1_grd", "--int8"]
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--licence", "CC-BY-4.0"])
    printed = capsys.readouterr().out
    rows = min(8, open_dataset(scenes, ()).size("validation"))
    assert rows > 2
    assert "MB of weights in int8" in printed
    assert f"compared with the model on simulated: first {rows} of validation" in printed
    _, item = deploy.load(tmp_path / "s1")
    facts = item["properties"]
    assert facts["license"] == "CC-BY-4.0"
    assert facts["ringmoe:data"][0]["licence"] == "none: computed"
    assert facts["ringmoe:data"][0]["simulated"]
    assert "directory" not in facts["ringmoe:data"][0]
    for difference in facts["ringmoe:compared"]["outputs"].values():
        assert 0 < difference["mean"] < 0.02 * difference["size"]


def test_a_task_is_compared_on_all_of_its_tiles(segmentation, tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--checkpoint", segmentation, "--out", str(tmp_path / "out")])
    assert "0.00 % differ" in capsys.readouterr().out
    _, item = deploy.load(tmp_path / "out")
    assert item["properties"]["ringmoe:compared"]["outputs"]["logits"]["max"] < 1e-5


@pytest.mark.parametrize(
    ("run", "more", "message"),
    [
        ("nowhere", [], "error: no checkpoint in"),
        ("mixture", ["--sensors", "s1_gdr"], 'did you mean "s1_grd"'),
        ("segmentation", ["--sensors", "s1_grd"], "a fine-tuned model reads rgb"),
        ("mixture", ["--out", "."], "which was not written by this command"),
    ],
)
def test_bad_requests_are_one_clear_line(run, more, message, request, tmp_path, capsys):
    checkpoint = str(tmp_path / run) if run == "nowhere" else request.getfixturevalue(run)
    with pytest.raises(SystemExit, match="1"):
        main(["--checkpoint", checkpoint, "--out", str(tmp_path / "out"), *more])
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
