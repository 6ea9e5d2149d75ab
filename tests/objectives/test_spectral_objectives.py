"""Indices against the index table's own evaluation, angles against arccos, brightness temperature against Planck."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import spyndex
from numpy.testing import assert_allclose
from scipy import constants

from ringmoe_jax import sensors
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.spectral import PLANCK_1, PLANCK_2, brightness_temperature, compute_indices, formulas
from tests.helpers.tiny_outputs import best_constant, build, compiled, decoded, loss, pixels_of, scene

S2 = sensors.get("s2_12")
SYMBOLS = dict(zip("A B G R RE1 RE2 RE3 N N2 WV S1 S2".split(), range(12), strict=True))
BY_HAND = {  # (x - y) / (x + y) of band names
    "NDVI": ("B08", "B04"),
    "NDWI": ("B03", "B08"),
    "NDBI": ("B11", "B08"),
    "NDRE": ("B08", "B05"),
    "NBR": ("B08", "B12"),
}
MEAN, STD = np.asarray(S2.statistics.mean), np.asarray(S2.statistics.std)


def reflectance(n, seed=0):
    return np.random.default_rng(seed).uniform(0.01, 0.6, size=(n, 12))


def test_normalised_differences_by_hand():
    x = reflectance(50)
    got = np.asarray(compute_indices(np.float32(x), S2, tuple(BY_HAND)))
    for i, (one, other) in enumerate(BY_HAND.values()):
        a, b = x[:, S2.band_index(one)], x[:, S2.band_index(other)]
        assert_allclose(got[:, i], (a - b) / (a + b), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["NDVI", "NDWI", "NDBI", "NDREI", "NBR", "EVI", "SAVI", "BI", "MNDWI"])
def test_every_formula_is_that_of_the_table(name):
    x, constant = reflectance(20), formulas(S2, (name,))[0][2]
    expected = spyndex.computeIndex(index=[name], params={s: x[:, i] for s, i in SYMBOLS.items()} | constant)
    assert_allclose(compute_indices(np.float32(x), S2, (name,))[:, 0], expected, rtol=1e-3, atol=1e-5)


def test_loss_of_indices_by_hand():
    truth = np.full((1, 12), 0.1)
    truth[0, S2.band_index("B08")] = 0.3  # NDVI 0.5
    says = np.full(12, 0.2)  # NDVI 0
    shown, term = scene("s2_12", truth), build("spectral_indices", "s2_12", indices=("NDVI",))
    assert_allclose(loss(term, shown, pixels=(says - MEAN) / STD), 0.5, rtol=1e-5)


def test_dark_and_broken_pixels():
    """Reflectance below 0.001 counts as that, a negative one as well; a pixel that is not finite does not count."""
    truth = np.zeros((3, 12))
    truth[1] = -0.2
    truth[2] = np.nan
    outputs, batch = scene("s2_12", truth)
    term = build("spectral_indices", "s2_12")
    value, weight, _ = compiled(term)(decoded(outputs, "s2_12", pixels=(0.05 - MEAN) / STD), batch)
    assert_allclose([value, weight], [0, 2], atol=1e-6)  # all bands alike: every index is 0 on both sides


def test_indices_ignore_illumination():
    x = reflectance(30)
    a, b = (compute_indices(np.float32(f * x), S2, tuple(BY_HAND)) for f in (1.0, 0.5))
    assert_allclose(a, b, atol=1e-5)


def test_a_minimiser_has_the_indices_of_the_truth():
    truth = np.tile([0.05, 0.06, 0.08, 0.07, 0.1, 0.2, 0.25, 0.3, 0.3, 0.3, 0.2, 0.1], (5, 1))
    term, shown = build("spectral_indices", "s2_12"), scene("s2_12", truth)
    found = best_constant(term, shown)
    assert_allclose(term.prediction(found.outputs), term.target(*shown), atol=2e-2)


@pytest.mark.parametrize(
    ("indices", "sensor", "message"),
    [
        (("NVDI",), "s2_12", 'no spectral index "NVDI": did you mean one of .*NDVI'),
        (("ndvi",), "s2_12", 'no spectral index "ndvi": did you mean one of NDVI'),
        ((), "s2_12", "indices is empty"),
        (("NBR",), "ms4", r'"NBR" = .* needs S2 \(swir22\), which "ms4" lacks: its bands are blue, green, red, nir'),
        (("DPDD",), "s2_12", 'needs VV, VH, which "s2_12" lacks'),
        (("kNDVI",), "s2_12", "needs kNN, kNR"),
        (("FAI",), "s2_12", 'needs lambdaN, .*, which "s2_12" lacks'),  # a constant without a default
    ],
)
def test_impossible_indices_are_named(indices, sensor, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build("spectral_indices", sensor, indices=indices)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_every_index_of_the_table_works_or_says_why_not():
    x = jnp.asarray(reflectance(2), jnp.float32)
    working = 0
    for name in spyndex.indices:
        try:
            jax.eval_shape(lambda x, name=name: compute_indices(x, S2, (name,)), x)
            working += 1
        except ConfigError as error:
            assert "which" in str(error)  # noqa: PT017
    assert working > 200


def angle(a, b):
    """arccos in float64, degrees of freedom of the last axis."""
    cosine = np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.arccos(np.clip(cosine, -1, 1))


def test_angle_against_arccos():
    truth, says = reflectance(40), reflectance(40, seed=1)
    term, shown = build("spectral_angle", "s2_12"), scene("s2_12", truth)
    got = loss(term, shown, pixels=((says - MEAN) / STD).reshape(1, 1, 1, 40, 12))
    assert_allclose(got, angle(truth, says).mean(), rtol=1e-5)
    brighter = loss(term, shown, pixels=((3 * truth - MEAN) / STD).reshape(1, 1, 1, 40, 12))
    assert brighter < 1e-5  # blind to brightness


def test_angle_is_exact_where_arccos_is_not():
    """At tiny angles arccos of a float32 cosine is 0 or 3e-4; at 0 and pi the gradient is finite."""
    term = build("spectral_angle", "s2_12")
    run = jax.jit(jax.value_and_grad(lambda p, t: term.penalty(p, t).sum()))
    base = np.zeros((1, 12), np.float32)
    base[0, 0] = 0.5
    for tiny in (1e-1, 1e-3, 1e-4):
        other = base.copy()
        other[0, 1] = 0.5 * np.tan(tiny)
        assert_allclose(run(other, base)[0], tiny, rtol=1e-3)
    for prediction, expected in ((base, 0.0), (-base, np.pi), (7 * base, 0.0), (0 * base, np.pi / 2)):
        value, slope = run(prediction, base)
        assert_allclose(value, expected, atol=1e-5)
        assert np.isfinite(slope).all()


def test_a_minimiser_of_the_angle_points_where_the_truth_does():
    truth = np.tile(reflectance(1), (4, 1))
    found = best_constant(build("spectral_angle", "s2_12"), scene("s2_12", truth)).x * STD + MEAN
    assert angle(found, truth[0]) < 1e-3


def test_a_zero_spectrum_has_no_angle():
    truth = reflectance(3)
    truth[1] = 0
    outputs, batch = scene("s2_12", truth)
    assert compiled(build("spectral_angle", "s2_12"))(decoded(outputs, "s2_12", pixels=np.zeros(12)), batch)[1] == 2


def test_reflectance_bounds_by_hand():
    says = np.full(12, 0.5)
    says[:2] = -0.1, 1.5
    term, shown = build("reflectance_bounds", "s2_12"), scene("s2_12", reflectance(1))
    assert_allclose(loss(term, shown, pixels=(says - MEAN) / STD), (0.1**2 + 0.3**2) / 12, rtol=1e-4)
    assert loss(term, shown, pixels=(np.linspace(0.0, 1.2, 12) - MEAN) / STD) < 1e-12


def planck(wavelength, temperature):
    """Spectral radiance, W m-2 sr-1 um-1; wavelength in um."""
    h, c, k, x = constants.h, constants.c, constants.k, wavelength * 1e-6
    return 2 * h * c**2 / x**5 / np.expm1(h * c / (x * k * temperature)) * 1e-6


def test_brightness_temperature_inverts_planck():
    assert_allclose(PLANCK_1, 2 * constants.h * constants.c**2 * 1e24, rtol=1e-9)
    assert_allclose(PLANCK_2, constants.h * constants.c / constants.k * 1e6, rtol=1e-9)
    wavelengths = np.array([3.7, 10.895, 12.005])
    for temperature in (180.0, 290.0, 340.0, 1200.0):
        got = brightness_temperature(np.float32(planck(wavelengths, temperature)), wavelengths)
        assert_allclose(got, temperature, rtol=1e-5)


def test_error_of_temperature_in_kelvin():
    tirs = sensors.get("tirs")
    wavelengths = np.array([band.wavelength for band in tirs.bands])
    truth = np.stack([planck(wavelengths, t) for t in (280.0, 300.0)])
    truth[1, 0] = 0.0  # no radiance has no temperature
    says = (planck(wavelengths, np.array([283.0, 279.0])) - tirs.statistics.mean) / tirs.statistics.std
    outputs, batch = scene("tirs", truth)
    value, weight, _ = compiled(build("brightness_temperature", "tirs"))(decoded(outputs, "tirs", pixels=says), batch)
    assert_allclose([value, weight], [2.0, 1.0], rtol=1e-3)


def test_the_statistics_of_tirs_are_planck_at_290_kelvin():
    for band in sensors.get("tirs").bands:
        assert_allclose(band.mean, planck(band.wavelength, 290.0), rtol=2e-3)
        spread = (planck(band.wavelength, 300.0) - planck(band.wavelength, 280.0)) / 2
        assert_allclose(band.std, spread, rtol=2e-2)


def test_brightness_temperature_finds_the_median():
    radiance = pixels_of("tirs", np.random.default_rng(0), (2001,))
    term = build("brightness_temperature", "tirs")
    found = best_constant(term, scene("tirs", radiance)).x * sensors.get("tirs").statistics.std
    assert_allclose(found + sensors.get("tirs").statistics.mean, np.median(radiance, axis=0), atol=0.02)


def test_brightness_temperature_needs_thermal_wavelengths(monkeypatch):
    tirs = sensors.get("tirs")
    bands = (dataclasses.replace(tirs.bands[0], wavelength=None), tirs.bands[1])
    monkeypatch.setitem(sensors.SENSORS.parts, "tirs", dataclasses.replace(tirs, bands=bands))
    with pytest.raises(ConfigError, match='"tirs" has a band without a wavelength'):
        build("brightness_temperature", "tirs")
