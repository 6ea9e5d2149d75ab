"""The simulator's physics against closed forms: reflectance, light, blur and noise; covariance, speckle and looks."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline.synthetic import radar, simulate, spectra
from input_pipeline.synthetic.scene import BUILDING, FOREST, LAND, MATERIALS, SOIL, WATER, Scene
from ringmoe_jax import sensors
from ringmoe_jax.errors import DataError


def ground(classes, gsd: float, heights=0.0, tone=1.0, sun=(45.0, 180.0)) -> Scene:
    """A scene of one date with nothing in it but these classes."""
    classes = np.asarray(classes, np.int8)[None]
    fill = lambda values: np.broadcast_to(np.asarray(values, np.float32), classes.shape)  # noqa: E731
    return Scene(gsd, classes, fill(heights), fill(0), fill(tone), (), np.zeros(1, np.int32), sun=sun)


def flat(name: str, size: int, gsd: float = 10.0, **options) -> Scene:
    return ground(np.full((size, size), LAND.index(name)), gsd, **options)


# --- optical ---------------------------------------------------------------------------------------------------------


def index(sensor: str, first: str, second: str) -> dict[str, float]:
    """Normalised difference of two bands, by material."""
    table = sensors.get(sensor)
    a, b = spectra.band_reflectance([table.bands[table.band_index(n)] for n in (first, second)]).T
    return dict(zip(MATERIALS, (a - b) / (a + b), strict=True))


@pytest.mark.parametrize("sensor", ["ms4", "s2_10", "s2_12", "s2_13"])
def test_indices_tell_the_classes_apart(sensor):
    ndvi, ndwi = index(sensor, "nir", "red"), index(sensor, "green", "nir")
    assert ndvi["forest"] > 0.7 > 0.4 > ndvi["soil"] > 0 > ndvi["water"]
    assert ndwi["water"] > 0.4
    assert max(value for name, value in ndwi.items() if name in LAND and name != "water") < 0


def test_one_table_gives_every_sensor():
    red = [spectra.band_reflectance([sensors.get(n).bands[sensors.get(n).band_index("red")]]) for n in ("ms4", "s2_12")]
    np.testing.assert_array_equal(*red)
    # at 0.865 a boxcar of +- 0.026 on the line from 0.78 to 0.945 with a kink at 0.865
    nir = sensors.Band("n", 0, 1, 10, 0.865)
    soil = spectra.band_reflectance([nir])[MATERIALS.index("soil"), 0]
    below, above = (0.22 - 0.195) / (0.865 - 0.78), (0.235 - 0.22) / (0.945 - 0.865)
    steps = np.arange(1, 5) / 4 * 0.03 * 0.865
    np.testing.assert_allclose(soil, 0.22 + (above - below) * steps.sum() / 9, rtol=1e-9)


@pytest.mark.parametrize("wavelength", [None, 10.9])
def test_a_band_outside_of_the_table_is_an_error(wavelength):
    with pytest.raises(DataError, match=f'band "t" has the wavelength {wavelength}: the simulator wants 0.4 to 2.5'):
        spectra.band_reflectance([sensors.Band("t", 0, 1, 10, wavelength)])


def test_noise_is_as_stated_and_cells_are_measured_once():
    scene, sensor = flat("soil", 120), sensors.get("s2_12")
    pixels = spectra.observe(scene, sensor, np.random.default_rng(0), noise=0.01)[0] * 1e-4
    truth = spectra.band_reflectance(sensor.bands)[SOIL]
    for c, band in enumerate(sensor.bands):
        k = round(band.gsd / 10)
        cells = pixels[::k, ::k, c]
        np.testing.assert_array_equal(cells.repeat(k, 0).repeat(k, 1), pixels[..., c])
        n = cells.size
        assert abs(cells.mean() - truth[c]) < 5 * 0.01 / np.sqrt(n) + 1e-6
        assert abs(cells.var() / 0.01**2 - 1) < 5 * np.sqrt(2 / n)


def test_noise_of_the_sensor_table_is_in_the_sensors_unit():
    band = dataclasses.replace(sensors.get("s2_12").bands[1], noise=0.005)
    sensor = dataclasses.replace(sensors.get("s2_12"), bands=(band,))
    pixels = spectra.observe(flat("soil", 100), sensor, np.random.default_rng(0))[0] * 1e-4
    assert abs(pixels.std() / 0.005 - 1) < 0.05
    eight_bit = dataclasses.replace(
        sensors.get("rgb"), bands=(dataclasses.replace(sensors.get("rgb").bands[0], noise=0.04),)
    )
    pixels = spectra.observe(flat("soil", 100), eight_bit, np.random.default_rng(0))[0] / 255
    assert abs(pixels.std() / 0.04 - 1) < 0.05
    np.testing.assert_allclose(pixels.mean(), 0.155 / spectra.WHITE, rtol=0.02)


@given(st.integers(0, 40), st.integers(0, 40), st.floats(0.3, 8))
@settings(max_examples=40, deadline=None)
def test_point_spread_conserves_energy(row, column, sigma):
    values = np.zeros((41, 41))
    values[row, column] = 3.0
    seen = spectra.blurred(values, sigma)
    assert seen.min() >= 0
    np.testing.assert_allclose(seen.sum(), 3.0, rtol=1e-9)


def test_point_spread_has_its_width():
    values = np.zeros((81, 81))
    values[40, 40] = 1
    seen, at = spectra.blurred(values, 4.0), np.arange(81) - 40
    np.testing.assert_allclose([(seen.sum(a) * at**2).sum() for a in (0, 1)], 16, rtol=0.01)


def test_contrast_at_nyquist_is_the_stated_one():
    x = np.arange(200) + 0.5
    stripes = 1 + 0.5 * np.sin(2 * np.pi * x / 20)  # a period of two 10 m pixels, on a truth of 1 m
    scene = flat("sand", 200, gsd=1.0, tone=np.tile(stripes, (200, 1)))
    seen = spectra.observe(scene, sensors.get("s2_12"), np.random.default_rng(0), noise=0)[0, :, 2:-2, 3].astype(float)
    contrast = (seen[:, ::2].mean() - seen[:, 1::2].mean()) / seen.mean() / (2 * 0.5)
    np.testing.assert_allclose(abs(contrast), 2 / np.pi * np.exp(-2 * (np.pi * spectra.PSF * 0.5) ** 2), rtol=0.02)


def test_a_building_casts_its_shadow_away_from_the_sun():
    heights = np.zeros((40, 40))
    heights[20:25, 10:15] = 10.0
    classes = np.where(heights > 0, BUILDING, SOIL)
    light = spectra.illumination(ground(classes, 1.0, heights, sun=(45.0, 180.0)), 0)  # the sun is in the south
    dark = np.zeros((40, 40), bool)
    dark[11:20, 10:15] = True  # 10 m of shadow; at its end the light just passes
    np.testing.assert_allclose(light[dark], spectra.DIFFUSE)
    dark[10, 10:15] = True  # the end itself is a matter of rounding
    np.testing.assert_allclose(light[~dark], 1.0)


def test_slopes_follow_lambert():
    toward = 20 - 0.5 * np.arange(20.0)[:, None] + np.zeros(20)  # falls to the south, where the sun stands
    scene = ground(np.full((20, 20), FOREST), 1.0, toward, sun=(45.0, 180.0))
    direct = (spectra.illumination(scene, 0) - spectra.DIFFUSE) / (1 - spectra.DIFFUSE)
    wanted = np.cos(np.pi / 4 - np.arctan(0.5)) / np.sin(np.pi / 4)
    np.testing.assert_allclose(direct, wanted, rtol=1e-6)


# --- radar -----------------------------------------------------------------------------------------------------------


def many(name: str, count: int) -> np.ndarray:
    return np.broadcast_to(radar.covariance(*radar.SCATTERING[name]), (count, 4, 4))


@pytest.mark.parametrize("name", ["water", "forest", "building"])
def test_sample_covariance_converges(name):
    count = 40_000
    wanted = radar.covariance(*radar.SCATTERING[name])
    s = radar.single_look(many(name, count), np.random.default_rng(0))
    power = wanted.diagonal().real
    error = np.sqrt(np.outer(power, power) / count)  # standard deviation of an entry
    assert (abs(np.einsum("np,nq->pq", s, s.conj()) / count - wanted) < 5 * error).all()
    assert (abs(np.einsum("np,nq->pq", s, s) / count) < 6 * error).all()  # circular


def test_phases_of_a_covariance_are_kept():
    wanted = np.array([[2, 0.5 + 1j], [0.5 - 1j, 1]])  # S1 leads S2
    s = radar.single_look(np.broadcast_to(wanted, (40_000, 2, 2)), np.random.default_rng(0))
    np.testing.assert_allclose(np.einsum("np,nq->pq", s, s.conj()) / len(s), wanted, atol=5 * 2 / np.sqrt(len(s)))


def test_quad_samples_keep_the_double_bounce_of_a_town():
    pixels = simulate(flat("building", 128), ["slc_quad"])["slc_quad"].pixels[0].astype(np.float64)
    s, wanted = pixels[..., ::2] + 1j * pixels[..., 1::2], radar.covariance(*radar.SCATTERING["building"])
    assert wanted[0, 3].real < -0.3  # HH and VV in opposite phase
    np.testing.assert_allclose((s[..., 0] * s[..., 3].conj()).mean(), wanted[0, 3], atol=5 * 1.1 / 128)


def test_mechanisms_by_hand():
    surface, double, volume = (radar.covariance(*powers, nesz=0).real for powers in np.eye(3))
    np.testing.assert_allclose(surface[[0, 0, 3, 3], [0, 3, 0, 3]], [0.64, 0.8, 0.8, 1])
    np.testing.assert_allclose(double[[0, 0, 3, 3], [0, 3, 0, 3]], [1.44, -1.2, -1.2, 1])
    assert not (surface + double)[1:3].any()
    # a cloud of dipoles, integrated: k = (cos^2, sin cos, sin cos, sin^2), scaled to <VV> = 1
    angle = (np.arange(360) + 0.5) * np.pi / 360
    k = np.stack([np.cos(angle) ** 2, *[np.sin(angle) * np.cos(angle)] * 2, np.sin(angle) ** 2])
    np.testing.assert_allclose(volume, k @ k.T / (k[3] @ k[3]), atol=1e-12)


def test_every_material_has_a_covariance_of_typical_size():
    for name in MATERIALS:
        matrix = radar.covariance(*radar.SCATTERING[name])
        radar.check_covariance(matrix)
        _, hv, vh, vv = 10 * np.log10(matrix.diagonal().real)
        assert hv == vh
        assert vv > vh + 3
    vv = {name: radar.covariance(*radar.SCATTERING[name])[3, 3].real for name in MATERIALS}
    assert vv["ship"] > vv["building"] > vv["forest"] > vv["crop"] > vv["road"] > vv["water"]


def test_reciprocity_holds_up_to_noise():
    s = radar.single_look(many("forest", 20_000), np.random.default_rng(1))
    np.testing.assert_allclose((abs(s[:, 1] - s[:, 2]) ** 2).mean(), 2 * radar.NESZ, rtol=0.05)


@pytest.mark.parametrize("looks", [1, 3, 4.4, 10])
def test_looks_of_homogeneous_areas(looks):
    seen = radar.intensity(np.full(200_000, 0.07), looks, np.random.default_rng(2))
    np.testing.assert_allclose(seen.mean(), 0.07, rtol=0.02)
    np.testing.assert_allclose(seen.mean() ** 2 / seen.var(), looks, rtol=0.05)


def test_multilook_keeps_the_correlation_of_polarisations():
    wanted = radar.covariance(*radar.SCATTERING["soil"])
    seen = radar.multilook(many("soil", 15_000), 4, np.random.default_rng(3))
    np.testing.assert_allclose(seen, seen.swapaxes(-1, -2).conj(), atol=1e-15)
    power = seen.diagonal(axis1=-2, axis2=-1).real
    np.testing.assert_allclose(power.mean(0) ** 2 / power.var(0), 4, rtol=0.06)
    np.testing.assert_allclose(abs(seen[:, 0, 3].mean()), wanted[0, 3].real, rtol=0.03)
    correlation = np.corrcoef(power[:, 0], power[:, 3])[0, 1]  # |rho|^2 of the complex coherence (Goodman)
    np.testing.assert_allclose(correlation, abs(wanted[0, 3]) ** 2 / (wanted[0, 0] * wanted[3, 3]).real, atol=0.03)


@pytest.mark.parametrize("order", [2.0, 8.0])
def test_texture_makes_intensities_k_distributed(order):
    power = abs(radar.single_look(many("crop", 60_000), np.random.default_rng(4), texture=order)[:, 3]) ** 2
    np.testing.assert_allclose((power**2).mean() / power.mean() ** 2, 2 * (1 + 1 / order), rtol=0.06)


def test_sensors_have_the_power_and_looks_that_the_table_says():
    scene = flat("forest", 128)
    names = ("s1_grd", "sar_amplitude", "slc_single", "slc_dual", "slc_quad")
    images = {name: image.pixels[0].astype(np.float64) for name, image in simulate(scene, names, 5).items()}
    power = dict(zip(radar.POLARISATIONS, radar.covariance(*radar.SCATTERING["forest"]).diagonal().real, strict=True))
    seen = {"s1_grd": 10 ** (images["s1_grd"] / 10), "sar_amplitude": images["sar_amplitude"] ** 2}
    seen |= {n: images[n][..., ::2] ** 2 + images[n][..., 1::2] ** 2 for n in names[2:]}
    channels = {"s1_grd": ("VV", "VH"), "sar_amplitude": ("VV",), "slc_single": ("VV",), "slc_dual": ("VV", "VH")}
    for name in names:
        looks, polarisations = sensors.get(name).looks, channels.get(name, radar.POLARISATIONS)
        assert seen[name].shape == (128, 128, len(polarisations))
        for c, polarisation in enumerate(polarisations):
            values = seen[name][..., c]
            np.testing.assert_allclose(values.mean(), power[polarisation], rtol=6 / np.sqrt(looks * values.size))
            np.testing.assert_allclose(values.mean() ** 2 / values.var(), looks, rtol=0.1)


GOOD = np.eye(3, dtype=complex)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: radar.check_covariance(np.ones((2, 3))), r"shape \(2, 3\), wanted \[..., P, P\]"),
        (lambda: radar.check_covariance(GOOD * np.nan), "holds NaN or infinity"),
        (lambda: radar.check_covariance(GOOD + np.triu(GOOD + 1j, 1)), "differs from its conjugate transpose by 1"),
        (lambda: radar.check_covariance(np.ones((2, 2))), "eigenvalue .*, wanted all > 0: add a noise floor"),
        (lambda: radar.check_covariance(-GOOD), "has the eigenvalue -1, wanted all > 0"),
        (lambda: radar.single_look(GOOD, np.random.default_rng(), texture=0), "texture = 0: wanted an order > 0"),
        (lambda: radar.multilook(GOOD, 4.4, np.random.default_rng()), "looks = 4.4: wanted a whole number"),
        (lambda: radar.intensity(np.ones(3), 0, np.random.default_rng()), "looks = 0: wanted a number > 0"),
        (lambda: radar.intensity(np.array([-12.0]), 4, np.random.default_rng()), "finite linear sigma0 >= 0, not dB"),
    ],
)
def test_bad_covariances_and_looks_are_one_line(call, message):
    with pytest.raises(DataError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_good_covariances_pass():
    radar.check_covariance(GOOD)
    radar.check_covariance(np.array([[2, 1j], [-1j, 2]]))
    radar.check_covariance(many("water", 3))


# --- together --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1])
def test_edges_are_at_the_same_place_in_all_sensors(axis):
    """A coast at pixel 32 of 96: the largest step of the mean profile is there in every sensor."""
    classes = np.where(np.arange(96) < 32, WATER, BUILDING)
    classes = np.broadcast_to(classes[:, None] if axis == 0 else classes, (96, 96))
    scene = ground(classes, 2.5, np.where(classes == BUILDING, 10.0, 0.0), sun=(45.0, 0.0 if axis else 90.0))
    names = ("rgb", "ms4", "s2_12", "s1_grd", "sar_amplitude", "slc_dual", "slc_quad", "ndsm")
    for name, image in simulate(scene, names, 6).items():
        sensor, pixels = sensors.get(name), image.pixels[0].astype(np.float64)
        if sensor.resampling == "complex":
            shown = (pixels**2).sum(-1)
        elif sensor.modality == "multispectral":
            shown = pixels[..., sensor.band_index("nir")]
        else:
            shown = pixels[..., 0]
        step = np.argmax(abs(np.diff(shown.mean(1 - axis)))) + 1
        assert step * 96 // len(shown) == 32, name
