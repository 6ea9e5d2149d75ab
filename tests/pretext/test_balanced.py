"""Router biases: by hand on a task of two layers, and on a real model that is trained."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from configs import common as configurations
from ringmoe_jax import models, objectives, pretext, sensors
from ringmoe_jax import run as runs
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.api import Model
from ringmoe_jax.moe import statistics
from ringmoe_jax.parallel.mesh import MeshConfig, make
from ringmoe_jax.pretext import Pretext
from ringmoe_jax.pretext.balanced import BIASES, EXCESS, balanced
from ringmoe_jax.run import PretrainConfig
from ringmoe_jax.training import loop
from tests.helpers import tiny
from tests.helpers.parameters import stirred

RATE = 0.25
MODEL = tiny.RINGMOE | {"depths": (1, 1), "moe": dict(specialised=2, collaborative=3, engine="dense", bias_rate=RATE)}

# ---- By hand --------------------------------------------------------------------------------------


def task():
    """Three experts of one modality, two layers in one stack; a batch says what they get. A teacher copies all."""

    def apply(params, state, batch, *, key, train):
        load = jnp.asarray(batch, jnp.float32)[:, None]
        one = jax.tree.map(lambda x: jnp.stack([x] * 2), statistics.nothing(1, 3))
        routing = {"collaborative": one._replace(load=load, reach=jnp.ones((2, 1, 3)))}
        return {"routing": routing, "seen": params}, state

    copied = lambda params, state: {"teacher": params}  # noqa: E731
    return Pretext(apply, init=lambda params, key: (params, {"teacher": params}), after=copied)


def params(bias):
    group = {"router": jnp.ones((2, 4, 3)), "bias": jnp.asarray(bias, jnp.float32)}
    return {"blocks": {"collaborative": group}, "head": {"bias": jnp.ones(5)}}


def built():
    model = Model(lambda key: params(np.zeros((2, 3))), None, blocks_above={"": 2, "blocks": (1, 0), "head": 0})
    passes = balanced(task(), model, RATE)
    return passes, *passes.init(params(np.zeros((2, 3))), None)


def biases(tree):
    return tree["blocks"]["collaborative"]["bias"]


def test_a_step_moves_every_bias_by_the_rate_against_its_excess():
    passes, trained, state = built()
    assert set(trained["blocks"]["collaborative"]) == {"router"}  # what the optimiser is shown
    assert set(trained["head"]) == {"bias"}  # which is no router's
    for part in ([[3, 3, 0], [0, 2, 4]], [[3, 1, 2], [6, 0, 0]]):  # two micro-batches; even are 2 each
        outputs, state = passes.apply(trained, state, part, key=None, train=True)
        assert_array_equal(biases(outputs["seen"]), np.zeros((2, 3)))
    assert_array_equal(biases(state[EXCESS]), [[2, 0, -2], [2, -2, 0]])
    state = passes.after(trained, state)
    moved = RATE * np.array([[-1, 0, 1], [-1, 1, 0]])
    assert_array_equal(biases(state[BIASES]), moved)
    assert not np.any(biases(state[EXCESS]))
    assert_array_equal(biases(state["teacher"]), moved)  # the task sees whole parameters
    exported = passes.export(trained, state)
    assert jax.tree.structure(exported) == jax.tree.structure(params(moved))
    assert_array_equal(biases(exported), moved)
    outputs, state = passes.apply(trained, state, [[6, 0, 0], [6, 0, 0]], key=None, train=False)
    assert_array_equal(biases(outputs["seen"]), moved)
    assert not np.any(biases(state[EXCESS]))  # validation moves nothing


def test_what_a_checkpoint_had_learnt_is_where_a_run_begins():
    passes, _, _ = built()
    trained, state = passes.init(params([[1, 2, 3], [4, 5, 6]]), None)
    assert_array_equal(biases(passes.export(trained, state)), [[1, 2, 3], [4, 5, 6]])


def test_without_a_rate_it_is_the_task():
    own = task()
    assert balanced(own, None, 0.0) is own


# ---- On a model -----------------------------------------------------------------------------------


def real(mesh=None, config=MODEL):
    """A model and its passes of masked reconstruction."""
    terms = objectives.build({"rgb": dict(name="masked_l1", sensor="rgb")})
    model = models.build(config, heads=objectives.collect_heads(terms, sensors.resolve(config["sensors"])), mesh=mesh)
    passes = balanced(pretext.build({"name": "masked"}, model), model, RATE)
    return SimpleNamespace(model=model, passes=passes)


def batch(rows=2):
    shown = tiny.batch(MODEL, rows=rows)
    for entry in shown["sensors"].values():
        entry["mask"] = jnp.asarray(np.arange(16).reshape(1, 4, 4) % 2 == 0).repeat(rows, axis=0)
    return shown


def test_layers_get_their_own_biases_and_route_by_them():
    parts = real()
    trained, state = parts.passes.init(stirred(parts.model.shapes()), jax.random.key(0))
    zero = {**state, BIASES: jax.tree.map(np.zeros_like, state[BIASES])}
    apply = jax.jit(lambda state: parts.passes.apply(trained, state, batch(), key=None, train=True))
    outputs, seen = apply(zero)
    wanted = {name: -RATE * np.sign(statistics.excess(s)) for name, s in outputs["routing"].items()}
    moved = parts.passes.after(trained, seen)[BIASES]["backbone"]["stages"]
    for layer, stage in enumerate(("stage0", "stage1")):
        for group, bias in wanted.items():
            assert np.any(bias[layer])
            assert_array_equal(moved[stage]["blocks"]["run0"]["ffn"][group]["bias"], bias[layer : layer + 1])
    chased = jax.tree.map(np.copy, zero[BIASES])
    chased["backbone"]["stages"]["stage1"]["blocks"]["run0"]["ffn"]["collaborative"]["bias"][0, 2] = 2.0
    routed, _ = apply({**zero, BIASES: chased})
    before, after = (x["routing"]["collaborative"].load.sum(axis=1) for x in (outputs, routed))
    assert_array_equal(before[0], after[0])
    assert_array_equal(after[1], [0, 0, before[1].sum()])
    assert before[1, 2] < before[1].sum()


@pytest.mark.slow
def test_devices_and_micro_batches_move_what_one_batch_moves():
    config = MODEL | {"moe": dict(specialised=2, collaborative=4, groups=8, bias_rate=RATE)}
    whole, moved = batch(rows=16), []
    halves = [jax.tree.map(lambda x, i=i: x[i::2], whole) for i in range(2)]
    for mesh, parts in ((None, [whole]), (make(MeshConfig(2, 2, 2)), halves)):
        built = real(mesh, config)
        trained, state = built.passes.init(stirred(built.model.shapes()), jax.random.key(0))
        state[BIASES] = jax.tree.map(np.zeros_like, state[BIASES])
        apply = jax.jit(lambda s, x, b=built, t=trained: b.passes.apply(t, s, x, key=None, train=True)[1])
        for part in parts:
            state = apply(state, loop.place(part, mesh))
        moved.append(jax.device_get(built.passes.after(trained, state)[BIASES]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(moved[0]))
    jax.tree.map(assert_array_equal, *moved)


def test_one_line_of_a_configuration_turns_biases_on():
    config = configurations.ringmoe(width=8, depths=(1,), head_width=4)
    config.model.update(sensors=("rgb",), image_size=8, patch=2, window=2, dtype="float32", remat="none")
    config.data.update(image_size=8, mask_unit=2)
    config.objectives = {"rgb": dict(name="masked_l1", sensor="rgb")}
    plain = PretrainConfig.of(config.to_dict())
    statistics_of = {"rgb": sensors.get("rgb").statistics}
    assert BIASES not in runs.pretraining(plain, statistics_of).pretext.init({}, None)[1]
    config.model.moe = dict(bias_rate=0.001)
    parts = runs.pretraining(PretrainConfig.of(config.to_dict()), statistics_of)
    trained, state = jax.eval_shape(parts.pretext.init, parts.model.shapes(), jax.random.key(0))
    whole = jax.eval_shape(parts.pretext.export, trained, state)
    assert jax.tree.map(np.shape, whole) == jax.tree.map(np.shape, parts.model.shapes())
    config.pruning = dict(every=5)
    with pytest.raises(ConfigError, match="biases leave no expert unused, set one of them to 0"):
        runs.pretraining(PretrainConfig.of(config.to_dict()), statistics_of)
