"""Two views and a teacher: recursions in NumPy on a model of one layer."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import objectives, pretext, sensors
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.api import Model
from ringmoe_jax.models.layers import unit
from ringmoe_jax.parallel.mesh import MeshConfig, make
from ringmoe_jax.pretext import PretextSpec, prototypes
from ringmoe_jax.pretext.contrastive import momentum_at
from ringmoe_jax.training import loop, optimizer, step
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.state import create

WIDTH, GRID, REGIONS, STEPS = 6, 4, 5, 4
NAMES, DATES = ("rgb", "s2_10"), (1, 3)
STREAMS = (*NAMES, "fused")
LEVELS = ("pixel", "object", "image")
TERMS = {f"{s}_{k}": dict(name="self_distillation", stream=s, level=k) for s in STREAMS for k in LEVELS}
TERMS |= {"align": dict(name="alignment", sensors=NAMES, projected=True)}
ALL = objectives.collect_projections(objectives.build(TERMS))
HEADS = dict(image_outputs=16, local_outputs=8, hidden=12, bottleneck=5, clusters=2, head_norm="layer")
RULE = optimizer.OptimizerConfig(learning_rate=1e-2, warmup_steps=0, epsilon=1e-3)
WHOLE = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
TURNED = np.array([[0, 1, 0], [-1, 0, 1]], np.float32)  # a quarter, counter-clockwise
SHIFTED = np.array([[0.5, 0, 0.25], [0, 0.5, 0.5]], np.float32)


def one_layer(bank=True):
    """A model whose tokens are tanh(pixel W). With a bank, fused features end with their region's first prototype."""

    def init(key):
        keys = jax.random.split(key, 3)
        params = {
            "encoder": {
                n: jax.random.normal(k, (sensors.get(n).channels, WIDTH)) for n, k in zip(NAMES, keys, strict=False)
            }
        }
        if bank:
            first = unit(jax.random.normal(keys[2], (REGIONS, 3, WIDTH)))
            params["geo_context"] = {"prototypes": first, "visits": jnp.zeros(REGIONS)}
        return params

    def apply(params, batch, *, key=None, train=False):
        entries = batch["sensors"]
        tokens = {n: jnp.tanh(e["pixels"] @ params["encoder"][n]) for n, e in entries.items()}
        fused = sum(t.mean(axis=1) for t in tokens.values())
        out = {"tokens": tokens, "fused": fused, "routing": {}}
        if bank:
            region = next(iter(entries.values()))["location"][:, 0].astype(jnp.int32)
            read = jnp.broadcast_to(params["geo_context"]["prototypes"][region, 0][:, None, None], fused.shape)
            out |= {"fused": jnp.concatenate([fused, read], axis=-1), "regions": region}
        return out

    return Model(init, apply, dict.fromkeys(NAMES, WIDTH) | {"fused": WIDTH * (2 if bank else 1)})


def view(rng, ground=WHOLE, names=NAMES, rows=4, grid=GRID, valid=1.0):
    entries = {}
    for name, dates in zip(NAMES, DATES, strict=True):
        shape = (rows, dates, grid, grid)
        entries[name] = {
            "pixels": rng.normal(size=(*shape, sensors.get(name).channels)).astype(np.float32),
            "valid": rng.random(shape) < valid,
            "location": np.stack([np.arange(rows) % 3, np.zeros(rows)], axis=-1).astype(np.float32),
            "ground": np.tile(ground, (rows, 1, 1)),
        }
    return {name: entries[name] for name in names}


def pair(seed=0, ground=SHIFTED, local=False, **settings):
    rng = np.random.default_rng(seed)
    batch = {"sensors": view(rng, **settings), "views": {"second": view(rng, ground, **settings)}}
    if local:
        batch["views"]["local0"] = view(rng, SHIFTED, names=("rgb",), grid=2)
    return batch


def build(model=None, projections=ALL, steps=STEPS, **config):
    model = model or one_layer()
    task = pretext.build({"name": "contrastive"} | HEADS | config, model, PretextSpec(steps, projections))
    return task, *jax.eval_shape(lambda: task.init(model.init(jax.random.key(0)), jax.random.key(1)))


