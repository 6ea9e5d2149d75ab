"""A stem made from what bands are: order, wavelengths, missing bands, sensors that training never saw."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import models, sensors
from ringmoe_jax.compress import Network
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.parallel import mesh as meshes
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.parallel.sharding import shardings
from ringmoe_jax.sensors import Band, Sensor
from tests.helpers.parameters import stirred
from tests.helpers.tiny import RINGMOE, SKYSENSE_PHYSICS, batch

MOE = dict(specialised=2, collaborative=2, engine="dense")
MODEL = RINGMOE | dict(sensors=("s2_10", "s1_grd"), depths=(2,), stem="physics", moe=MOE)  # a stem needs no 2nd stage
HEADS = {"s2_10": {"pixels": 10}}
SYSTEMS = {"ringmoe": (MODEL, HEADS), "skysense": (SKYSENSE_PHYSICS, {})}  # SkySense has no decoders
LANDSAT = Sensor(
    name="landsat_like",
    modality="multispectral",
    unit="reflectance",
    dtype="uint16",
    valid_range=(0.0, 2.0),
    source="Landsat 8 OLI, of a test",
    bands=(Band("red", 0.06, 0.06, 30.0, 0.6546, width=0.0375), Band("swir", 0.16, 0.1, 30.0, 1.6089, width=0.0847)),
)
THERMAL = dataclasses.replace(LANDSAT, name="thermal_like", modality="thermal_like", unit="K")


@pytest.fixture(scope="module")
def built():
    model = models.build(MODEL, heads=HEADS)
    return model, stirred(model.shapes()), batch(MODEL)


@pytest.fixture(scope="module")
def whole(built):
    model, params, shown = built
    return jax.jit(model.apply)(params, shown)


class System(NamedTuple):
    """One of the two: config, decoders, model, parameters, a batch and what the model says of it."""

    config: dict
    heads: dict
    model: models.Model
    params: dict
    shown: dict
    whole: dict


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request):
    config, heads = SYSTEMS[request.param]
    model, shown = models.build(config, heads=heads), batch(config)
    params = stirred(model.shapes())
    return System(config, heads, model, params, shown, jax.jit(model.apply)(params, shown))


def pixels_of(out):
    """What decoders say of s2_10; None without decoders."""
    return out["heads"].get("s2_10", {}).get("pixels")


def with_bands(system, name, bands, index):
    """Outputs for a batch whose sensor has other bands: `bands`, which are channels `index` of the batch."""
    sensor = dataclasses.replace(sensors.get(name), bands=tuple(bands))
    heads = {name: {"pixels": len(bands)}} if system.heads else {}
    model = models.build(system.config, sensors={name: sensor}, heads=heads)
    entry = system.shown["sensors"][name]
    entries = system.shown["sensors"] | {name: entry | {"pixels": entry["pixels"][..., np.asarray(index)]}}
    return jax.jit(model.apply)(system.params, {"sensors": entries})


def test_the_order_of_bands_changes_nothing(system):
    order = np.random.default_rng(0).permutation(10)
    table, whole = sensors.get("s2_10").bands, system.whole
    out = with_bands(system, "s2_10", [table[i] for i in order], order)
    assert_allclose(out["tokens"]["s2_10"], whole["tokens"]["s2_10"], atol=1e-5)
    if system.heads:
        assert_allclose(pixels_of(out), pixels_of(whole)[..., order], atol=1e-5)


def test_a_wrong_wavelength_changes_tokens_and_its_own_decoder(system):
    table, whole = list(sensors.get("s2_10").bands), system.whole
    table[3] = dataclasses.replace(table[3], wavelength=1.1)
    out = with_bands(system, "s2_10", table, np.arange(10))
    assert np.abs(out["tokens"]["s2_10"] - whole["tokens"]["s2_10"]).max() > 1e-2
    other = next(name for name in system.config["sensors"] if name != "s2_10")
    assert_array_equal(out["tokens"][other], whole["tokens"][other])


def test_missing_bands_are_one_code_path(system):
    """Bands that a batch says are missing, and a sensor that does not have them, give the same."""
    _, _, model, params, shown, whole = system
    left = np.array([0, 1, 2, 6])
    table = sensors.get("s2_10").bands
    few = with_bands(system, "s2_10", [table[i] for i in left], left)
    entry = shown["sensors"]["s2_10"]
    hidden = jnp.broadcast_to(jnp.isin(jnp.arange(10), left), (2, 1, 10))
    garbage = jnp.where(hidden[:, :, None, None], entry["pixels"], 1e3)
    told = {"sensors": shown["sensors"] | {"s2_10": entry | {"pixels": garbage, "bands": hidden}}}
    apply = jax.jit(model.apply)
    out = apply(params, told)
    assert_allclose(out["tokens"]["s2_10"], few["tokens"]["s2_10"], atol=1e-5)
    assert np.abs(out["tokens"]["s2_10"] - whole["tokens"]["s2_10"]).max() > 1e-2
    if system.heads:
        assert_allclose(pixels_of(out)[..., left], pixels_of(few), atol=1e-5)
        assert not out["pixel_mask"]["s2_10"].any()  # no target where a band is not known
    everything = {"sensors": shown["sensors"] | {"s2_10": entry | {"bands": jnp.ones((2, 1, 10), bool)}}}
    assert_allclose(apply(params, everything)["tokens"]["s2_10"], whole["tokens"]["s2_10"], atol=1e-5)


def test_dropped_bands_are_hidden_and_still_asked_for(system):
    _, heads, _, params, shown, whole = system
    model = models.build(system.config | dict(band_dropout=0.5), heads=heads)
    run, key = jax.jit(model.apply, static_argnames="train"), jax.random.key(1)
    out = run(params, shown, key=key, train=True)
    assert np.abs(out["tokens"]["s2_10"] - whole["tokens"]["s2_10"]).max() > 1e-2
    assert_allclose(out["standardised"]["s2_10"], whole["standardised"]["s2_10"], rtol=1e-6)
    assert out["pixel_mask"]["s2_10"].all()
    assert_allclose(run(params, shown, key=key)["tokens"]["s2_10"], whole["tokens"]["s2_10"], atol=1e-6)


def test_real_and_imaginary_part_go_together():
    almost = models.build(MODEL | dict(sensors=("slc_dual",), band_dropout=0.99))
    shown = batch(MODEL | dict(sensors=("slc_dual",)), rows=8)
    show = jax.jit(lambda p, b: almost.apply(p, b, key=jax.random.key(0), train=True))
    tokens = show(stirred(almost.shapes()), shown)["stages"]["slc_dual"][0]
    assert tokens.std(axis=(1, 2, 3)).min() > 0.01  # a polarisation, real and imaginary part, is left in every image


def test_unseen_sensors_use_the_experts_that_there_are(built, whole):
    """One of a known modality chooses among its experts, one of a new modality among the collaborative ones alone."""
    _, params, shown = built
    for sensor in (LANDSAT, THERMAL):
        sensors.register(sensor)
    config = MODEL | dict(unseen=(LANDSAT.name, THERMAL.name))
    model = models.build(config, heads=HEADS)
    assert jax.tree.map(jnp.shape, model.shapes()) == jax.tree.map(jnp.shape, built[0].shapes())
    guests = batch({**config, "sensors": (LANDSAT.name, THERMAL.name)}, seed=5)["sensors"]
    out = jax.jit(model.apply)(params, {"sensors": shown["sensors"] | guests})
    for name in MODEL["sensors"]:
        assert_allclose(out["tokens"][name], whole["tokens"][name], atol=1e-5)
    assert {name: heads["pixels"].shape[-1] for name, heads in out["heads"].items()} == {
        "s2_10": 10, "s1_grd": 2, LANDSAT.name: 2, THERMAL.name: 2,
    }  # fmt: skip
    # rows: multispectral, sar_l2, thermal_like; 2 images of 16 tokens each in the first layers
    assert_array_equal(out["routing"]["specialised"].load.sum(axis=-1)[0], [64, 32, 0])
    assert_array_equal(out["routing"]["collaborative"].load.sum(axis=-1)[0], [64, 32, 32])
    assert out["routing"]["specialised"].probability[:, 2].max() == 0
    alone = jax.jit(model.apply)(params, {"sensors": {THERMAL.name: guests[THERMAL.name]}})
    assert_allclose(alone["tokens"][THERMAL.name], out["tokens"][THERMAL.name], atol=1e-5)
    assert_allclose(
        out["routing"]["specialised"].balance, whole["routing"]["specialised"].balance, rtol=0.5
    )  # a router that nobody asked is not averaged in


@pytest.mark.slow
@pytest.mark.parametrize("system", ["skysense"], indirect=True)
def test_unseen_sensors_take_the_encoder_of_their_kind(system):
    """Aerial infrared is encoded as aerial RGB, Landsat as Sentinel-2, up to dates and experts in the fusion."""
    infrared, landsat = sensors.get("irrg"), sensors.register(LANDSAT)
    config = system.config | dict(moe=MOE, dated=("s2_10",))
    model = models.build(config | dict(unseen=(infrared.name, landsat.name)))
    params = stirred(model.shapes()) | {"encoders": system.params["encoders"]}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, models.build(config).shapes())
    guests = batch(config | dict(sensors=(infrared.name, landsat.name)), seed=5)["sensors"]
    apply = jax.jit(model.apply)
    both = apply(params, {"sensors": system.shown["sensors"] | guests})
    for name in config["sensors"]:
        assert_allclose(both["tokens"][name], system.whole["tokens"][name], atol=1e-5)
    hosts = {"rgb": infrared, "s2_10": landsat}
    known = models.build(config, sensors={name: dataclasses.replace(s, name=name) for name, s in hosts.items()})
    want = jax.jit(known.apply)(params, {"sensors": {name: guests[s.name] for name, s in hosts.items()}})
    got = apply(params, {"sensors": guests})
    for name, sensor in hosts.items():
        assert_allclose(got["tokens"][sensor.name], want["tokens"][name], atol=1e-5)
        assert_allclose(both["tokens"][sensor.name], want["tokens"][name], atol=1e-5)
    assert_allclose(got["fused"], want["fused"], atol=1e-5)


def test_a_sub_model_keeps_the_stem_that_all_share(built, whole):
    _, params, shown = built
    part = models.read(MODEL).submodel(Network(MODEL, params), ("s1_grd",))
    assert "stem" in part.params
    out = jax.jit(models.build(part.model).apply)(part.params, {"sensors": {"s1_grd": shown["sensors"]["s1_grd"]}})
    assert_allclose(out["tokens"]["s1_grd"], whole["tokens"]["s1_grd"], atol=1e-5)


@pytest.fixture(scope="module")
def with_thermal(built):
    """A batch with a sensor of a new modality, and what the dense engine says of it."""
    _, params, shown = built
    sensors.register(THERMAL)
    data = {"sensors": shown["sensors"] | batch({**MODEL, "sensors": (THERMAL.name,)})["sensors"]}
    return data, jax.jit(models.build(MODEL | dict(unseen=(THERMAL.name,))).apply)(params, data)


@pytest.mark.parametrize("engine", ["capacity", "blocks"])
def test_tokens_without_experts_take_no_rows(built, with_thermal, engine):
    (_, params, _), (data, want) = built, with_thermal
    config = MODEL | dict(unseen=(THERMAL.name,), moe=MOE | dict(engine=engine, eval_capacity_factor=4.0))
    got = jax.jit(models.build(config).apply)(params, data)
    assert got["routing"]["specialised"].dropped.sum() == 0
    assert_allclose(got["tokens"][THERMAL.name], want["tokens"][THERMAL.name], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["ringmoe", pytest.param("skysense", marks=pytest.mark.slow)], indirect=True)
def test_eight_devices_give_what_one_gives(system):
    params = system.params
    mesh = meshes.make(MeshConfig(data=-1, fsdp=2, expert=2))
    model = models.build(system.config, heads=system.heads, mesh=mesh)
    shown = batch(system.config, rows=8)
    one = jax.jit(system.model.apply)(params, shown)
    placed = jax.device_put(params, shardings(params, mesh))
    with jax.set_mesh(mesh):
        out = jax.jit(model.apply)(placed, shown)
    for name in system.config["sensors"]:
        assert_allclose(out["tokens"][name], one["tokens"][name], atol=1e-4)
    if system.heads:
        assert_allclose(pixels_of(out), pixels_of(one), atol=1e-4)


@pytest.mark.slow
def test_every_part_learns(built):
    model, params, shown = built

    def loss(params):
        out = model.apply(params, shown)
        return jnp.mean((out["heads"]["s2_10"]["pixels"] - out["standardised"]["s2_10"]) ** 2)

    gradient = jax.jit(jax.grad(loss))(params)
    for part in (gradient["stem"], gradient["decoder"]):
        assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(part)) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(sensors=("s2_8bit",)), "nothing but their names tells nir and red apart"),
        (dict(stem="linear", unseen=("rgb",)), 'train a RingMoE or SkySense with model.stem = "physics"'),
        (dict(stem="linear", band_dropout=0.1), "model.band_dropout = 0.1"),
        (dict(power_input=True), "model.power_input adds channels that no band describes"),
        (dict(unseen=("s1_grd",)), 'model.unseen names "s1_grd", which model.sensors has'),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        models.build(MODEL | changes)


def test_a_fixed_stem_cannot_be_told_of_missing_bands(built):
    _, _, shown = built
    fixed = models.build(MODEL | dict(stem="linear"))
    entry = shown["sensors"]["s1_grd"] | {"bands": jnp.ones((2, 1, 2), bool)}
    with pytest.raises(DataError, match='which bands of "s1_grd" are missing, which this model cannot be told'):
        jax.eval_shape(fixed.apply, fixed.shapes(), {"sensors": {"s1_grd": entry}})
    entry = entry | {"bands": jnp.ones((2, 1, 3), bool)}
    with pytest.raises(DataError, match=r"bands is bool\(2, 1, 3\), wanted bool\(2, 1, 2\)"):
        jax.eval_shape(built[0].apply, built[1], {"sensors": {"s1_grd": entry}})
