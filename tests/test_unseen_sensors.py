"""Runs that meet sensors and bands which were not there in training: features, statistics, exports, refusals."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import ringmoe_jax as rm
from ringmoe_jax import encoding
from ringmoe_jax.contracts import CLASSES
from ringmoe_jax.deploy.export import Tiles, export
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.run import PretrainConfig, Run, pretraining
from ringmoe_jax.tasks import Target
from ringmoe_jax.training import step
from tests.helpers import tiny, tiny_runs

MOE = dict(specialised=2, collaborative=2, engine="dense")
MODEL = tiny.RINGMOE | dict(depths=(1,), sensors=("s2_10", "s1_grd"), stem="physics", moe=MOE)
DOVE = rm.Sensor(
    name="dove",
    modality="multispectral",
    unit="reflectance",
    dtype="uint16",
    valid_range=(0.0, 2.0),
    source="bands of PlanetScope, of a test",
    bands=(rm.Band("blue", 0.05, 0.03, 3.0, 0.49), rm.Band("yellow", 0.07, 0.05, 3.0, 0.61)),
)


SKYSENSE = tiny.SKYSENSE | dict(depths=(1,), frame=tiny.BLOCK, fusion=tiny.BLOCK)
ALIKE = dict(alike=dict(name="alignment", sensors=SKYSENSE["sensors"]))  # SkySense has no decoders


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run.open(tiny_runs.pretraining(tmp_path_factory.mktemp("runs") / "physics", MODEL))


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "sky"
    return Run.open(tiny_runs.pretraining(folder, SKYSENSE | dict(stem="physics"), objectives=ALIKE))


@pytest.fixture(scope="module", params=["run", "sky"])
def either(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=[(MODEL | dict(stem="linear"), None), (SKYSENSE, ALIKE)], ids=["run", "sky"])
def fixed(request, tmp_path_factory):
    """Of stems that know one list of bands; SkySense's configuration says nothing of stems, as old ones do."""
    model, objectives = request.param
    return Run.open(tiny_runs.pretraining(tmp_path_factory.mktemp("runs") / "fixed", model, objectives=objectives))


def reflectance(bands, rows=3, seed=0):
    return np.random.default_rng(seed).uniform(0.01, 0.4, (rows, 16, 16, bands))


