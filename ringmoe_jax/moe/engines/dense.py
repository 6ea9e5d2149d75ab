"""Every expert computes every token: the reference that all other engines must match."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ringmoe_jax.moe import experts as expert_ops
from ringmoe_jax.moe.engines.layout import Layout
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing
from ringmoe_jax.parallel.mesh import EXPERT_AXIS


def dense(tokens: jax.Array, routings: Sequence[Routing], experts: Sequence[Experts], layout: Layout):
    """See `engines.ENGINES`."""
    outputs, kept = jnp.zeros_like(tokens), []
    for routing, group in zip(routings, experts, strict=True):
        if layout.shards > 1:
            group = jax.tree.map(lambda w: jax.lax.all_gather(w, EXPERT_AXIS, tiled=True), group)
        every = expert_ops.apply(group, jnp.broadcast_to(tokens, (group.count, *tokens.shape)))  # [E, N, D]
        weight = jnp.einsum("nk,nke->ne", routing.gates, jax.nn.one_hot(routing.experts, group.count))
        outputs = outputs + jnp.einsum("ne,end->nd", weight.astype(tokens.dtype), every)
        kept.append(jnp.ones(routing.experts.shape, bool))
    return outputs, tuple(kept)
