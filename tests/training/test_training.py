"""Step, optimiser, accumulation, several devices, checkpoints and metrics, on the smallest real model."""

import dataclasses
import functools
import json
import resource
import shutil
import signal
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import models, objectives, pretext, sensors
from ringmoe_jax.errors import ConfigError, DataError, TrainingError
from ringmoe_jax.parallel import sharding
from ringmoe_jax.parallel.mesh import MeshConfig, make
from ringmoe_jax.training import checkpoint, loop, metrics, optimizer, step
from ringmoe_jax.training.checkpoint import Checkpointer, check_same
from ringmoe_jax.training.state import create

SENSORS = ("rgb", "slc_dual")
TERMS = {
    "rgb": dict(name="masked_l1", sensor="rgb"),
    "slc": dict(name="total_power", sensor="slc_dual"),
    "balance": dict(name="balance"),
}
MEANS = {label: term for label, term in TERMS.items() if label != "balance"}  # which is a product of batch means
DENSE = dict(engine="dense", specialised=0)
RULE = optimizer.OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
STEPS = 8
MODEL = dict(name="ringmoe", sensors=SENSORS, width=8, depths=(2,), image_size=16, window=2, head_width=4)


def setup(mesh=None, terms=TERMS, accumulate=1, moe=None):
    """A new run's parts; what they are made of and its programs are made once a configuration."""
    if (key := repr((mesh, terms, moe))) not in _BUILT:
        _BUILT[key] = built(mesh, terms, moe)
    parts, state, steps = _BUILT[key]
    if accumulate not in steps:
        rate = optimizer.schedule(RULE, STEPS)
        rule = optimizer.build(RULE, STEPS)
        steps[accumulate] = step.make_train_step(
            parts["task"], parts["terms"], rule, rate, seed=0, accumulate=accumulate, mesh=mesh
        )
    state = jax.tree.map(lambda leaf, spec: jax.device_put(leaf, spec), *state)  # steps take the state that they get
    return SimpleNamespace(**parts, state=state, step=steps[accumulate], mesh=mesh)


