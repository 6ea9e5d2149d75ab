"""Unused experts go while a model trains: by hand, on a state, and in a run that is stopped and started again."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ml_collections import ConfigDict
from numpy.testing import assert_allclose, assert_array_equal

from configs import common as configurations
from experiments.run.pretrain import pretrain
from ringmoe_jax import models, objectives, pretext, sensors
from ringmoe_jax import run as runs
from ringmoe_jax.compress.online import (
    CHOICES,
    OnlinePruning,
    PruningConfig,
    counted,
    remaining,
    shrink,
    taken_over,
    used,
)
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.moe import routing, table
from ringmoe_jax.parallel.mesh import MeshConfig, make
from ringmoe_jax.run import PretrainConfig, Run
from ringmoe_jax.training import loop, metrics, optimizer, step
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.state import create, state_shardings
from tests.helpers import tiny, tiny_data

MODEL = tiny.RINGMOE | {"depths": (2,), "moe": dict(specialised=2, collaborative=3, engine="dense")}
STARVED = 1  # a collaborative expert of the first layer


# ---- Which experts stay ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "least", "top_k", "stay"),
    [
        ([[50, 40, 6, 4]], 0.25, 1, "1100"),  # an even share is 25, a quarter of it 6.25
        ([[50, 40, 6, 4], [1, 1, 1, 9]], 0.25, 1, "1111"),  # the other modality uses them: 1 is above 0.75
        ([[50, 40, 6, 4], [0, 0, 0, 9]], 0.25, 1, "1101"),  # ... or only the last
        ([[50, 40, 6, 4], [0, 0, 0, 0]], 0.25, 1, "1111"),  # nothing is known of a modality that was absent
        ([[100, 0, 0, 0]], 1.0, 3, "1110"),  # top-3 needs three, the lower numbers of equals
        ([[0, 1, 99, 0]], 0.0, 1, "1111"),
    ],
)
def test_shares_by_hand(choices, least, top_k, stay):
    choices = np.array(choices, np.float32)
    found = used(choices, table.collaborative(len(choices), 4), least=least, top_k=top_k)
    assert_array_equal(found, [[c == "1" for c in stay]] * len(choices))


def test_every_modality_has_its_own_specialised_experts():
    allowed = table.specialised(2, 2)  # experts 0 and 2 of the first, 1 and 3 of the second
    choices = np.array([[9, 0, 1, 0], [0, 5, 0, 5]], np.float32)
    assert_array_equal(used(choices, allowed, least=0.3, top_k=1), [[1, 0, 0, 0], [0, 1, 0, 1]])
    assert_array_equal(used(choices, allowed, least=0.2, top_k=1), allowed)  # 1 of 10 is no less than 0.2 / 2


@settings(deadline=None, max_examples=80)
@given(
    choices=arrays(np.float32, (3, 5), elements=st.integers(0, 30).map(float)),
    allowed=arrays(bool, (3, 5)),
    least=st.floats(0, 1),
    top_k=st.integers(1, 2),
)
def test_what_stays(choices, allowed, least, top_k):
    choices = choices * allowed
    stays = used(choices, allowed, least=least, top_k=top_k)
    kept = stays.any(axis=0)
    assert_array_equal(stays, allowed & kept)
    assert (stays.sum(axis=1) >= np.minimum(allowed.sum(axis=1), top_k)).all()
    share = choices / np.maximum(choices.sum(axis=1, keepdims=True), 1)
    even = 1 / np.maximum(allowed.sum(axis=1, keepdims=True), 1)
    assert kept[(allowed & (share > least * even * (1 + 1e-5))).any(axis=0)].all()
    gone = ~kept & allowed.any(axis=0)
    assert (share[:, gone] <= (least * even * (1 + 1e-5))).all() or not gone.any()


def test_the_rest_of_a_router_shares_the_probability():
    logits, modality = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32), np.zeros(40, np.int32)
    before = routing.route(logits, modality, np.ones((1, 4), bool), k=1)
    after = routing.route(logits, modality, np.array([[True, True, False, True]]), k=1)
    others = np.asarray(before.experts[:, 0]) != 2
    assert 0 < others.sum() < 40
    assert_array_equal(after.experts[others], before.experts[others])
    lost = 1 - before.probabilities[others, 2]
    assert_allclose(after.gates[others, 0], before.gates[others, 0] / lost, rtol=1e-5)


# ---- A state loses experts ------------------------------------------------------------------------


def build(model, config):
    """Step and state of a model on masked reconstruction."""
    terms = objectives.build({"rgb": dict(name="masked_l1", sensor="rgb"), "balance": dict(name="balance")})
    heads = objectives.collect_heads(terms, sensors.resolve(model["sensors"]))
    network = models.build(model, heads=heads)
    task = counted(pretext.build({"name": "masked"}, network), model, config)
    rule = optimizer.OptimizerConfig(learning_rate=1e-6, warmup_steps=0)
    adamw, rate = optimizer.build(rule, 4), optimizer.schedule(rule, 4)
    run = step.make_train_step(task, terms, adamw, rate, seed=0)
    return SimpleNamespace(state=lambda: create(network, task, adamw, seed=0), step=run)


def masked_batch():
    batch = tiny.batch(MODEL)
    for entry in batch["sensors"].values():
        entry["mask"] = jnp.asarray(np.arange(16).reshape(1, 4, 4) % 2 == 0).repeat(2, axis=0)
    return batch


def blocks(params, run="run0"):
    return params["backbone"]["stages"]["stage0"]["blocks"][run]["ffn"]["collaborative"]


def starve(state):
    """A column of a router that is the mean of the others is never the largest."""
    group = blocks(state.params)
    others = [e for e in range(3) if e != STARVED]
    mean = group["router"][0][:, others].mean(axis=1)
    group["router"] = group["router"].at[0, :, STARVED].set(mean)
    return state


@pytest.fixture(scope="module")
def starved():
    """Two windows of two steps; the first layer's router never chooses one expert."""
    config = PruningConfig(every=2, least=1e-6, groups=("collaborative",))
    whole = build(MODEL, config)
    reports, built = [], []

    def passes(model):
        built.append(model)
        return (whole if model == MODEL else build(model, config)).step, None

    pruning = OnlinePruning(config, passes, report=lambda training, dropped: reports.append(dropped))
    record, steps = {"config": {"model": MODEL}}, loop.TrainConfig(steps=4)
    training = loop.Training(starve(whole.state()), passes(MODEL)[0], record, None, steps)
    batch, seen = masked_batch(), []
    for number in range(1, 5):
        training.state, measured = training.train_step(training.state, batch)
        training.step = number
        seen.append(jax.device_get(measured))
        if number == 1:
            first = jax.device_get(training.state)
        if pruning.due(training):
            pruning(training)
    assert training.record["config"]["model"] == reports[0].model
    assert record == {"config": {"model": MODEL}}  # records of earlier checkpoints stay what they were
    return SimpleNamespace(config=config, state=training.state, first=first, reports=reports, built=built, seen=seen)


