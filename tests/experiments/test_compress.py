"""From a tiny checkpoint to compressed ones: what is written, what it is worth, what goes on, what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from configs import common as configs
from experiments import common
from experiments import compress as compress_script
from experiments.compression import costs, curve, quality, usage
from experiments.compression.recipe import Recipe, Version, select
from experiments.compression.steps import REQUEST
from input_pipeline import synthetic
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax import compress
from ringmoe_jax.compress import Usage
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.state import TrainState

SENSORS = ("rgb", "s1_grd")
SCENES = 30


def values(data: Path) -> dict:
    """Configuration of a run on two modalities."""
    config = configs.ringmoe(width=8, depths=(2,), head_width=4)
    config.model.update(sensors=SENSORS, image_size=16, window=2, dtype="float32", remat="none")
    config.model.moe.update(specialised=2, collaborative=4)
    streams = {
        name: dict(directory=str(data), sensors=(name,), split="train", crop_scale=(0.5, 1.0)) for name in SENSORS
    }
    config.data.streams = streams
    config.data.update(image_size=16, batch_size=8, mask_unit=4)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    config.train.update(steps=10, log_every=5, checkpoint_every=5, evaluate_every=0)
    terms = {name: dict(name="masked_l1", sensor=name) for name in SENSORS} | {"balance": dict(name="balance")}
    return config.to_dict() | {"objectives": terms}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set of simulated scenes, and a checkpoint of random numbers as a run on it would leave it."""
    folder = tmp_path_factory.mktemp("compress")
    synthetic.prepare(folder / "data", scenes=SCENES, size=64, gsd=2.5, sensors=SENSORS, shards=2)
    config = values(folder / "data")
    dataset = open_dataset(str(folder / "data"), SENSORS)
    statistics = {name: dataset.statistics(name) for name in SENSORS}
    parts, rng = common.build(common.ExperimentConfig.of(config), statistics), np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), parts.model.shapes())
    checkpointer = Checkpointer(folder / "run")
    record = {"config": config, "statistics": {n: s.to_json() for n, s in statistics.items()}}
    checkpointer.save(10, TrainState(np.int32(10), params, {}, {}), record)
    checkpointer.close()
    return folder


@pytest.fixture(scope="module")
def part(folder):
    """The sub-model of aerial images."""
    source = Version.load(str(folder / "run"))
    return source.of(compress.submodel(source.network, ["rgb"]))


@pytest.fixture(scope="module")
def counted(folder, part):
    """What its experts do."""
    return usage.measure(part, folder / "usage")


def command(*arguments):
    """Exit status of `experiments.compress`."""
    with pytest.raises(SystemExit) as stop:
        compress_script.main([str(argument) for argument in arguments])
    return stop.value.code


# ---- What is asked ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "prun"}, '--method "prun": did you mean "prune"'),
        ({"method": "prune", "importance": "frequent"}, 'did you mean "frequency"'),
        ({"method": "prune", "scope": "locally"}, '--scope "locally"'),
        ({"method": "prune", "tables": "owned"}, 'did you mean "own"'),
        ({"method": "prune", "keep": 0}, "--keep 0: wanted the share of experts that stay, above 0 and at most 1"),
        ({"method": "sum", "keep": 1.5}, "--keep 1.5"),
        ({"method": "prune", "keep": 0.5, "parameters": 9}, "give one of them"),
        ({"method": "sum", "distil": -1}, "--distil -1: wanted 0 or more"),
        ({"method": "submodel", "distil": 9}, "is exact and keeps every expert"),
        ({"method": "submodel", "keep": 0.5}, "is exact and keeps every expert"),
        ({"method": "mean", "hidden_ratio": 8}, "--hidden-ratio 8: --method mean cannot change"),
    ],
)
def test_a_recipe_that_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        Recipe(**fields)


def test_defaults_of_recipes():
    assert (Recipe("prune").keep, Recipe("sum").keep, Recipe("prune", parameters=9).keep) == (0.25, 1.0, None)
    assert [Recipe(m).needs_usage for m in ("submodel", "sum", "svd", "prune", "weighted", "select")] == [False] * 3 + [
        True
    ] * 3
    assert Recipe("sum", keep=0.5).needs_usage
    assert Recipe("svd", keep=0.5, hidden_ratio=2, distil=9).title == (
        "svd, keep 0.5, hidden ratio 2, 9 steps of distillation"
    )


