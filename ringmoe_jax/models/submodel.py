"""The part of a model that some of its sensors use: exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.api import ModelConfig, Network
from ringmoe_jax.models.network import layer_tables, modalities, read, select_experts, with_tables


def submodel(network: Network, sensors: Sequence[str]) -> Network:
    """Keeps some sensors: their stems and decoders, the specialised experts of their modalities, all that is shared.

    Images of those sensors give the same bits as in the full model, which computes the same experts for them, unless
    tokens of other sensors in the same batch pushed theirs out of a full expert. 14.7 B parameters become 6.5 B with
    one modality (paper, abstract).

    Args:
        network: a RingMoE model, pruned or not.
        sensors: names, at least one; they stay in the order of the model.

    Raises:
        ConfigError: the model lacks a sensor (the message names the nearest), or is not RingMoE.
    """
    model = submodel_config(network.model, sensors)
    params = dict(network.params)
    for part in {"stems", "decoders"} & params.keys():
        params[part] = {name: leaves for name, leaves in params[part].items() if name in read(model).sensors}
    return select_experts(Network(network.model, params), model, _numbers(read(network.model), read(model)))


def submodel_config(model: Mapping[str, Any], sensors: Sequence[str]) -> dict[str, Any]:
    """What `submodel` makes of `config.model`; arguments and errors are the same."""
    config = read(model)
    for name in sensors:
        if name not in config.sensors:
            raise ConfigError(f'the model has no sensor "{name}" to keep: {nearest(name, config.sensors)}')
    if not sensors:
        raise ConfigError(f"a sub-model of no sensors: name at least one of {', '.join(config.sensors)}")
    kept = tuple(said for said, name in zip(model["sensors"], config.sensors, strict=True) if name in sensors)
    few = {**model, "sensors": kept, "moe": {**model.get("moe", {}), "allowed": ()}}
    rows, numbers = _rows(config, read(few)), _numbers(config, read(few))
    return with_tables(
        few, [{g: t[np.ix_(rows, numbers[g])] for g, t in layer.items()} for layer in layer_tables(config)]
    )


def _rows(config: ModelConfig, few: ModelConfig) -> list[int]:
    """Numbers in the full model of the modalities that stay."""
    return [modalities(config).index(name) for name in modalities(few)]


def _numbers(config: ModelConfig, few: ModelConfig) -> dict[str, np.ndarray]:
    """Numbers in the full model of the sub-model's experts, by router group."""
    rows, count = np.array(_rows(config, few)), len(modalities(config))
    specialised = np.arange(config.moe.specialised)[:, None] * count + rows  # laid out [N_S, M]
    return {"specialised": specialised.reshape(-1), "collaborative": np.arange(config.moe.collaborative)}