def test_an_expert_that_no_token_chooses_goes_after_a_window(starved):
    first, second = starved.reports
    assert first.step == 2
    assert first.experts == {"collaborative": {0: (STARVED,)}}
    assert_array_equal(first.left["collaborative"], [2, 3])
    assert first.model["moe"]["allowed"] == ({"collaborative": ("101", "101")}, {})
    assert first.parameters == 2 * 8 * 32 + 32 + 8 + 8  # kernels, biases, a column of the router
    assert first.nbytes == 3 * 4 * first.parameters  # with two moments
    assert (second.step, second.count, second.parameters, second.nbytes) == (4, 0, 0, 0)
    assert len(starved.built) == 2  # the second window took nothing, so nothing was compiled anew


def test_training_goes_on(starved):
    assert all(np.isfinite(m["loss"]) for m in starved.seen)
    load = starved.seen[-1]["moe/collaborative/by_layer/load"]
    assert load.shape == (2, 2, 3)
    assert not load[0, :, STARVED].any()
    assert int(starved.state.step) == 4


def test_moments_go_with_their_parameters(starved):
    adam = next(part for part in starved.state.optimizer if hasattr(part, "inner_state") or part)[0]
    for tree in (starved.state.params, adam.mu, adam.nu):
        assert jax.tree.structure(tree) == jax.tree.structure(starved.state.params)
        assert blocks(tree)["wi"].shape == (1, 2, 8, 32)
        assert blocks(tree)["router"].shape == (1, 8, 2)
        assert blocks(tree, "run1")["wi"].shape == (1, 3, 8, 32)
    assert int(adam.count) == 4


