"""Matching a teacher: NumPy references, minima, gradients, and what must not count."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import entropy

from ringmoe_jax import objectives, sensors
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.base import NOTHING
from tests.helpers.tiny_outputs import build, decoded, scene

FINE, COARSE = (2, 1, 4, 4, 6), (2, 1, 2, 2, 12)  # stages [B, T, h, w, D] of images of 8 x 8 pixels


def taught(seed=0, valid=None):
    """Outputs of a student and a teacher with random features and decoders, and their batch."""
    rng = np.random.default_rng(seed)
    valid = np.ones((2, 1, 8, 8), bool) if valid is None else valid
    hidden = rng.random(valid.shape) < 0.5
    shown = scene("s1_grd", rng.normal(size=(*valid.shape, 2)), valid, hidden)

    def outputs():
        fine, coarse = (rng.normal(3, 2, size=shape).astype(np.float32) for shape in (FINE, COARSE))
        said = decoded(shown[0], "s1_grd", pixels=rng.normal(size=(*valid.shape, 2)))
        logits = {"logits": rng.normal(size=(2, 5)).astype(np.float32)}
        return said | {"stages": {"s1_grd": (fine, coarse)}, "tokens": {"s1_grd": coarse}, "predictions": logits}

    return outputs() | {"teacher": outputs()}, shown[1]


def with_teacher(outputs, **changes):
    return outputs | {"teacher": outputs["teacher"] | changes}


def whitened(x):
    x = np.asarray(x, np.float64)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-6)


def smooth_l1(d, beta):
    return np.where(np.abs(d) > beta, np.abs(d) - beta / 2, d**2 / (2 * beta)).mean(axis=-1)


def ratio(result):
    return float(result[0]) / float(result[1])


# ---- Features -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_tokens_are_compared_by_smooth_l1_of_standardised_channels(beta):
    outputs, batch = taught()
    result = build("feature_matching", "s1_grd", beta=beta)(outputs, batch)
    a, b = (whitened(of["tokens"]["s1_grd"]) for of in (outputs, outputs["teacher"]))
    assert_allclose(ratio(result), smooth_l1(a - b, beta).mean(), rtol=1e-5)
    assert_allclose(result[2]["cosine"], (a * b).mean(), rtol=1e-4)


def test_all_stages_count_alike():
    outputs, batch = taught()
    own, wanted = outputs["stages"]["s1_grd"], outputs["teacher"]["stages"]["s1_grd"]
    means = [smooth_l1(whitened(s) - whitened(t), 1.0).mean() for s, t in zip(own, wanted, strict=True)]
    assert_allclose(
        ratio(build("feature_matching", "s1_grd", level="stages")(outputs, batch)), np.mean(means), rtol=1e-5
    )


def test_only_cells_with_a_valid_pixel_count():
    valid = np.ones((2, 1, 8, 8), bool)
    valid[0, :, :4] = False  # the upper half: 8 fine cells, 2 coarse ones
    valid[1, 0, 7, 7] = False  # one pixel of a cell
    outputs, batch = taught(valid=valid)
    term = build("feature_matching", "s1_grd", level="stages")
    value, weight, _ = term(outputs, batch)
    assert weight == 8 + 16 + 4 * (2 + 4)
    spoilt = [np.array(x) for x in outputs["teacher"]["stages"]["s1_grd"]]
    spoilt[0][0, :, :2] = np.nan
    spoilt[1][0, :, :1] = np.nan
    again = term(with_teacher(outputs, stages={"s1_grd": tuple(spoilt)}), batch)
    assert_array_equal(again[0], value)
    nothing = {"sensors": {"s1_grd": batch["sensors"]["s1_grd"] | {"valid": np.zeros_like(valid)}}}
    assert_array_equal(term(outputs, nothing)[:2], (0, 0))


@settings(deadline=None, max_examples=20)
@given(scale=st.floats(0.1, 50), shift=st.floats(-20, 20))
def test_equal_features_at_any_scale_cost_nothing(scale, shift):
    outputs, batch = taught()
    same = with_teacher(outputs, tokens={"s1_grd": scale * outputs["tokens"]["s1_grd"] + shift})
    value, _, seen = build("feature_matching", "s1_grd")(same, batch)
    assert_allclose(value, 0, atol=1e-4)
    assert_allclose(seen["cosine"], 1, atol=1e-3)


def test_gradients_of_features_are_those_of_finite_differences():
    outputs, batch = taught()
    term = build("feature_matching", "s1_grd")

    def loss(tokens):
        value, weight, _ = term(outputs | {"tokens": {"s1_grd": tokens}}, batch)
        return value / weight

    tokens = outputs["tokens"]["s1_grd"]
    direction = np.random.default_rng(3).normal(size=tokens.shape).astype(np.float32)
    run = jax.jit(loss)
    slope = np.sum(jax.jit(jax.grad(loss))(tokens) * direction)
    numeric = (float(run(tokens + 1e-2 * direction)) - float(run(tokens - 1e-2 * direction))) / 2e-2
    assert_allclose(slope, numeric, rtol=2e-2)


def test_features_of_other_shapes():
    outputs, batch = taught()
    wide = np.zeros((2, 1, 2, 2, 24), np.float32)
    with pytest.raises(
        ConfigError, match=r"tokens .* are \[2, 1, 2, 2, 12\] of the student, \[2, 1, 2, 2, 24\] of the teacher"
    ):
        build("feature_matching", "s1_grd")(with_teacher(outputs, tokens={"s1_grd": wide}), batch)


# ---- Decoders -------------------------------------------------------------------------------------


def test_decoders_are_compared_where_pixels_were_hidden_and_valid():
    valid = np.random.default_rng(1).random((2, 1, 8, 8)) < 0.8
    outputs, batch = taught(valid=valid)
    result = build("prediction_matching", "s1_grd")(outputs, batch)
    a, b = (of["heads"]["s1_grd"]["pixels"] for of in (outputs, outputs["teacher"]))
    mask = outputs["pixel_mask"]["s1_grd"]
    assert 0 < mask.sum() < valid.sum()
    assert result[1] == mask.sum()
    assert_allclose(ratio(result), np.abs(a - b)[mask].mean(), rtol=1e-5)


def test_which_decoder_the_model_must_have():
    assert build("prediction_matching", "s1_grd").heads(sensors.SENSORS) == {"s1_grd": {"pixels": 2}}
    assert build("prediction_matching", "slc_dual", head="span").heads(sensors.SENSORS) == {}


def test_decoders_that_cannot_be_compared():
    outputs, batch = taught()
    with pytest.raises(ConfigError, match=r'the student has no decoder "s1_grd/pixel": did you mean "pixels"'):
        build("prediction_matching", "s1_grd", head="pixel")(outputs, batch)
    with pytest.raises(ConfigError, match=r'the teacher has no decoder "s1_grd/pixels"'):
        build("prediction_matching", "s1_grd")(with_teacher(outputs, heads={}), batch)
    other = {"s1_grd": sensors.Statistics((0.0, 0.0), (1.0, 1.0), "another set")}
    with pytest.raises(ConfigError, match=r"student and teacher differ in statistics"):
        build("prediction_matching", "s1_grd")(with_teacher(outputs, statistics=other), batch)


# ---- Logits ---------------------------------------------------------------------------------------


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_logits_are_compared_by_divergence(temperature):
    outputs, batch = taught()
    result = build("logit_matching", "s1_grd", temperature=temperature)(outputs, batch)
    q, p = (softmax(of["predictions"]["logits"] / temperature) for of in (outputs, outputs["teacher"]))
    assert_allclose(ratio(result), temperature**2 * entropy(p, q, axis=-1).mean(), rtol=1e-4)
    assert result[1] == 2
    agree = (p.argmax(axis=-1) == q.argmax(axis=-1)).mean()
    assert_allclose(result[2]["agreement"], agree)


def test_maps_of_logits_count_valid_pixels():
    valid = np.random.default_rng(1).random((2, 1, 8, 8)) < 0.8
    outputs, batch = taught(valid=valid)
    rng = np.random.default_rng(2)
    a, b = (rng.normal(size=(2, 8, 8, 3)).astype(np.float32) for _ in range(2))
    shown = with_teacher(outputs, predictions={"logits": b}) | {"predictions": {"logits": a}}
    result = build("logit_matching", "s1_grd", temperature=1.0)(shown, batch)
    assert result[1] == valid.sum()
    assert_allclose(ratio(result), entropy(softmax(b), softmax(a), axis=-1)[valid[:, 0]].mean(), rtol=1e-4)


def test_images_without_a_valid_pixel_have_no_say():
    valid = np.ones((2, 1, 8, 8), bool)
    valid[1] = False
    outputs, batch = taught(valid=valid)
    result = build("logit_matching", "s1_grd", temperature=1.0)(outputs, batch)
    q, p = (softmax(of["predictions"]["logits"][:1]) for of in (outputs, outputs["teacher"]))
    assert_allclose(ratio(result), entropy(p, q, axis=-1)[0], rtol=1e-4)


def test_other_classes():
    outputs, batch = taught()
    six = {"logits": np.zeros((2, 6), np.float32)}
    with pytest.raises(ConfigError, match=r"is \[2, 5\] of the student and \[2, 6\] of the teacher, wanted \[2, 'C'\]"):
        build("logit_matching", "s1_grd")(with_teacher(outputs, predictions=six), batch)


# ---- All ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["feature_matching", "prediction_matching", "logit_matching", "relation_matching"])
def test_every_one_needs_a_teacher_and_a_sensor_of_the_model(name):
    outputs, batch = taught()
    alone = {key: value for key, value in outputs.items() if key != "teacher"}
    with pytest.raises(ConfigError, match=r"needs the outputs of another model: name a run in config\.teacher"):
        build(name, "s1_grd")(alone, batch)
    with pytest.raises(ConfigError, match=r'of "rgb": not in model.sensors'):
        build(name, "rgb").heads({"s1_grd": sensors.get("s1_grd")})


@pytest.mark.parametrize("name", ["feature_matching", "prediction_matching", "relation_matching"])
def test_a_batch_without_the_sensor_adds_nothing(name):
    outputs, batch = taught()
    assert build(name, "rgb")(outputs, batch) == NOTHING


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(name="feature_matching", level="stage"), 'level = "stage" does not exist: did you mean "stages"'),
        (dict(name="feature_matching", beta=0.0), r"beta = 0.0, wanted > 0"),
        (dict(name="logit_matching", temperature=-1.0), r"temperature = -1.0, wanted > 0"),
        (dict(name="relation_matching", level="token"), 'level = "token" does not exist: did you mean "tokens"'),
        (dict(name="relation_matching", temperature=0.0), r"temperature = 0.0, wanted > 0"),
    ],
)
def test_wrong_fields(fields, message):
    with pytest.raises(ConfigError, match=message):
        objectives.build({"x": {"sensor": "s1_grd"} | fields})
