"""Objectives against closed forms, and the seam that lets a user bring their own."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpy.testing import assert_allclose

from ringmoe_jax import objectives, sensors
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.total_power import span

KNOWN = {name: sensors.get(name) for name in ("rgb", "slc_dual", "slc_quad", "s1_grd")}


def outputs(name, head, prediction, mask, **more):
    return {"heads": {name: {head: jnp.asarray(prediction)}}, "pixel_mask": {name: jnp.asarray(mask)}} | more


def test_masked_l1_by_hand():
    x = np.zeros((1, 1, 2, 2, 3), np.float32)
    x[0, 0, 0, 0] = [1.0, -2.0, 3.0]  # hidden: mean |error| = 2
    x[0, 0, 0, 1] = [0.3, 0.3, 0.3]  # hidden: 0.3
    x[0, 0, 1, 1] = 100.0  # visible: does not count
    mask = np.asarray([[[[True, True], [False, False]]]])
    (term,) = objectives.build({"rgb": {"name": "masked_l1", "sensor": "rgb"}}).values()
    value, weight, _ = term(outputs("rgb", "pixels", np.zeros_like(x), mask, standardised={"rgb": jnp.asarray(x)}), {})
    assert_allclose([value, weight], [2.3, 2.0], rtol=1e-6)


def test_span_is_the_same_in_the_pauli_basis():
    """|HH|^2 + |HV|^2 + |VH|^2 + |VV|^2 equals the sum of the Pauli powers (power conservation)."""
    pixels = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    hh, hv, vh, vv = (pixels[:, 2 * i] + 1j * pixels[:, 2 * i + 1] for i in range(4))
    pauli = [abs(hh + vv) ** 2 / 2, abs(hh - vv) ** 2 / 2, abs(hv + vh) ** 2 / 2, abs(hv - vh) ** 2 / 2]
    assert_allclose(span(jnp.asarray(pixels))[:, 0], sum(pauli), rtol=1e-5)


def slc_batch(pixels, valid):
    return {"sensors": {"slc_dual": {"pixels": jnp.asarray(pixels, jnp.float32), "valid": jnp.asarray(valid)}}}


def test_total_power_clips_and_scales_each_image():
    pixels = np.zeros((1, 1, 2, 2, 4), np.float32)
    pixels[0, 0, 0, 0] = [0.3, 0.4, 0, 0]  # 0.25
    pixels[0, 0, 0, 1] = [0.5, 0.5, 0.5, 0]  # 0.75
    pixels[0, 0, 1, 0] = [9, 9, 9, 9]  # 324, clipped to 1
    pixels[0, 0, 1, 1] = [np.nan] * 4  # no data
    valid = np.asarray([[[[True, True], [True, False]]]])
    term = objectives.TotalPower(sensor="slc_dual")
    target = term.target({}, slc_batch(pixels, valid))
    assert_allclose(target[0, 0, ..., 0], [[0.0, 2 / 3], [1.0, 0.0]], rtol=1e-5)

    def loss(prediction):
        out = outputs("slc_dual", "power", prediction, valid)
        value, weight, _ = term(out, slc_batch(pixels, valid))
        return value / weight

    prediction = jnp.full((1, 1, 2, 2, 1), 0.5)
    value, gradient = jax.value_and_grad(loss)(prediction)
    assert_allclose(value, (0.25 + (1 / 6) ** 2 + 0.25) / 3, rtol=1e-5)
    assert np.isfinite(np.asarray(gradient)).all()
    assert gradient[0, 0, 1, 1, 0] == 0  # no data, no gradient


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_total_power_of_a_constant_or_empty_image_is_finite(value):
    for valid in (np.ones((1, 1, 2, 2), bool), np.zeros((1, 1, 2, 2), bool)):
        target = objectives.TotalPower(sensor="slc_dual").target({}, slc_batch(np.full((1, 1, 2, 2, 4), value), valid))
        assert_allclose(target, 0.0)


def test_log_power_in_decibels():
    """Standardised channels of unit power each are 0 dB; 1 % of that is -20 dB."""
    x = np.zeros((1, 1, 1, 3, 4), np.float32)
    x[0, 0, 0, 0] = 1.0
    x[0, 0, 0, 1] = [0.2, 0, 0, 0]  # 0.04 / 4
    term = objectives.LogTotalPower(sensor="slc_dual", mean_db=-10.0, std_db=5.0, floor=1e-3)
    target = term.target({"standardised": {"slc_dual": jnp.asarray(x)}}, {})
    assert_allclose(target[0, 0, 0, :, 0], [2.0, -2.0, -4.0], rtol=1e-5)  # the floor is -30 dB


def test_minimisers_find_the_parameter():
    """Over fully developed speckle, the constant that minimises each loss converges to its known value."""
    rng = np.random.default_rng(0)
    n, sigma0 = 400_000, (0.04, 0.01)
    pixels = np.stack([rng.normal(scale=np.sqrt(s / 2), size=n) for s in sigma0 for _ in "ri"], axis=-1)
    batch = slc_batch(pixels.reshape(1, 1, 1, n, 4), np.ones((1, 1, 1, n), bool))
    unscaled = np.clip(np.asarray(span(batch["sensors"]["slc_dual"]["pixels"])), 0, 1)
    target = objectives.TotalPower(sensor="slc_dual").target({}, batch)
    restored = target.mean() * (unscaled.max() - unscaled.min()) + unscaled.min()
    assert_allclose(restored, sum(sigma0), rtol=0.01)  # squared error: the mean power
    # Log of a sum of two independent exponentials (hypoexponential): E ln P in closed form.
    a, b = sigma0
    expected = (a * np.log(a) - b * np.log(b)) / (a - b) - np.euler_gamma
    scaled = {"standardised": {"slc_dual": batch["sensors"]["slc_dual"]["pixels"] * 2.0}}  # relative to 4 channels
    term = objectives.LogTotalPower(sensor="slc_dual", mean_db=0.0, std_db=1.0, floor=1e-12)
    assert_allclose(term.target(scaled, {}).mean(), 10 / np.log(10) * expected, atol=0.05)


def test_gradient_against_finite_differences():
    rng = np.random.default_rng(0)
    pixels = rng.normal(scale=0.2, size=(2, 1, 3, 3, 4))
    batch = slc_batch(pixels, np.ones((2, 1, 3, 3), bool))
    mask = rng.random((2, 1, 3, 3)) < 0.6
    for term in (objectives.TotalPower(sensor="slc_dual"), objectives.LogTotalPower(sensor="slc_dual")):

        def loss(prediction, term=term):
            shown = {"standardised": {"slc_dual": batch["sensors"]["slc_dual"]["pixels"]}}
            return term(outputs("slc_dual", term.head, prediction, mask, **shown), batch)[0]

        check_grads(loss, (jnp.asarray(rng.normal(size=(2, 1, 3, 3, 1)), jnp.float32),), 1, rtol=1e-2)


def test_a_sensor_that_the_batch_lacks_adds_nothing():
    term = objectives.MaskedL1(sensor="rgb")
    assert [float(v) for v in term({"heads": {}}, {"sensors": {}})[:2]] == [0.0, 0.0]


def test_balance_sums_layers_and_groups():
    class Routed:
        balance = jnp.asarray([1.0, 1.5])

    value, weight, metrics = objectives.Balance()({"routing": {"specialised": Routed, "collaborative": Routed}}, {})
    assert [float(value), float(weight), float(metrics["specialised"])] == [5.0, 1.0, 2.5]


def test_scale_grows_linearly():
    term = objectives.Balance(scale=2.0, ramp_steps=4)
    assert_allclose([term.scale_at(jnp.int32(s)) for s in (0, 1, 3, 100)], [0.5, 1.0, 2.0, 2.0])


def test_heads_follow_from_objectives():
    terms = objectives.build(
        {
            "a": {"name": "masked_l1", "sensor": "rgb"},
            "b": {"name": "total_power", "sensor": "slc_quad"},
            "c": {"name": "log_total_power", "sensor": "slc_quad"},
            "d": {"name": "balance"},
        }
    )
    heads = objectives.collect_heads(terms, KNOWN)
    assert heads == {"rgb": {"pixels": 3}, "slc_quad": {"power": 1, "log_power": 1}}


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
        ({"x": {"name": "masked_l1"}}, "config.objectives.x.sensor is missing"),
        ({"x": {"name": "masked_l1", "sensor": "rgb", "scal": 1}}, 'x.scal does not exist: did you mean "scale"'),
        ({"x": {"name": "masked_l1", "sensor": "rgb", "scale": "big"}}, r"x.scale = 'big' is a str, wanted a float"),
        ({"x": {"name": "total_power", "sensor": "s1_grd"}}, 'needs a complex sensor, "s1_grd" is not one'),
    ],
)
def test_bad_configs(config, message):
    with pytest.raises(ConfigError, match=message):
        objectives.build(config)


def test_an_objective_about_a_sensor_that_the_model_lacks():
    with pytest.raises(ConfigError, match=r'MaskedL1 of "dem": not in model.sensors \(rgb'):
        objectives.collect_heads(objectives.build({"x": {"name": "masked_l1", "sensor": "dem"}}), KNOWN)


def test_a_name_belongs_to_one_class():
    with pytest.raises(ConfigError, match=r'objective "balance" is ringmoe_jax.objectives.balance.Balance already'):
        objectives.register("balance")(objectives.MaskedL1)
