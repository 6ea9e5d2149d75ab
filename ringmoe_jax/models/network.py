"""The layers of a network, one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.api import MODELS, ModelConfig, Network, Params

Tables = dict[str, np.ndarray]  # of one layer: {router group: allowed [M, E] bool}


def read(model: Mapping[str, Any]) -> ModelConfig:
    """Checks `config.model`.

    Raises:
        ConfigError: a key is wrong, or the layers of the model are not known.
    """
    config = MODELS.build(model, "config.model")
    if not config.layered:
        raise ConfigError(
            f'model.name = "{model["name"]}" cannot be compressed: wanted a network of model.name = "ringmoe"'
        )
    return config


def modalities(config: ModelConfig) -> tuple[str, ...]:
    """The axis M of a model's routing tables."""
    return sensor_table.modalities(sensor_table.resolve(config.sensors))


def layer_tables(config: ModelConfig) -> list[Tables]:
    """Who may choose what in each of the L layers."""
    count = len(modalities(config))
    return [config.moe.tables(count, layer) for layer in range(sum(config.depths))]


def with_tables(model: Mapping[str, Any], layers: Sequence[Tables]) -> dict[str, Any]:
    """The config of a model with the tables of its L layers in `model.moe.allowed`.

    Tables are written in one way only, since equal neighbours share a stack: groups that lost nothing are not named,
    and nothing is written where no layer lost anything.
    """
    config = read(model)
    whole = dataclasses.replace(config.moe, allowed=()).tables(len(modalities(config)))
    allowed = tuple(
        {name: _rows(table) for name, table in layer.items() if not np.array_equal(table, whole[name])}
        for layer in layers
    )
    if not any(allowed):
        allowed = ()
    if allowed == config.moe.allowed:
        return dict(model)
    return {**model, "moe": {**model.get("moe", {}), "allowed": allowed}}


def _rows(table: np.ndarray) -> tuple[str, ...]:
    return tuple("".join("1" if may else "0" for may in row) for row in table)


def split(network: Network) -> list[Params]:
    """Parameters of each of the L blocks on the host, lowest first, without the leading axis of their stacks."""
    config = read(network.model)
    blocks = []
    for i, stage in enumerate(_stages(network)):
        for j, run in enumerate(config.pyramid.runs(i)):
            stacked = jax.device_get(stage["blocks"][f"run{j}"])
            blocks += [jax.tree.map(lambda leaf: leaf[k], stacked) for k in range(len(run))]  # noqa: B023
    return blocks


def join(network: Network, model: dict[str, Any], blocks: Sequence[Params]) -> Network:
    """Inverse of `split`: the network with other blocks, stacked in the runs that `model` asks for."""
    pyramid = read(model).pyramid
    stages = {}
    for i, stage in enumerate(_stages(network)):
        runs = (blocks[run.start : run.stop] for run in pyramid.runs(i))
        stacks = {f"run{j}": jax.tree.map(lambda *x: np.stack(x), *run) for j, run in enumerate(runs)}
        stages[f"stage{i}"] = {**stage, "blocks": stacks}
    backbone = {**network.params["backbone"], "stages": stages}
    return Network(model, {**network.params, "backbone": backbone})


def _stages(network: Network) -> list[Params]:
    stages = network.params["backbone"]["stages"]
    return [stages[f"stage{i}"] for i in range(len(stages))]


def select_experts(network: Network, model: dict[str, Any], numbers: Mapping[str, np.ndarray]) -> Network:
    """The experts that the layers of another config still have.

    Args:
        network: with all of them.
        model: config of the result.
        numbers: {router group: [E'] int}, what each of the result's experts is called in `network`.
    """
    blocks = split(network)
    for block, old, new in zip(blocks, layer_tables(read(network.model)), layer_tables(read(model)), strict=True):
        for group, table in new.items():
            stored = np.flatnonzero(old[group].any(axis=0))  # pruned experts have no parameters
            wanted = numbers[group][table.any(axis=0)]
            if len(wanted):
                block["ffn"][group] = _take(block["ffn"][group], np.searchsorted(stored, wanted), numbers[group])
            else:
                block["ffn"].pop(group, None)
    return join(network, model, blocks)


def _take(group: Params, rows: np.ndarray, numbers: np.ndarray) -> Params:
    """Experts of a `RouterGroup`: columns of its router, by their numbers in its bias, rows of all else."""
    own = {"router": (..., rows), "bias": numbers}
    return {name: leaf[own.get(name, rows)] for name, leaf in group.items()}