class Passes:
    """Compiled passes of a one-layer model that is its own teacher. Call: batch -> outputs and the new state."""

    def __init__(self, train=False, **config):
        self.task, *_ = build(**config)
        init = lambda: self.task.init(one_layer().init(jax.random.key(0)), jax.random.key(1))  # noqa: E731
        self.params, self.state = jax.jit(init)()
        self.forward = jax.jit(lambda p, s, b, k: _arrays(self.task.apply(p, s, b, key=k, train=train)))

    def __call__(self, batch, key=None, **changes):
        return jax.device_get(self.forward(self.params, self.state | changes, batch, key))

    def shapes(self, batch):
        return jax.eval_shape(self.forward, self.params, self.state, batch, None)


def _arrays(passed):
    outputs, state = passed
    return {k: outputs[k] for k in ("contrast", "projected", "teacher_temperature")}, state


# Training


FEW = {label: TERMS[label] for label in ("s2_10_image", "s2_10_pixel", "fused_object", "align")}


def setup(terms=FEW, accumulate=1, mesh=None, **config):
    model, terms = one_layer(), objectives.build(terms)
    task = build(model, objectives.collect_projections(terms), **config)[0]
    rule = optimizer.build(RULE, STEPS)
    rate = optimizer.schedule(RULE, STEPS)
    run = step.make_train_step(task, terms, rule, rate, seed=0, accumulate=accumulate, mesh=mesh)
    state = create(model, task, rule, seed=0, mesh=mesh)
    return SimpleNamespace(model=model, task=task, state=state, step=run, mesh=mesh)


@pytest.fixture(scope="module")
def trained():
    """Every state of a run of a few steps, with a moving centre, some invalid pixels and local crops."""
    parts = setup(targets="centre", momentum=0.9, temperature=0.5, warmup_temperature=0.2, warmup_steps=2)
    states, seen, batches = [jax.device_get(parts.state)], [], [pair(i, local=True, valid=0.8) for i in range(STEPS)]
    for batch in batches:
        parts.state, metrics = parts.step(parts.state, loop.place(batch, None))
        states.append(jax.device_get(parts.state))
        seen.append(jax.device_get(metrics))
    return parts, states, seen, batches


def test_the_teacher_is_a_moving_average(trained):
    _, states, *_ = trained
    start = states[0]
    jax.tree.map(assert_array_equal, start.pretext["teacher"], start.params)
    wanted = start.params
    for k, after in enumerate(states[1:]):
        momentum = 1 - 0.1 * (np.cos(np.pi * k / (STEPS - 1)) + 1) / 2
        wanted = jax.tree.map(lambda t, p, m=momentum: m * t.astype(np.float64) + (1 - m) * p, wanted, after.params)
        jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), after.pretext["teacher"], wanted)
        assert after.pretext["step"] == k + 1
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), states[1].pretext["teacher"], start.params)
    assert min(jax.tree.leaves(moved)) > 1e-6
    jax.tree.map(assert_array_equal, states[-1].pretext["teacher"], states[-2].pretext["teacher"])  # momentum 1


def test_momentum_follows_a_cosine_and_stays_at_one():
    assert_allclose([momentum_at(s, 11, 0.9) for s in (0, 5, 10, 99)], [0.9, 0.95, 1.0, 1.0], rtol=1e-6)
    assert_allclose(momentum_at(0, 1, 0.9), 0.9, rtol=1e-6)


def head(params, x):
    """`Projection` in NumPy: [N, D] -> [N, K] cosines."""
    gelu = lambda y: y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))  # noqa: E731
    x = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-10)
    for name in ("first", "middle", "last"):
        x = x @ params[name]["kernel"] + params[name]["bias"]
        x = x if name == "last" else gelu(x)
    directions = params["directions"] / np.linalg.norm(params["directions"], axis=0)
    return x / np.linalg.norm(x, axis=-1, keepdims=True) @ directions


def images(params, entry, name):
    """Means of a sensor's tokens over what is seen: [B T, D], and whether anything is."""
    x = np.tanh(entry["pixels"] @ params["encoder"][name])
    seen = entry["valid"][..., None]
    count = seen.sum(axis=(2, 3))
    return ((x * seen).sum(axis=(2, 3)) / np.maximum(count, 1)).reshape(-1, WIDTH), (count > 0).ravel()


