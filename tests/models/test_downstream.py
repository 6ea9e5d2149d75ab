"""Neck and head on an encoder: sensors fused, dates reduced, missing sensors, gradients where they belong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringmoe_jax import models
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.downstream import HeadSpec, attach
from ringmoe_jax.models.heads.neck import EACH, MEAN, PAIR, NeckConfig, _dates
from tests.helpers.parameters import stirred
from tests.helpers.tiny import RINGMOE, SKYSENSE, batch

MAP = ("height", "width", "class")
CLASSIFY = HeadSpec("linear", {"logits": ("class",)}, 3, MEAN)
SEGMENT = HeadSpec("fcn", {"logits": MAP}, 3, MEAN, "rgb")
FCN = dict(name="fcn", channels=8, dropout=0.0)


def built(model=RINGMOE, head=None, neck=NeckConfig(), spec=CLASSIFY, dates=1):  # noqa: B008
    """The logits of an encoder with a head as a function, made once for all tests; parameters for it and a batch."""
    key, example = repr((model, head, neck, spec, dates)), batch(model, dates=dates)
    if key not in _BUILT:
        attached = attach(models.build(model), head or {}, neck, spec, example)
        logits = lambda p, b, key=None, train=False: attached.apply(p, b, key=key, train=train)["predictions"]["logits"]  # noqa: E731
        _BUILT[key] = attached.shapes(), jax.jit(logits, static_argnames="train")
    shapes, logits = _BUILT[key]
    return logits, stirred(shapes), example


_BUILT = {}


def hidden(shown, *names):
    """The batch with garbage in the pixels of some sensors, and nothing valid."""
    sensors = {
        name: entry | {"pixels": 1e3 * jnp.ones_like(entry["pixels"]), "valid": jnp.zeros_like(entry["valid"])}
        if name in names
        else entry
        for name, entry in shown["sensors"].items()
    }
    return {"sensors": sensors}


def test_predictions_have_the_image_s_size():
    apply, params, example = built(head=FCN, spec=SEGMENT)
    logits = apply(params, example)
    assert logits.shape == (2, 16, 16, 3)
    assert logits.dtype == jnp.float32
    assert set(params) == {"encoder", "decoder"}


@pytest.mark.parametrize("fusion", ["concat", "gated"])
def test_a_sensor_that_is_not_there_changes_nothing_but_by_its_absence(fusion):
    apply, params, example = built(neck=NeckConfig(fusion=fusion))
    both, one = apply(params, example), apply(params, hidden(example, "s1_grd"))
    assert np.abs(both - one).max() > 1e-6
    other = hidden(batch(RINGMOE, seed=0), "s1_grd")
    other["sensors"]["s1_grd"]["pixels"] = -5 * other["sensors"]["s1_grd"]["pixels"]
    np.testing.assert_allclose(apply(params, other), one, rtol=1e-5, atol=1e-6)
    assert np.isfinite(apply(params, hidden(example, "rgb", "s1_grd"))).all()


def test_gates_of_one_sensor_are_one():
    """With one of two sensors there, a gated sum is that sensor's projection, whatever the gate says."""
    apply, params, example = built(neck=NeckConfig(fusion="gated"))
    one = hidden(example, "rgb")
    before = apply(params, one)
    for level in params["decoder"]["neck"]["mix"]["s1_grd"].values():
        level["bias"][-1] += 7.0  # the gate's logit
    np.testing.assert_allclose(apply(params, one), before, rtol=1e-6, atol=1e-7)


def test_a_sensor_that_the_encoder_does_not_know_is_not_shown_to_it():
    apply, params, example = built(head=FCN, spec=SEGMENT)
    more = {"sensors": example["sensors"] | {"ndsm": {"pixels": jnp.ones((2, 1, 16, 16, 1))}}}
    np.testing.assert_array_equal(apply(params, more), apply(params, example))


def test_modality_dropout_hides_sensors_but_never_all():
    apply, params, example = built(neck=NeckConfig(modality_dropout=0.9))
    whole, none = apply(params, example), apply(params, hidden(example, *RINGMOE["sensors"]))
    drawn = np.stack([apply(params, example, key=jax.random.key(i), train=True) for i in range(8)])
    assert np.ptp(drawn, axis=0).max() > 1e-6  # something was dropped
    assert np.abs(drawn - none).max(axis=(1, 2)).min() > 1e-6  # never everything
    assert np.isfinite(whole).all()


