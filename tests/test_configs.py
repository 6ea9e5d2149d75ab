"""Every configuration of this project: it builds, by shapes alone, and states no default."""

import copy
import dataclasses
import functools
import importlib
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import ringmoe_jax as rm
from configs import common, ringmoe_released
from configs.finetune import common as finetuning
from experiments.run import ablate
from experiments.run.cli import read_config
from experiments.run.encoder import begun, encoder_of
from ringmoe_jax import config as configuration
from ringmoe_jax import models, run, tasks
from ringmoe_jax.compress import Network, submodel_config
from ringmoe_jax.deploy import windows
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.ringmoe import RingMoEConfig
from ringmoe_jax.planning import ahead, plan
from ringmoe_jax.pretext.distilled import distilled
from ringmoe_jax.run import IMPORTED, FinetuneConfig, PretrainConfig, Run, TaskSpec
from ringmoe_jax.run.folder import FROZEN_ENGINE
from ringmoe_jax.training import optimizer
from ringmoe_jax.training import state as states
from ringmoe_jax.training.step import make_train_step

ROOT = Path(__file__).parent.parent


def shipped():
    """Every file, and every argument of it."""
    for path in sorted((ROOT / "configs").rglob("*.py")):
        if path.stem in ("__init__", "common"):
            continue
        name = path.relative_to(ROOT)
        module = importlib.import_module(".".join(name.with_suffix("").parts))
        yield from [f"{name}:{argument}" for argument in getattr(module, "CHOICES", ())] or [str(name)]


SHIPPED = list(shipped())
QUICK = (  # one of each kind
    "configs/demo.py",
    "configs/ringmoe_micro.py",
    "configs/ringmoe_contrastive.py",
    "configs/skysense.py:huge",
    "configs/finetune/height.py",
)
QUICKEST = "configs/ringmoe_contrastive.py"


def test_all_are_there():
    assert {"configs/ringmoe.py:14b", "configs/skysense.py:moe", "configs/finetune/tracking.py"} <= set(SHIPPED)
    assert set(QUICK) <= set(SHIPPED)


@pytest.mark.parametrize("path", SHIPPED)
def test_it_is_sound(path):
    """Every key and type; what is recorded of it is the same configuration; objectives suit sensors and streams."""
    values = read_config(path)
    cls = FinetuneConfig if "task" in values else PretrainConfig
    for config in map(cls.of, runs(values)):
        assert cls.of(config.complete()).complete() == config.complete()
        if cls is PretrainConfig:
            config.check_streams()
            run.build_objectives(config)


@pytest.mark.parametrize("path", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in SHIPPED])
def test_it_builds(path):
    """By shapes alone; nothing is compiled."""
    for values in runs(read_config(path)):
        parts = build_task(values) if "task" in values else run.pretraining(PretrainConfig.of(values), {})
        assert parts.objectives
        assert parts.model.streams


def kept_alone(path):
    """(configuration, sensor) for every sensor of every RingMoE model that a file trains."""
    values = read_config(path)
    configs = [] if "task" in values else map(PretrainConfig.of, runs(values))
    return [(c, name) for c in configs if isinstance(models.read(c.model), RingMoEConfig) for name in c.sensors]


@pytest.mark.parametrize("path", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in SHIPPED])
def test_every_sensor_can_be_kept_alone(path):
    """As `compress` keeps it: parameters, data and objectives make a run again, or one line says why not."""
    for config, sensor in kept_alone(path):
        source = Run({"config": config.complete(), "statistics": {}, "step": 0}, {})
        try:
            alone = source.with_network(Network(submodel_config(config.model, [sensor]), {}))
        except ConfigError as error:
            assert f"no objective of the run looks at {sensor} alone" in str(error)  # noqa: PT017
            continue
        assert set(alone.sensors) == {sensor}
        assert alone.parts.objectives
        assert set(alone.parts.model.streams) == {sensor}


def pretrained(path):
    """Configurations of pre-training that a file trains."""
    values = read_config(path)
    return [] if "task" in values else [PretrainConfig.of(one) for one in runs(values)]


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED)
def test_a_step_of_it_has_the_shapes_of_its_state(path):
    """As `pretrain` takes it: all streams in one batch, every objective has what it looks at."""
    for config in pretrained(path):
        parts = run.pretraining(config, {})
        if config.teacher:  # no released model is at hand: one like the student stands for it
            weights = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), parts.model.shapes())
            parts = dataclasses.replace(parts, pretext=distilled(parts.pretext, parts.model, weights))
        rule = optimizer.build(config.optimizer, config.train.steps)
        rate = optimizer.schedule(config.optimizer, config.train.steps)
        step = make_train_step(parts.pretext, parts.objectives, rule, rate, seed=0)
        before = states.shapes(parts.model, parts.pretext, rule)
        after, logged = jax.eval_shape(step, before, plan.batch_shapes(config, plan.rows_of(config, 1)))
        assert jax.tree.map(described, after) == jax.tree.map(described, before)
        assert {f"loss/{label}" for label in parts.objectives} <= set(logged)


