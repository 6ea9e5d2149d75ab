"""Every part as one file of one's own and one line of a config, trained for a few steps on tiny images."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import contracts, models, objectives, pretext, sensors, tasks
from ringmoe_jax.contracts import VALUE, check_outputs
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.adaptation import AdaptationConfig
from ringmoe_jax.models.downstream import attach
from ringmoe_jax.models.heads.neck import NeckConfig
from ringmoe_jax.models.moe_ffn import MoEConfig
from ringmoe_jax.moe import parallel, routing, statistics, table
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.pretext.supervised import supervised
from ringmoe_jax.tasks import Target
from ringmoe_jax.training import optimizer
from ringmoe_jax.training.state import create
from ringmoe_jax.training.step import make_train_step

SIZE, ROWS, STEPS = 16, 4, 3
RINGMOE = dict(name="ringmoe", width=8, depths=(1,), image_size=SIZE, patch=4, window=2, head_width=8)
EXPERTS = dict(specialised=2, collaborative=2, groups=1)
DENSE = dict(specialised=0, collaborative=0)
VIT = dict(name="own_encoder:PlainViT", image_size=SIZE, patch=4, width=8, depth=2, heads=2)
RULE = optimizer.OptimizerConfig(learning_rate=1e-2, warmup_steps=1)


def batch(*names, hidden=True):
    """Noise of some sensors in their units, every other cell hidden."""
    entries = {}
    for i, name in enumerate(names):
        sensor, rng = sensors.get(name), np.random.default_rng(i)
        mean, std = (np.asarray(x, np.float32) for x in (sensor.statistics.mean, sensor.statistics.std))
        noise = rng.normal(size=(ROWS, 1, SIZE, SIZE, sensor.channels)).astype(np.float32)
        entries[sensor.name] = {"pixels": mean + std * noise, "valid": np.ones((ROWS, 1, SIZE, SIZE), bool)}
        if hidden:
            cells = np.indices((4, 4)).sum(axis=0) % 2 == 0
            entries[sensor.name]["mask"] = np.broadcast_to(cells, (ROWS, 4, 4))
    return {"sensors": entries}


def trained(model, terms, shown, task="masked", steps=STEPS):
    """A few steps of pre-training: the state before them on the host, the state after them, and all metrics."""
    terms = objectives.build(terms)
    known = sensors.resolve(model["sensors"])
    network = models.build(model, heads=objectives.collect_heads(terms, known))
    task = pretext.build({"name": task} if isinstance(task, str) else task, network)
    check_outputs(network, task, terms, shown)
    return fit(network, task, terms, shown, steps)


def fit(network, task, terms, shown, steps=STEPS, rule=RULE):
    update = optimizer.build(rule, steps + 1, network.blocks_above)
    state = create(network, task, update, seed=0)
    before, metrics = jax.device_get(state.params), []
    step = make_train_step(task, terms, update, optimizer.schedule(rule, steps + 1), seed=0)
    for _ in range(steps):
        state, values = step(state, shown)
        metrics.append(jax.device_get(values))
    return before, state, metrics


def moved(before, state):
    """Parameters that training changed, by path."""
    pairs = jax.tree_util.tree_flatten_with_path(jax.tree.map(lambda a, b: (a != b).any(), before, state.params))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/") for path, changed in pairs if changed}


# ---- A loss, a sensor, a router and an engine, in one model that is trained once ----------------------------


@pytest.fixture(scope="module")
def together(own_files):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sensors.SENSORS, "parts", dict(sensors.SENSORS))
        moe = EXPERTS | dict(router=dict(name="own_router:SigmoidTopK"), engine="own_engine:one_by_one")
        model = RINGMOE | dict(sensors=("own_sensor:LST", "rgb"), moe=moe)
        terms = dict(
            rgb=dict(name="own_loss:Huber", sensor="rgb", delta=0.5),
            lst=dict(name="masked_l1", sensor="lst"),
            balance=dict(name="balance"),
        )
        yield model, terms, trained(model, terms, batch("own_sensor:LST", "rgb"))


def test_a_loss(together):
    _, terms, (_, _, metrics) = together
    assert metrics[-1]["loss/rgb"] < metrics[0]["loss/rgb"]
    (huber,) = objectives.build({"rgb": terms["rgb"]}).values()
    # 0.2 below delta: 0.2^2 / 2; 2 beyond: 0.5 (2 - 0.25)
    assert_allclose(huber.penalty(jnp.asarray([0.2, 2.0]), jnp.zeros(2)), [0.02, 0.875], rtol=1e-6)


def test_a_sensor(together):
    model, _, (before, state, metrics) = together
    assert models.read(model).sensors == ("lst", "rgb")
    assert metrics[-1]["loss/lst"] < metrics[0]["loss/lst"]
    assert "stems/lst/project/kernel" in moved(before, state)
    assert models.complete(model)["sensors"] == model["sensors"]  # a checkpoint finds the file again


def test_a_router(together):
    _, _, result = together
    check_router(*result)


@pytest.mark.slow
def test_a_router_of_experts_that_choose():
    moe = EXPERTS | dict(router=dict(name="own_router:ExpertChoice"), engine="capacity")
    terms = dict(rgb=dict(name="masked_l1", sensor="rgb"), balance=dict(name="balance"))
    result = trained(RINGMOE | dict(sensors=("rgb",), moe=moe), terms, batch("rgb"), steps=2)
    check_router(*result)
    last = result[-1][-1]
    assert last["moe/collaborative/max_load"] == pytest.approx(1.0)  # even by construction
    assert last["moe/collaborative/drop_rate"] == 0


def check_router(before, state, metrics):
    last = metrics[-1]
    assert np.isfinite(last["loss"])
    assert any(path.endswith("collaborative/router") for path in moved(before, state))
    assert 0 < last["moe/collaborative/entropy"] <= np.log(2) + 1e-6  # rows of probabilities sum to 1


def test_sigmoids_by_hand():
    (rule,) = (routing.ROUTERS.build(dict(name="own_router:SigmoidTopK"), "config.model.moe.router"),)
    scores = jnp.log(jnp.asarray([[1.0, 3.0, 0.25], [1.0, 1.0, 9.0]]))  # sigmoid(log x) = x / (1 + x)
    allowed = np.array([[True, True, True], [True, True, False]])
    choice = routing.route(scores, jnp.asarray([0, 1]), allowed, k=2, router=rule)
    assert_array_equal(choice.experts, [[1, 0], [0, 1]])
    assert_allclose(choice.gates, [[0.75, 0.5], [0.5, 0.5]], rtol=1e-6)
    assert_allclose(choice.probabilities, [[0.5 / 1.45, 0.75 / 1.45, 0.2 / 1.45], [0.5, 0.5, 0]], rtol=1e-6)
    biased = routing.route(scores, jnp.asarray([0, 1]), allowed, k=2, router=rule, bias=jnp.asarray([0.0, -0.6, 9.0]))
    assert_array_equal(biased.experts, [[2, 0], [0, 1]])
    assert_allclose(biased.gates, [[0.2, 0.5], [0.5, 0.5]], rtol=1e-6)


def test_a_router_that_takes_no_bias():
    own = dict(name="own_router:ExpertChoice")
    with pytest.raises(ConfigError, match=r'bias_rate = 0.001: the router "own_router:ExpertChoice" takes no bias'):
        MoEConfig(router=own, bias_rate=0.001)
    MoEConfig(router=own | {"name": "own_router:SigmoidTopK"}, bias_rate=0.001)


def test_experts_choose_within_reach_and_evenly():
    rule = routing.ROUTERS.build(dict(name="own_router:ExpertChoice"), "config.model.moe.router")
    modality = jnp.asarray([0, 0, 0, 1, 1, 1], jnp.int32)
    allowed = table.specialised(2, 2)
    scores = jax.random.normal(jax.random.key(0), (6, 4))
    choice = jax.jit(lambda x: routing.route(x, modality, allowed, k=1, router=rule))(scores)
    taken = jax.nn.one_hot(choice.experts, 4).sum(axis=1)  # index 4, nobody, is no column
    assert_array_equal(taken.sum(axis=0), [2, 2, 2, 2])
    assert not np.any(np.asarray(taken)[~allowed[modality]])
    assert_array_equal(choice.gates > 0, choice.experts < 4)
    s = jax.jit(lambda c: statistics.layer(c, jnp.ones(c.experts.shape, bool), modality, allowed))(choice)
    assert_array_equal(s.load, [[2, 0, 2, 0], [0, 2, 0, 2]])
    assert_array_equal(s.reach, [[3, 0, 3, 0], [0, 3, 0, 3]])


def test_an_engine(together):
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = ((3, 4, 5), (3, 5), (3, 5, 4), (3, 4))
    experts = Experts(*(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=False)))
    tokens, scores = jax.random.normal(keys[4], (6, 4)), jax.random.normal(keys[5], (6, 3))

    def run(engine):
        choice = routing.route(scores, jnp.zeros(6, jnp.int32), np.ones((1, 3), bool), k=2)
        return parallel.run(engine, tokens, [choice], [experts], [6])[0]

    ours, reference = (jax.jit(run, static_argnums=0)(engine) for engine in ("own_engine:one_by_one", "dense"))
    assert_allclose(ours, reference, rtol=1e-5, atol=1e-5)
    _, _, (_, _, metrics) = together
    assert metrics[-1]["loss"] < metrics[0]["loss"]


# ---- An encoder ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_encoder_without_experts():
    model = VIT | dict(sensors=("rgb", "s1_grd"))
    terms = {name: dict(name="masked_l1", sensor=name) for name in model["sensors"]}
    before, state, metrics = trained(model, terms, batch("rgb", "s1_grd"))
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert not any(name.startswith("moe/") for name in metrics[0])
    assert {"stems/s1_grd/project/kernel", "positions", "decoders/rgb/pixels/project/kernel"} <= moved(before, state)
    config = models.read(model)
    assert (config.title, config.has_experts, config.image_sizes["rgb"]) == ("ViT", False, SIZE)
    assert models.with_engine(model, "dense") == models.complete(model)
    with pytest.raises(ConfigError, match=r"balance .*reads .routing."):
        trained(model, terms | dict(balance=dict(name="balance")), batch("rgb", "s1_grd"))


def test_layer_wise_rates_of_an_encoder():
    """Two steps of Adam with equal gradients: a block moves by layer_decay of what the one above it moves by."""
    network = models.build(VIT | dict(sensors=("rgb",)))
    params = {"encoder": jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), network.shapes())}
    rule = dataclasses.replace(RULE, layer_decay=0.5, weight_decay=0.0, clip_norm=0.0, warmup_steps=0)
    update = optimizer.build(rule, 10, network.blocks_above)
    ones = jax.tree.map(jnp.ones_like, params)
    steps, _ = jax.jit(lambda ones, params: update.update(ones, update.init(params), params))(ones, params)
    kernel = steps["encoder"]["transformer"]["blocks"]["ffn"]["mlp"]["wi"]["kernel"]
    last = float(jnp.abs(steps["encoder"]["norm"]["scale"]).max())
    assert_allclose(np.abs(kernel).max(axis=(1, 2)) / last, [0.5, 1.0], rtol=1e-5)
    assert_allclose(np.abs(steps["encoder"]["positions"]).max() / last, 0.25, rtol=1e-5)


# ---- A head with its task and metric ------------------------------------------------------------------


@pytest.mark.slow
def test_a_head_with_its_task_and_metric():
    target = Target("cover", VALUE, ("water", "land", "ice"))
    task = tasks.build(dict(name="own_task:Shares", target="cover"))
    task.check(target)
    encoder = models.build(VIT | dict(sensors=("rgb",)))
    shown = batch("rgb", hidden=False)
    truth = np.array([[0.2, 0.3, 0.5]] * ROWS, np.float32)
    network = attach(encoder, {}, NeckConfig(), task.head_spec(target), shown)
    terms = objectives.build(task.objectives(target, {}))
    shown["labels"] = {"cover": truth}
    learner = supervised(network, AdaptationConfig())
    check_outputs(network, learner, terms, shown)
    _, state, metrics = fit(network, learner, terms, shown, steps=20)
    assert metrics[-1]["loss"] < metrics[0]["loss"] / 2
    outputs = jax.jit(network.apply)(learner.export(state.params, state.pretext), shown)
    answer = jax.device_get(task.answer(outputs["predictions"], target))
    assert_allclose(answer["shares"].sum(axis=1), 1.0, rtol=1e-5)
    task.check_truth(truth, target)
    metric = task.metric(target)
    for i in range(ROWS):
        task.add(metric, {name: x[i] for name, x in answer.items()}, truth[i])
    assert metric.values(np.ones((1, ROWS)))["share error"][0] == pytest.approx(np.abs(answer["shares"] - truth).mean())
    assert not metric.quantities["share error"].higher_is_better
    assert_allclose(task.constant(truth, target)["shares"], truth[0], rtol=1e-6)


def test_a_head_of_ones_own_has_to_give_what_the_task_reads():
    target, shown = Target("kind", contracts.CLASSES, ("a", "b")), batch("rgb", hidden=False)
    spec = tasks.Classification(target="kind").head_spec(target)
    with pytest.raises(ConfigError, match=r'"own_task:SharesHead" does not suit this task: \(known: linear, mlp\)'):
        attach(models.build(VIT | dict(sensors=("rgb",))), dict(name="own_task:SharesHead"), NeckConfig(), spec, shown)


# ---- A pretext task -----------------------------------------------------------------------------------


def test_a_pretext_task():
    terms = dict(rgb=dict(name="masked_l2", sensor="rgb"))
    shown, task = batch("rgb", hidden=False), dict(name="own_pretext:Denoising", noise=0.25)
    _, _, metrics = trained(VIT | dict(sensors=("rgb",)), terms, shown, task)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    seen = {}

    def spy(params, shown, *, key, train):
        seen.update(shown["sensors"])
        return {"statistics": {"rgb": sensors.get("rgb").statistics}}

    outputs, _ = pretext.build(task, models.Model(None, spy)).apply({}, {}, shown, key=jax.random.key(1), train=True)
    entry, std = shown["sensors"]["rgb"], np.asarray(sensors.get("rgb").statistics.std)
    assert np.std((seen["rgb"]["pixels"] - entry["pixels"]) / std) == pytest.approx(0.25, rel=0.05)
    clean = contracts.standardise(entry["pixels"], entry["valid"], sensors.get("rgb").statistics)
    assert_array_equal(outputs["standardised"]["rgb"], clean)


# ---- A data set ---------------------------------------------------------------------------------------


def test_a_data_set(tmp_path, own_files):
    rasterio, catalog = pytest.importorskip("rasterio"), pytest.importorskip("input_pipeline.catalog")
    from input_pipeline.dataset import open_dataset

    for split, count in (("train", 3), ("held_out", 1)):
        for kind, channels in (("images", 3), ("masks", 1)):
            folder = tmp_path / "files" / split / kind
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((channels, SIZE, SIZE), 255 if kind == "masks" and i == 0 else 0, np.uint8)
                form = dict(driver="PNG", width=SIZE, height=SIZE, count=channels, dtype="uint8")
                with rasterio.open(folder / f"tile{i}.png", "w", **form) as file:
                    file.write(pixels)
    metadata = catalog.prepare("own_data:FIELDS", tmp_path / "files", tmp_path / "out")
    assert metadata.labels["land_cover"].names == ("other", "field")
    dataset = open_dataset(tmp_path / "out", ["rgb"])
    assert {split: dataset.size(split) for split in dataset.counts} == {"train": 3, "validation": 1}
    with pytest.raises(ConfigError, match=r'data set "own_data:FIELD" cannot be imported'):
        catalog.get("own_data:FIELD")


# ---- The page -----------------------------------------------------------------------------------------


def test_the_page_shows_these_files(own_files):
    """Every Python block of docs/extend.md that begins with a docstring is one of the files, as it is."""
    page = (Path(__file__).parents[2] / "docs" / "extend.md").read_text()
    blocks = {block for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if block.startswith('"""')}
    files = {path.read_text(): path.name for path in own_files.glob("own_*.py")}
    assert {files.get(block, block) for block in blocks} == set(files.values())
