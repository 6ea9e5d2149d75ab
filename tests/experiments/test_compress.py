"""From a tiny checkpoint to compressed ones: what is written, what it is worth, what goes on, what is refused."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from configs import common as configs
from experiments import compress as verb
from experiments.reports import compression as report
from experiments.run import cli, compress
from experiments.run import distil as lessons
from experiments.run.compress import Recipe, select
from input_pipeline import synthetic
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax import run as runs
from ringmoe_jax.compress import IMPORTANCES, Network, Usage, costs, counting, merge, submodel
from ringmoe_jax.compress.pruning import SCOPES, TABLES
from ringmoe_jax.compress.recipe import METHODS
from ringmoe_jax.compress.results import GAIN_LEFT, Compression, Front, ProbeScore, Quality, ReconstructionGain
from ringmoe_jax.errors import ConfigError, DataError, TrainingError
from ringmoe_jax.evaluate.metrics.base import Score
from ringmoe_jax.run import PretrainConfig, Run, read_record, results
from ringmoe_jax.training import loop
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.state import TrainState
from tests.helpers.tiny import SKYSENSE

SENSORS = ("rgb", "s1_grd")
SCENES = 30
ROOT = Path(__file__).parents[2]


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
    parts, rng = runs.pretraining(PretrainConfig.of(config), statistics), np.random.default_rng(0)
    params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape, np.float32), parts.model.shapes())
    checkpointer = Checkpointer(folder / "run")
    record = {"config": config, "statistics": {n: s.to_json() for n, s in statistics.items()}}
    checkpointer.save(10, TrainState(np.int32(10), params, {}, {}), record)
    checkpointer.close()
    return folder


@pytest.fixture(scope="module")
def part(folder):
    """The sub-model of aerial images."""
    source = Run.open(folder / "run")
    return source.with_network(submodel(source.network, ["rgb"]))


@pytest.fixture(scope="module")
def counted(folder, part):
    """What its experts do."""
    return compress.usage_of(part, folder)


def command(*arguments):
    """Exit status of `experiments.compress`."""
    with pytest.raises(SystemExit) as stop:
        verb.main([str(argument) for argument in arguments])
    return stop.value.code


# ---- What is asked ------------------------------------------------------------------------------------


def test_the_command_line_names_every_method(capsys):
    with pytest.raises(SystemExit):
        verb.parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text for name in (*METHODS, *IMPORTANCES, *SCOPES, *TABLES))


def test_help_needs_neither_jax_nor_tensorflow():
    program = (
        "import sys; sys.modules['jax'] = sys.modules['tensorflow'] = None\n"
        "from experiments import compress; compress.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_sensors_and_modalities_may_be_named(folder):
    sensors = Run.open(folder / "run").sensors
    assert select(["optical"], sensors) == select(["rgb", "optical"], sensors) == ("rgb",)
    assert select(["s1_grd", "rgb"], sensors) == SENSORS  # in the model's order
    with pytest.raises(
        ConfigError, match='"optic" is no sensor or modality of this checkpoint: did you mean "optical"'
    ):
        select(["optic"], sensors)


def test_data_and_objectives_of_other_sensors_are_left_out(part):
    config = part.config
    assert set(config.data.streams) == set(config.sensors) == set(part.statistics) == {"rgb"}
    assert set(config.objectives) == {"rgb", "balance"}
    dense = part.with_network(merge(part.network, "mean"))
    assert set(dense.config.objectives) == set(dense.parts.objectives) == {"rgb"}  # nothing is left to balance


# ---- What the experts do ------------------------------------------------------------------------------


@pytest.mark.slow
def test_usage_is_the_sum_over_the_training_images(folder, part, counted):
    """Beside one pass on one device over exactly the images that there are; the pass above fills up its batch."""
    dataset = open_dataset(str(folder / "data"), ("rgb",))
    count = dataset.size("train")
    assert counted.images == {"optical": count}
    assert count % compress.BATCH
    model = part.network.model
    model = model | {"moe": model["moe"] | {"measure": True, "engine": "dense"}}
    apply = jax.jit(part.with_network(Network(model, part.params)).model.apply)
    (batch,) = EvalBatches(dataset.directory, ("rgb",), split="train", image_size=16, batch_size=count)
    routing = apply(part.params, {"sensors": batch["sensors"]})["routing"]
    assert set(routing) == set(counted.statistics) == {"specialised", "collaborative", "shared"}
    for group, sums in counted.statistics.items():
        assert_array_equal(sums.load, routing[group].load)
        assert_array_equal(sums.tokens, routing[group].tokens)
        assert_allclose(sums.gate, routing[group].gate, rtol=1e-5, atol=1e-4)
        assert_allclose(sums.contribution.norm, routing[group].contribution.norm, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_a_pass_that_was_stopped_goes_on_exactly(part, counted, tmp_path, monkeypatch):
    """On one device, beside a pass on eight."""
    monkeypatch.setattr(compress, "make_mesh", lambda config: None)
    monkeypatch.setattr(compress, "BATCH", 8)
    monkeypatch.setattr(counting, "EVERY", 1)
    save = Usage.save

    def killed(self, path):
        save(self, path)
        if "2" in Path(path).name:
            raise KeyboardInterrupt

    monkeypatch.setattr(Usage, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        compress.usage_of(part, tmp_path)
    monkeypatch.setattr(Usage, "save", save)
    files = lambda: sorted(path.name for path in tmp_path.glob("usage/*.npz"))  # noqa: E731
    assert files() == ["usage.1.npz", "usage.2.npz"]
    seen = []
    monkeypatch.setattr(Usage, "add", lambda self, r, n, add=Usage.add: seen.append(n) or add(self, r, n))
    resumed = compress.usage_of(part, tmp_path)
    assert sum(n["optical"] for n in seen) == counted.images["optical"] - 16
    assert resumed.images == counted.images
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-3), *map(_without_balance, (resumed, counted)))
    assert files() == ["usage.npz"]
    later = dataclasses.replace(part, record={**part.record, "step": 11})
    with pytest.raises(ConfigError, match="usage holds another run: step was 10, is 11: choose another folder"):
        compress.usage_of(later, tmp_path)


def _without_balance(usage):
    return {group: s._replace(balance=0.0) for group, s in usage.statistics.items()}


def test_experts_are_counted_on_the_ground_that_probes_see(folder):
    """A run with views shows windows of whole pixels of one sensor, and the same ground of the others."""
    source = Run.open(folder / "run")
    data = source.record["config"]["data"]
    both = data["streams"]["rgb"] | {"sensors": SENSORS}
    record = {**source.record, "config": {**source.record["config"], "data": data | {"streams": {"all": both}}}}
    record["config"]["data"]["views"] = {"grid": "rgb"}
    run = dataclasses.replace(source, record=record)
    counted = next(iter(compress._training_images(run, "s1_grd", "")))
    probed = next(iter(EvalBatches.of(run.data, both["directory"], SENSORS, split="train", batch_size=compress.BATCH)))
    assert_array_equal(counted["sensors"]["s1_grd"]["pixels"], probed["sensors"]["s1_grd"]["pixels"])
    alone = EvalBatches.of(run.data, both["directory"], ("s1_grd",), split="train", batch_size=compress.BATCH)
    assert np.any(counted["sensors"]["s1_grd"]["pixels"] != next(iter(alone))["sensors"]["s1_grd"]["pixels"])


def test_statistics_of_something_else(folder, part, counted):
    whole = Run.open(folder / "run")
    with pytest.raises(ConfigError, match="is about the modalities optical, wanted optical, sar"):
        compress.usage_of(whole, folder, statistics=str(folder / "usage" / "usage.npz"))
    with pytest.raises(DataError, match="does not exist: leave it out"):
        compress.usage_of(part, folder, statistics=str(folder / "nothing.npz"))


# ---- What comes out -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compressed(folder, counted):
    """A merged, distilled network as the command makes it, and what was written of it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(costs, "peak_memory", lambda network, batch: (2_000_000, 1_000_000))
    patch.setattr(costs, "REPEATS", 2)
    patch.setattr(cli, "start", lambda **_: None)
    patch.setattr(lessons, "make_mesh", lambda config: None)  # this is not about meshes, which take long to compile for
    given = ["--checkpoint", folder / "run", "--modality", "optical", "--statistics", folder / "usage" / "usage.npz"]
    recipe = ["--method", "mean", "--keep", "0.5", "--importance", "norm", "--distil", "2", "--int8"]
    out = folder / "small"
    assert command(*given, *recipe, "--out", out) == 0
    patch.undo()
    return out, results.parse(Compression, results.read(out / "report" / "compression.json"))


