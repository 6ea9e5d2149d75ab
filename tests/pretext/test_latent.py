"""Latent targets: which cells count, what the teacher is shown and how it moves, and that the student learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import models, objectives, pretext, sensors
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.pretext import PretextSpec
from tests.helpers.parameters import stirred

SIDE, CELL = 16, 4
MODEL = dict(name="ringmoe", sensors=("rgb", "s1_grd"), width=8, depths=(1,), image_size=SIDE, patch=CELL, window=4)
MODEL |= dict(head_width=4, norm_gain=0.5, moe=dict(specialised=2, collaborative=0, engine="dense"))
BOTH = {"rgb": ("latent",), "s1_grd": ("latent",)}


def batch(rows=2):
    rng = np.random.default_rng(0)
    entries = {}
    for name in ("rgb", "s1_grd"):
        shape = (rows, 1, SIDE, SIDE)
        mask = np.zeros((rows, SIDE // CELL, SIDE // CELL), bool)
        mask[:, :2] = True
        entries[name] = {
            "pixels": jnp.asarray(rng.normal(size=(*shape, sensors.get(name).channels)), jnp.float32),
            "valid": jnp.ones(shape, bool),
            "mask": jnp.asarray(mask),
        }
    return {"sensors": entries}


def built(projections=BOTH, **task):
    model = models.build(MODEL)
    passes = pretext.build(dict(name="latent", hidden=16) | task, model, PretextSpec(10, projections))
    params, state = stirred(jax.eval_shape(lambda key: passes.init(model.init(key), key), jax.random.key(0)))
    return model, passes, params, state | {"step": jnp.int32(0)}


@pytest.mark.slow
def test_targets_are_what_the_teacher_says_of_the_whole_image():
    model, passes, params, state = built()
    shown = batch()
    outputs, _ = jax.jit(lambda p, s, b: passes.apply(p, s, b, key=None, train=False))(params, state, shown)
    whole = {s: {k: v for k, v in e.items() if k != "mask"} for s, e in shown["sensors"].items()}
    tokens = np.asarray(jax.jit(model.apply)(state["teacher"], {"sensors": whole})["tokens"]["rgb"])
    assert_allclose(outputs["latent"]["rgb"]["target"], tokens, rtol=1e-5, atol=1e-5)
    student = jax.jit(model.apply)({k: v for k, v in params.items() if k != "projections"}, shown)
    assert_allclose(outputs["tokens"]["rgb"], student["tokens"]["rgb"], rtol=1e-5, atol=1e-5)
    target = lambda s: passes.apply(params, s, shown, key=None, train=True)[0]["latent"]["rgb"]["target"]  # noqa: E731
    gradient = jax.jit(jax.grad(lambda s: target(s).sum()))(jax.tree.map(jnp.float32, state))
    assert not any(np.abs(x).max() for x in jax.tree.leaves(gradient))


def test_cells_count_where_everything_valid_is_hidden():
    _, passes, params, state = built()
    shown = batch()
    valid = np.ones((2, 1, SIDE, SIDE), bool)
    valid[0, 0, :CELL, :CELL] = False  # a hidden cell of which nothing was observed
    shown["sensors"]["rgb"]["valid"] = jnp.asarray(valid)
    apply = jax.jit(lambda batch: passes.apply(params, state, batch, key=None, train=False)[0])
    weight = apply(shown)["latent"]["rgb"]["weight"]
    wanted = np.asarray(shown["sensors"]["rgb"]["mask"])[:, None].copy()
    wanted[0, 0, 0, 0] = False
    assert_array_equal(weight, wanted)


@pytest.mark.parametrize("momentum", [0.5, 1.0])
def test_the_teacher_moves_or_stays_and_is_what_is_exported(momentum):
    _, passes, params, state = built(momentum=momentum)
    student = {name: value for name, value in params.items() if name != "projections"}
    moved = passes.after(params, state)
    wanted = jax.tree.map(lambda t, p: momentum * t + (1 - momentum) * p, state["teacher"], student)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-6), moved["teacher"], wanted)
    exported = passes.export(params, moved)
    jax.tree.map(assert_array_equal, exported, student if momentum == 1 else moved["teacher"])


def test_the_objective_in_numpy_and_its_gradient_reaches_the_encoder():
    _, passes, params, state = built()
    shown, term = batch(), objectives.build({"l": dict(name="latent_targets", sensor="rgb", beta=0.5)})["l"]

    def loss(params):
        outputs, _ = passes.apply(params, state, shown, key=None, train=True)
        value, weight, metrics = term(outputs, shown)
        return value / weight, (outputs["latent"]["rgb"], metrics)

    (value, (found, metrics)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    prediction, target, weight = (np.asarray(found[name]) for name in ("prediction", "target", "weight"))
    target = (target - target.mean(-1, keepdims=True)) / target.std(-1, keepdims=True)
    error = np.abs(prediction - target)[weight]
    assert_allclose(value, np.where(error > 0.5, error - 0.25, error**2).mean(), rtol=1e-5)
    assert_allclose(metrics["spread"], target[weight].std(axis=0).mean(), rtol=1e-4)
    a, b = prediction[weight], target[weight]
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    assert_allclose(metrics["cosine"], cosine.mean(), rtol=1e-4)
    assert all(np.abs(gradient["stems"]["rgb"]["project"][name]).max() > 0 for name in ("kernel", "bias"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(momentum=1.5), "pretext.momentum = 1.5: wanted 0 to 1"),
        (dict(hidden=0), "pretext.hidden = 0"),
        (dict(projections={}), "name latent_targets in config.objectives"),
        (dict(projections={"rbg": ("latent",)}), 'did you mean "rgb"'),
    ],
)
def test_bad_configurations(change, message):
    with pytest.raises(ConfigError, match=message):
        built(**change)


def test_a_model_that_hides_nothing_is_refused():
    vit = models.build(dict(name="vit", sensors=("rgb",)))
    with pytest.raises(ConfigError, match="has no mask_token"):
        pretext.build(dict(name="latent"), vit, PretextSpec(10, {"rgb": ("latent",)}))


def test_without_hidden_cells_there_is_nothing_to_foresee():
    _, passes, params, state = built()
    shown = batch()
    del shown["sensors"]["s1_grd"]["mask"]
    with pytest.raises(DataError, match="needs hidden cells for s1_grd"):
        passes.apply(params, state, shown, key=None, train=False)
    with pytest.raises(ConfigError, match="beta = 0"):
        objectives.build({"l": dict(name="latent_targets", sensor="rgb", beta=0)})
