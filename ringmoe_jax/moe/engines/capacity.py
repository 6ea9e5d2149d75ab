"""Static buffers: each expert computes a fixed number of rows per token group, what does not fit is dropped.

One sort, one gather, one exchange and one combine serve all router groups of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.moe import dispatch as dispatching
from ringmoe_jax.moe import experts as expert_ops
from ringmoe_jax.moe.engines.layout import Layout
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing
from ringmoe_jax.parallel.mesh import EXPERT_AXIS


def capacity(tokens: jax.Array, routings: Sequence[Routing], experts: Sequence[Experts], layout: Layout):
    """See `engines.ENGINES`.

    First choices of all tokens come before second choices, and within one choice tokens come in their
    order (first come, first served: released RingMoE code, V-MoE without priority), or by their best gate
    with `layout.priority`.
    """
    shards, groups, depth = layout.shards, layout.groups, tokens.shape[-1]
    counts = [group.count for group in experts]  # experts of each router group on this device
    per_device = sum(count * rows for count, rows in zip(counts, layout.rows, strict=True))
    rows, offsets = _places(counts, layout.rows, shards, per_device)
    split = lambda x: x.reshape(groups, -1, *x.shape[1:])  # noqa: E731

    with jax.named_scope("dispatch"):
        first = np.cumsum([0, *(count * shards for count in counts)])
        chosen = jnp.concatenate([r.experts + f for r, f in zip(routings, first, strict=False)], axis=1)
        gates = split(jnp.concatenate([r.gates for r in routings], axis=1))
        priority = gates.max(axis=2) if layout.priority else None

        def place(chosen, priority):
            return dispatching.fill(dispatching.sort(chosen, int(first[-1]), priority), rows, offsets, chosen.shape)

        dispatch = jax.vmap(place, in_axes=(0, None if priority is None else 0))(split(chosen), priority)
        buffer = jax.vmap(dispatching.gather)(split(tokens), dispatch)  # [g, shards * per_device, D]
        if shards > 1:  # to the devices that hold the experts: [g * shards, per_device, D]
            buffer = jax.lax.all_to_all(buffer, EXPERT_AXIS, split_axis=1, concat_axis=0, tiled=True)
    with jax.named_scope("experts"):
        parts = jnp.split(buffer, np.cumsum([c * r for c, r in zip(counts, layout.rows, strict=True)])[:-1], axis=1)
        parts = [
            expert_ops.apply(group, part.reshape(-1, group.count, size, depth)).reshape(part.shape)
            for group, part, size in zip(experts, parts, layout.rows, strict=True)
        ]
        buffer = jnp.concatenate(parts, axis=1)
    with jax.named_scope("combine"):
        if shards > 1:
            buffer = jax.lax.all_to_all(buffer, EXPERT_AXIS, split_axis=0, concat_axis=1, tiled=True)
        outputs = jax.vmap(dispatching.combine)(buffer, dispatch, gates).reshape(tokens.shape)
    kept = jax.vmap(lambda d: d.kept)(dispatch).reshape(chosen.shape)
    return outputs, tuple(jnp.split(kept, np.cumsum([r.experts.shape[1] for r in routings])[:-1], axis=1))


def _places(counts, sizes, shards: int, per_device: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and first row of every expert, all router groups in turn; a device's experts lie side by side."""
    rows, offsets, before = [], [], 0
    for count, size in zip(counts, sizes, strict=True):
        expert = np.arange(count * shards)
        rows.append(np.full(count * shards, size))
        offsets.append(expert // count * per_device + before + expert % count * size)
        before += count * size
    return np.concatenate(rows), np.concatenate(offsets)
