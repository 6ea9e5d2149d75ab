"""Where, when and how fine: what is told, what is unknown, what is withheld."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

import ringmoe_jax as rm
from ringmoe_jax import models, sensors
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.metadata import Metadata, MetadataConfig
from tests.helpers.parameters import stirred, stirred_module
from tests.helpers.tiny import RINGMOE, batch

SENSOR = sensors.get("s1_grd")
MODEL = RINGMOE | dict(sensors=("s1_grd",), depths=(1,))


def entry(rows=1, dates=1, **fields):
    return {"pixels": jnp.zeros((rows, dates, 4, 4, 2))} | fields


def place(latitude, longitude):
    return entry(location=jnp.array([[latitude, longitude]], jnp.float32))


def told(kind, *entries, key=None):
    """[entries, T, D] what a stirred module says of them, and nothing else than `kind`."""
    config = MetadataConfig(**{name: name == kind for name in ("location", "date", "scale")})
    module, _ = stirred_module(lambda: Metadata(config, 8, nnx.Rngs(0)))
    return np.stack([module(one, SENSOR, key)[0] for one in entries])


def test_places_have_no_edges():
    east, west, far, pole, same_pole = told(
        "location", place(10, 179.999), place(10, -179.999), place(10, 0), place(90, 0), place(90, 120)
    )
    assert_allclose(east, west, atol=1e-2)
    assert np.abs(east - far).max() > 0.1
    assert_allclose(pole, same_pole, atol=1e-4)


def test_dates_know_season_and_year():
    days = lambda text: entry(time=jnp.array([[np.datetime64(text, "D").astype(int)]], jnp.int32))  # noqa: E731
    new_year, eve, july, later = told("date", *map(days, ("2021-01-01", "2020-12-31", "2021-07-02", "2031-01-01")))
    assert_allclose(new_year, eve, atol=0.05)
    assert np.abs(new_year - july).max() > 0.5
    assert np.abs(new_year - later).max() > 0.1


def test_what_is_unknown_says_nothing():
    nowhere, somewhere, missing = told("location", place(np.nan, np.nan), place(0, 0), entry())
    assert not nowhere.any()
    assert not missing.any()
    assert somewhere.any()
    series = entry(dates=2, time=jnp.array([[NO_TIME, 18000]], jnp.int32))
    (dated,) = told("date", series)
    assert not dated[0].any()
    assert dated[1].any()
    table, given, unknown = told("scale", entry(), entry(gsd=jnp.array([10.0])), entry(gsd=jnp.array([jnp.nan])))
    assert_array_equal(table, given)  # 10 m is the sensor's own
    assert not unknown.any()


@pytest.mark.slow
def test_each_is_withheld_from_some_images():
    module, _ = stirred_module(lambda: Metadata(MetadataConfig(dropout=0.5), 8, nnx.Rngs(0)))
    shown = entry(400, location=jnp.zeros((400, 2)), time=jnp.zeros((400, 1), jnp.int32))
    said = np.asarray(module(shown, SENSOR, jax.random.key(0)))[:, 0]
    assert len(np.unique(said.round(4), axis=0)) == 8  # every combination of three
    assert 25 < (said == 0).all(axis=1).sum() < 75  # an eighth


def test_a_new_model_begins_as_one_that_is_told_nothing():
    model, plain = models.build(MODEL | dict(metadata={})), models.build(MODEL)
    params = model.init(jax.random.key(0))
    shown = batch(MODEL)
    shown["sensors"]["s1_grd"]["location"] = jnp.array([[10.0, 20.0], [jnp.nan, 0.0]], jnp.float32)
    apply = jax.jit(model.apply)
    assert_array_equal(
        apply(params, shown)["tokens"]["s1_grd"], jax.jit(plain.apply)(params, shown)["tokens"]["s1_grd"]
    )
    network = (model, stirred(model.shapes()))
    pixels = np.full((2, 16, 16, 2), -12.0) + np.random.default_rng(0).normal(size=(2, 16, 16, 2))
    of = lambda **said: rm.encode(network, {"s1_grd": pixels}, **said).pooled["s1_grd"]  # noqa: E731
    finer, there = of(gsd={"s1_grd": 2.5}), of(location=[[10, 20], [np.nan, np.nan]])
    assert np.abs(finer - of()).max() > 1e-2
    assert_array_equal(there[1], of()[1])
    assert np.abs(there[0] - of()[0]).max() > 1e-2
    with pytest.raises(DataError, match=r'gsd\["s1_grd"\] = 0: wanted metres between pixels, above 0'):
        of(gsd={"s1_grd": 0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(location=False, date=False, scale=False), "model.metadata tells nothing"),
        (dict(dropout=1.0), r"model.metadata.dropout = 1.0"),
    ],
)
def test_what_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        models.build(MODEL | dict(metadata=fields))
