"""Speckle and complex Gaussian likelihoods against SciPy's densities, and what minimises them."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from ringmoe_jax import sensors
from ringmoe_jax.objectives import radar
from tests.helpers.references import QUAD_SIGMA, SIGMA, nats_in_unit, real_covariance, says
from tests.helpers.tiny_outputs import best_constant, build, circular, compiled, decoded, loss, scene

DB = 10 / np.log(10)
UNITS = {"s1_grd": 2, "sar_amplitude": 1, "test_intensity": 2}  # channels


def to_unit(name, intensity):
    return {"s1_grd": lambda x: DB * np.log(x), "sar_amplitude": np.sqrt}.get(name, lambda x: x)(intensity)


def density(name, power, looks):
    """SciPy's distribution of an L-look pixel in the sensor's unit."""
    if name == "sar_amplitude":
        return stats.rayleigh(scale=np.sqrt(power / 2)) if looks == 1 else stats.nakagami(looks, scale=np.sqrt(power))
    if name == "s1_grd":  # Fisher-Tippett for L looks
        return stats.loggamma(looks, loc=DB * np.log(power / looks), scale=DB)
    return stats.gamma(looks, scale=power / looks)


@pytest.mark.parametrize("looks", [0.7, 1.0, 4.4, 30.0])
@pytest.mark.parametrize("name", UNITS)
def test_speckle_is_the_density_of_pixels_in_every_unit(name, looks):
    term = build("speckle", name)
    x = to_unit(name, np.geomspace(1e-9, 50.0, 6000))
    shown = scene(name, np.repeat(x[:, None], UNITS[name], axis=-1))
    shown = decoded(shown[0], name, power=np.full(UNITS[name], 0.7)), shown[1]
    power = says(term.prediction, shown[0])[0]
    nats = nats_in_unit(term, shown, looks)[:, 0]
    expected = -density(name, power, looks).logpdf(x.astype(np.float32))
    likely = expected < 30  # beyond, float32 has no digits left for a probability of 1e-13
    assert_allclose(nats[likely], expected[likely], rtol=2e-4, atol=2e-4)
    assert_allclose(np.trapezoid(np.exp(-nats), x), 1.0, atol=5e-3 if looks >= 1 else 2e-2)


@pytest.mark.parametrize("name", UNITS)
def test_loss_is_the_likelihood_of_the_intensity(name):
    intensity = np.array([[0.03], [0.2]]).repeat(UNITS[name], axis=-1)
    shown, term = scene(name, to_unit(name, intensity)), build("speckle", name, looks=3.0)
    mean = radar.mean_power(sensors.get(name), sensors.get(name).statistics)
    power = mean * np.exp(12 * np.tanh(0.3 / 12))
    by_hand = -stats.gamma(3.0, scale=power / 3).logpdf(intensity).mean()
    assert_allclose(loss(term, shown, power=np.full(UNITS[name], 0.3)), by_hand, rtol=1e-5)


def test_looks_are_the_sensors_by_default():
    assert [build("speckle", name).looks for name in UNITS] == [4.4, 1.0, 4.0]
    assert build("speckle", "s1_grd", looks=2.0).looks == 2.0


@pytest.mark.parametrize(
    ("name", "true", "assumed"), [("s1_grd", 4.4, 4.4), ("sar_amplitude", 1, 3), ("test_intensity", 4, 1)]
)
def test_speckle_finds_the_mean_power_in_every_unit_and_whatever_the_looks(name, true, assumed):
    sigma0 = np.array([0.08, 0.02])[: UNITS[name]]
    intensity = np.random.default_rng(0).gamma(true, sigma0 / true, size=(20_000, UNITS[name]))
    term = build("speckle", name, looks=float(assumed))
    for n in (500, 20_000):  # hidden pixels
        shown = scene(name, to_unit(name, intensity), hidden=np.arange(20_000) < n)
        power = says(term.prediction, best_constant(term, shown).outputs)
        assert_allclose(power, intensity[:n].mean(axis=0), rtol=2e-3)
        assert_allclose(power, sigma0, rtol=2e-3 + 3.5 / np.sqrt(true * n))


PAULI = np.array([[1, 0, 0, 1], [1, 0, 0, -1], [0, 1, 1, 0], [0, 1, -1, 0]]) / np.sqrt(2)


@pytest.mark.parametrize(("basis", "change"), [("lexicographic", np.eye(4)), ("pauli", PAULI)])
def test_complex_gaussian_is_the_density_of_real_and_imaginary_parts(basis, change):
    term, noise = build("complex_gaussian", "slc_quad", basis=basis), 0.7
    pixels = circular(np.random.default_rng(0), QUAD_SIGMA, (50,))
    shown = scene("slc_quad", pixels)
    shown = decoded(shown[0], "slc_quad", **{term.head: [0.5, -1.0, 0.0, 2.0]}), shown[1]
    powers = says(term.prediction, shown[0])
    sigma = change.conj().T @ np.diag(noise * powers) @ change
    expected = -stats.multivariate_normal(cov=real_covariance(sigma)).logpdf(pixels)
    assert_allclose(nats_in_unit(term, shown, noise).sum(axis=-1), expected, rtol=1e-4, atol=1e-3)


def test_speckle_of_a_complex_sensor_is_the_complex_gaussian():
    shown = scene("slc_dual", circular(np.random.default_rng(0), SIGMA, (20,)))
    shown = decoded(shown[0], "slc_dual", power=[0.3, -0.4]), shown[1]
    a, b = (nats_in_unit(build(name, "slc_dual"), shown, 1.0) for name in ("speckle", "complex_gaussian"))
    assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("basis", "change"), [("lexicographic", np.eye(4)), ("pauli", PAULI)])
def test_complex_gaussian_finds_sigma0_by_polarisation(basis, change):
    pixels = circular(np.random.default_rng(0), QUAD_SIGMA, (20_000,))
    s = (pixels[:, 0::2] + 1j * pixels[:, 1::2]) @ change.T
    term = build("complex_gaussian", "slc_quad", basis=basis)
    for n in (500, 20_000):
        shown = scene("slc_quad", pixels, hidden=np.arange(20_000) < n)
        power = says(term.prediction, best_constant(term, shown).outputs)
        assert_allclose(power, np.mean(abs(s[:n]) ** 2, axis=0), rtol=3e-3)
        assert_allclose(power, np.diag(change @ QUAD_SIGMA @ change.T).real, rtol=3e-3 + 3.5 / np.sqrt(n))


def test_pixels_without_power_are_left_out():
    """One of three pixels has no VH, one no power at all."""
    pixels = np.array([[0.1, 0.1, 0.1, 0.0], [0.1, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    term = build("complex_gaussian", "slc_dual")
    outputs, batch = scene("slc_dual", pixels)
    value, weight, _ = compiled(term)(decoded(outputs, "slc_dual", power=np.zeros(2)), batch)
    assert weight == 1
    mean = 2 * 0.129**2
    assert_allclose(value, (0.03 / mean + 2 * np.log(mean)) / 2, rtol=1e-5)
