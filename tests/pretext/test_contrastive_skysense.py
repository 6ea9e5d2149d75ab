"""A tiny SkySense with geo-context trains on two views: eight devices as one, the bank moves, checkpoints are whole."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import models, objectives, pretext, sensors
from ringmoe_jax.parallel.mesh import MeshConfig, make
from ringmoe_jax.pretext import PretextSpec
from ringmoe_jax.training import loop, optimizer, step
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.state import create, state_shardings

NAMES, STEPS = ("rgb", "s2_10"), 4
TERMS = {
    "fused_pixel": dict(name="self_distillation", stream="fused", level="pixel"),
    "rgb_image": dict(name="self_distillation", stream="rgb", level="image"),
    "align": dict(name="alignment", sensors=NAMES, projected=True),
}
TASK = dict(name="contrastive", image_outputs=16, local_outputs=8, hidden=12, bottleneck=5, clusters=2, tokens=3)
TASK |= dict(momentum=0.5, prototype_momentum=0.5)  # heads standardise over the batch of all devices
RULE = optimizer.OptimizerConfig(learning_rate=1e-2, warmup_steps=0, epsilon=1e-3)
WHOLE = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
TURNED = np.array([[0, 1, 0], [-1, 0, 1]], np.float32)  # a quarter, counter-clockwise
TINY = dict(name="skysense", sensors=("rgb", "s2_10"), image_size=16, width=8, depths=(1, 1), window=1, head_width=4)
BLOCK = dict(width=16, depth=1, heads=2, drop_path=0.0)
TINY |= dict(frame=BLOCK, frame_patch=2, frame_size=4, fusion=BLOCK, modality_dropout=0.2, drop_path=0.0)
TINY |= dict(geo_context=dict(regions=64, prototypes=4))


def scene(rng, ground, rows=8):
    entries = {}
    for name in NAMES:
        side, dates = (16, 1) if name == "rgb" else (2, 2)
        shape = (rows, dates, side, side)
        entries[name] = {
            "pixels": rng.normal(size=(*shape, sensors.get(name).channels)).astype(np.float32),
            "valid": np.repeat(rng.random((rows, dates)) < 0.9, side**2).reshape(shape),
            "time": rng.integers(17_000, 18_000, (rows, dates)).astype(np.int32),
            "location": np.array([[50, 8], [50, 8], [-3, 20], [np.nan] * 2] * (rows // 4), np.float32),
            "ground": np.tile(ground, (rows, 1, 1)),
        }
    return entries


def train_skysense(mesh=None, start=None, **changes):
    terms, rule = objectives.build(TERMS), optimizer.build(RULE, STEPS)
    model = models.build(TINY | changes, mesh=mesh)
    task = pretext.build(TASK, model, PretextSpec(STEPS, objectives.collect_projections(terms)))
    run = step.make_train_step(task, terms, rule, optimizer.schedule(RULE, STEPS), seed=0, mesh=mesh)
    state = jax.device_put(start, state_shardings(start, mesh)) if mesh else create(model, task, rule, seed=0)
    start, seen = jax.device_get(state), []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        batch = {"sensors": scene(rng, WHOLE), "views": {"second": scene(rng, TURNED)}}
        state, metrics = run(state, loop.place(batch, mesh))
        seen.append(jax.device_get(metrics))
    return SimpleNamespace(model=model, task=task, state=state, start=start, seen=seen)


@pytest.fixture(scope="module")
def alone():
    return train_skysense()


@pytest.fixture(scope="module")
def eight(alone):
    return train_skysense(make(MeshConfig(2, 4, 1)), alone.start)


@pytest.mark.slow
def test_skysense_trains_on_eight_devices_as_on_one(alone, eight):
    for ours, reference in zip(eight.seen, alone.seen, strict=True):
        for name, value in reference.items():
            assert np.isfinite(value).all(), name
            assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    states = (jax.device_get(x.state.pretext) for x in (eight, alone))
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-3, atol=1e-4), *states)


@pytest.mark.slow
def test_skysense_trains_with_stems_from_physics():
    """Two steps with bands hidden from the student: finite, and all parts of patch embeddings move."""
    trained = train_skysense(stem="physics", band_dropout=0.3)
    assert all(np.isfinite(value).all() for seen in trained.seen for value in seen.values())
    before, after = (state.params["encoders"] for state in (trained.start, trained.state))
    for parts in (lambda of: of["rgb"]["embed"], lambda of: of["s2_10"]["vit"]["embed"]):
        moved = jax.tree.map(np.subtract, parts(before), parts(after))
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(moved))


@pytest.mark.slow
def test_the_bank_of_skysense_moves(alone):
    bank = jax.device_get(alone.state.pretext["geo_context"])
    assert_array_equal(np.sort(bank["visits"])[-3:], [0, 4, 8])  # two places; unknown ones count nowhere
    assert_array_equal(bank["prototypes"][bank["visits"] == 0], np.broadcast_to(bank["prototypes"][0], (62, 4, 16)))
    assert_allclose(np.linalg.norm(bank["prototypes"], axis=-1), 1.0, rtol=1e-5)


@pytest.mark.slow
def test_a_sharded_bank_and_teacher_are_saved_and_restored(alone, eight, tmp_path):
    checkpointer = Checkpointer(tmp_path)
    assert eight.state.pretext["geo_context"]["prototypes"].sharding.spec == P("fsdp", None, None)
    checkpointer.save(2, eight.state, {"config": {}})
    checkpointer.wait()
    restored, wanted = checkpointer.restore(alone.state), jax.device_get(eight.state)
    jax.tree.map(assert_array_equal, jax.device_get(restored), wanted)
    exported = alone.task.export(*checkpointer.restore_model())
    assert jax.tree.structure(exported) == jax.tree.structure(alone.model.shapes())
    jax.tree.map(assert_array_equal, exported["fusion"], wanted.pretext["teacher"]["fusion"])
    jax.eval_shape(alone.model.apply, exported, {"sensors": scene(np.random.default_rng(0), WHOLE)})
