"""A student under a teacher: what each sees, what is trained and saved, and that it learns to say the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy.testing import assert_array_equal

from ringmoe_jax import models, objectives, pretext
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.api import Model
from ringmoe_jax.parallel import sharding
from ringmoe_jax.parallel.mesh import MeshConfig, make
from ringmoe_jax.pretext import Pretext
from ringmoe_jax.pretext.distilled import LARGER, distilled
from ringmoe_jax.training import optimizer, step
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.state import create
from tests.helpers import tiny
from tests.helpers.parameters import stirred

MODEL = tiny.RINGMOE | {"depths": (1,)}
LARGE = MODEL | {"moe": dict(specialised=1, collaborative=2, engine="dense")}
HEADS = {"rgb": {"pixels": 3}}
RULE = optimizer.OptimizerConfig(learning_rate=1e-2, warmup_steps=0)


def masked_batch():
    batch = tiny.batch(MODEL)
    for entry in batch["sensors"].values():
        entry["mask"] = jnp.asarray(np.random.default_rng(0).random((2, 4, 4)) < 0.5)
    return batch


@pytest.fixture(scope="module")
def pair():
    student, teacher = models.build(MODEL, heads=HEADS), models.build(LARGE, heads=HEADS)
    return student, teacher, stirred(teacher.shapes())


@pytest.mark.parametrize("sees", ["masked", "whole"])
def test_the_teacher_sees_the_same_batch(pair, sees):
    student, teacher, params = pair
    task = distilled(pretext.build({"name": "masked"}, student), teacher, params, teacher_sees=sees)

    def both(batch):
        trained, state = task.init(student.init(jax.random.key(1)), jax.random.key(2))
        outputs, after = task.apply(trained, state, batch, key=None, train=True)
        shown = batch["sensors"]
        if sees == "whole":
            shown = {name: {k: v for k, v in e.items() if k != "mask"} for name, e in shown.items()}
        wanted = teacher.apply(params, {"sensors": shown})
        own = student.apply(trained, batch, train=True)
        pick = lambda o: (o["tokens"], o["stages"], o["heads"], o["pixel_mask"])  # noqa: E731
        return pick(outputs), pick(own), pick(outputs["teacher"]), pick(wanted), after[LARGER]

    outputs, own, said, wanted, kept = jax.jit(both)(masked_batch())
    jax.tree.map(assert_array_equal, outputs, own)
    jax.tree.map(assert_array_equal, said, wanted)
    jax.tree.map(assert_array_equal, kept, params)
    hidden = np.asarray(said[-1]["rgb"]).mean()
    assert hidden == 1 if sees == "whole" else 0 < hidden < 1


def one_layer(channels=3):
    """Tokens are pixels times one kernel."""

    def apply(params, batch, *, key=None, train=False):
        tokens = {n: e["pixels"] @ params["kernel"] + e.get("shift", 0) for n, e in batch["sensors"].items()}
        return {"tokens": tokens, "train": train, "keyed": key is not None}

    return Model(lambda key: {"kernel": jax.random.normal(key, (channels, 4))}, apply, {"rgb": 4})


def test_no_gradient_and_no_randomness_reach_the_teacher():
    model = one_layer()
    larger = model.init(jax.random.key(5))
    task = distilled(
        Pretext(lambda p, s, b, *, key, train: (model.apply(p, b, key=key, train=train), s)), model, larger
    )
    batch = {"sensors": {"rgb": {"pixels": np.ones((1, 1, 2, 2, 3), np.float32)}}}

    def loss(trained, frozen):
        outputs, _ = task.apply(trained, {LARGER: frozen}, batch, key=jax.random.key(0), train=True)
        assert (outputs["train"], outputs["keyed"]) == (True, True)
        assert (outputs["teacher"]["train"], outputs["teacher"]["keyed"]) == (False, False)
        return jnp.sum(jnp.square(outputs["tokens"]["rgb"] - outputs["teacher"]["tokens"]["rgb"]))

    own, frozen = jax.grad(loss, argnums=(0, 1))(model.init(jax.random.key(0)), larger)
    assert np.abs(own["kernel"]).min() > 0
    assert not np.any(frozen["kernel"])


def test_the_students_own_state_goes_on():
    """A student that counts its passes and steps, and exports something else than what it trains."""
    model = one_layer()
    student = Pretext(
        lambda p, s, b, *, key, train: (model.apply(p, b), {"passes": s["passes"] + 1, "steps": s["steps"]}),
        lambda params, key: ({"kernel": params["kernel"]}, {"passes": 0, "steps": 0}),
        lambda p, s: {"passes": s["passes"], "steps": s["steps"] + 1},
        lambda p, s: {"kernel": p["kernel"] + s["steps"]},
    )
    larger = {"kernel": np.zeros((3, 4), np.float32)}
    task = distilled(student, model, larger)
    params, state = task.init(model.init(jax.random.key(0)), jax.random.key(1))
    assert set(state) == {"passes", "steps", LARGER}
    batch = {"sensors": {"rgb": {"pixels": np.ones((1, 1, 2, 2, 3), np.float32)}}}
    state = task.after(params, task.apply(params, state, batch, key=None, train=True)[1])
    assert (state["passes"], state["steps"]) == (1, 1)
    assert_array_equal(state[LARGER]["kernel"], larger["kernel"])
    assert_array_equal(task.export(params, state)["kernel"], student.export(params, state)["kernel"])


@pytest.fixture(scope="module")
def trained(pair):
    """A few steps on one batch with nothing to learn but what the teacher says."""
    student, teacher, params = pair
    terms = {
        "features": dict(name="feature_matching", sensor="rgb", level="stages"),
        "sar": dict(name="feature_matching", sensor="s1_grd"),
        "pixels": dict(name="prediction_matching", sensor="rgb"),
    }
    terms, rule = objectives.build(terms), optimizer.build(RULE, 30)
    task = distilled(pretext.build({"name": "masked"}, student), teacher, params)
    state = create(student, task, rule, seed=0)
    run = step.make_train_step(task, terms, rule, optimizer.schedule(RULE, 30), seed=0)
    losses, batch = [], masked_batch()
    for _ in range(25):
        state, metrics = run(state, batch)
        losses.append(jax.device_get(metrics))
    return task, state, losses


def test_the_student_learns_what_the_teacher_says(trained):
    losses = trained[2]
    for name in ("loss/features", "loss/sar", "loss/pixels"):
        assert losses[-1][name] < 0.8 * losses[0][name], name
    assert losses[-1]["features/cosine"] > losses[0]["features/cosine"]


def test_the_teacher_stays_as_it_was(pair, trained):
    state = trained[1]
    jax.tree.map(assert_array_equal, state.pretext[LARGER], pair[2])
    moments = optax.tree.get(state.optimizer, "mu")
    assert jax.tree.structure(moments) == jax.tree.structure(state.params)  # none for the teacher


def test_a_checkpoint_reads_as_the_students(pair, trained, tmp_path):
    task, state, _ = trained
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(25, state, {})
    checkpointer.close()
    params, own = Checkpointer.open(tmp_path).restore_model()
    alone = pretext.build({"name": "masked"}, pair[0])
    jax.tree.map(assert_array_equal, alone.export(params, own), task.export(state.params, state.pretext))


def test_the_teacher_is_placed_as_parameters_are(pair):
    student, teacher, params = pair
    task = distilled(pretext.build({"name": "masked"}, student), teacher, params)
    state = jax.eval_shape(lambda key: task.init(student.init(key), key)[1], jax.random.key(0))
    mesh = make(MeshConfig(2, 2, 2))
    ours, wanted = (sharding.shardings(tree, mesh) for tree in (state[LARGER], params))
    assert ours == wanted
    assert "expert" in str(jax.tree.leaves(sharding.shardings({"pretext": state}, mesh)))


def test_what_cannot_be_taught(pair):
    student, teacher, params = pair
    task = pretext.build({"name": "masked"}, student)
    with pytest.raises(ConfigError, match=r'teacher_sees = "hole" does not exist: did you mean "whole"'):
        distilled(task, teacher, params, teacher_sees="hole")
    other = models.build(MODEL | {"sensors": ("rgb",)})
    with pytest.raises(DataError, match='the batch holds "s1_grd", which the model does not know'):
        jax.eval_shape(
            lambda key: (lambda t: t.apply(*t.init(student.init(key), key), masked_batch(), key=None, train=False))(
                distilled(task, other, other.init(key))
            )[0]["tokens"],
            jax.random.key(0),
        )
