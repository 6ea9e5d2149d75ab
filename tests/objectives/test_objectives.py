"""The seam: configs to objectives, heads, objectives of one's own; and the masked pixel losses."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from ringmoe_jax import objectives, sensors
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.base import NOTHING
from tests.helpers.tiny_outputs import best_constant, build, decoded, loss, pixels_of, scene

KNOWN = {name: sensors.get(name) for name in ("rgb", "slc_dual", "slc_quad", "s1_grd")}


def test_masked_l1_and_l2_by_hand():
    x = np.zeros((2, 2, 3))
    x[0, 0] = [1.0, -2.0, 3.0]  # hidden: mean |error| 2, mean square 14 / 3
    x[0, 1] = 0.3  # hidden
    x[1, 1] = 100.0  # visible: does not count
    plain = sensors.Statistics((0,) * 3, (1,) * 3, "test")
    outputs, batch = scene("rgb", x, hidden=[[True, True], [False, False]], statistics=plain)
    for name, by_hand in (("masked_l1", 2.3), ("masked_l2", 14 / 3 + 0.09)):
        value, weight, _ = build(name, "rgb")(decoded(outputs, "rgb", pixels=np.zeros(3)), batch)
        assert_allclose([value, weight], [by_hand, 2.0], rtol=1e-6)


def test_noise_weights_by_hand():
    """Noise in the unit of the pixels; weights have mean 1, and a quieter band counts more."""
    statistics = sensors.Statistics((0, 0, 0), (2, 2, 2), "test")
    shown = scene("rgb", np.full((1, 3), 2.0), statistics=statistics)  # standardised: 1
    term = build("noise_weighted", "rgb", noise=(0.1, 0.2, 0.4))
    weights = np.array([20, 10, 5]) / (35 / 3)
    assert_allclose(term.weights(shown[0]), weights, rtol=1e-6)
    assert_allclose(loss(term, shown, pixels=[1.0, 1.0, 0.0]), weights[2] / 3, rtol=1e-6)
    assert_allclose(loss(term, shown, pixels=[0.0, 0.0, 0.0]), 1.0, rtol=1e-6)


def test_noise_of_sentinel_2_is_the_tables():
    term, sensor = build("noise_weighted", "s2_12"), sensors.get("s2_12")
    assert term.noise_of(sensor) == tuple(band.noise for band in sensor.bands)
    assert 1e-4 < min(term.noise_of(sensor)) < max(term.noise_of(sensor)) < 1e-2  # below the scenes' contrast


@pytest.mark.parametrize(("name", "reference"), [("masked_l1", stats.laplace), ("masked_l2", stats.norm)])
def test_nats_are_a_density_of_pixels_in_the_sensors_unit(name, reference):
    sensor, term = sensors.get("s1_grd"), build(name, "s1_grd")
    dB = np.linspace(-120.0, 80.0, 4001)
    outputs, batch = scene("s1_grd", np.stack([dB, dB], axis=-1))
    outputs = decoded(outputs, "s1_grd", pixels=[0.4, -1.0])
    target, noise = term.target(outputs, batch), jnp.float32(0.8)
    nats = term.nats(term.prediction(outputs), target, noise) + term.change_of_unit(outputs, target)
    for band, x in enumerate((0.4, -1.0)):
        mean, std = sensor.statistics.mean[band], sensor.statistics.std[band]
        got = np.asarray(nats[0, 0, 0, :, band], np.float64)
        assert_allclose(got, -reference(mean + x * std, 0.8 * std).logpdf(dB), rtol=1e-4, atol=1e-4)
        assert_allclose(np.trapezoid(np.exp(-got), dB), 1.0, atol=1e-3)


@pytest.mark.parametrize(("name", "statistic"), [("masked_l1", np.median), ("masked_l2", np.mean)])
def test_minimiser_is_the_median_or_the_mean(name, statistic):
    rng = np.random.default_rng(0)
    dB = -12 + 5 * rng.exponential(size=(4001, 2))
    found = best_constant(build(name, "s1_grd"), scene("s1_grd", dB)).x
    mean, std = (np.asarray(x) for x in (sensors.get("s1_grd").statistics.mean, sensors.get("s1_grd").statistics.std))
    assert_allclose(found, (statistic(dB, axis=0) - mean) / std, atol=5e-3)


def test_minimiser_of_the_noise_weighted_loss_is_the_median():
    """Weights change which band matters, not what is best in each."""
    pixels = np.abs(pixels_of("s2_12", np.random.default_rng(0), (501,)))
    shown = scene("s2_12", pixels)
    median = np.median(np.asarray(shown[0]["standardised"]["s2_12"])[0, 0, 0], axis=0)
    slope = jax.grad(lambda x: loss(build("noise_weighted", "s2_12"), shown, pixels=x))
    assert (np.asarray(slope(jnp.asarray(median + 0.05))) > 0).all()
    assert (np.asarray(slope(jnp.asarray(median - 0.05))) < 0).all()


def test_balance_sums_layers_and_groups():
    class Routed:
        balance = jnp.asarray([1.0, 1.5])

    value, weight, metrics = objectives.Balance()({"routing": {"specialised": Routed, "collaborative": Routed}}, {})
    assert [float(value), float(weight), float(metrics["specialised"])] == [5.0, 1.0, 2.5]
    assert float(objectives.Balance()({"routing": {}}, {})[0]) == 0.0


def test_heads_follow_from_objectives():
    terms = objectives.build(
        {
            "a": {"name": "masked_l1", "sensor": "rgb"},
            "b": {"name": "total_power", "sensor": "slc_quad"},
            "c": {"name": "log_total_power", "sensor": "slc_quad"},
            "d": {"name": "complex_gaussian", "sensor": "slc_quad"},
            "e": {"name": "power_conservation", "sensor": "slc_quad"},  # shares the decoder of d
            "f": {"name": "wishart", "sensor": "slc_dual"},
            "g": {"name": "wishart", "sensor": "slc_quad", "reciprocal": True},
            "h": {"name": "balance"},
        }
    )
    assert objectives.collect_heads(terms, KNOWN) == {
        "rgb": {"pixels": 3},
        "slc_quad": {"span": 1, "log_span": 1, "power": 4, "pauli_power": 4, "reciprocal_covariance": 9},
        "slc_dual": {"covariance": 4},
    }
    assert {term.together() for term in terms.values()} == {()}


def test_two_objectives_cannot_want_different_channels_of_a_head():
    class Odd(objectives.MaskedL1):
        def channels(self, sensor):
            return 7

    terms = {"a": objectives.MaskedL1(sensor="rgb"), "b": Odd(sensor="rgb")}
    with pytest.raises(ConfigError, match="objective b wants 7 channels of rgb/pixels, another wants 3"):
        objectives.collect_heads(terms, KNOWN)


def test_an_objective_of_ones_own(tmp_path, monkeypatch):
    """One file outside the package and one config line."""
    (tmp_path / "my_losses.py").write_text(
        "import dataclasses\n"
        "from ringmoe_jax.objectives import MaskedL1\n"
        "@dataclasses.dataclass(frozen=True, kw_only=True)\n"
        "class Squared(MaskedL1):\n"
        "    factor: float = 1.0\n"
        "    def penalty(self, prediction, target):\n"
        "        return self.factor * (prediction - target) ** 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (term,) = objectives.build({"x": {"name": "my_losses:Squared", "sensor": "rgb", "factor": 2}}).values()
    assert float(term.penalty(jnp.float32(3.0), jnp.float32(0.0))) == 18.0
    del sys.modules["my_losses"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config.objectives is empty"),
        ({"x": {"name": "maskd_l1", "sensor": "rgb"}}, r'x.name = "maskd_l1" does not exist: did you mean "masked_l1"'),
        ({"x": {"name": "no_such_module:Loss"}}, "cannot be imported"),
        ({"x": {"name": "json:Loss"}}, "cannot be imported"),
        ({"x": {"name": "masked_l1"}}, "config.objectives.x.sensor is missing"),
        ({"x": {"name": "masked_l1", "sensor": "rgb", "scal": 1}}, 'x.scal does not exist: did you mean "scale"'),
        ({"x": {"name": "masked_l1", "sensor": "rgb", "scale": "big"}}, r"x.scale = 'big' is a str, wanted a float"),
        ({"x": {"name": "speckle", "sensor": "s1_gdr"}}, 'unknown sensor "s1_gdr": did you mean "s1_grd"'),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ConfigError, match=message):
        objectives.build(config)


COMPLEX, SAR = 'needs a complex sensor, "{}" is not one', 'needs a SAR sensor .*, "{}" is not one'
QUAD = 'needs the polarisations HH HV VH VV, "{}" has VV VH'


@pytest.mark.parametrize(
    ("name", "sensor", "fields", "message"),
    [
        ("total_power", "s1_grd", {}, COMPLEX),
        ("log_total_power", "rgb", {}, COMPLEX),
        ("complex_gaussian", "s1_grd", {}, COMPLEX),
        ("complex_gaussian", "slc_dual", {"looks": 4.0}, "looks = 4.0: a single-look complex pixel has 1"),
        ("complex_gaussian", "slc_dual", {"basis": "pauli"}, QUAD),
        ("complex_gaussian", "slc_quad", {"basis": "paulli"}, 'basis = "paulli": wanted one of lexicographic, pauli'),
        ("wishart", "sar_amplitude", {}, COMPLEX),
        ("wishart", "slc_dual", {"reciprocal": True}, QUAD),
        ("wishart", "slc_dual", {"window": 0}, "window = 0: wanted at least 1 pixel"),
        ("part_independence", "sar_amplitude", {}, COMPLEX),
        ("speckle", "rgb", {}, SAR),
        ("speckle", "s1_grd", {"looks": 0.0}, "looks = 0.0: wanted a finite number > 0"),
        ("speckle", "s1_grd", {"looks": -1.0}, "looks = -1.0: wanted a finite number > 0"),
        ("speckle", "s1_grd", {"looks": float("nan")}, "looks = nan: wanted a finite number"),
        ("multilooked", "s2_12", {}, SAR),
        ("multilooked", "s1_grd", {"window": 4}, "window = 4: wanted an odd number"),
        ("multilooked", "s1_grd", {"filter": "box"}, 'filter = "box": wanted "boxcar" or "lee"'),
        ("power_conservation", "slc_dual", {}, QUAD),
        ("power_conservation", "s2_12", {}, COMPLEX),
        ("reciprocity", "slc_dual", {}, QUAD),
        ("spectral_indices", "s1_grd", {}, '"s1_grd" (is in dB|lacks)'),
        ("spectral_angle", "s1_grd", {}, r'SpectralAngle needs a sensor in reflectance, "s1_grd" is in dB'),
        ("reflectance_bounds", "dem", {}, r'ReflectanceBounds needs a sensor in reflectance, "dem" is in m above'),
        ("reflectance_bounds", "s2_12", {"low": 1.0, "high": 1.0}, "wanted low < high"),
        ("brightness_temperature", "s2_12", {}, r'needs a sensor in W m-2 sr-1 um-1, "s2_12" is in reflectance'),
        ("noise_weighted", "rgb", {}, 'the table knows no noise of "rgb": give `noise`'),
        ("noise_weighted", "rgb", {"noise": (1.0, 2.0)}, "wanted 3 values > 0"),
        ("noise_weighted", "rgb", {"noise": (1.0, 2.0, 0.0)}, "wanted 3 values > 0"),
        ("noise_weighted", "rgb", {"noise": (1.0, 2.0, float("nan"))}, "noise\\[2\\] = nan: wanted a finite number"),
        ("fourier_l1", "rgb", {"exponent": -1.0}, "exponent = -1.0, wanted at least 0"),
        ("native_resolution", "s2_12", {"gsd": -10.0}, "gsd = -10.0 m, wanted > 0"),
    ],
)
def test_what_does_not_suit_a_sensor_is_said_in_one_line(name, sensor, fields, message):
    with pytest.raises(ConfigError, match=message.format(sensor)) as caught:
        build(name, sensor, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["masked_l1", "fourier_l1", "spectral_angle", "reflectance_bounds"])
def test_an_objective_about_a_sensor_that_the_model_lacks(name):
    with pytest.raises(ConfigError, match=r'of "s2_12": not in model.sensors \(rgb'):
        objectives.collect_heads(objectives.build({"x": {"name": name, "sensor": "s2_12"}}), KNOWN)


def test_a_name_belongs_to_one_class():
    with pytest.raises(ConfigError, match=r'objective "balance" is ringmoe_jax.objectives.balance.Balance already'):
        objectives.register("balance")(objectives.MaskedL1)


def test_nothing_stays_nothing():
    """The shared result of an absent sensor cannot be changed by who gets it."""
    assert [float(x) for x in NOTHING[:2]] == [0.0, 0.0]
    assert NOTHING[2] == {}


@pytest.mark.parametrize(
    ("term", "left"),
    [
        (dict(name="masked_l1", sensor="rgb"), None),
        (dict(name="masked_l1", sensor="s2_12"), dict(name="masked_l1", sensor="s2_12")),
        (dict(name="vicreg", streams=("rgb", "s2_12")), dict(name="vicreg", streams=("s2_12",))),
        (dict(name="vicreg", streams=("rgb",)), None),
        (dict(name="balance"), dict(name="balance")),
    ],
)
def test_objectives_without_a_sensor(term, left):
    assert objectives.without({"label": term}, {"rgb"}) == ({} if left is None else {"label": left})
