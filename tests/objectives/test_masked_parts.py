"""The pretext task "masked_parts": which half of a pixel the encoder is shown, and what the outputs say of it."""

import functools

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import models, objectives, pretext, sensors
from ringmoe_jax.contracts import standardise
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models import Model
from tests.helpers.parameters import stirred


def spy():
    """A "network" that hands back what it was shown."""

    def apply(params, batch, *, key=None, train=False):
        statistics = {name: sensors.get(name).statistics for name in batch["sensors"]}
        shown = {n: standardise(e["pixels"], e["valid"], statistics[n]) for n, e in batch["sensors"].items()}
        return {"standardised": shown, "shown": batch, "statistics": statistics, "key": key, "train": train}

    return Model(lambda key: {}, apply)


def batch_of(*names, rows=64, dates=2):
    rng, entries = np.random.default_rng(0), {}
    for name in names:
        shape = (rows, dates, 8, 8)
        entries[name] = {
            "pixels": rng.normal(size=(*shape, sensors.get(name).channels)).astype(np.float32),
            "valid": rng.random(shape) < 0.8,
            "mask": rng.random((rows, 2, 2)) < 0.5,
        }
    return {"sensors": entries}


def run(batch, key):
    return pretext.build({"name": "masked_parts"}, spy()).apply({}, {}, batch, key=key, train=True)[0]


def test_images_lose_one_part_of_every_polarisation_or_nothing():
    batch = batch_of("slc_dual", "rgb")
    entry = batch["sensors"]["slc_dual"]
    outputs = run(batch, jax.random.key(0))
    shown = np.asarray(outputs["shown"]["sensors"]["slc_dual"]["pixels"])
    lost = (shown == 0).all(axis=(2, 3))  # [B, T, C]
    kinds = {tuple(x) for x in lost.reshape(-1, 4)}
    assert kinds == {(False,) * 4, (True, False, True, False), (False, True, False, True)}
    share = [np.mean([tuple(x) == kind for x in lost.reshape(-1, 4)]) for kind in sorted(kinds)]
    assert_allclose(share, [0.5, 0.25, 0.25], atol=4 * 0.5 / np.sqrt(128))
    assert_array_equal(shown, np.where(lost[:, :, None, None], 0, entry["pixels"]))  # and nothing else changed
    assert_array_equal(outputs["shown"]["sensors"]["rgb"]["pixels"], batch["sensors"]["rgb"]["pixels"])
    # What was withheld: lost channels of visible, valid pixels.
    hidden = entry["mask"].repeat(4, axis=1).repeat(4, axis=2)[:, None]
    expected = (entry["valid"] & ~hidden)[..., None] & lost[:, :, None, None]
    assert_array_equal(outputs["withheld"]["slc_dual"], expected)
    assert set(outputs["withheld"]) == {"slc_dual"}
    # The outputs keep the whole image.
    whole = standardise(entry["pixels"], entry["valid"], sensors.get("slc_dual").statistics)
    assert_array_equal(outputs["standardised"]["slc_dual"], whole)
    assert outputs["train"]


def test_every_step_draws_anew_and_sensors_apart():
    batch = batch_of("slc_dual", "slc_quad")
    a, again, b = (run(batch, jax.random.key(seed))["withheld"] for seed in (0, 0, 1))
    jax.tree.map(assert_array_equal, a, again)
    lost = lambda outputs, name: np.asarray(outputs[name]).any(axis=(2, 3))[..., :2]  # noqa: E731
    assert (lost(a, "slc_dual") != lost(b, "slc_dual")).any()
    assert (lost(a, "slc_dual") != lost(a, "slc_quad")).any()


def test_without_a_key_every_image_loses_its_imaginary_part():
    outputs = run(batch_of("slc_dual", rows=3), None)
    shown = np.asarray(outputs["shown"]["sensors"]["slc_dual"]["pixels"])
    assert not shown[..., 1::2].any()
    assert shown[..., 0::2].all()
    assert outputs["key"] is None


def test_masks_are_needed():
    batch = batch_of("slc_dual", "rgb", rows=2)
    del batch["sensors"]["rgb"]["mask"]
    for name in ("masked", "masked_parts"):
        with pytest.raises(DataError, match=r"needs hidden cells for rgb: set data.mask_ratio > 0"):
            pretext.build({"name": name}, spy()).apply({}, {}, batch, key=None, train=False)
    with pytest.raises(ConfigError, match='"masked_part" does not exist: did you mean "masked_parts"'):
        pretext.build({"name": "masked_part"}, spy())


@pytest.mark.slow
def test_a_real_model_learns_from_what_it_does_not_see():
    """Loss and gradient of part independence through RingMoE, and the encoder's ignorance of the lost part."""
    terms = objectives.build({"x": {"name": "part_independence", "sensor": "slc_single"}})
    heads = objectives.collect_heads(terms, sensors.resolve(["slc_single"]))
    config = dict(name="ringmoe", sensors=("slc_single",), width=8, depths=(1,), image_size=8, window=2, head_width=4)
    model = models.build({**config, "moe": dict(groups=1)}, heads=heads)
    task, batch = pretext.build({"name": "masked_parts"}, model), batch_of("slc_single", rows=2, dates=1)
    batch["sensors"]["slc_single"]["pixels"] *= 0.1

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params, batch):
        outputs, _ = task.apply(params, {}, batch, key=None, train=True)
        value, weight, _ = terms["x"](outputs, batch)
        return value / weight, outputs["heads"]["slc_single"]["power"]

    params = stirred(model.shapes())
    (value, power), slope = loss(params, batch)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slope))
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(slope))
    batch["sensors"]["slc_single"]["pixels"][..., 1] += 1.0
    (changed, same), _ = loss(params, batch)
    assert changed > value + 1
    assert_array_equal(power, same)
