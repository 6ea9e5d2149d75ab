"""Textured speckle (G0): against SciPy, its limits, and what minimises it."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from ringmoe_jax import sensors
from ringmoe_jax.objectives import radar
from ringmoe_jax.objectives.speckle import gamma_nats
from ringmoe_jax.objectives.texture import textured_nats
from tests.helpers.tiny_outputs import best_constant, build, decoded, scene


def nats(intensity, mean, shape, looks):
    columns = [np.atleast_2d(np.asarray(x, np.float32)) for x in (intensity, mean, shape)]
    return np.asarray(textured_nats(*map(jnp.asarray, columns), looks))[..., 0]


def test_one_look_of_one_polarisation_is_a_lomax_density():
    x = np.geomspace(1e-3, 50, 30)
    expected = -stats.lomax(3.5, scale=2.5 * 0.7).logpdf(x)  # mean 0.7
    assert_allclose(nats(x[:, None], [[0.7]], [[3.5]], 1.0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("looks", [1.0, 4.4])
def test_density_of_two_polarisations_integrates_to_one(looks):
    grid = np.geomspace(1e-5, 3e3, 900)
    pairs = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1)
    density = np.exp(-nats(pairs.reshape(-1, 2), [[0.5, 2.0]], [[2.5]], looks)).reshape(900, 900)
    assert_allclose(np.trapezoid(np.trapezoid(density, grid), grid), 1.0, atol=5e-3)


def test_without_texture_it_is_the_gamma_density():
    x, mean = np.random.default_rng(0).uniform(0.1, 3.0, (2, 20, 2)).astype(np.float32)
    plain = np.asarray(gamma_nats(jnp.asarray(x), jnp.asarray(mean), 4.4)).sum(-1)
    assert_allclose(nats(x, mean, np.full((20, 1), 3e4), 4.4), plain, atol=0.05)


def test_a_bright_scatterer_costs_its_logarithm():
    """The tail of the density falls with the power nu + 1: ten times the power, ln(10) times that."""
    shape = 2.0
    step = nats([[1e5]], [[1.0]], [[shape]], 1.0) - nats([[1e4]], [[1.0]], [[shape]], 1.0)
    assert_allclose(step, (shape + 1) * np.log(10), rtol=1e-3)


@pytest.mark.parametrize(("name", "looks"), [("slc_dual", 1.0), ("s1_grd", 4.4)])
def test_minimiser_finds_powers_and_texture(name, looks):
    errors = []
    for n in (1_000, 30_000):
        rng, power, shape = np.random.default_rng(3), np.array([0.06, 0.015]), 3.0
        texture = stats.invgamma(shape, scale=shape - 1).rvs((n, 1), random_state=rng)
        if name == "slc_dual":
            s = (rng.normal(size=(n, 2, 2)) * np.sqrt(power * texture / 2)[..., None]).reshape(n, 4)
        else:
            s = 10 * np.log10(power * texture * rng.gamma(looks, 1 / looks, (n, 2)))
        term, shown = build("textured_speckle", name), scene(name, s)
        found = best_constant(term, shown)
        says = np.asarray(term.prediction(found.outputs))[0, 0, 0, 0]
        errors.append(np.abs(np.log(says / [*power, shape])).max())
    assert errors[1] < 0.06
    assert errors[1] < errors[0]


def test_bounds_of_the_shape():
    shown = scene("s1_grd", np.full((4, 2), -12.0))
    for raw, wanted in ((-1e4, 1 + np.exp(-4)), (1e4, 1 + np.exp(4))):
        outputs = decoded(shown[0], "s1_grd", textured_power=[0, 0, raw])
        assert_allclose(build("textured_speckle", "s1_grd").prediction(outputs)[..., -1], wanted, rtol=1e-4)


def test_trivial_predictors_state_the_mean():
    term = build("textured_speckle", "s1_grd")
    mean = radar.mean_power(sensors.get("s1_grd"), sensors.get("s1_grd").statistics)
    assert_allclose(term.constant(jnp.asarray(mean)), [*mean, 3.0], rtol=1e-5)