def test_the_result_is_a_checkpoint_like_any_other(folder, compressed):
    out, _ = compressed
    run = Run.open(out, kinds=["compressed"])
    assert run.step == 12
    assert set(run.sensors) == {"rgb"}
    moe = run.network.model["moe"]
    assert (moe["specialised"], moe["collaborative"], moe["shared"]) == (0, 0, True)
    about = run.record["compressed"]
    assert (about["from"], about["step"], about["method"]) == (str(folder / "run"), 10, "mean")
    assert about["settings"]["keep"] == 0.5
    assert about["parameters"]["after"] < about["parameters"]["before"]
    apply = jax.eval_shape(run.model.apply, run.params, costs.noise(run.sensors, {"rgb": 16}, 2))
    assert apply["pooled"]["rgb"].shape == (2, 8)


def test_distillation_trains_under_the_submodel(compressed):
    out, _ = compressed
    lines = [json.loads(line) for line in (out / "distillation" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert {"loss/rgb", "loss/features_rgb", "loss/predictions_rgb_pixels"} <= set(lines[0])
    assert "loss/balance" not in lines[0]
    assert read_record(out / "submodel")["compressed"]["method"] == "submodel"


@pytest.mark.slow
def test_a_distillation_that_was_stopped_goes_on_exactly(part, tmp_path, monkeypatch):
    student = part.with_network(merge(part.network, "mean"))
    whole = lessons.distil(student, part, 3, tmp_path / "whole")
    assert (whole.step, student.step) == (13, 10)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Stop, "after", lambda self, step: step == 2)
        with pytest.raises(TrainingError, match="was stopped as asked: the same command goes on from there"):
            lessons.distil(student, part, 3, tmp_path / "stopped")
    assert Checkpointer.open(tmp_path / "stopped").latest == 2
    resumed = lessons.distil(student, part, 3, tmp_path / "stopped")
    jax.tree.map(assert_array_equal, resumed.params, whole.params)
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (whole.params, student.params)), strict=True))