def built(mesh, terms, moe):
    terms, config = objectives.build(terms), MODEL | {"moe": dict(groups=8) if moe is None else moe}
    model = models.build(config, heads=objectives.collect_heads(terms, sensors.resolve(SENSORS)), mesh=mesh)
    task = pretext.build({"name": "masked"}, model)
    state = create(model, task, optimizer.build(RULE, STEPS), seed=0, mesh=mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    return dict(model=model, task=task, terms=terms), (jax.device_get(state), placed), {}


_BUILT = {}


class Data:
    """Endless batches; batch k is a function of k."""

    def __init__(self, rows=8, spoil=None):
        self.number, self.rows, self.spoil = 0, rows, spoil

    def __iter__(self):
        return self

    def __next__(self):
        rng = np.random.default_rng(self.number)
        self.number += 1
        shape = (self.rows, 1, 16, 16)
        batch = {
            "sensors": {
                name: {
                    "pixels": rng.normal(scale=0.3, size=(*shape, sensors.get(name).channels)).astype(np.float32),
                    "valid": rng.random(shape) < 0.9,
                    "mask": rng.random((self.rows, 4, 4)) < 0.6,
                }
                for name in SENSORS
            }
        }
        if self.number == self.spoil:
            batch["sensors"]["slc_dual"]["pixels"][:] = np.inf
        return batch

    def get_state(self):
        return {"number": self.number}


def run_steps(parts, count, rows=8):
    data, state, seen = Data(rows), parts.state, []
    for _ in range(count):
        state, values = parts.step(state, loop.place(next(data), parts.mesh))
        seen.append(jax.device_get(values))
    return state, seen


@pytest.fixture(scope="module")
def alone():
    parts = setup()
    state, seen = run_steps(parts, 5)
    return jax.device_get(state.params), seen


@pytest.mark.parametrize(
    "sizes",
    [(2, 2, 2), pytest.param((8, 1, 1), marks=pytest.mark.slow), pytest.param((1, 2, 4), marks=pytest.mark.slow)],
)
def test_eight_devices_train_as_one(alone, sizes):
    _, seen = run_steps(setup(make(MeshConfig(*sizes))), 5)
    for ours, reference in zip(seen, alone[1], strict=True):
        for name, value in reference.items():
            assert_allclose(ours[name], value, rtol=2e-4, atol=1e-5, err_msg=name)
    assert reference["moe/specialised/drop_rate"] > 0.01  # capacity was tight: drops agree as well


def test_parameters_lie_where_the_rules_say():
    mesh = make(MeshConfig(2, 2, 2))
    state, block = setup(mesh).state, ("backbone", "stages", "stage0", "blocks", "run0", "ffn")
    ffn, moments = (
        functools.reduce(dict.__getitem__, block, tree) for tree in (state.params, state.optimizer[1][0].mu)
    )
    assert ffn["specialised"]["wi"].sharding.spec == P(None, "expert", None, "fsdp")
    assert ffn["collaborative"]["wo"].sharding.spec == P(None, "expert", "fsdp", None)
    assert ffn["specialised"]["router"].sharding.spec == P()
    assert moments["specialised"]["wi"].sharding.spec == P(None, "expert", None, "fsdp")
    wide = models.build(MODEL | {"width": 32}).shapes()  # small kernels are not worth a collective
    placed = functools.reduce(dict.__getitem__, block, sharding.shardings(wide, mesh))["shared"]["wi"]["kernel"]
    assert (ffn["shared"]["wi"]["kernel"].sharding.spec, placed.spec) == (P(), P(None, None, "fsdp"))


def test_expert_axis_that_does_not_divide():
    shapes = {"specialised": {"wi": jax.ShapeDtypeStruct((2, 6, 8, 32), jnp.float32)}}
    with pytest.raises(ConfigError, match="6 experts of specialised/wi do not divide over the 4 devices"):
        sharding.shardings(shapes, make(MeshConfig(2, 1, 4)))


def test_mesh_that_does_not_fit():
    with pytest.raises(ConfigError, match="mesh data=3 x fsdp=1 x expert=2 does not fit 8 devices"):
        make(MeshConfig(3, 1, 2))


@pytest.mark.slow
def test_accumulation_equals_the_large_batch():
    """Micro-batches with very different mask counts: a mean of means would differ."""
    whole, parts = setup(terms=MEANS, moe=DENSE), setup(terms=MEANS, moe=DENSE, accumulate=4)
    batch = next(Data())
    batch["sensors"]["rgb"]["mask"][::4] = False
    batch["sensors"]["rgb"]["mask"][::4, 0, 0] = True
    a, values_a = whole.step(whole.state, loop.place(batch, None))
    b, values_b = parts.step(parts.state, loop.place(batch, None))
    for name in ("loss", "loss/rgb", "loss/slc", "norm/gradients"):
        assert_allclose(values_b[name], values_a[name], rtol=1e-5, err_msg=name)
    for x, y in zip(jax.tree.leaves(a.optimizer), jax.tree.leaves(b.optimizer), strict=True):
        assert_allclose(x, y, rtol=1e-4, atol=1e-7)


def test_accumulation_must_divide_the_batch():
    parts = setup(accumulate=3)
    with pytest.raises(ConfigError, match=r"a batch of 8 rows does not split in train.accumulate = 3"):
        parts.step(parts.state, loop.place(next(Data()), None))


def test_weight_decay_spares_what_the_paper_spares():
    config = optimizer.OptimizerConfig()
    heads = {"rgb": {"pixels": 3}}
    shapes = models.build(MODEL | {"cosine_attention": True}, heads=heads).shapes()
    flat = jax.tree_util.tree_flatten_with_path(optimizer.decays(shapes, config.no_decay))[0]
    decays = {sharding.path_name(path): on for path, on in flat}
    spared = {name.split("/")[-1] for name, on in decays.items() if not on}
    assert spared == {"bias", "scale", "mask_token", "logit_scale", "bi", "bo"}
    assert {name.split("/")[-1] for name, on in decays.items() if on} == {"kernel", "router", "wi", "wo"}
    table = optimizer.decays({"a": {"relative_position_bias": 1.0}}, config.no_decay)
    assert not table["a"]["relative_position_bias"]


def test_schedule_warms_up_and_falls():
    rate = optimizer.schedule(optimizer.OptimizerConfig(warmup_steps=10), 110)
    assert_allclose([rate(0), rate(10), rate(60), rate(110)], [1e-6, 2.5e-4, (2.5e-4 + 5e-7) / 2, 5e-7], rtol=1e-3)
    with pytest.raises(ConfigError, match=r"warmup_steps = 200 must be less than train.steps = 100.*warmup_fraction"):
        optimizer.schedule(optimizer.OptimizerConfig(warmup_steps=200), 100)


def test_the_released_schedule_counts_the_cosine_from_the_start_and_scales_all_rates():
    config = optimizer.OptimizerConfig(warmup_steps=20, rate_scale=1 / 512, cosine_from_start=True)
    rate = optimizer.schedule(config, 100)
    base, least, first = 2.5e-4 / 512, 5e-7 / 512, 1e-6 / 512
    wanted = [first + t * (base - first) / 20 for t in range(20)]
    wanted += [least + (base - least) * (1 + np.cos(np.pi * t / 100)) / 2 for t in range(20, 101)]
    assert_allclose([rate(t) for t in range(101)], wanted, rtol=1e-5)
    assert wanted[20] < 0.91 * base  # the step down at the end of the warm-up


def test_moments_without_correction():
    """MindSpore's AdamWeightDecay: m / (sqrt(v) + eps) + decay w, in float64."""
    config = optimizer.OptimizerConfig(
        learning_rate=0.1, warmup_steps=0, min_learning_rate=0.1, clip_norm=0.0, bias_correction=False
    )
    rule, rng = optimizer.build(config, 4), np.random.default_rng(0)
    w, m, v = rng.standard_normal(3), np.zeros(3), np.zeros(3)
    params = {"kernel": jnp.asarray(w, jnp.float32)}
    state = rule.init(params)
    for _ in range(4):
        g = rng.standard_normal(3)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.1 * (m / (np.sqrt(v) + 1e-8) + 0.05 * w)
        updates, state = rule.update({"kernel": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        assert_allclose(params["kernel"], w, rtol=1e-4)


@pytest.mark.parametrize(("fraction", "steps", "warmup"), [(0.1, 110, 11), (1 / 6, 600, 100), (0.999, 9, 8), (0, 5, 0)])
def test_warm_up_is_a_share_of_the_run(fraction, steps, warmup):
    config = optimizer.OptimizerConfig(warmup_fraction=fraction)
    assert config.warmup(steps) == warmup
    rate = optimizer.schedule(config, steps)
    assert rate(warmup) == pytest.approx(config.learning_rate)
    assert all(rate(step) < config.learning_rate for step in range(warmup))
    assert dataclasses.replace(config, warmup_steps=3).warmup(steps) == 3
    with pytest.raises(ConfigError, match=r"warmup_fraction = 1: wanted at least 0 and below 1"):
        optimizer.OptimizerConfig(warmup_fraction=1)


def test_gradients_are_clipped():
    rule = optimizer.build(dataclasses.replace(RULE, clip_norm=1.0, momentum_dtype="bfloat16"), STEPS)
    params = {"w": jnp.ones(4)}
    _, state = rule.update({"w": jnp.full(4, 100.0)}, rule.init(params), params)
    adam = next(
        s
        for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, optax.ScaleByAdamState))
        if isinstance(s, optax.ScaleByAdamState)
    )
    assert_allclose(adam.mu["w"].astype(jnp.float32), 0.1 * 0.5, rtol=1e-2)
    assert adam.mu["w"].dtype == jnp.bfloat16


CONFIG = loop.TrainConfig(steps=STEPS, log_every=1, checkpoint_every=2)


def train(parts, folder, *, steps=STEPS, data=None, log_every=1, every=0, callbacks=(), **changes):
    config = dataclasses.replace(CONFIG, steps=steps, log_every=log_every, evaluate_every=every)
    checkpointer = Checkpointer(folder, keep=2)
    writer = metrics.MetricsWriter(folder, resume_step=int(parts.state.step))
    data = data or Data()
    training = loop.Training(parts.state, parts.step, {"config": {}}, writer, config, **changes)
    state = loop.train(training, data, checkpointer, callbacks or [loop.Validation()])
    writer.close()
    return state, checkpointer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    state, checkpointer = train(setup(), folder)
    return folder, state, checkpointer


def test_checkpoint_restores_bit_for_bit_even_on_another_mesh(trained):
    _, state, checkpointer = trained
    assert checkpointer.latest == STEPS
    record = checkpointer.record()
    assert record["data"] == {"number": STEPS}
    assert record["versions"]["jax"] == jax.__version__
    for mesh in (None, make(MeshConfig(2, 2, 2))):
        restored = checkpointer.restore(setup(mesh).state)
        jax.tree.map(assert_array_equal, jax.device_get(restored), jax.device_get(state))
    jax.tree.map(assert_array_equal, checkpointer.restore_model()[0], jax.device_get(state.params))


@pytest.mark.slow
def test_resume_is_exact(trained, tmp_path):
    folder, state, _ = trained
    parts = setup()
    train(parts, tmp_path, steps=5)
    parts = setup()
    checkpointer = Checkpointer(tmp_path)
    data = Data()
    data.number = checkpointer.record()["data"]["number"]
    assert data.number == 5
    parts.state = checkpointer.restore(parts.state)
    # The schedule belongs to the run's length, so the first part used the same one.
    resumed, _ = train(parts, tmp_path, data=data)
    jax.tree.map(assert_array_equal, jax.device_get(resumed), jax.device_get(state))
    timing = ("perf/",)
    ours, reference = (
        [{k: v for k, v in record.items() if not k.startswith(timing)} for record in metrics.read(f)]
        for f in (tmp_path, folder)
    )
    steps = [record["step"] for record in ours]
    assert steps == sorted(set(steps))
    for record in ours:
        assert record in reference


def test_a_loss_that_is_not_finite_stops_before_saving(tmp_path):
    with pytest.raises(TrainingError, match=r"step 5: .*loss/.* is not finite; nothing was saved after") as stop:
        train(setup(), tmp_path, data=Data(spoil=5))
    assert "\n" not in str(stop.value)
    assert Checkpointer(tmp_path).latest == 4
    for leaf in jax.tree.leaves(Checkpointer(tmp_path).restore_model()[0]):
        assert np.isfinite(leaf).all()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of threads that could not write
def test_a_full_disk_keeps_what_was_saved(tmp_path):
    """No file of this process may grow past 4 kB: every write of an array fails as it does on a full disk."""
    parts = setup()
    checkpointer = Checkpointer(tmp_path, keep=0)
    checkpointer.save(1, parts.state, {"config": {}})
    checkpointer.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"could not write a checkpoint .* the checkpoint of step 1 is whole"):
            _save_and_wait(checkpointer, parts.state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    again = Checkpointer(tmp_path, keep=0)
    assert again.latest == 1
    jax.tree.map(assert_array_equal, jax.device_get(again.restore(parts.state)), jax.device_get(parts.state))


def _save_and_wait(checkpointer, state):
    checkpointer.save(2, state, {"config": {}})
    checkpointer.wait()


def test_checkpoint_errors(tmp_path, trained):
    with pytest.raises(DataError, match=r"no checkpoint in .*nowhere"):
        Checkpointer.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no checkpoint in"):
        Checkpointer(tmp_path).record()
    with pytest.raises(ConfigError, match=r"config.model.width is 16, but the checkpoint was made with 8: set it back"):
        check_same({"model": {"width": 8, "depths": (2, 2)}}, {"model": {"width": 16, "depths": [2, 2]}}, "config")


def test_reading_a_run_leaves_a_save_that_is_under_way(trained, tmp_path):
    """As `evaluate` and `report` do while it trains; the next writer clears away what a killed one left."""
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    begun = folder / "checkpoints" / f"{STEPS + 1}.orbax-checkpoint-tmp"
    begun.mkdir()
    (begun / "array").write_text("half")
    before = sorted(folder.rglob("*"))
    reader = Checkpointer.open(folder)
    assert reader.latest == reader.record()["step"] == STEPS
    reader.restore_model()
    reader.close()
    assert sorted(folder.rglob("*")) == before
    Checkpointer(folder).close()
    deadline = time.monotonic() + 20  # Orbax clears in the background, and waits for it before the next save
    while begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not begun.exists()


def test_a_large_model_is_read_onto_several_devices():
    """Nothing but shapes: more than half of a device's memory is split as training splits it."""
    devices = jax.local_devices()
    shapes = {"kernel": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
    assert checkpoint._place(shapes, devices, 2**30)["kernel"].sharding.device_set == {devices[0]}
    placed = checkpoint._place(shapes, devices, 2**10)["kernel"].sharding
    assert placed.shard_shape((64, 128)) == (64, 128 // len(devices))


class Failing:
    """A callback that cannot do its work."""

    name = "pictures"
    watches = True

    def due(self, training):
        return training.step == 2

    def __call__(self, training):
        raise DataError("no such picture")


def test_what_only_watches_costs_no_step(tmp_path):
    with pytest.raises(DataError, match="no such picture"):
        train(setup(), tmp_path, callbacks=[Failing()])
    assert Checkpointer.open(tmp_path).latest == 2


def test_validation_comes_first_and_once_a_step(tmp_path):
    seen = []
    evaluate = lambda state: seen.append(int(state.step)) or {"loss": 1.0}  # noqa: E731
    train(setup(), tmp_path, steps=3, evaluate=evaluate, every=2)
    assert seen == [0, 2, 3]
    assert [r["step"] for r in metrics.read(tmp_path) if "validation/loss" in r] == seen
    resumed = SimpleNamespace(
        step=2, done=False, evaluate=evaluate, config=dataclasses.replace(CONFIG, evaluate_every=2)
    )
    assert loop.Validation(logged=0).due(resumed)  # killed between the checkpoint and the validation after it
    assert not loop.Validation(logged=2).due(resumed)


@pytest.mark.slow
def test_the_last_step_is_logged_although_it_is_the_first_after_a_restart(tmp_path):
    parts = setup()
    parts.state = dataclasses.replace(parts.state, step=jnp.int32(2))
    train(parts, tmp_path, steps=3, log_every=2)
    assert [record["step"] for record in metrics.read(tmp_path)] == [3]


def test_asked_to_stop_before_the_first_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop.Stop, "after", lambda self, step: True)
    state, checkpointer = train(setup(), tmp_path, data=Data(spoil=1))
    assert state.step == checkpointer.latest == checkpointer.record()["data"]["number"] == 0
    assert "stopped at step 0 as asked; the same command goes on from here" in capsys.readouterr().out


def test_metrics_take_back_what_a_killed_run_had_not_saved(tmp_path):
    writer = metrics.MetricsWriter(tmp_path)
    for number in (1, 2, 3):
        writer.write(number, {"loss": number})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    writer = metrics.MetricsWriter(tmp_path, resume_step=2)
    writer.write(3, {"loss": 30})
    writer.close()
    assert [(r["step"], r["loss"]) for r in metrics.read(tmp_path)] == [(1, 1), (2, 2), (3, 30)]
    assert list((tmp_path / "tensorboard").glob("events.*"))
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])


def test_masked_pretext_needs_masks():
    parts = setup()
    batch = next(Data())
    del batch["sensors"]["rgb"]["mask"]
    with pytest.raises(DataError, match="needs hidden cells for rgb"):
        parts.step(parts.state, loop.place(batch, None))
    with pytest.raises(ConfigError, match='"maskd" does not exist: did you mean "masked"'):
        pretext.build({"name": "maskd"}, parts.model)


def test_evaluation_means_are_exact():
    """Sums over two half batches give the means of the whole one."""
    parts = setup(terms=MEANS, moe=DENSE)
    evaluate = step.make_eval_step(parts.task, parts.terms)
    data = Data(rows=4)
    halves = [next(data), next(data)]
    both = jax.tree.map(lambda *rows: np.concatenate(rows), *halves)
    split = step.mean_losses([evaluate(parts.state, loop.place(half, None)) for half in halves], parts.terms)
    whole = step.mean_losses([evaluate(parts.state, loop.place(both, None))], parts.terms)
    for name, value in whole.items():
        assert_allclose(split[name], value, rtol=1e-5, err_msg=name)