def test_what_stays_is_what_it_was(starved):
    state = jax.device_put(starved.first)
    model = remaining(MODEL, {"collaborative": np.ones((2, 2, 3)) * [1, 0, 1]}, starved.config)
    small = shrink(state, MODEL, model)
    adam = small.optimizer[1][0]
    for new, old in ((small.params, starved.first.params), (adam.mu, starved.first.optimizer[1][0].mu)):
        for layer, run in enumerate(("run0",)):
            for name in ("wi", "bi", "wo", "bo"):
                assert_array_equal(blocks(new, run)[name][layer], blocks(old)[name][layer][[0, 2]])
            assert_array_equal(blocks(new, run)["router"][layer], blocks(old)["router"][layer][:, [0, 2]])
    assert_array_equal(small.params["mask_token"], starved.first.params["mask_token"])
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))  # the devices hold one state


def test_what_is_left_is_placed_on_a_mesh(starved):
    mesh = make(MeshConfig(2, 4, 1))
    state = jax.device_put(starved.first, state_shardings(starved.first, mesh))
    small = shrink(state, MODEL, starved.reports[0].model, mesh)
    assert jax.tree.map(lambda leaf: leaf.sharding, small) == state_shardings(small, mesh)


def test_choices_are_counted_and_start_again(starved):
    choices = starved.first.pretext[CHOICES]["collaborative"]
    assert_array_equal(choices.sum(axis=-1), [[32, 32], [32, 32]])  # 2 images of 4 x 4 tokens, by layer and modality
    assert not starved.state.pretext[CHOICES]["collaborative"].any()


# ---- Configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(every=-1), r"pruning.every = -1: wanted steps of a window, or 0 for never"),
        (dict(least=1.5), r"pruning.least = 1.5: wanted 0 to 1"),
        (dict(groups=("colaborative",)), 'no router group "colaborative": did you mean "collaborative"'),
    ],
)
def test_wrong_settings(fields, message):
    with pytest.raises(ConfigError, match=message):
        PruningConfig(**fields)


def test_models_without_such_experts():
    for moe, name in ((dict(collaborative=0), "ringmoe"), (MODEL["moe"], "skysense")):
        with pytest.raises(ConfigError, match=r"no experts in collaborative|cannot be compressed"):
            counted(None, MODEL | {"name": name, "moe": moe}, PruningConfig(every=1, groups=("collaborative",)))


def test_experts_that_are_split_over_devices():
    with pytest.raises(ConfigError, match=r"pruning with mesh.expert = 2: .* set mesh.expert = 1"):
        OnlinePruning(PruningConfig(every=1), None, make(MeshConfig(4, 1, 2)))


def test_a_checkpoint_with_fewer_experts_is_taken_over():
    fewer = lambda *rows: MODEL | {"moe": MODEL["moe"] | {"allowed": ({"collaborative": rows}, {})}}  # noqa: E731
    assert taken_over(MODEL, fewer("110", "110")) == fewer("110", "110")
    assert taken_over(fewer("110", "110"), fewer("100", "100")) == fewer("100", "100")
    assert taken_over(fewer("110", "110"), fewer("011", "011")) == fewer("110", "110")  # has one that was gone
    other = MODEL | {"moe": dict(specialised=2, collaborative=2)}
    assert taken_over(other, MODEL) == other
    assert taken_over(MODEL, {}) == MODEL


# ---- A run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_device():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "make_mesh", lambda config: None)
        yield