def test_sensors_and_modalities_may_be_named(folder):
    sensors = Version.load(str(folder / "run")).sensors
    assert select(["optical"], sensors) == select(["rgb", "optical"], sensors) == ("rgb",)
    assert select(["s1_grd", "rgb"], sensors) == SENSORS  # in the model's order
    with pytest.raises(
        ConfigError, match='"optic" is no sensor or modality of this checkpoint: did you mean "optical"'
    ):
        select(["optic"], sensors)


def test_data_and_objectives_of_other_sensors_are_left_out(part):
    config = part.config
    assert set(config["data"]["streams"]) == set(config["model"]["sensors"]) == set(part.statistics) == {"rgb"}
    assert set(config["objectives"]) == {"rgb", "balance"}
    dense = part.of(compress.merge(part.network, "mean"))
    assert set(dense.config["objectives"]) == {"rgb"}  # nothing is left to balance
    assert set(dense.parts().objectives) == {"rgb"}


# ---- What the experts do ------------------------------------------------------------------------------


def test_usage_is_the_sum_over_the_training_images(folder, part, counted):
    """Beside one pass on one device over exactly the images that there are; the pass above fills up its batch."""
    dataset = open_dataset(str(folder / "data"), ("rgb",))
    count = dataset.size("train")
    assert counted.images == {"optical": count}
    assert count % usage.BATCH
    model = part.config["model"] | {"moe": part.config["model"]["moe"] | {"measure": True, "engine": "dense"}}
    apply = jax.jit(part.of(part.network._replace(model=model)).parts().model.apply)
    (batch,) = EvalBatches(dataset.directory, ("rgb",), split="train", image_size=16, batch_size=count)
    routing = apply(part.params, {"sensors": batch["sensors"]})["routing"]
    assert set(routing) == set(counted.statistics) == {"specialised", "collaborative", "shared"}
    for group, found in counted.statistics.items():
        assert_array_equal(found.load, routing[group].load)
        assert_array_equal(found.tokens, routing[group].tokens)
        assert_allclose(found.gate, routing[group].gate, rtol=1e-5, atol=1e-4)
        assert_allclose(found.contribution.norm, routing[group].contribution.norm, rtol=1e-4, atol=1e-3)


def test_a_pass_that_was_stopped_goes_on_exactly(folder, part, counted, tmp_path, monkeypatch):
    monkeypatch.setattr(usage, "BATCH", 8)
    monkeypatch.setattr(usage, "EVERY", 1)
    save = Usage.save

    def killed(self, path):
        save(self, path)
        if "2" in Path(path).name:
            raise KeyboardInterrupt

    monkeypatch.setattr(Usage, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        usage.measure(part, tmp_path)
    monkeypatch.setattr(Usage, "save", save)
    assert sorted(path.name for path in tmp_path.glob("usage*.npz")) == ["usage.1.npz", "usage.2.npz"]
    seen = []
    monkeypatch.setattr(Usage, "add", lambda self, r, n, add=Usage.add: seen.append(n) or add(self, r, n))
    resumed = usage.measure(part, tmp_path)
    assert sum(n["optical"] for n in seen) == counted.images["optical"] - 16
    assert resumed.images == counted.images
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-3), *map(_without_balance, (resumed, counted)))
    assert [path.name for path in tmp_path.glob("usage*.npz")] == ["usage.npz"]
    with pytest.raises(ConfigError, match="holds expert statistics of another network or data set"):
        usage.measure(dataclasses.replace(part, step=11), tmp_path)


def _without_balance(usage):
    return {group: s._replace(balance=0.0) for group, s in usage.statistics.items()}


def test_statistics_of_something_else(folder, part, counted):
    whole = Version.load(str(folder / "run"))
    with pytest.raises(ConfigError, match="is about the modalities optical, wanted optical, sar"):
        usage.load(folder / "usage" / "usage.npz", whole)
    with pytest.raises(DataError, match="does not exist: leave it out"):
        usage.load(folder / "nothing.npz", part)