def test_the_centre_is_a_moving_mean_of_what_the_teacher_says(trained):
    _, states, _, batches = trained
    for before, after, batch in zip(states[:-1], states[1:], batches, strict=True):
        teacher = before.pretext["teacher"]
        x, _ = images(teacher, batch["views"]["second"]["s2_10"], "s2_10")
        cosines = head(teacher["projections"]["s2_10"]["image"], x)
        centre = before.pretext["centres"]["s2_10"]["image"]
        assert_allclose(
            after.pretext["centres"]["s2_10"]["image"], 0.9 * centre + 0.1 * cosines.mean(axis=0), atol=1e-5
        )


def test_losses_of_images_against_numpy(trained):
    """Student and teacher from their parameters to the loss: the second and third step, with a warm teacher."""
    _, states, seen, batches = trained
    for k in (1, 2):
        params, state, batch = states[k].params, states[k].pretext, batches[k]
        a, b = (head(p["projections"]["s2_10"]["image"], images(p, e["s2_10"], "s2_10")[0]) for p, e in (
            (params, batch["sensors"]), (state["teacher"], batch["views"]["second"])))  # fmt: skip
        target = (b - state["centres"]["s2_10"]["image"]) / (0.2 + 0.15 * k)
        target = np.exp(target) / np.exp(target).sum(axis=-1, keepdims=True)
        logits = a / 0.1
        nats = np.log(np.exp(logits).sum(axis=-1)) - (target * logits).sum(axis=-1)
        assert_allclose(seen[k]["loss/s2_10_image"], nats.mean(), rtol=1e-4)


def test_the_bank_moves_by_what_the_student_sees(trained):
    _, states, _, batches = trained
    before, after, first = states[1], states[2], batches[1]["sensors"]
    features = sum(np.tanh(e["pixels"] @ before.params["encoder"][n]).mean(axis=1) for n, e in first.items())
    seen = np.logical_or(*(e["valid"].any(axis=1) for e in first.values()))
    bank = jax.tree.map(jnp.asarray, before.pretext["geo_context"])
    wanted = prototypes.update(bank, features, seen, np.arange(4) % 3, momentum=0.99, temperature=0.05)
    jax.tree.map(lambda a, b: assert_allclose(a, b, atol=1e-6), after.pretext["geo_context"], wanted)
    assert_array_equal(states[-1].pretext["geo_context"]["visits"], [2 * STEPS, STEPS, STEPS, 0, 0])
    assert "geo_context" not in before.params


def test_all_metrics_are_finite(trained):
    for metrics in trained[2]:
        assert {f"loss/{label}" for label in FEW} < set(metrics)
        assert all(np.isfinite(v).all() for v in metrics.values())


def test_what_is_exported_is_the_teacher_with_its_bank(trained):
    parts, states, _, batches = trained
    exported = parts.task.export(states[-1].params, states[-1].pretext)
    assert jax.tree.structure(exported) == jax.tree.structure(parts.model.shapes())
    jax.tree.map(assert_array_equal, exported["encoder"], states[-1].pretext["teacher"]["encoder"])
    out = parts.model.apply(exported, batches[0])
    assert_array_equal(out["fused"][0, 0, 0, WIDTH:], states[-1].pretext["geo_context"]["prototypes"][0, 0])


def test_a_checkpoint_holds_the_pretext_state(trained, tmp_path):
    parts, states, *_ = trained
    with_state = Checkpointer(tmp_path)
    with_state.save(STEPS, parts.state, {"config": {}})
    with_state.wait()
    fresh = create(parts.model, parts.task, optimizer.build(RULE, STEPS), seed=5)
    jax.tree.map(assert_array_equal, jax.device_get(with_state.restore(fresh)), states[-1])
    ours, wanted = (
        parts.task.export(*x) for x in (with_state.restore_model(), (states[-1].params, states[-1].pretext))
    )
    jax.tree.map(assert_array_equal, ours, wanted)
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)


# With a centre and a bank that stay, a row's target hangs on no other row, and micro-batches not on those before them.
STILL = dict(targets="centre", centre_momentum=1.0, prototype_momentum=1.0, momentum=0.5)
TWO = {label: TERMS[label] for label in ("s2_10_pixel", "fused_object")}