def test_a_sensor_is_an_object_a_name_or_of_a_file(either, tmp_path, monkeypatch):
    run, pixels = either, reflectance(2)
    by_object = rm.encode(run, {DOVE: pixels})
    assert by_object.pooled["dove"].shape == (3, 8)
    programs = encoding._features._cache_size()
    rm.encode(run, {DOVE: reflectance(2, seed=1)})
    assert encoding._features._cache_size() == programs  # met before
    assert_array_equal(rm.encode(run, {"dove": pixels}).pooled["dove"], by_object.pooled["dove"])  # in the table now
    (tmp_path / "own_dove.py").write_text(
        "import dataclasses\nfrom ringmoe_jax import sensors\n"
        'DOVE = dataclasses.replace(sensors.get("dove"), name="own_dove")\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    opened = Run.open(run.folder, sensors=["own_dove:DOVE"])
    assert opened.config.model["unseen"] == ("own_dove:DOVE",)  # so that a checkpoint finds it again
    assert_array_equal(rm.encode(opened, {"own_dove": pixels}).pooled["own_dove"], by_object.pooled["dove"])
    assert run.with_sensors([]) is run
    assert run.with_sensors(["s2_10"]) is run


def test_other_bands_of_a_known_sensor(either):
    run, table = either, rm.sensors.get("s2_10")
    few = table.select(["B08", "B03", "B11"])
    opened = run.with_sensors([few])
    pixels = reflectance(10)
    index = [table.band_names.index(name) for name in few.band_names]
    got = rm.encode(opened, {"s2_10": pixels[..., index]}).tokens["s2_10"]
    missing = np.full_like(pixels, np.nan)
    missing[..., index] = pixels[..., index]
    assert_allclose(got, rm.encode(run, {"s2_10": missing}).tokens["s2_10"], atol=1e-5)
    assert not np.allclose(got, rm.encode(run, {"s2_10": pixels}).tokens["s2_10"], atol=1e-2)


def test_statistics_follow_the_bands(run):
    known = rm.Statistics(tuple(np.arange(10) / 10), tuple(np.arange(1, 11) / 10), "a data set")
    trained = dataclasses.replace(run, record=run.record | {"statistics": {"s2_10": known.to_json()}})
    opened = trained.with_sensors([rm.sensors.get("s2_10").select(["B11", "B02"])])
    assert opened.statistics["s2_10"] == rm.Statistics((0.8, 0.0), (0.9, 0.1), "a data set")
    again = opened.with_sensors(["s2_10"]).statistics["s2_10"]  # bands that nobody measured: as the table has them
    assert (again.mean[0], again.mean[8]) == (0.0, 0.8)
    assert again.mean[1] == rm.sensors.get("s2_10").bands[1].mean
    given = rm.Statistics((0.1, 0.2), (0.3, 0.4), "mine")
    assert run.with_sensors([DOVE], {"dove": given}).statistics["dove"] == given


def test_missing_and_partly_missing_bands_of_arrays(run):
    pixels = reflectance(10)
    gone = pixels.copy()
    gone[0, ..., 3] = np.nan  # a band of one image
    gone[1, :4, :4, 5] = np.nan  # a corner of one band: pixels that are not valid
    features = rm.encode(run, {"s2_10": gone})
    whole = rm.encode(run, {"s2_10": pixels})
    assert np.isfinite(features.pooled["s2_10"]).all()
    assert_allclose(features.pooled["s2_10"][2], whole.pooled["s2_10"][2], atol=1e-6)
    valid = np.ones((3, 16, 16), bool)
    valid[1, :4, :4] = False
    hidden = rm.encode(run, {"s2_10": pixels}, valid={"s2_10": valid})
    assert_allclose(features.pooled["s2_10"][1], hidden.pooled["s2_10"][1], atol=1e-6)
    with pytest.raises(DataError, match="they look like another unit"):
        rm.encode(run, {"s2_10": 1e4 * gone})


def test_what_happens_to_tokens_is_said(run):
    thermal = dataclasses.replace(DOVE, name="own_thermal", modality="own_thermal")
    said = run.with_sensors([DOVE, thermal]).unseen
    assert "the experts of multispectral and the collaborative ones" in said["dove"]
    assert "no experts of its own, only the collaborative ones" in said["own_thermal"]
    assert run.unseen == {}


def test_whose_encoder_a_sensor_takes_is_said(sky):
    met = sky.with_sensors([DOVE])
    assert met.unseen["dove"] == (
        "not there in training (multispectral): its images take the encoder of s2_10, its tokens join the fusion as "
        "those do"
    )
    assert met.data.size("dove") == sky.data.size("s2_10")
    thermal = dataclasses.replace(DOVE, name="own_thermal", modality="own_thermal")
    with pytest.raises(ConfigError, match='modality of "own_thermal", own_thermal: it has s2_10') as caught:
        sky.with_sensors([thermal])
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_step_of_training_changes_the_stem(sky):
    """One step with bands hidden: the loss is finite, and every part of every patch embedding has moved."""
    values = sky.record["config"] | {"model": SKYSENSE | dict(stem="physics", band_dropout=0.5)}
    parts, rule = pretraining(PretrainConfig.of(values), sky.statistics), optax.sgd(1.0)
    state = tiny_runs.drawn(parts.model, parts.pretext, rule)
    before = jax.device_get(state.params["encoders"])
    run = step.make_train_step(parts.pretext, parts.objectives, rule, optax.constant_schedule(1.0), seed=0)
    shown = tiny.batch(SKYSENSE, rows=4)
    hidden = {name: entry | {"mask": jnp.ones((4, 2, 2), bool)} for name, entry in shown["sensors"].items()}
    state, metrics = run(state, {"sensors": hidden})
    assert np.isfinite(metrics["loss"])
    for name, encoder in state.params["encoders"].items():
        old, new = before[name]["vit"]["embed"], encoder["vit"]["embed"]
        assert all(np.abs(a - b).max() > 0 for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))


