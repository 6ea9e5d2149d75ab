"""Engines: ways to compute sum_k gate_k * expert_k(token). Same values, different cost.

    engine(tokens, routings, experts, layout) -> (outputs, kept)

    tokens    [N, D], of this device
    routings  one `Routing` per router group, expert indices over all devices
    experts   one `Experts` per router group, those of this device
    layout    what is static: buffer rows, token groups, devices that share the experts
    outputs   [N, D] in the dtype of `tokens`, summed over router groups
    kept      [N, K] bool per router group; False where a choice found its expert full. That choice
              contributes nothing (released RingMoE code, GShard), and `statistics.layer` counts it

An engine has no choices, so it is a function; one of your own is named `module:function` in `model.moe.engine`. It is
written as the body of one device: with `layout.shards` > 1 it runs inside `jax.shard_map`
and exchanges rows over the mesh axis "expert".
"""

import functools
from collections.abc import Callable

from ringmoe_jax.moe.engines.capacity import capacity
from ringmoe_jax.moe.engines.dense import dense
from ringmoe_jax.moe.engines.dropless import dropless
from ringmoe_jax.moe.engines.layout import Layout
from ringmoe_jax.registry import Registry

ENGINES = Registry("engine", Callable)
ENGINES.add("dense", dense)
ENGINES.add("capacity", capacity)
ENGINES.add("dropless", dropless)  # one of the next by platform
for _product in ("ranges", "blocks", "ragged", "megablox", "tokamax"):
    ENGINES.add(_product, functools.partial(dropless, product=_product))

__all__ = ["ENGINES", "Layout"]