@pytest.fixture(scope="module")
def whole():
    """One step of a batch in one piece, on one device."""
    return one_step(setup(TWO, **STILL))


def one_step(parts):
    start = jax.device_get(parts.state.pretext["teacher"])
    state, metrics = parts.step(parts.state, loop.place(pair(valid=0.7, rows=8), parts.mesh))
    return start, *jax.device_get((state, metrics))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [pytest.param(dict(accumulate=2), marks=pytest.mark.slow), dict(mesh=(2, 2, 2))], ids=str
)
def test_micro_batches_and_devices_train_as_the_whole(whole, change):
    if "mesh" in change:
        change = {"mesh": make(MeshConfig(*change["mesh"]))}
    start, ours, metrics = one_step(setup(TWO, **change, **STILL))
    for name in ("loss", "loss/s2_10_pixel", "loss/fused_object", "norm/gradients"):
        assert_allclose(metrics[name], whole[2][name], rtol=1e-4, err_msg=name)
    jax.tree.map(lambda x, y: assert_allclose(x, y, atol=1e-5), ours.params, whole[1].params)
    teacher = jax.tree.map(lambda t, p: (t + p) / 2, start, ours.params)
    jax.tree.map(lambda x, y: assert_allclose(x, y, atol=1e-6), ours.pretext["teacher"], teacher)
    for state in (ours, whole[1]):
        assert state.pretext["step"] == 1  # once a step, not once a micro-batch
        assert_array_equal(state.pretext["geo_context"]["visits"], [3, 3, 2, 0, 0])


# Pairs


def test_no_gradient_reaches_the_teacher():
    terms = objectives.build({label: TERMS[label] for label in ("s2_10_pixel", "fused_image")})
    passes = Passes(targets="centre", projections=objectives.collect_projections(terms))

    def loss(params, teacher):
        outputs, _ = passes.task.apply(params, passes.state | {"teacher": teacher}, pair(), key=None, train=True)
        return sum(term(outputs, pair())[0] for term in terms.values())

    own, others = jax.device_get(jax.jit(jax.grad(loss, (0, 1)))(passes.params, passes.state["teacher"]))
    assert min(np.abs(g).max() for g in jax.tree.leaves(own)) > 0
    jax.tree.map(lambda g: assert_array_equal(g, 0), others)


@pytest.fixture(scope="module")
def turned():
    """The second view is the first one, turned; and the teacher is the student."""
    batch = pair(ground=TURNED, valid=0.8)
    for name, entry in batch["sensors"].items():
        second = {k: np.rot90(entry[k], axes=(2, 3)) for k in ("pixels", "valid")}
        batch["views"]["second"][name] |= second
    return batch


def test_equal_views_and_networks_give_equal_pairs(turned):
    """Targets without a centre are then the student's own softmax, for all levels; of the pixels, 80 % count."""
    wanted = {"s2_10": LEVELS, "fused": ("pixel", "image")}
    contrast = Passes(targets="centre", temperature=0.3, projections=wanted)(turned)[0]["contrast"]
    for stream in wanted:
        for level, rows in contrast[stream].items():
            own = np.exp(rows["student"] / 0.3)
            own /= own.sum(axis=-1, keepdims=True)
            if level == "pixel":
                seen = [e["valid"] for e in turned["sensors"].values()]
                seen = dict(zip(NAMES, seen, strict=True)) | {"fused": seen[0][:, 0] | seen[1].any(axis=1)}
                assert_array_equal(rows["weight"], seen[stream].ravel())
            else:
                assert rows["weight"].all()
            assert_allclose(rows["teacher"], own, rtol=1e-3, atol=1e-5, err_msg=f"{stream} {level}")


def test_rows_are_dates_and_images():
    out, _ = Passes().shapes(pair(local=True))
    sizes = {s: {k: out["contrast"][s][k]["student"].shape for k in LEVELS} for s in STREAMS}
    for stream, dates, local in (("rgb", 1, 1), ("s2_10", 3, 0), ("fused", 1, 0)):
        assert sizes[stream] == {
            "pixel": (4 * (dates * GRID**2 + local * 4), 8),
            "object": (4 * dates * 2, 8),
            "image": (4 * (dates + local), 16),
        }
    assert {n: x.shape for n, x in out["projected"].items()} == {
        n: (4, d, GRID, GRID, 5) for n, d in zip(NAMES, DATES, strict=True)
    }