# ---- What comes out -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compressed(folder, counted):
    """A merged, distilled network and what was written of it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(costs, "peak_memory", lambda version, batch: (2_000_000, 1_000_000))
    patch.setattr(costs, "REPEATS", 2)
    recipe = Recipe("mean", keep=0.5, importance="norm", distil=2, int8=True)
    statistics = str(folder / "usage" / "usage.npz")
    out = folder / "small"
    found = compress_script.compress(str(folder / "run"), str(out), recipe, modality=["optical"], statistics=statistics)
    patch.undo()
    return out, found


def test_the_result_is_a_checkpoint_like_any_other(folder, compressed):
    out, _ = compressed
    trained = common.load(str(out))
    assert trained.step == 12
    assert set(trained.parts.sensors) == {"rgb"}
    moe = trained.config.model["moe"]
    assert (moe["specialised"], moe["collaborative"], moe["shared"]) == (0, 0, True)
    checkpointer = Checkpointer.open(out)
    about = checkpointer.record()["compressed"]
    checkpointer.close()
    assert (about["from"], about["step"], about["method"]) == (str(folder / "run"), 10, "mean")
    assert about["settings"]["keep"] == 0.5
    assert about["parameters"]["after"] < about["parameters"]["before"]
    apply = jax.eval_shape(
        trained.parts.model.apply, trained.params, costs.noise(trained.parts.sensors, trained.config, 2)
    )
    assert apply["pooled"]["rgb"].shape == (2, 8)


def test_distillation_trains_under_the_submodel(compressed):
    out, _ = compressed
    lines = [json.loads(line) for line in (out / "distillation" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"loss/rgb", "loss/features_rgb", "loss/predictions_rgb_pixels"} <= set(lines[0])
    assert "loss/balance" not in lines[0]
    checkpointer = Checkpointer.open(out / "submodel")
    assert checkpointer.record()["compressed"]["method"] == "submodel"
    checkpointer.close()


def test_numbers_of_the_report(compressed):
    out, found = compressed
    assert found == json.loads((out / "report" / "compression.json").read_text())
    assert list(found["costs"]) == ["checkpoint", "sub-model", "mean"]
    assert list(found["quality"]) == ["sub-model", "mean", "int8"]
    sizes = [of["parameters"] + of["decoders"] for of in found["costs"].values()]
    assert sizes == sorted(sizes, reverse=True)
    assert [of["bytes"] for of in found["costs"].values()] == [4 * size for size in sizes]
    assert found["int8_bytes"] < found["costs"]["mean"]["bytes"]
    assert found["gap"]["largest"] <= 1e-5 * found["gap"]["scale"]
    kept = np.array(found["experts"]["collaborative"]["kept"])
    assert kept.shape == (2, 1, 4)
    assert_array_equal(kept.sum(axis=-1), 2)
    importance = np.array(found["experts"]["collaborative"]["importance"])
    assert np.where(kept, importance, np.inf).min(axis=-1).min() >= 0
    assert (np.where(kept, importance, np.inf).min(-1) >= np.where(kept, -np.inf, importance).max(-1)).all()
    assert np.array(found["experts"]["specialised"]["kept"]).all()


def test_the_page_needs_nothing_else(compressed):
    out, found = compressed
    page = (out / "report.html").read_text()
    assert page.count("<img") == len(found["figures"]) == 2
    assert page.count('src="data:image/png;base64,') == 2
    for text in ("SIMULATED DATA", "mean, keep 0.5, 2 steps of distillation", "int8", "All probes", "struck out"):
        assert text in page
    assert "http" not in page


def test_another_recipe_in_the_same_folder_is_refused(folder, compressed, capsys):
    out, _ = compressed
    arguments = ["--checkpoint", folder / "run", "--modality", "rgb", "--out", out]
    assert command(*arguments, "--method", "sum") == 1
    assert "holds another run: choose another folder, or delete it" in capsys.readouterr().err
    assert (out / REQUEST).exists()


def test_memory_of_a_fresh_process(part):
    peak, idle = costs.peak_memory(part, costs.noise(part.sensors, common.ExperimentConfig.of(part.config), 1))
    assert 1e7 < idle < peak < 1e10


# ---- Many of them -------------------------------------------------------------------------------------


def test_a_curve_makes_only_what_is_missing(folder, counted, monkeypatch, capsys):
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    probe = {"dataset": "d", "label": "l", "features": "rgb", "protocol": "linear", "metric": "accuracy"} | score
    row = {"dataset": "d", "objective": "rgb", "loss": score, "gain": score}
    fake = {"probes": [probe], "reconstruction": [row], "protocol": "", "splits": ["6 tiles"], "simulated": True}
    monkeypatch.setattr(curve, "quality", lambda where, dataset: fake)
    monkeypatch.setattr(curve.costs, "flops", lambda version: 1e6)
    monkeypatch.setattr(curve, "GRID", (Recipe("prune", keep=0.5), Recipe("svd")))
    options = dict(modality=["rgb"], statistics=str(folder / "usage" / "usage.npz"), steps=0)
    run, out = str(folder / "run"), folder / "front"
    found = curve.curve(run, str(out), **options)
    names = [point["name"] for point in found["points"]]
    assert names == ["submodel", "prune-0.5", "svd"]
    assert json.loads((out / "report" / "curve.json").read_text())["points"] == found["points"]
    sizes = [point["parameters"] for point in found["points"]]
    assert sizes == sorted(sizes, reverse=True)
    assert all(common.load(str(out / name)).step == 10 for name in names)
    assert found["points"][1]["scores"][curve.GAIN]["value"] == 1
    assert (out / "report.html").read_text().count("<img") == 1
    capsys.readouterr()
    shutil.rmtree(out / "svd")
    again = curve.curve(run, str(out), **options)
    assert capsys.readouterr().out.count("...") == 1
    assert again["points"] == found["points"]


def test_every_point_of_the_grid_is_a_recipe_of_its_own():
    names = [curve.name_of(recipe) for recipe in curve.recipes(5)]
    assert len(names) == len(set(names)) == 1 + 2 * len(curve.GRID)
    assert "prune-0.25-distil5" in names


def test_what_is_kept_of_a_gain():
    row = lambda value: {"gain": {"value": value, "low": value - 1, "high": value + 1}}  # noqa: E731
    before = {"reconstruction": [row(2.0), row(-1.0)]}
    share = quality.kept({"reconstruction": [row(1.0), row(5.0)]}, before)
    assert share == {"value": 0.5, "low": 0.0, "high": 1.0}  # an objective without a gain has nothing to keep
    assert quality.kept({"reconstruction": [row(1.0)]}, {"reconstruction": [row(0.0)]})["value"] is None


# ---- Bad input ----------------------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path):
    """Writes a checkpoint of nothing with a record."""

    def write(**record) -> Path:
        state = TrainState(
            np.int32(1), *({part: np.zeros(2, np.float32)} for part in ("params", "optimizer", "pretext"))
        )
        checkpointer = Checkpointer(tmp_path / "odd")
        checkpointer.save(1, state, {"config": {"model": {"name": "ringmoe"}}, "statistics": {}} | record)
        checkpointer.close()
        return tmp_path / "odd"

    return write


def test_other_runs_are_refused(odd, tmp_path, capsys):
    given = ["--modality", "rgb", "--method", "sum", "--out", tmp_path / "out"]
    assert command("--checkpoint", odd(encoder={}), *given) == 1
    assert "is a fine-tuned run: compress the pre-training run that it started from" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "odd")
    assert command("--checkpoint", odd(config={"model": {"name": "skysense"}}), *given) == 1
    assert 'holds a model "skysense": only "ringmoe" models' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "sum", "--checkpoint", "nowhere"], "no checkpoint in nowhere"),
        (["--method", "summ"], '--method "summ": did you mean "sum"'),
        (["--method", "prune", "--keep", "2"], "--keep 2.0: wanted the share"),
        (["--method", "prune", "--modality", "s1_gdr"], 'did you mean "s1_grd"'),
        (["--curve", "--method", "sum"], "--curve tries every method by itself: leave out --method"),
        ([], "what is to be done? give --method (submodel, prune, sum"),
        (["--method", "prune", "--statistics", "nowhere.npz"], "--statistics nowhere.npz does not exist"),
    ],
)
def test_a_bad_option_is_one_line(folder, tmp_path, arguments, message, capsys):
    given = ["--checkpoint", folder / "run", "--modality", "rgb", "--out", tmp_path / "out", *arguments]
    assert command(*given) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.glob("out/checkpoints"))


def test_a_data_set_without_the_sensor(folder, part, tmp_path):
    synthetic.prepare(tmp_path / "sar", scenes=4, size=64, gsd=2.5, sensors=("s1_grd",), shards=1)
    with pytest.raises(DataError, match='holds s1_grd, but not "rgb", which is to be kept'):
        usage.measure(part, tmp_path / "out", str(tmp_path / "sar"))