def test_numbers_of_the_report(folder, compressed):
    out, result = compressed
    assert results.plain(result) == results.read(out / "report" / "compression.json")
    assert result.recipe == Recipe("mean", keep=0.5, importance="norm", distil=2)
    counted = {"optical": open_dataset(str(folder / "data"), ("rgb",)).size("train")}
    assert (result.sensors, result.dropped, result.images) == (("rgb",), ("s1_grd",), counted)
    assert list(result.costs) == ["checkpoint", "sub-model", "mean"]
    assert list(result.quality) == ["sub-model", "mean", "int8"]
    sizes = [cost.parameters + cost.decoders for cost in result.costs.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert [cost.bytes for cost in result.costs.values()] == [4 * size for size in sizes]
    assert 0 < result.int8_bytes < result.costs["mean"].bytes
    assert result.gap.largest <= 1e-5 * result.gap.scale
    experts = result.experts["collaborative"]
    assert experts.kept.shape == (2, 1, 4)
    assert_array_equal(experts.kept.sum(axis=-1), 2)
    least = np.where(experts.kept, experts.importance, np.inf).min(axis=-1)
    assert least.min() >= 0
    assert (least >= np.where(experts.kept, -np.inf, experts.importance).max(axis=-1)).all()
    assert result.experts["specialised"].kept.all()


def test_the_page_needs_nothing_else(compressed, capsys):
    out, result = compressed
    page = (out / "report.html").read_text()
    assert page.count("<img") == page.count('src="data:image/png;base64,') == len(result.experts) == 2
    for text in ("SIMULATED DATA", "mean, keep 0.5, 2 steps of distillation", "int8", "All probes", "struck out"):
        assert text in page
    assert "http" not in page
    parts = lambda text: [line for line in text.splitlines() if "Written" not in line]  # noqa: E731
    assert parts(report.of_run(out)) == parts(page)
    report.show(result)
    assert "What is left of quality" in capsys.readouterr().out


def test_numbers_of_another_version_are_refused(tmp_path):
    results.write(tmp_path / "report" / "compression.json", {"from": "runs/old", "step": 1})
    with pytest.raises(DataError, match=r"another version of this library.* give the experiments.compress that made"):
        report.of_run(tmp_path)


def test_another_recipe_in_the_same_folder_is_refused(folder, compressed, capsys):
    out, _ = compressed
    arguments = ["--checkpoint", folder / "run", "--modality", "rgb", "--out", out]
    assert command(*arguments, "--method", "sum") == 1
    assert "holds another run: what was" in capsys.readouterr().err
    assert (out / compress.REQUEST).exists()


@pytest.mark.slow
def test_memory_of_a_fresh_process(part):
    peak, idle = costs.peak_memory(part, costs.noise(part.sensors, {"rgb": 16}, 1))
    assert 1e7 < idle < peak < 1e10


# ---- Many of them -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_curve_makes_only_what_is_missing(folder, counted, monkeypatch, capsys):
    score = Score(0.5, 0.4, 0.6)
    probe = ProbeScore("d", "l", "rgb", "linear", "accuracy", score)
    worth = Quality((probe,), (ReconstructionGain("d", "rgb", score, score),), "", ("6 tiles",), True)
    monkeypatch.setattr(compress, "quality", lambda where, dataset: worth)
    monkeypatch.setattr(compress, "GRID", (Recipe("prune", keep=0.5), Recipe("svd")))
    options = dict(modality=["rgb"], statistics=str(folder / "usage" / "usage.npz"), steps=0)
    run, out = str(folder / "run"), folder / "front"
    front = compress.curve(run, str(out), **options)
    names = [point.name for point in front.points]
    assert names == ["submodel", "prune-0.5", "svd"]
    written = results.read(out / "report" / "curve.json")
    assert written == results.plain(front)
    assert results.parse(Front, written).points == front.points
    sizes = [point.size.parameters for point in front.points]
    assert sizes == sorted(sizes, reverse=True)
    assert all(Run.open(out / name).step == 10 for name in names)
    assert front.scores()[1][GAIN_LEFT].value == 1
    capsys.readouterr()
    shutil.rmtree(out / "svd")
    monkeypatch.setattr(cli, "start", lambda **_: None)
    given = ["--checkpoint", run, "--modality", "rgb", "--statistics", options["statistics"], "--out", out]
    assert command(*given, "--curve", "--distil", "0") == 0
    printed = capsys.readouterr().out
    assert printed.count("...") == 1
    assert "prune, keep 0.5" in printed
    assert (out / "report.html").read_text().count("<img") == 1
    assert results.parse(Front, results.read(out / "report" / "curve.json")).points == front.points


def test_every_point_of_the_grid_is_a_recipe_of_its_own():
    names = [compress.name_of(recipe) for recipe in compress.recipes(5)]
    assert len(names) == len(set(names)) == 1 + 2 * len(compress.GRID)
    assert "prune-0.25-distil5" in names


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
    given = ["--modality", "s1_grd", "--method", "sum", "--out", tmp_path / "out"]
    assert command("--checkpoint", odd(encoder={}), *given) == 1
    assert "holds a task run, wanted one of pre-training or compressed" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "odd")
    data = {"streams": {"all": {"directory": "d", "sensors": SKYSENSE["sensors"]}}, "image_size": 8, "batch_size": 1}
    terms = {"align": {"name": "alignment", "sensors": SKYSENSE["sensors"], "projected": False}}
    config = {"model": SKYSENSE, "data": data | {"mask_unit": 8}, "objectives": terms}
    assert command("--checkpoint", odd(config=config), *given) == 1
    assert '"skysense" cannot be compressed' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "sum", "--checkpoint", "nowhere"], "no checkpoint in nowhere"),
        (["--method", "summ"], 'method = "summ" does not exist: did you mean "sum"'),
        (["--method", "prune", "--keep", "2"], "keep = 2.0: wanted the share"),
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


def test_a_data_set_without_the_sensor(part, tmp_path):
    synthetic.prepare(tmp_path / "sar", scenes=4, size=64, gsd=2.5, sensors=("s1_grd",), shards=1)
    with pytest.raises(DataError, match='holds s1_grd, but not "rgb", which is to be kept'):
        compress.usage_of(part, tmp_path / "out", str(tmp_path / "sar"))
