"""The RingMoE train step of a configuration, over the same backbone with a dense layer of equal active FLOPs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax import run as runs
from ringmoe_jax.models.ringmoe import RingMoEConfig
from ringmoe_jax.planning import ahead, plan
from ringmoe_jax.run import PretrainConfig
from ringmoe_jax.training import optimizer
from ringmoe_jax.training import state as states
from ringmoe_jax.training.step import make_train_step

DENSE = "dense backbone"


def measured(config: Mapping, engines: tuple[str, ...], seed: int = 0) -> dict[str, Callable[[], object]]:
    """One job per engine and one for the dense backbone: a whole step on a batch that is already there.

    Args:
        config: with every default filled in, of `PretrainConfig.complete`.
        engines: keys of `moe.engines.ENGINES`.
        seed: of the batch.
    """
    batch = jax.device_put(random_batch(PretrainConfig.of(config), seed))
    variants = {engine: with_engine(config, engine) for engine in engines} | {DENSE: dense_backbone(config)}
    return {name: Job(variant, batch) for name, variant in variants.items()}


def with_engine(config: Mapping, engine: str) -> dict:
    """The configuration with another `model.moe.engine`."""
    changed = copy.deepcopy(dict(config))
    changed["model"]["moe"]["engine"] = engine
    return changed


def dense_backbone(config: Mapping) -> dict:
    """The configuration with one FFN in place of the mixture: as many hidden units as a token's experts have."""
    changed = copy.deepcopy(dict(config))
    moe = changed["model"]["moe"]
    active = moe["top_k"] * ((moe["specialised"] > 0) + (moe["collaborative"] > 0)) + moe["shared"]
    changed["model"]["hidden_ratio"] = active * changed["model"].get("hidden_ratio", 4)
    moe.update(specialised=0, collaborative=0, shared=True)
    changed["objectives"] = {k: v for k, v in changed["objectives"].items() if v["name"] != "balance"}
    return changed


def random_batch(config: PretrainConfig, seed: int) -> dict:
    """One batch as the pipeline gives it, with random pixels around each sensor's mean.

    Pixels in physical units, everything valid, `data.mask_ratio` of the cells hidden, random dates and places; all
    views show the whole of one tile.
    """
    rng = np.random.default_rng(seed)

    def entry(name: str, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, np.ndarray]:
        statistics, shape = config.sensors[name].statistics, shapes["pixels"].shape
        mean, std = np.asarray(statistics.mean, np.float32), np.asarray(statistics.std, np.float32)
        rows = {
            "pixels": mean + std * rng.standard_normal(shape, np.float32),
            "valid": np.ones(shape[:-1], bool),
            "time": rng.integers(20_000, size=shape[:2], dtype=np.int32),
            "location": rng.uniform((-60, -180), (60, 180), (shape[0], 2)).astype(np.float32),
            "gsd": np.full(shape[:1], config.sensors[name].gsd, np.float32),
            "power": np.tile(np.float32([0, 1]), (*shape[:2], 1)),
            "ground": np.tile(np.eye(2, 3, dtype=np.float32), (shape[0], 1, 1)),
        }
        if "mask" in shapes:
            mask = shapes["mask"].shape
            order = rng.random((mask[0], mask[1] * mask[2])).argsort(axis=1).argsort(axis=1)
            rows["mask"] = (order < round(config.data.mask_ratio * order.shape[1])).reshape(mask)
        return {key: rows[key] for key in shapes}

    shapes = plan.batch_shapes(config, plan.rows_of(config, 1))
    views = {key: {n: entry(n, of) for n, of in shown.items()} for key, shown in shapes.get("views", {}).items()}
    return {"sensors": {n: entry(n, of) for n, of in shapes["sensors"].items()}} | ({"views": views} if views else {})


def with_remat(values: Mapping, remat: str) -> dict:
    """The configuration, or a part of it, with another `remat` wherever it has one."""
    return {
        key: with_remat(value, remat) if isinstance(value, Mapping) else remat if key == "remat" else value
        for key, value in values.items()
    }


def model_flops(config: Mapping) -> float:
    """FLOPs of the products of a step that recomputes nothing, forward and backward."""
    step, create, checked = _step(PretrainConfig.of(with_remat(config, "none")))
    shapes = plan.batch_shapes(checked, plan.rows_of(checked, 1))
    return ahead.count_flops(step, jax.eval_shape(create), shapes)


class Job:
    """One whole train step on a batch, compiled; every call takes the next step.

    Args:
        config: with every default filled in, of `PretrainConfig.complete`.
        batch: of `random_batch`, on the device.
    """

    def __init__(self, config: Mapping, batch: Mapping):
        step, create, checked = _step(PretrainConfig.of(config))
        self._state, self._batch, self._seed = create(), batch, jnp.uint32(checked.train.seed)
        self._program = step.lower(self._state, batch).compile()
        self.temporaries = self._program.memory_analysis().temp_size_in_bytes

    def __call__(self) -> dict[str, jax.Array]:
        """Returns the step's metrics."""
        self._state, metrics = self._program(self._state, self._batch, self._seed)
        return metrics


def _step(config: PretrainConfig):
    """The train step, what creates its state, and the configuration."""
    parts = runs.pretraining(config, {})
    rule = optimizer.build(config.optimizer, config.train.steps)
    rate = optimizer.schedule(config.optimizer, config.train.steps)
    step = make_train_step(parts.pretext, parts.objectives, rule, rate, seed=config.train.seed)
    return step, functools.partial(states.create, parts.model, parts.pretext, rule, seed=config.train.seed), config


def torch_jobs(config: PretrainConfig, batch, *, compiled: bool = False) -> dict[str, Callable[[], object]]:
    """The step of `torch_ringmoe` on the same batch, both ways to run its experts.

    Args:
        config: whose model is JAX's.
        batch: of `random_batch`.
        compiled: the loop by `torch.compile` as well, which takes minutes; it refuses grouped products in float32.
    """
    from experiments.benchmarks import torch_ringmoe
    from ringmoe_jax import objectives
    from ringmoe_jax.config import build

    values = {key: value for key, value in config.model.items() if key != "name"}
    model = build(RingMoEConfig, values, "model")
    heads = objectives.collect_heads(objectives.build(config.objectives), config.sensors)
    channels = {sensor: sum(of.values()) for sensor, of in heads.items()}
    make = functools.partial(torch_ringmoe.job, model, config.sensors, channels, batch)
    ways = {"torch loop": dict(grouped=False), "torch grouped_mm": dict(grouped=True)}
    ways |= {"torch.compile": dict(grouped=False, compiled=True)} if compiled else {}
    return {name: make(**way) for name, way in ways.items()}
