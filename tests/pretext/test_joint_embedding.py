"""All views through one network: which rows belong together, and what is left of the first view."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import models, objectives, pretext, sensors
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.pretext import PretextSpec
from tests.helpers.parameters import stirred

MODEL = dict(name="ringmoe", sensors=("rgb", "s1_grd"), width=8, depths=(1, 1), image_size=16, window=4, head_width=4)
MODEL |= dict(pre_norm=True, stem="convolutional", moe=dict(specialised=2, collaborative=0, engine="dense"))
BOTH = {"rgb": ("embedding",), "s1_grd": ("embedding",)}
TASK = dict(name="joint_embedding", hidden=16, outputs=6)
ROWS = 4


def view(size, seed, names=("rgb", "s1_grd")):
    rng = np.random.default_rng(seed)
    shape = (ROWS, 1, size, size)
    return {
        name: {
            "pixels": jnp.asarray(rng.normal(size=(*shape, sensors.get(name).channels)), jnp.float32),
            "valid": jnp.ones(shape, bool),
        }
        for name in names
    }


def batch():
    local = {f"local{i}": view(8, 10 + i, ("rgb",)) for i in range(3)}
    return {"sensors": view(16, 0), "views": {"second": view(16, 1), **local}}


def built(projections=BOTH, **task):
    model = models.build(MODEL)
    passes = pretext.build(TASK | task, model, PretextSpec(10, projections))
    shapes = jax.eval_shape(lambda key: passes.init(model.init(key), key), jax.random.key(0))
    return model, passes, *stirred(shapes)


@pytest.fixture(scope="module")
def once():
    model, passes, params, state = built()
    apply = jax.jit(lambda p, b, key: passes.apply(p, state, b, key=key, train=True)[0])
    return model, passes, params, apply


def test_the_first_view_is_as_if_it_had_been_alone(once):
    model, passes, params, apply = once
    outputs = apply(params, batch(), jax.random.key(0))
    alone = jax.jit(model.apply)(params, {"sensors": view(16, 0)})
    for name in ("tokens", "pooled", "standardised", "stages"):
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-5), outputs[name], alone[name])
    assert set(passes.export(params, {})) == set(params) - {"projections"}


def test_rows_of_a_place_are_its_views_full_ones_first(once):
    _, _, params, apply = once
    shown = apply(params, batch(), jax.random.key(0))["embeddings"]
    assert shown["rgb"]["rows"].shape == (ROWS, 5, 6)
    assert shown["s1_grd"]["rows"].shape == (ROWS, 2, 6)
    assert [int(shown[name]["full"]) for name in shown] == [2, 2]
    same = batch()
    same["views"]["second"] = same["sensors"]
    rows = apply(params, same, jax.random.key(0))["embeddings"]["rgb"]["rows"]
    assert_allclose(rows[:, 0], rows[:, 1], atol=1e-5)
    assert np.abs(rows[:, 0] - rows[:, 2]).max() > 0.1


def test_a_view_that_shows_nothing_has_no_weight_and_moves_nobody(once):
    _, _, params, apply = once
    dark = batch()
    for entry in (dark["sensors"]["rgb"],):
        entry["valid"] = entry["valid"].at[1].set(False)
    shown = apply(params, dark, jax.random.key(0))["embeddings"]["rgb"]
    assert_array_equal(shown["weight"][:, 0], [1, 0, 1, 1])
    dark["sensors"]["rgb"]["pixels"] = dark["sensors"]["rgb"]["pixels"].at[1].set(7.0)
    other = apply(params, dark, jax.random.key(0))["embeddings"]["rgb"]
    assert_allclose(*(x["rows"][np.array([0, 2, 3])] for x in (shown, other)), atol=1e-6)


def test_all_stages_reach_the_embedding():
    model, passes, params, state = built(all_stages=True)
    assert params["projections"]["rgb"]["first"]["kernel"].shape[0] == sum(model.stages["rgb"]) == 8 + 8 + 8 + 16
    rows = jax.eval_shape(
        lambda p: passes.apply(p, state, batch(), key=None, train=False)[0]["embeddings"]["rgb"]["rows"], params
    )
    assert rows.shape == (ROWS, 5, 6)


@pytest.mark.slow
def test_it_trains_and_the_draw_is_the_step_s():
    _, passes, params, state = built()
    terms = objectives.build({"it": dict(name="sigreg", streams=("rgb", "s1_grd"), directions=8)})

    @jax.jit
    @jax.value_and_grad
    def loss(params, key):
        outputs, _ = passes.apply(params, state, batch(), key=key, train=True)
        return terms["it"](outputs, batch())[0]

    value, gradients = loss(params, jax.random.key(0))
    assert value != loss(params, jax.random.key(1))[0]
    assert min(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients["stems"])) > 0


def test_what_it_refuses():
    model = models.build(MODEL)
    with pytest.raises(ConfigError, match="nothing to compare"):
        pretext.build(TASK, model)
    with pytest.raises(ConfigError, match='an objective compares "fused"'):
        pretext.build(TASK, model, PretextSpec(1, {"fused": ("embedding",)}))
    with pytest.raises(ConfigError, match=r'does not make: set pretext[.]name = "contrastive"'):
        pretext.build(TASK, model, PretextSpec(1, {"rgb": ("image",)}))
    with pytest.raises(ConfigError, match=r'does not make: set pretext[.]name = "joint_embedding"'):
        pretext.build(dict(name="masked"), model, PretextSpec(1, BOTH))
    _, passes, params, state = built()
    with pytest.raises(DataError, match="needs two views"):
        passes.apply(params, state, {"sensors": view(16, 0)}, key=None, train=False)
