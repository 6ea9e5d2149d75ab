"""A grid of objectives and seeds on simulated scenes: what it writes, what it keeps, what it refuses."""

import copy
import json

import numpy as np
import pytest

from configs import common as configs
from experiments.run import ablate
from experiments.run.pretrain import pretrain
from input_pipeline import synthetic
from ringmoe_jax.errors import ConfigError, DataError, TrainingError
from ringmoe_jax.evaluate import seeds
from ringmoe_jax.run import results

OF = {"sensor": "s1_grd"}
ARMS = {
    "speckle": {"objectives": {"power": {"name": "speckle"} | OF, "balance": {"name": "balance"}}},
    "plain": {"objectives": {"pixels": {"name": "masked_l1"} | OF, "balance": {"name": "balance"}}},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A grid of one study, and a folder."""
    folder = tmp_path_factory.mktemp("ablation")
    synthetic.prepare(folder / "data", scenes=20, size=64, gsd=2.5, sensors=("s1_grd",), shards=2)
    config = configs.ringmoe(width=8, depths=(2,), head_width=4)
    config.model.update(sensors=("s1_grd",), image_size=16, window=2, dtype="float32", remat="none")
    stream = dict(directory=str(folder / "data"), sensors=("s1_grd",), split="train", crop_scale=(0.5, 1.0))
    config.data.streams = {"s1": stream}
    config.data.update(image_size=16, batch_size=8, mask_unit=4)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    config.train.update(steps=10, log_every=5, checkpoint_every=5, evaluate_every=0)
    del config.objectives
    arms = {"config": config.to_dict(), "baseline": "plain", "arms": ARMS}
    return {"studies": {"grd": arms}, "seeds": (0, 1)}, folder


@pytest.fixture(scope="module")
def grid(study):
    """The study, run once."""
    values, folder = study
    return values, folder / "out", ablate.ablate(values, str(folder / "out"))


@pytest.mark.slow
def test_arms_are_compared_with_the_baseline_seed_by_seed(grid):
    _, _, studied = grid
    study = studied["grd"]
    assert (study.baseline, study.seeds) == ("plain", (0, 1))
    nats = study.metrics["-ln p of s1_grd, nats a pixel"]
    assert list(nats) == ["plain", "speckle"]  # the baseline first
    assert nats["plain"].difference is None
    paired = np.subtract(nats["speckle"].values, nats["plain"].values)
    assert nats["speckle"].difference.value == pytest.approx(paired.mean())
    assert np.isfinite(paired).all()
    assert paired.std() > 0
    assert not any(metric.startswith("masked loss") for metric in study.metrics)  # no two arms share a loss
    probes = [metric for metric in study.metrics if metric.startswith("simulated/dominant")]
    assert len(probes) == 3  # knn5, knn20, linear


def test_seeds_change_parameters_masks_and_order(study):
    study = study[0]["studies"]["grd"]
    config = ablate.Study(study["config"], "plain", {"plain": ablate.Arm(ARMS["plain"]["objectives"])})
    first, second = config.values("plain", 0), config.values("plain", 1)
    assert (first["train"]["seed"], first["data"]["shuffle_seed"]) == (0, 0)
    assert (second["train"]["seed"], second["data"]["shuffle_seed"]) == (1, 1)
    assert "objectives" not in study["config"]  # the study is not changed by its runs


@pytest.mark.slow
def test_files(grid):
    _, out, studied = grid
    assert json.loads((out / "ablation.json").read_text()) == results.plain(studied)
    table = (out / "ablation.md").read_text()
    assert "| -ln p of s1_grd, nats a pixel | speckle |" in table
    assert (out / "ablation_grd.png").stat().st_size > 5000
    assert len(list(out.glob("grd/*/seed*/ablation_run.json"))) == 4


@pytest.mark.slow
def test_finished_runs_are_kept_and_new_seeds_join(grid, monkeypatch, capsys):
    values, out, studied = grid
    trained = []
    monkeypatch.setattr(ablate, "pretrain", lambda v, w: trained.append(w) or pretrain(v, w))
    (out / "grd/speckle/seed1/ablation_run.json").unlink()  # as if stopped between training and its record
    again = ablate.ablate(values, str(out))
    assert trained == [str(out / "grd/speckle/seed1")]
    assert again["grd"].metrics == studied["grd"].metrics  # same seed, same numbers
    assert capsys.readouterr().out.count("...") == 1


@pytest.mark.slow
def test_a_stopped_run_is_not_taken_for_a_finished_one(study, monkeypatch, tmp_path):
    values, _ = study

    def stopped(values, workdir):
        return pretrain(values | {"train": values["train"] | {"steps": 5}}, workdir)

    monkeypatch.setattr(ablate, "pretrain", stopped)
    with pytest.raises(TrainingError, match="was stopped as asked: the same command goes on from there"):
        ablate.ablate(values, str(tmp_path), seeds=[0])
    assert not list(tmp_path.glob("grd/*/seed*/ablation_run.json"))


@pytest.mark.slow
def test_another_configuration_in_the_same_folder(grid):
    values, out, _ = grid
    other = copy.deepcopy(values)
    other["studies"]["grd"]["config"]["optimizer"]["learning_rate"] = 1e-3
    with pytest.raises(ConfigError, match="holds another run: config was"):
        ablate.ablate(other, str(out))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(baseline="plan"), 'baseline "plan" is no arm: did you mean "plain"'),
        (lambda s: s["arms"].update(bad={"objectives": {"x": {"name": "spekle"} | OF}}), 'did you mean "speckle"'),
        (lambda s: s["arms"].update(bad={"objective": {}}), 'did you mean "objectives"'),
        (lambda s: s["arms"]["plain"].update(override={"teacher": "nowhere"}), "no checkpoint in nowhere"),
        (lambda s: s["arms"].update(bad={"objectives": {"x": {"name": "wishart"} | OF}}), "needs a complex sensor"),
        (
            lambda s: s["arms"].update(bad={"objectives": {"x": {"name": "alignment", "sensors": ("s1_grd", "rgb")}}}),
            "no stream of config.data.streams holds them all",
        ),
        (
            lambda s: (
                s["config"].update(model=s["config"]["model"] | {"sensors": ("slc_dual",)}),
                s["arms"].update(bad={"objectives": {"x": {"name": "wishart", "sensor": "slc_dual", "window": 5}}}),
                s["arms"].pop("speckle"),
                s["arms"].update(plain={"objectives": {"x": {"name": "masked_l1", "sensor": "slc_dual"}}}),
            ),
            "needs 5 x 5 hidden pixels, but data.mask_unit = 4",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(study, tmp_path, change, message):
    values = copy.deepcopy(study[0])
    change(values["studies"]["grd"])
    with pytest.raises((ConfigError, DataError), match=message):
        ablate.ablate(values, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_arm_overrides_what_it_says_and_nothing_else():
    config = {"model": {"width": 8, "moe": {"collaborative": 4}}, "data": {}, "objectives": {"o": {"name": "vicreg"}}}
    arm = ablate.Arm(override={"model": {"moe": {"collaborative": 0}}})
    values = ablate.Study(config, "as it is", {"as it is": ablate.Arm(), "dense": arm}).values("dense", 3)
    assert values["model"] == {"width": 8, "moe": {"collaborative": 0}}
    assert values["objectives"] == config["objectives"]
    assert values["pretext"] == {"name": "masked"}
    assert (values["train"], values["data"]) == ({"seed": 3}, {"shuffle_seed": 3})
    assert config["model"]["moe"] == {"collaborative": 4}
    assert config["data"] == {}


def test_an_unknown_study(study):
    with pytest.raises(ConfigError, match='study "gdr" does not exist: did you mean "grd"'):
        ablate.ablate(study[0], "unused", studies=["gdr"])


def test_intervals_over_seeds():
    """Student's t with n - 1 degrees of freedom: 12.706 standard errors for two values."""
    found = seeds.mean([1.0, 3.0])
    assert found.value == 2.0
    assert found.high - found.value == pytest.approx(12.706, rel=1e-3)
    assert np.isnan(seeds.mean([1.0]).low)
    summary = seeds.summarise([2.0, 5.0], [1.0, 3.0])
    assert (summary.difference.value, summary.values) == (1.5, (2.0, 5.0))
