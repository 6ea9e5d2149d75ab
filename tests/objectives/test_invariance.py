"""VICReg and SIGReg against their closed forms in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ringmoe_jax import objectives
from ringmoe_jax.errors import ConfigError


def outputs(z, weight=None, stream="rgb"):
    weight = np.ones(z.shape[:2], np.float32) if weight is None else weight
    return {"embeddings": {stream: {"rows": z, "weight": weight}}, "draw": jax.random.key(3)}


def random(rows=12, views=3, width=5, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, views, width)).astype(np.float32)


@functools.cache
def compiled(term):
    """As one program: by itself every operation is compiled for every shape. Two views of a place are full ones."""

    @jax.jit
    def run(given):
        embeddings = {stream: embedded | {"full": 2} for stream, embedded in given["embeddings"].items()}
        return term(given | {"embeddings": embeddings}, {})

    return run


def loss(name, given, **fields):
    term = objectives.build({"it": {"name": name, "streams": ("rgb",), **fields}})["it"]
    value, weight, metrics = compiled(term)(given)
    return float(value) / float(weight), metrics


def test_vicreg_is_its_formula():
    z = 0.5 * random()
    centre = z[:, :2].mean(axis=1, keepdims=True)
    s = np.mean(np.square(z - centre))
    v, c = [], []
    for view in np.moveaxis(z, 1, 0):
        covariance = np.cov(view.T)
        v.append(np.maximum(0, 1 - np.sqrt(np.diag(covariance) + 1e-4)).mean())
        c.append((np.square(covariance).sum() - np.square(np.diag(covariance)).sum()) / z.shape[-1])
    value, metrics = loss("vicreg", outputs(z), invariance=3.0, variance=5.0, covariance=7.0)
    assert_allclose(metrics["invariance"], s, rtol=1e-5)
    assert_allclose(value, 3 * s + 5 * np.mean(v) + 7 * np.mean(c), rtol=1e-5)


def test_views_together_are_one_covariance():
    z = 0.5 * random()
    covariance = np.mean([np.cov(view.T) for view in np.moveaxis(z, 1, 0)], axis=0)
    variances = np.diag(covariance)
    metrics = loss("vicreg", outputs(z), joint=True)[1]
    assert_allclose(metrics["variance"], np.maximum(0, 1 - np.sqrt(variances + 1e-4)).mean(), rtol=1e-5)
    assert_allclose(metrics["covariance"], (np.square(covariance).sum() - np.square(variances).sum()) / 5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vicreg", "sigreg"])
def test_equal_views_are_invariant_and_all_alike_is_collapse(name):
    same = np.repeat(random(views=1, rows=64), 3, axis=1)
    assert loss(name, outputs(same))[1]["invariance"] == 0
    assert loss(name, outputs(np.zeros_like(same)))[0] > loss(name, outputs(same))[0]


@pytest.mark.parametrize("name", ["vicreg", "sigreg"])
def test_views_that_show_nothing_do_not_count(name):
    z, weight = random(), np.ones((12, 3), np.float32)
    weight[:, 2] = 0
    odd = z.copy()
    odd[:, 2] = 1e3
    few = loss(name, outputs(z, weight))[1], loss(name, outputs(odd, weight))[1]
    assert_allclose(few[0]["invariance"], few[1]["invariance"], rtol=1e-6)
    assert_allclose(few[0]["invariance"], loss(name, outputs(z[:, :2]))[1]["invariance"], rtol=1e-5)


def test_sigreg_is_the_epps_pulley_statistic():
    z = random(rows=40, views=2, width=4)
    directions = jax.random.normal(jax.random.key(3), (4, 6))
    a = np.asarray(directions / jnp.linalg.norm(directions, axis=0), np.float64)
    t = np.linspace(-5, 5, 17)
    values = []
    for view in np.moveaxis(z.astype(np.float64), 1, 0):
        seen = np.exp(1j * (view @ a)[..., None] * t).mean(axis=0)
        error = np.abs(seen - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
        values.append(len(z) * np.trapezoid(error, t, axis=-1).mean())
    value, metrics = loss("sigreg", outputs(z), spread=1.0, directions=6)
    assert_allclose(metrics["spread"], np.mean(values), rtol=1e-4)
    assert_allclose(value, np.mean(values), rtol=1e-4)


def test_gaussian_embeddings_are_nearly_free_and_others_are_not():
    normal = random(rows=2000, views=2, width=8)
    spread = lambda z: float(loss("sigreg", outputs(z))[1]["spread"])  # noqa: E731
    assert spread(normal) < 3
    assert spread(np.sign(normal)) > 3 * spread(normal)
    assert spread(0.3 * normal) > 100 * spread(normal)


def test_sensors_of_one_place_pull_at_each_other():
    z = random(views=2)
    both = outputs(z)["embeddings"] | outputs(z + 1, stream="s1_grd")["embeddings"]
    term = objectives.build({"it": {"name": "vicreg", "streams": ("rgb", "s1_grd")}})["it"]
    assert term.together() == ("rgb", "s1_grd")
    apart = compiled(term)({"embeddings": both})[2]["invariance"]
    alone = loss("vicreg", outputs(z))[1]["invariance"]
    assert_allclose(apart, alone + 0.25, rtol=1e-5)  # each is half of 1 from the mean of both


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(name="vicreg", streams=()), "streams is empty"),
        (dict(name="sigreg", streams=("rgb",), spread=2.0), "spread = 2.0, wanted 0 to 1"),
        (dict(name="sigreg", streams=("rgb",), knots=1), "odd number of knots from 3"),
        (dict(name="sigreg", streams=("rgb",), knots=8), "odd number of knots from 3"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        objectives.build({"it": fields})
