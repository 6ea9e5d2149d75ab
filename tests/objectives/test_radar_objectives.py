"""Powers of SAR: polarimetric identities, total power, multilooking, parts of pixels, constraints, checks of input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import digamma

from ringmoe_jax import objectives, sensors
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives import radar
from ringmoe_jax.objectives.multilooked import box_mean, lee
from tests.helpers.tiny_outputs import best_constant, build, circular, compiled, decoded, loss, scene

DB = 10 / np.log(10)
EPS = np.finfo(np.float32).eps


def amplitudes(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def test_span_is_the_same_in_the_pauli_basis():
    """Power conservation, to the precision of float32; and the basis is the one in the books."""
    s = amplitudes((500, 4))
    pixels = np.stack([s.real, s.imag], axis=-1).reshape(500, 8)
    assert_allclose(radar.span(pixels)[:, 0], np.sum(abs(radar.pauli(s)) ** 2, axis=-1), rtol=8 * EPS)
    hh, hv, vh, vv = s.astype(np.complex128).T
    by_hand = np.stack([hh + vv, hh - vv, hv + vh, hv - vh], axis=-1) / np.sqrt(2)
    assert_allclose(radar.pauli(s), by_hand, atol=8 * EPS)
    assert_allclose(radar.as_complex(pixels), s)


def test_reciprocal_keeps_the_power_where_hv_is_vh():
    s = amplitudes((500, 4))
    s[:, 2] = s[:, 1]
    assert_allclose(np.sum(abs(radar.reciprocal(s)) ** 2, -1), np.sum(abs(s) ** 2, -1), rtol=8 * EPS)
    assert_allclose(radar.pauli(s)[:, 3], 0)


def test_covariance_is_hermitian_and_its_trace_is_the_span():
    s = amplitudes((7, 16, 4))
    c = np.asarray(radar.covariance(s))
    assert_allclose(c, np.swapaxes(c, -1, -2).conj(), rtol=8 * EPS, atol=8 * EPS)
    assert_allclose(np.trace(c, axis1=-2, axis2=-1).real, np.mean(np.sum(abs(s) ** 2, -1), -1), rtol=16 * EPS)
    assert_allclose(c[0], np.einsum("lp,lq->pq", s[0], s[0].conj()) / 16, rtol=1e-5, atol=1e-6)
    assert_allclose(c[0, 0, 1], np.mean(s[0, :, 0] * s[0, :, 1].conj()), rtol=1e-5)


def test_layout_of_windows():
    x = np.arange(5 * 7 * 2).reshape(1, 5, 7, 2)
    got = np.asarray(radar.windows(x, 2))
    assert got.shape == (1, 2, 3, 4, 2)
    for i in range(2):
        for j in range(3):
            assert (got[0, i, j] == x[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].reshape(4, 2)).all()


@pytest.mark.parametrize("name", ["slc_dual", "s1_grd", "sar_amplitude", "test_intensity"])
def test_one_intensity_in_every_unit(name):
    power = np.array([[1e-4, 0.02], [0.3, 40.0]])
    to_unit = {
        "slc_dual": lambda p: np.stack([np.sqrt(p) * np.cos(1), np.sqrt(p) * np.sin(1)], -1).reshape(2, 4),
        "s1_grd": lambda p: 10 * np.log10(p),
        "sar_amplitude": np.sqrt,
    }.get(name, lambda p: p)
    assert_allclose(radar.intensity(sensors.get(name), np.float32(to_unit(power))), power, rtol=1e-5)


@pytest.mark.parametrize(("name", "head"), [("speckle", "power"), ("multilooked", "multilooked")])
@pytest.mark.parametrize("sensor", ["sar_amplitude", "test_intensity"])
def test_negative_amplitudes_and_powers_do_not_count(name, head, sensor):
    pixels = np.full((4, 4, sensors.get(sensor).channels), 0.2)
    pixels[1, 2, 0] = -0.2
    outputs, batch = scene(sensor, pixels)
    term = build(name, sensor)
    assert compiled(term)(decoded(outputs, sensor, **{head: np.zeros(pixels.shape[-1])}), batch)[1] == 15
    others = np.isfinite(np.asarray(term.target(outputs, batch))[0, 0, ..., 0])
    assert others.sum() == 15
    assert not others[1, 2]


def test_mean_power_by_unit():
    assert_allclose(
        radar.mean_power(sensors.get("s1_grd"), sensors.get("s1_grd").statistics), [0.0547, 0.01178], rtol=1e-3
    )
    statistics = sensors.Statistics((0.3,), (0.4,), "test")
    assert_allclose(radar.mean_power(sensors.get("sar_amplitude"), statistics), [0.25])
    statistics = sensors.Statistics((0.1, 0, 0, 0.2), (1, 2, 3, 4), "test")
    assert_allclose(radar.mean_power(sensors.get("slc_dual"), statistics), [5.01, 25.04])
    zero = sensors.Statistics((0.0, 0.0), (1.0, 1.0), "test")
    assert (radar.mean_power(sensors.get("test_intensity"), zero) > 0).all()


def test_bounded_is_smooth_and_bounded():
    x = jnp.asarray([-1e30, -1e4, -0.01, 0.0, 0.01, 1e4, 1e30])
    assert_allclose(radar.bounded(x), [-12, -12, -0.01, 0, 0.01, 12, 12], rtol=1e-5)
    assert_allclose(jax.grad(lambda x: radar.bounded(x).sum())(x), [0, 0, 1, 1, 1, 0, 0], atol=1e-5)


@pytest.mark.parametrize("looks", [0, -1.0, np.nan, np.inf])
def test_bad_looks_are_refused(looks):
    with pytest.raises(ConfigError, match="wanted a finite number > 0"):
        radar.check_looks(looks)


def test_total_power_clips_and_scales_each_image():
    pixels = np.zeros((1, 1, 2, 2, 4), np.float32)
    pixels[0, 0, 0, 0] = [0.3, 0.4, 0, 0]  # 0.25
    pixels[0, 0, 0, 1] = [0.5, 0.5, 0.5, 0]  # 0.75
    pixels[0, 0, 1, 0] = [9, 9, 9, 9]  # 324, clipped to 1
    pixels[0, 0, 1, 1] = np.nan  # no data
    term, shown = build("total_power", "slc_dual"), scene("slc_dual", pixels, [[True, True], [True, False]])
    assert_allclose(term.target(*shown)[0, 0, ..., 0], [[0.0, 2 / 3], [1.0, np.nan]], rtol=1e-5)
    assert_allclose(loss(term, shown, span=[0.5]), (0.25 + (1 / 6) ** 2 + 0.25) / 3, rtol=1e-5)
    bright = np.concatenate([0.1 * pixels, pixels])  # two images, each on its own scale; 3.24 is clipped as well
    target = term.target(*scene("slc_dual", bright, np.isfinite(bright).all(axis=-1)))
    assert_allclose(target[0, 0, ..., 0], [[0.0, 0.005 / 0.9975], [1.0, np.nan]], rtol=1e-4)
    assert_allclose(target[1, 0, ..., 0], [[0.0, 2 / 3], [1.0, np.nan]], rtol=1e-5)


def test_total_power_on_the_scale_of_the_tile():
    """A dark crop of a tile whose power is 0.05 to 324, clipped to 1, stays dark; without the limits: one line."""
    pixels = np.zeros((1, 1, 1, 2, 4), np.float32)
    pixels[..., 0, 0], pixels[..., 1, 0] = 0.3, 0.5  # power 0.09 and 0.25
    term, (outputs, batch) = build("total_power", "slc_dual", limits="tile"), scene("slc_dual", pixels)
    with pytest.raises(ConfigError, match=r"set data.tile_power = True") as error:
        term.target(outputs, batch)
    assert "\n" not in str(error.value)
    batch["sensors"]["slc_dual"]["power"] = np.float32([[[0.05, 324.0]]])
    assert_allclose(term.target(outputs, batch).ravel(), [0.04 / 0.95, 0.2 / 0.95], rtol=1e-5)
    with pytest.raises(ConfigError, match='limits = "tle": did you mean "tile"'):
        build("total_power", "slc_dual", limits="tle")


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_total_power_of_a_constant_or_empty_image(value):
    term = build("total_power", "slc_dual")
    for valid in (np.ones((2, 2), bool), np.zeros((2, 2), bool)):
        outputs, batch = scene("slc_dual", np.full((2, 2, 4), value), valid)
        got, weight, _ = compiled(term)(decoded(outputs, "slc_dual", span=[0.5]), batch)
        assert_allclose([got, weight], [0.25 * valid.sum(), valid.sum()])


def test_log_power_in_decibels():
    """Standardised channels of unit power each are 0 dB; 1 % of that is -20 dB."""
    x = np.zeros((3, 4))
    x[0] = 1.0
    x[1] = [0.2, 0, 0, 0]  # 0.04 / 4
    term = objectives.LogTotalPower(sensor="slc_dual", mean_db=-10.0, std_db=5.0, floor=1e-3)
    target = term.target(*scene("slc_dual", 0.129 * x))
    assert_allclose(target[0, 0, 0, :, 0], [2.0, -2.0, -4.0], rtol=1e-5)  # the floor is -30 dB


def test_minimisers_of_total_power():
    """Over fully developed speckle: the mean power, and the mean of its logarithm, in closed form."""
    n, (a, b) = 40_000, (0.04, 0.01)
    pixels = circular(np.random.default_rng(0), np.diag([a, b]), (n,))
    power, shown = np.clip(np.sum(pixels**2, axis=-1), 0, 1), scene("slc_dual", pixels)
    found = best_constant(build("total_power", "slc_dual"), shown).x[0]
    assert_allclose(found * np.ptp(power) + power.min(), a + b, rtol=4 / np.sqrt(n))
    # Log of a sum of two independent exponentials (hypoexponential): E ln P in closed form.
    expected = (a * np.log(a) - b * np.log(b)) / (a - b) - np.euler_gamma
    term = objectives.LogTotalPower(sensor="slc_dual", mean_db=0.0, std_db=1.0, floor=1e-12)
    relative = best_constant(term, shown).x[0] + DB * np.log(4 * 0.129**2)
    assert_allclose(relative, DB * expected, atol=5.6 * 4 / np.sqrt(n) + 2e-3)


def test_single_look_constants_of_the_docstring():
    speckle = np.random.default_rng(0).exponential(size=400_000)
    assert_allclose(np.mean(DB * np.log(speckle)), objectives.LogTotalPower(sensor="slc_dual").mean_db, atol=0.03)
    assert_allclose(np.std(DB * np.log(speckle)), 5.6, atol=0.05)


def loop_mean(x, valid, side):
    half, out = side // 2, np.full(x.shape, np.nan)
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            area = np.s_[max(i - half, 0) : i + half + 1, max(j - half, 0) : j + half + 1]
            if valid[area].any():
                out[i, j] = x[area][valid[area]].mean(axis=0)
    return out


def test_filters_against_loops():
    rng = np.random.default_rng(0)
    power = rng.gamma(3.0, 0.02, size=(9, 8, 2)) * np.where(np.arange(8) < 4, 1, 8)[:, None]
    valid = rng.random((9, 8)) > 0.3
    valid[:4, :4] = False  # windows without any data
    dirty = np.where(valid[..., None], power, np.nan)
    assert_allclose(box_mean(np.float32(dirty), valid, 3), loop_mean(power, valid, 3), rtol=1e-5)
    mean = loop_mean(power, valid, 5)
    variance = loop_mean(power**2, valid, 5) - mean**2
    scene_variance = np.maximum(variance - mean**2 / 3.0, 0) / (1 + 1 / 3.0)
    by_hand = (mean + scene_variance / np.maximum(variance, 1e-12) * (power - mean))[valid]
    assert_allclose(lee(np.float32(dirty), valid, 5, 3.0)[valid], by_hand, rtol=1e-4)


def test_lee_smooths_speckle_and_keeps_a_point():
    power = np.random.default_rng(0).gamma(4.0, 0.25, size=(40, 40, 1))
    power[20, 20] = 1000.0
    got = np.asarray(lee(np.float32(power), np.ones((40, 40), bool), 7, 4.0))[..., 0]
    assert got[20, 20] > 700  # the gain is at most 1 / (1 + 1 / L) where structure is strong
    assert got[:12, :12].std() < 0.6 * power[:12, :12].std()


@pytest.mark.parametrize("name", ["s1_grd", "sar_amplitude"])
def test_boxcar_finds_the_mean_of_the_multilooked_decibels(name):
    """Which lie below the decibels of the mean power by DB (ln n - digamma(n)) of n = 25 L looks."""
    looks, sigma0, side = 4.0, 0.05, 120
    intensity = np.random.default_rng(0).gamma(looks, sigma0 / looks, size=(side, side, 1))
    pixels = np.sqrt(intensity) if name == "sar_amplitude" else np.repeat(DB * np.log(intensity), 2, axis=-1)
    inside = np.zeros((side, side), bool)
    inside[2:-2, 2:-2] = True  # windows at the border hold fewer pixels
    term = build("multilooked", name)
    found = best_constant(term, scene(name, pixels, hidden=inside)).x[0] * term.std_db
    mean = radar.mean_power(sensors.get(name), sensors.get(name).statistics)[0]
    n = 25 * looks
    expected = DB * (np.log(sigma0 / mean) + digamma(n) - np.log(n))
    assert_allclose(found, expected, atol=4 * DB / np.sqrt(looks * side**2))


def parts_scene(pixels, hidden=None, lost=(False, True)):
    hidden = np.zeros(np.shape(pixels)[:-1], bool) if hidden is None else hidden
    return scene("slc_dual", pixels, hidden=hidden, lost=np.tile(lost, 2))


def test_part_independence_is_the_normal_density_of_the_lost_part():
    pixels = circular(np.random.default_rng(0), np.diag([0.05, 0.02]), (30,))
    hidden = np.arange(30) < 4  # those belong to other objectives
    power = 2 * 0.129**2 * np.exp(12 * np.tanh(np.array([0.4, -0.7]) / 12))
    for part, lost in ((0, (True, False)), (1, (False, True))):
        shown = parts_scene(pixels, hidden, lost)
        got = loss(build("part_independence", "slc_dual"), shown, power=[0.4, -0.7])
        by_hand = -stats.norm(scale=np.sqrt(power / 2)).logpdf(pixels[4:, part::2]).mean() - np.log(np.pi) / 2
        assert_allclose(got, by_hand, rtol=1e-5)


def test_half_of_the_data_tells_sigma0():
    sigma0, n = np.array([0.05, 0.02]), 20_000
    pixels = circular(np.random.default_rng(0), np.diag(sigma0), (n,))
    term = build("part_independence", "slc_dual")
    for few in (400, n):
        found = best_constant(term, parts_scene(pixels, np.arange(n) >= few))
        power = np.asarray(radar.predicted_power(found.outputs, "slc_dual"))[0, 0, 0, 0]
        assert_allclose(power, 2 * np.mean(pixels[:few, 1::2] ** 2, axis=0), rtol=3e-3)
        assert_allclose(power, sigma0, rtol=3e-3 + 3.5 * np.sqrt(2 / few))  # half of the looks of a pixel


def test_part_independence_needs_its_pretext():
    shown = scene("slc_dual", np.ones((2, 4)))
    with pytest.raises(ConfigError, match=r'set pretext\.name = "masked_parts"'):
        build("part_independence", "slc_dual")(decoded(shown[0], "slc_dual", power=np.zeros(2)), shown[1])


def test_constraints_by_hand():
    shown = scene("slc_quad", np.zeros((1, 8)))
    bound = lambda x: 12 * np.tanh(np.asarray(x) / 12)  # noqa: E731
    power, pauli = [0.5, -1.0, 2.0, 0.1], [0.3, 0.2, 0.1, -0.4]
    by_hand = np.log(np.exp(bound(pauli)).sum() / np.exp(bound(power)).sum()) ** 2
    assert_allclose(
        loss(build("power_conservation", "slc_quad"), shown, power=power, pauli_power=pauli), by_hand, rtol=1e-4
    )
    assert_allclose(loss(build("reciprocity", "slc_quad"), shown, power=power), (bound(2) - bound(-1)) ** 2, rtol=1e-4)
    equal = [0.5, 0.7, 0.7, -3.0]
    assert loss(build("reciprocity", "slc_quad"), shown, power=equal) < 1e-9
    assert loss(build("power_conservation", "slc_quad"), shown, power=equal, pauli_power=equal[::-1]) < 1e-9


def test_constraints_weigh_measured_means():
    """Equal powers, not equal outputs: HV and VH may have different statistics."""
    statistics = sensors.Statistics((0,) * 8, (1, 1, 1, 1, 2, 2, 1, 1), "test")  # VH has four times the power
    shown = scene("slc_quad", np.zeros((1, 8)), statistics=statistics)
    same_span = loss(build("power_conservation", "slc_quad"), shown, power=np.zeros(4), pauli_power=np.zeros(4))
    assert same_span < 1e-9  # no output is no power more or less
    term = build("reciprocity", "slc_quad")
    assert loss(term, shown, power=[0.0, np.log(2.0), -np.log(2.0), 0.0]) < 1e-4
    assert_allclose(loss(term, shown, power=np.zeros(4)), np.log(4.0) ** 2, rtol=1e-4)