def test_mean_over_dates_leaves_out_dates_that_were_not_seen():
    apply, params, example = built(dates=3)
    entry = example["sensors"]["rgb"]
    cloudy = entry | {"valid": entry["valid"].at[:, 1].set(False)}
    garbage = cloudy | {"pixels": entry["pixels"].at[:, 1].set(1e4)}
    one, two = (apply(params, {"sensors": example["sensors"] | {"rgb": e}}) for e in (cloudy, garbage))
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert np.abs(one - apply(params, example)).max() > 1e-6


def test_dates_as_a_pair_and_as_images():
    x = jnp.arange(2 * 3 * 4.0).reshape(2, 3, 2, 2, 1)
    there = jnp.array([[True, False, True], [True, True, False]])
    pair, seen = _dates(x, there, PAIR)
    np.testing.assert_array_equal(pair, x[:, [0, 2]])
    np.testing.assert_array_equal(seen[..., 0, 0, 0], [[True, True], [True, False]])
    each, seen = _dates(x, there, EACH)
    np.testing.assert_array_equal(each, x.reshape(6, 2, 2, 1))
    np.testing.assert_array_equal(seen.ravel(), there.ravel())
    mean, seen = _dates(x, there, MEAN)
    np.testing.assert_allclose(mean[0], (x[0, 0] + x[0, 2]) / 2)
    np.testing.assert_allclose(mean[1], (x[1, 0] + x[1, 1]) / 2)
    assert seen.all()


def test_exchanging_dates_leaves_a_difference_head_alone():
    spec = HeadSpec("change_difference", {"logits": MAP}, 2, PAIR, "rgb")
    head = dict(decoder="fcn", channels=8, dropout=0.0)
    apply, params, example = built(head=head, spec=spec, dates=2)
    swapped = {
        "sensors": {
            n: jax.tree.map(lambda x: x[:, ::-1] if x.ndim > 3 else x, e) for n, e in example["sensors"].items()
        }
    }
    assert apply(params, example).shape == (2, 16, 16, 2)
    np.testing.assert_allclose(apply(params, swapped), apply(params, example), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("streams", [("fused",), ("s2_10", "fused"), ("s2_10",)])
def test_skysense_gives_its_fusion_its_encoders_or_both(streams):
    apply, params, example = built(SKYSENSE, neck=NeckConfig(streams=streams), dates=2)
    assert jax.eval_shape(apply, params, example).shape == (2, 3)
    if len(streams) == 2:
        assert np.isfinite(apply(params, example)).all()
    assert set(params["decoder"]["neck"]["norms"]) == set(streams)
    levels = len(params["decoder"]["neck"]["norms"][streams[0]])
    assert levels == (1 if streams == ("fused",) else 2)


@pytest.mark.parametrize(
    ("head", "neck", "spec", "message"),
    [
        (dict(name="upernet"), NeckConfig(), CLASSIFY, "does not suit this task"),
        ({}, NeckConfig(streams=("s2_12",)), CLASSIFY, "the encoder does not give"),
        (
            dict(rotated=True),
            NeckConfig(),
            HeadSpec("fcos", {"box": ("point", "parameter")}, 2, MEAN, "rgb", {"rotated": False}),
            "follows from the task",
        ),
    ],
)
def test_what_does_not_fit_is_named(head, neck, spec, message):
    with pytest.raises(ConfigError, match=message):
        built(head=head, neck=neck, spec=spec)


def test_fused_features_have_no_dates_to_compare():
    with pytest.raises(ConfigError, match="no dates"):
        built(
            SKYSENSE,
            neck=NeckConfig(streams=("fused",)),
            spec=HeadSpec("change_difference", {"logits": MAP}, 2, PAIR),
            dates=2,
        )


def test_a_sensor_that_is_missing_from_the_batch_is_named():
    apply, params, example = built()
    del example["sensors"]["s1_grd"]
    with pytest.raises(DataError, match='reads "s1_grd"'):
        jax.eval_shape(apply, params, example)