@pytest.fixture(scope="module")
def values(tmp_path_factory, one_device):
    folder = tiny_data.write(tmp_path_factory.mktemp("data") / "tiny", "rgb", train=6)
    config = configurations.ringmoe(width=8, depths=(1,), head_width=4)
    config.model.update(sensors=("rgb",), image_size=8, patch=2, window=2, dtype="float32", remat="none")
    config.model.moe.engine = "dense"
    config.objectives = ConfigDict(dict(rgb=dict(name="masked_l1", sensor="rgb")))
    stream = dict(directory=str(folder), sensors=("rgb",), split="train", crop_scale=(0.5, 1.0), weight=1.0)
    config.data.streams = ConfigDict(dict(rgb=stream))
    config.data.update(image_size=8, batch_size=2, mask_unit=2)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=1)
    config.train.update(steps=5, log_every=1, checkpoint_every=2, evaluate_every=5, keep_checkpoints=0)
    return config.to_dict()


PRUNING = dict(every=3, least=1.0, groups=("specialised", "collaborative"))  # what is below the even share goes


@pytest.fixture(scope="module")
def uninterrupted(values, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    return workdir, pretrain(values | {"pruning": PRUNING}, str(workdir))


def allowed_at(workdir, number):
    checkpointer = Checkpointer.open(workdir)
    model = checkpointer.record(number)["config"]["model"]
    checkpointer.close()
    return model["moe"].get("allowed", ())


def logged(workdir):
    records = sorted(metrics.read(workdir), key=lambda r: r["step"])  # the loop's are written one step late
    return [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in records]


@pytest.mark.slow
def test_checkpoints_say_what_is_left(uninterrupted):
    workdir, state = uninterrupted
    assert [bool(allowed_at(workdir, number)) for number in (2, 4, 5)] == [False, True, True]
    trained = Run.open(str(workdir))
    assert jax.tree.map(np.shape, trained.params) == jax.tree.map(np.shape, state.params)
    assert jax.tree.map(np.shape, trained.params) == jax.tree.map(np.shape, trained.parts.model.shapes())
    (window,) = [r for r in metrics.read(workdir) if "pruning/experts" in r]
    left = window["pruning/specialised/left"] + window["pruning/collaborative/left"]  # of 4 each
    assert window["step"] == 3
    assert window["pruning/experts"] == 8 - sum(left) > 0
    assert min(left) >= 1
    assert window["pruning/bytes"] == 12 * window["pruning/parameters"]
    assert any("validation/loss" in r for r in metrics.read(workdir))


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(values, uninterrupted, tmp_path, monkeypatch, capsys):
    """Stopped within the first window, and again after experts went; the configuration names no table."""
    own = values | {"pruning": PRUNING}
    for stop in (2, 4):
        monkeypatch.setattr(loop.Stop, "after", lambda self, number: number == stop)  # noqa: B023
        assert int(pretrain(own, str(tmp_path)).step) == stop
    state = pretrain(own, str(tmp_path))
    assert f"resuming {tmp_path} at step 4" in capsys.readouterr().out
    workdir, reference = uninterrupted
    jax.tree.map(assert_array_equal, state, reference)
    assert allowed_at(tmp_path, 5) == allowed_at(workdir, 5)
    for ours, wanted in zip(logged(tmp_path), logged(workdir), strict=True):
        assert ours == wanted


def test_off_by_default(values):
    assert not PretrainConfig.of(values).pruning.every
    parts = runs.pretraining(PretrainConfig.of(values), {"rgb": sensors.get("rgb").statistics})
    assert parts.pretext.init({}, None) == ({}, {})  # counts nothing


@pytest.mark.slow
def test_another_rule_does_not_resume(values, uninterrupted):
    for other in ({}, {"pruning": PRUNING | {"least": 0.5}}):
        with pytest.raises(ConfigError, match=r"config\.(pruning|model.moe.allowed|pruning.least) is .* set it back"):
            pretrain(json.loads(json.dumps(values)) | other, str(uninterrupted[0]))