def test_local_crops_are_compared_with_the_second_view():
    """The local crop shows exactly the ground of the second view, at half its resolution."""
    passes, batch = (
        Passes(projections={"rgb": ("pixel", "image"), "fused": ("image",)}, temperature=0.5),
        pair(local=True),
    )
    ours, alone = (passes(b)[0]["contrast"] for b in (batch, batch | {"views": {"second": batch["views"]["second"]}}))
    assert ours["rgb"]["pixel"]["weight"][-16:].all()
    assert_allclose(ours["rgb"]["image"]["student"][:4], alone["rgb"]["image"]["student"], atol=1e-6)
    assert_allclose(ours["rgb"]["image"]["teacher"][4:], ours["rgb"]["image"]["teacher"][:4], atol=1e-6)
    assert_allclose(ours["fused"]["image"]["teacher"], alone["fused"]["image"]["teacher"], atol=1e-6)


def test_pixels_are_drawn_among_those_that_count():
    batch, wanted = pair(valid=0.9), {"s2_10": ("pixel",)}
    draw = Passes(tokens=3, projections=wanted)
    every, rows, other = (
        passes(batch, jax.random.key(k))[0]["contrast"]["s2_10"]["pixel"]
        for passes, k in ((Passes(tokens=99, projections=wanted), 0), (draw, 0), (draw, 1))
    )
    assert len(every["weight"]) == 4 * 3 * GRID**2
    assert rows["student"].shape == (12, 8)
    assert rows["weight"].all()
    assert np.abs(other["student"] - rows["student"]).max() > 1e-3
    chosen = np.abs(rows["student"][:, None] - every["student"][None]).max(axis=-1).argmin(axis=1)
    assert len(set(chosen.tolist())) == 12
    assert every["weight"][chosen].all()
    assert_array_equal(chosen // (3 * GRID**2), np.repeat(np.arange(4), 3))
    few = jax.tree.map(np.copy, batch)
    few["sensors"]["s2_10"]["valid"][1] = False
    rows = draw(few, jax.random.key(0))[0]["contrast"]["s2_10"]["pixel"]
    assert_array_equal(rows["weight"].reshape(4, 3), [[1] * 3, [0] * 3, [1] * 3, [1] * 3])


def test_what_a_sample_lacks_counts_for_nothing():
    """Row 1 has no s2_10 in the second view: its pairs have no weight, and no other row's target hangs on it."""
    passes, batch = Passes(projections={"s2_10": LEVELS}), pair()
    batch["views"]["second"]["s2_10"]["valid"][1] = False
    other = jax.tree.map(np.copy, batch)
    for entries in (other["sensors"], other["views"]["second"]):
        entries["s2_10"]["pixels"][1] *= -3
    ours, others = (passes(b)[0]["contrast"]["s2_10"] for b in (batch, other))
    for level in LEVELS:
        a, b = ({k: v.reshape(4, -1, *v.shape[1:]) for k, v in x[level].items()} for x in (ours, others))
        assert_array_equal(a["weight"].any(axis=1), [True, False, True, True])
        for name in a:
            assert_array_equal(a[name][[0, 2, 3]], b[name][[0, 2, 3]])


def test_a_batch_without_a_sensor_leaves_its_terms_out():
    whole, terms = pair(), objectives.build(TERMS)
    passes = Passes(projections={"rgb": ("image", "align"), "s2_10": ("pixel", "align"), "fused": ("image",)})
    for first, second in ((("rgb",), ("rgb",)), (NAMES, ("rgb",)), (("rgb",), NAMES)):
        batch = {
            "sensors": {n: whole["sensors"][n] for n in first},
            "views": {"second": {n: whole["views"]["second"][n] for n in second}},
        }
        out, _ = passes.shapes(batch)
        assert set(out["contrast"]) == {"rgb", "fused"}
        assert set(out["projected"]) == set(first)
        assert terms["s2_10_pixel"](out, batch)[:2] == (0, 0)


def test_only_training_moves_anything():
    config = dict(targets="centre", projections={"rgb": ("image",)})
    still, moving = (Passes(train, **config) for train in (False, True))
    start = jax.device_get(still.state)
    jax.tree.map(assert_array_equal, still(pair())[1], start)
    moved = moving(pair())[1]
    assert np.abs(moved["centres"]["rgb"]["image"]).max() > 1e-4
    assert moved["geo_context"]["visits"].sum() == 4
    jax.tree.map(assert_array_equal, moved["teacher"], start["teacher"])


def test_sinkhorn_targets_use_all_outputs_alike():
    passes = Passes(temperature=0.5, warmup_temperature=0.1, warmup_steps=10, projections={"rgb": ("image",)})
    targets = {}
    for number, temperature in ((0, 0.1), (5, 0.3), (50, 0.5)):  # of the teacher, while it warms up
        out, _ = passes(pair(rows=32), step=jnp.int32(number))
        assert_allclose(out["teacher_temperature"], temperature, rtol=1e-5)
        targets[number] = out["contrast"]["rgb"]["image"]["teacher"]
        assert_allclose(targets[number].sum(axis=-1), 1.0, rtol=1e-5)
    assert_allclose(targets[50].sum(axis=0), 2.0, rtol=0.1)
    spread = [t.max(axis=-1).mean() for t in targets.values()]
    assert spread[0] > spread[1] > spread[2]


def test_heads_are_made_for_what_is_compared():
    model = one_layer(bank=False)
    task, params, state = build(
        model, projections={"rgb": ("pixel", "object"), "fused": ("image",), "s2_10": ("align",)}
    )
    assert {s: set(kinds) for s, kinds in params["projections"].items()} == {
        "rgb": {"local"},
        "fused": {"image"},
        "s2_10": {"align"},
    }
    assert set(state) == {"teacher", "step"}
    assert set(task.export(params, state)) == {"encoder"}
    assert "directions" not in params["projections"]["s2_10"]["align"]


# Errors


def test_two_views_are_needed():
    task, params, state = build()
    whole = pair()
    blind = {n: {k: v for k, v in e.items() if k != "ground"} for n, e in whole["views"]["second"].items()}
    for batch in ({"sensors": whole["sensors"]}, whole | {"views": {}}, whole | {"views": {"second": blind}}):
        with pytest.raises(DataError, match=r"needs two views of every sample: set data\.views"):
            jax.eval_shape(lambda p, s, b: task.apply(p, s, b, key=None, train=True)[1], params, state, batch)


@pytest.mark.parametrize(
    ("config", "projections", "message"),
    [
        ({}, {}, 'pretext "contrastive" has nothing to compare: name self_distillation'),
        ({}, {"rbg": ("image",)}, 'an objective compares "rbg" of two views: did you mean "rgb"'),
        (
            {"name": "masked"},
            ALL,
            'compare align, image, object, pixel features of rgb, s2_10, fused.*set pretext.name = "contrastive"',
        ),
        ({"name": "masked_parts"}, ALL, 'set pretext.name = "contrastive"'),
        ({"targets": "center"}, ALL, 'pretext.targets = "center": wanted "sinkhorn" or "centre"'),
        ({"momentum": 1.1}, ALL, r"pretext.momentum = 1.1: wanted 0 to 1"),
        ({"centre_momentum": -0.1}, ALL, r"pretext.centre_momentum = -0.1"),
        ({"prototype_momentum": float("nan")}, ALL, "pretext.prototype_momentum = nan"),
        ({"temperature": 0.0}, ALL, r"pretext.temperature = 0.0: wanted > 0"),
        ({"cluster_temperature": -1.0}, ALL, "pretext.cluster_temperature = -1.0"),
        ({"clusters": 1}, ALL, "clusters must be 2 or more"),
        ({"momentun": 0.5}, ALL, "momentun"),
    ],
)
def test_bad_configs(config, projections, message):
    with pytest.raises(ConfigError, match=message):
        pretext.build({"name": "contrastive"} | config, one_layer(), PretextSpec(1, projections))
