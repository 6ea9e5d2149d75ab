"""Complex Wishart likelihood: against the circular Gaussian, against Bartlett's factors, and its minimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy import stats

from ringmoe_jax import sensors
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives import radar
from ringmoe_jax.objectives.wishart import pack, sigma_of, unpack, wishart_nats
from tests.helpers.references import QUAD_SIGMA, SIGMA, nats_in_unit, real_covariance, says
from tests.helpers.tiny_outputs import best_constant, build, circular, compiled, decoded, decoders, loss, scene

TO_RECIPROCAL = np.array([[1, 0, 0, 0], [0, 1 / np.sqrt(2), 1 / np.sqrt(2), 0], [0, 0, 0, 1]])
MEAN = 2 * 0.129**2  # power by polarisation of the table's statistics


def said(term, outputs):
    """Sigma of the first window, relative to the mean power."""
    return says(lambda outputs: sigma_of(term.prediction(outputs)), outputs)


def random_covariance(rng, p, looks=None):
    s = rng.normal(size=(looks or 2 * p, p)) + 1j * rng.normal(size=(looks or 2 * p, p))
    return s.T @ s.conj() / len(s)


@pytest.mark.parametrize(("sensor", "sigma"), [("slc_single", [[0.04]]), ("slc_dual", SIGMA), ("slc_quad", QUAD_SIGMA)])
def test_one_look_is_the_complex_normal_density(sensor, sigma):
    rng, noise = np.random.default_rng(0), 1.3
    pixels = circular(rng, sigma, (30,))
    term, shown = build("wishart", sensor, window=1), scene(sensor, pixels)
    shown = decoded(shown[0], sensor, covariance=rng.normal(size=len(sigma) ** 2)), shown[1]
    predicted = noise * MEAN * said(term, shown[0])
    expected = -stats.multivariate_normal(cov=real_covariance(predicted)).logpdf(pixels)
    assert_allclose(nats_in_unit(term, shown, noise).sum(axis=-1), expected, rtol=1e-3, atol=5e-3)


nats = jax.jit(wishart_nats, static_argnums=2)


def bartlett_nats(c, sigma, n):
    """-ln p(C) from the independent Gamma and normal entries of T, n C = L T T^H L^H with L L^H = Sigma."""
    p = len(c)
    lower = np.linalg.cholesky(sigma)
    white = np.linalg.solve(lower, np.linalg.solve(lower, n * c).conj().T)
    t = np.linalg.cholesky((white + white.conj().T) / 2)
    log_p, jacobian = 0.0, p * np.log(2)
    for i in range(p):
        square = t[i, i].real ** 2
        log_p += stats.gamma(n - i).logpdf(square) + np.log(2 * t[i, i].real)
        jacobian += (2 * (p - i) - 1) * np.log(t[i, i].real)
        log_p -= sum(abs(t[i, j]) ** 2 + np.log(np.pi) for j in range(i))
    return -(log_p - jacobian - p * np.linalg.slogdet(sigma)[1] + p**2 * np.log(n))


@pytest.mark.parametrize(("p", "looks"), [(1, 1), (1, 4.4), (2, 2), (2, 9), (3, 3.5), (3, 16), (4, 25)])
def test_density_against_bartletts_decomposition(p, looks):
    rng = np.random.default_rng(p)
    c, sigma = random_covariance(rng, p), random_covariance(rng, p)
    got = nats(np.complex64(c), np.complex64(sigma), looks)
    assert_allclose(got, bartlett_nats(c, sigma, looks), rtol=2e-5, atol=2e-3)


def test_one_polarisation_is_the_gamma_density():
    for x, power, looks in ((0.5, 1.0, 1.0), (2.0, 0.7, 4.4), (0.1, 0.2, 30.0)):
        got = nats(np.complex64([[x]]), np.complex64([[power]]), looks)
        assert_allclose(got, -stats.gamma(looks, scale=power / looks).logpdf(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("looks", [1, 0, -3.0, np.nan, np.inf])
def test_too_few_looks_have_no_density(looks):
    with pytest.raises(ConfigError, match=f"looks = {looks}"):
        wishart_nats(np.eye(2), np.eye(2), looks)


def test_loss_is_the_density_up_to_what_only_the_data_decide():
    rng, term = np.random.default_rng(0), build("wishart", "slc_dual", window=3)
    shown = scene("slc_dual", circular(rng, SIGMA, (3, 3)))
    c = says(lambda *shown: unpack(term.target(*shown)), *shown)
    a, b = rng.normal(size=(2, 4))
    losses = [float(loss(term, shown, covariance=x)) for x in (a, b)]
    sigmas = [said(term, decoded(shown[0], "slc_dual", covariance=x)) for x in (a, b)]
    densities = [float(nats(np.complex64(c), np.complex64(sigma), 9)) for sigma in sigmas]
    assert_allclose(9 * (losses[0] - losses[1]), densities[0] - densities[1], rtol=1e-4)
    by_hand = np.trace(np.linalg.solve(sigmas[0], c)).real + np.linalg.slogdet(sigmas[0])[1]
    assert_allclose(losses[0], by_hand, rtol=1e-4)


def test_noise_is_a_factor_of_sigma():
    rng, term = np.random.default_rng(0), build("wishart", "slc_dual")
    prediction, c = np.float32(rng.normal(size=4)), np.complex64(random_covariance(rng, 2))

    @jax.jit
    def run(prediction, c):
        return sigma_of(prediction), term.nats(prediction, pack(c), jnp.float32(3.0))

    sigma, got = run(prediction, c)
    scaled = 3.0 * np.asarray(sigma, np.complex128)
    by_hand = np.trace(np.linalg.solve(scaled, c)).real + np.linalg.slogdet(scaled)[1]
    assert_allclose(got, [by_hand], rtol=1e-4)


@pytest.mark.parametrize(
    ("sensor", "sigma", "fields", "change"),
    [
        ("slc_dual", SIGMA, {}, np.eye(2)),
        ("slc_quad", QUAD_SIGMA, {"reciprocal": True, "window": 2}, TO_RECIPROCAL),
        ("slc_quad", QUAD_SIGMA, {}, np.eye(4)),
    ],
)
def test_minimiser_is_the_covariance(sensor, sigma, fields, change):
    term = build("wishart", sensor, **fields)
    pixels = circular(np.random.default_rng(0), sigma, (64, 64))
    s = (pixels[..., 0::2] + 1j * pixels[..., 1::2]) @ change.T
    truth = change @ sigma @ change.T
    size = np.trace(truth).real
    assert abs(truth - np.diag(np.diag(truth))).max() > 0.05 * size  # there is a correlation to find
    for side in (16, 64):
        hidden = np.zeros((64, 64), bool)
        hidden[:side, :side] = True
        found = best_constant(term, scene(sensor, pixels, hidden=hidden))
        got = MEAN * said(term, found.outputs)
        sample = np.einsum("hwi,hwj->ij", s[:side, :side], s[:side, :side].conj()) / side**2
        assert np.linalg.norm(got - sample) < 5e-3 * size
        assert np.linalg.norm(got - truth) < (5e-3 + 2.5 / side) * size  # its rms is size / side


def test_only_windows_that_are_hidden_and_valid_throughout_count():
    valid, hidden = np.ones((5, 7), bool), np.ones((5, 7), bool)
    valid[0, 1] = False  # of 2 x 3 windows of 2 x 2, the first
    hidden[3, 5] = False  # and the last
    shown = scene("slc_dual", circular(np.random.default_rng(0), SIGMA, (5, 7)), valid, hidden)
    shown[1]["sensors"]["slc_dual"]["pixels"][0, 0, 2:, 2:4] = 0.0
    term = build("wishart", "slc_dual", window=2)
    _, weight, _ = compiled(term)(decoded(shown[0], "slc_dual", covariance=np.zeros(4)), shown[1])
    assert weight == 6 - 2 - 1  # one has no power


def test_an_image_smaller_than_a_window_adds_nothing():
    shown = scene("slc_dual", circular(np.random.default_rng(0), SIGMA, (3, 3)))
    value, weight, _ = compiled(build("wishart", "slc_dual"))(
        decoded(shown[0], "slc_dual", covariance=np.zeros(4)), shown[1]
    )
    assert (value, weight) == (0, 0)


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_packing_and_constants(p):
    rng = np.random.default_rng(p)
    c = np.complex64([random_covariance(rng, p), random_covariance(rng, p)])
    term = build("wishart", {1: "slc_single", 2: "slc_dual", 3: "slc_quad", 4: "slc_quad"}[p], reciprocal=p == 3)
    assert decoders(term) == {term.head: p * p}
    assert term.comparable == (p != 3)

    @jax.jit
    def there_and_back(c, values):
        lower = unpack(values, hermitian=False)
        return pack(c), unpack(pack(c)), sigma_of(term.constant(pack(c))), pack(unpack(values)), lower

    values = np.float32(rng.normal(size=p * p))
    packed, same, stated, same_values, lower = there_and_back(c, values)
    assert packed.shape == (2, p * p)
    assert_allclose(same, c, rtol=1e-6, atol=1e-7)
    assert np.abs(stated - c).max() < 1e-4 * np.trace(c, axis1=-2, axis2=-1).real.max()
    assert_allclose(same_values, values)
    assert not np.triu(lower, 1).any()


def test_a_constant_is_a_covariance_even_of_medians():
    """The median of single-look covariances, entry by entry, need not be positive definite."""
    sigma = np.array([[1, 0.95, 0.9j], [0.95, 1, 0.9j], [-0.9j, -0.9j, 1]])
    s = circular(np.random.default_rng(0), sigma, (40, 1))
    term = build("wishart", "slc_quad", reciprocal=True)

    @jax.jit
    def run(s):
        target = pack(radar.covariance(radar.as_complex(s)))
        prediction = term.constant(jnp.median(target, axis=0))
        return unpack(jnp.median(target, axis=0)), term.penalty(jnp.broadcast_to(prediction, target.shape), target)

    median, penalty = run(np.float32(s))
    assert np.linalg.eigvalsh(median).min() < 0
    assert np.isfinite(penalty).all()


def test_every_decoder_output_says_a_covariance():
    run = jax.jit(sigma_of)

    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.floats(-2, 2, width=32), min_size=9, max_size=9))
    def check(values):
        sigma = np.asarray(run(jnp.asarray(values, jnp.float32)), np.complex128)
        assert_allclose(sigma, sigma.conj().T, rtol=1e-4, atol=1e-4 * abs(sigma).max())
        assert np.linalg.eigvalsh(sigma).min() > -1e-5 * abs(sigma).max()
        log_det = -2 * np.sum(np.asarray(values[:3], np.float64))
        assert_allclose(np.linalg.slogdet(sigma)[1], log_det, atol=0.2)

    check()


def test_picture_is_the_span_in_decibels():
    pixels = np.array([[np.sqrt(MEAN), 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, np.sqrt(10 * MEAN)]])
    term, shown = build("wishart", "slc_dual", window=1), scene("slc_dual", pixels)
    prediction, target = jax.jit(term.picture)(decoded(shown[0], "slc_dual", covariance=np.zeros(4)), shown[1])
    assert_allclose(target[0, 0, 0, :, 0], [0.0, 10.0], atol=1e-4)
    assert_allclose(prediction[0, 0, 0, :, 0], 10 * np.log10(2.0), atol=1e-4)


def test_mean_power_of_the_statistics():
    assert_allclose(radar.mean_power(sensors.get("slc_dual"), sensors.get("slc_dual").statistics), MEAN)
