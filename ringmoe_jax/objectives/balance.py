"""Keeps the routers from sending everything to a few experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from ringmoe_jax.objectives.base import Objective, Result, register


@register("balance")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Balance(Objective):
    """Sum over layers and router groups of the Switch balance loss, 1 each where perfectly balanced.

    Source: Switch Transformer Eq. 4-6; layer sum and groups as in RingMoE (released code). The default
    scale, 4e-3, equals the released 0.001 with its normalisation (see `moe.statistics.balance_loss`).
    """

    scale: float = 4e-3

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        groups = {name: jnp.sum(s.balance) for name, s in outputs["routing"].items()}
        return sum(groups.values(), jnp.float32(0)), jnp.float32(1), groups