@pytest.mark.parametrize("path", [p if p == QUICKEST else pytest.param(p, marks=pytest.mark.slow) for p in SHIPPED])
def test_every_sensor_is_seen_alone_by_every_verb(path):
    """As `evaluate`, `encode`, `export` and `predict` show it: features of one sensor; as `finetune`: a head."""
    for config in pretrained(path):
        frozen = models.with_engine(config.model, FROZEN_ENGINE)  # as they open a run
        parts = run.pretraining(dataclasses.replace(config, model=frozen), {})
        weights = parts.model.shapes()
        for name, sensor in parts.sensors.items():
            size, dates = config.data.view_size(name), config.data.frames.get(name, 1)
            batch = ahead.batch_shapes({name: sensor}, {name: ahead.Images(2, dates, size)})
            outputs = jax.eval_shape(parts.model.apply, weights, batch)
            assert outputs["pooled"][name].shape[0] == 2
            assert {level.shape[:2] for level in outputs["stages"][name]} == {(2, dates)}
            said = jax.eval_shape(windows._embeddings, outputs, batch)
            assert said.shape[0] == 2
            assert said.shape[1] == said.shape[2]
            assert size % said.shape[1] == 0
            head_on(config, name, dates)


def described(leaf):
    return leaf.shape, leaf.dtype


def head_on(config, sensor, dates):
    """A map and a class from one sensor of a pre-trained encoder."""
    stream = dict(directory="nowhere", sensors=(sensor,))
    data = dict(streams=dict(data=stream), image_size=config.data.view_size(sensor), batch_size=32, mask_unit=0)
    encoder = run.Encoder(config.model, config.data.bands, {})
    for name, kind in (("segmentation", "map"), ("classification", "classes")):
        values = dict(task=dict(name=name, target="truth"), model=config.model, data=data)
        spec = TaskSpec(tasks.Target("truth", kind, ("a", "b"), sensor, dates), {sensor: dates})
        parts = run.finetuning(FinetuneConfig.of(values), encoder, spec, {})
        assert parts.objectives


@functools.cache
def reference():
    """A run of the weights that come with the library, for configurations that begin with it."""
    folder = tempfile.TemporaryDirectory()
    begun_with = rm.pretrained("reference")
    begun_with.save(Path(folder.name), begun_with.origin, IMPORTED)
    return folder


def runs(values):
    """The configurations of a file: one, or one an arm; whole, where it begins with a run."""
    if "studies" not in values:
        begins = values.get("init_from") and "task" not in values
        return [begun(values | {"init_from": reference().name})[0].complete() if begins else values]
    studies = configuration.build(ablate.AblationConfig, values).studies.values()
    return [study.values(arm, 0) for study in studies for arm in study.arms]


def build_task(values):
    config = FinetuneConfig.of(values)
    task = tasks.build(config.task)
    (stream,) = config.data.streams.values()
    truth = task.target if task.target in stream.sensors else ""
    target = tasks.Target(task.target, task.kinds[0], () if truth else ("a", "b"), truth, dates=2)
    spec = TaskSpec(target, dict.fromkeys(stream.sensors, 2))
    return run.finetuning(config, encoder_of(config), spec, {})


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [
        ("optimizer", "learning_rate", -0.5),
        ("optimizer", "weight_decay", float("inf")),
        ("optimizer", "clip_norm", float("nan")),
        ("optimizer", "beta2", 1.5),
        ("model", "drop_path", 7.0),
        ("model", "width", 0),
        ("model", "depths", ()),
        ("model", "image_size", -64),
        ("model", "patch", 0),
        ("model.moe", "capacity_factor", -1.0),
        ("model.moe", "eval_capacity_factor", 0.0),
        ("model.moe", "specialised", -4),
    ],
)
def test_values_that_make_no_sense_are_one_line(group, field, value):
    values = read_config("configs/ringmoe_micro.py")
    entry = values
    for key in group.split("."):
        entry = entry.setdefault(key, {})
    entry[field] = value
    with pytest.raises(ConfigError, match=rf"{group}\.{field} = .*: wanted") as error:
        run.pretraining(PretrainConfig.of(values), {})
    assert "\n" not in str(error.value)


RECIPES = {
    "ringmoe": lambda: common.ringmoe(width=8, depths=(1,), head_width=4),
    "released": lambda: ringmoe_released.released(common.ringmoe(width=8, depths=(1,), head_width=4)),
    "skysense": lambda: common.skysense(("s2_12", "s1_grd")),
    "task": lambda: finetuning.base(dict(name="segmentation", target="land_cover")),
}


@pytest.mark.parametrize("name", [*RECIPES, *(path for path in SHIPPED if "finetune" in path)])
def test_it_states_no_default(name):
    values = RECIPES[name]().to_dict() if name in RECIPES else read_config(name)
    assert [path for path in leaves(values) if complete(without(values, path)) == complete(values)] == []


def leaves(values, path=()):
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def without(values, path):
    changed = group = copy.deepcopy(values)
    for key in path[:-1]:
        group = group[key]
    del group[path[-1]]
    return changed


def complete(values):
    """None where a key is missing that has no default."""
    try:
        return (FinetuneConfig if "task" in values else PretrainConfig).of(values).complete()
    except ConfigError:
        return None
