"""The RingMoE train step of a configuration, over the same backbone with a dense layer of equal active FLOPs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping

import jax
import numpy as np

from ringmoe_jax import run as runs
from ringmoe_jax.models.ringmoe import RingMoEConfig
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
    return {name: _step(PretrainConfig.of(variant), batch) for name, variant in variants.items()}


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
    """One batch as the pipeline gives it, with random pixels inside each sensor's valid range.

    [B, 1, H, W, C] float32 in physical units, everything valid, `data.mask_ratio` of the cells hidden.
    """
    rng, data = np.random.default_rng(seed), config.data
    b, side, cells = data.batch_size, data.image_size, data.image_size // data.mask_unit
    entries = {}
    for name, sensor in config.sensors.items():
        mean, std = (np.asarray(v, np.float32) for v in (sensor.statistics.mean, sensor.statistics.std))
        pixels = mean + std * rng.standard_normal((b, 1, side, side, sensor.channels), np.float32)
        order = rng.random((b, cells * cells)).argsort(axis=1).argsort(axis=1)
        hidden = (order < round(data.mask_ratio * cells * cells)).reshape(b, cells, cells)
        entries[name] = {"pixels": pixels, "valid": np.ones((b, 1, side, side), bool), "mask": hidden}
    return {"sensors": entries}


def _step(config: PretrainConfig, batch) -> Callable[[], object]:
    parts = runs.pretraining(config, {})
    rule = optimizer.build(config.optimizer, config.train.steps)
    rate = optimizer.schedule(config.optimizer, config.train.steps)
    step = make_train_step(parts.pretext, parts.objectives, rule, rate, seed=config.train.seed)
    state = states.create(parts.model, parts.pretext, rule, seed=config.train.seed)

    def job():
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return job


def torch_jobs(config: PretrainConfig, batch) -> dict[str, Callable[[], object]]:
    """The step of `torch_ringmoe` on the same batch, both ways to run its experts."""
    from experiments.benchmarks import torch_ringmoe
    from ringmoe_jax import objectives
    from ringmoe_jax.config import build

    values = {key: value for key, value in config.model.items() if key != "name"}
    model = build(RingMoEConfig, values, "model")
    heads = objectives.collect_heads(objectives.build(config.objectives), config.sensors)
    channels = {sensor: sum(of.values()) for sensor, of in heads.items()}
    make = functools.partial(torch_ringmoe.job, model, config.sensors, channels, batch)
    return {"torch loop": make(grouped=False), "torch grouped_mm": make(grouped=True)}