def test_a_fixed_stem_refuses_in_one_line(run, fixed):
    line = "the model was not trained on dove, and what it knows of s2_10, s1_grd are weights for their bands: train .*"
    with pytest.raises(ConfigError, match=line) as caught:
        rm.encode(fixed, {DOVE: reflectance(2)})
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="not trained on s2_10"):
        fixed.with_sensors([rm.sensors.get("s2_10").select(["B02"])])
    with pytest.raises(ConfigError, match='sensor "dove" is in the table already'):
        run.with_sensors([dataclasses.replace(DOVE, bands=(*DOVE.bands[:1], rm.Band("x", 0.1, 0.1, 3.0, 0.9)))])


def test_a_task_keeps_its_sensors_but_may_lack_bands(tmp_path):
    values = dict(
        task=dict(name="classification", target="use"),
        model=MODEL | dict(sensors=("s2_10",)),
        data=tiny_runs.data(("s2_10",), 16, mask_unit=0),
    )
    target = Target("use", CLASSES, ("ice", "land"))
    task = Run.open(tiny_runs.finetuning(tmp_path / "task", values, target, {"s2_10": 1}))
    few = task.with_sensors([rm.sensors.get("s2_10").select(["B08", "B04"])])
    batch = tiny.batch(dict(sensors=("s2_10",), image_size=16))
    batch["sensors"]["s2_10"]["pixels"] = batch["sensors"]["s2_10"]["pixels"][..., :2]
    assert jax.jit(few.model.apply)(few.params, batch)["predictions"]["logits"].shape == (2, 2)
    with pytest.raises(ConfigError, match=r'the head of this run reads s2_10, not "dove": fine-tune with override'):
        task.with_sensors([DOVE])


@pytest.mark.slow
@pytest.mark.parametrize("either", ["run", pytest.param("sky", marks=pytest.mark.slow)], indirect=True)
def test_an_unseen_sensor_is_exported(either, tmp_path):
    """The program says what the model says, on three images of a sensor that nobody trained on."""
    opened = either.with_sensors([DOVE])
    batch = tiny.batch(dict(sensors=("dove",), image_size=16), rows=3)
    batch = {"sensors": {"dove": {key: np.array(x) for key, x in batch["sensors"]["dove"].items()}}}
    tiles = Tiles(batch, {"scenes": "first 3"}, [{"name": "scenes", "licence": "MIT"}])
    item = export(opened, tiles, tmp_path / "exported")
    compared = item["properties"]["ringmoe:compared"]["outputs"]
    assert {"pooled/dove", "tokens/dove"} <= set(compared) <= {"pooled/dove", "tokens/dove", "fused", "pooled/fused"}
    assert max(of["max"] for of in compared.values()) < 1e-4
    assert compared["tokens/dove"]["size"] > 0.01


def test_patches_of_another_size(run, sky):
    """Images of twice as many pixels, with as many tokens; the configuration of data follows."""
    with pytest.raises(ConfigError, match='"skysense" cannot be resized'):
        sky.with_patch(8)
    finer = run.with_patch(8)
    assert (finer.config.data.image_size, finer.config.data.mask_unit) == (32, 16)
    pixels = np.repeat(np.repeat(reflectance(10), 2, axis=1), 2, axis=2)
    features = rm.encode(finer, {"s2_10": pixels}, gsd={"s2_10": 5.0})
    assert features.tokens["s2_10"].shape == rm.encode(run, {"s2_10": reflectance(10)}).tokens["s2_10"].shape
