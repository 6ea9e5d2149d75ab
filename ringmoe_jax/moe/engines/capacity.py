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
from ringmoe_jax.moe import routing
from ringmoe_jax.moe.engines import ranges
from ringmoe_jax.moe.engines.layout import Layout
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing
from ringmoe_jax.parallel.mesh import EXPERT_AXIS


def capacity(tokens: jax.Array, routings: Sequence[Routing], experts: Sequence[Experts], layout: Layout):
    """See `engines.ENGINES`.

    First choices of all tokens come before second choices, and within one choice tokens come in their
    order (first come, first served: V-MoE without priority), by their best gate with `layout.priority`, or as
    `layout.queues` say.
    """
    shards, groups, depth = layout.shards, layout.groups, tokens.shape[-1]
    counts = [group.count for group in experts]  # experts of each router group on this device
    sizes = [count * rows for count, rows in zip(counts, layout.rows, strict=True)]
    rows, offsets = _places(counts, layout.rows, shards, groups, sum(sizes))

    with jax.named_scope("dispatch"):
        first = np.cumsum([0, *(count * shards for count in counts)])
        chosen = jnp.concatenate([r.experts + f for r, f in zip(routings, first, strict=False)], axis=1)
        gates = jnp.concatenate([r.gates for r in routings], axis=1)
        widths = [r.experts.shape[1] for r in routings]
        group, priority = _served(len(tokens), widths, gates, layout)
        # A token group has its own buffers: to the sort, its own experts.
        absent = jnp.concatenate([r.experts == c * shards for r, c in zip(routings, counts, strict=True)], axis=1)
        chosen = jnp.where(absent, len(rows), chosen + int(first[-1]) * group)

        def place(chosen):
            return dispatching.fill(dispatching.sort(chosen, len(rows), priority), rows, offsets, chosen.shape)

        dispatch = place(chosen)
        for later in range(1, max(widths) if layout.rounds else 1):
            found = _split(dispatch.kept, widths)
            void = [~kept[:, later - 1, None] & (np.arange(kept.shape[1]) >= later) for kept in found]
            chosen = jnp.where(jnp.concatenate(void, axis=1), len(rows), chosen)
            dispatch = place(chosen)
        if layout.after_drops:
            parts = _split(gates * dispatch.kept, widths)
            gates = jnp.concatenate([routing.normalised(part) for part in parts], axis=1)
        buffer = dispatching.gather(tokens, dispatch).reshape(groups, -1, depth)
        if shards > 1:  # to the devices that hold the experts: [groups * shards, rows of a device, D]
            buffer = jax.lax.all_to_all(buffer, EXPERT_AXIS, split_axis=1, concat_axis=0, tiled=True)
    with jax.named_scope("experts"):
        borders = np.cumsum(sizes)[:-1]
        parts, taken = jnp.split(buffer, borders, axis=1), [None] * len(sizes)
        if shards * groups == 1 and layout.platform == "cpu":
            taken = jnp.split(dispatch.choice < chosen.size, borders)
        found = zip(experts, routings, parts, layout.rows, taken, strict=True)
        buffer = jnp.concatenate([_computed(*one) for one in found], axis=1)
    with jax.named_scope("combine"):
        if shards > 1:
            buffer = jax.lax.all_to_all(buffer, EXPERT_AXIS, split_axis=0, concat_axis=1, tiled=True)
        outputs = dispatching.combine(buffer.reshape(-1, depth), dispatch, gates)
    return outputs, tuple(_split(dispatch.kept, widths))


def _split(choices: jax.Array, widths: Sequence[int]) -> list[jax.Array]:
    """Something of all choices, [N, all K], by router group: [N, K] each."""
    return jnp.split(choices, np.cumsum(widths)[:-1], axis=1)


def _served(tokens: int, widths: Sequence[int], gates: jax.Array, layout: Layout):
    """Token group of every choice, [N, 1 or all K]; and what `dispatch.sort` takes as priority."""
    if layout.queues:
        group, place = (np.stack(parts, axis=1).repeat(widths, axis=1) for parts in zip(*layout.queues, strict=True))
        return group, jnp.asarray(-place)
    group = np.arange(tokens, dtype=np.int32)[:, None] // (tokens // layout.groups)
    return group, gates.max(axis=1) if layout.priority else None


def _computed(experts: Experts, choice: Routing, part: jax.Array, size: int, taken: jax.Array | None) -> jax.Array:
    """The rows [G, E * size, D] of one router group through its experts; they see [E, G * size, D].

    Where `taken` [E * size] tells which rows hold a token, no others are computed, if that is faster.
    """
    by_group = (part.shape[0], experts.count, size, part.shape[-1])
    rows = part.reshape(by_group).swapaxes(0, 1).reshape(experts.count, -1, part.shape[-1])
    expected = choice.experts.size / experts.count
    if taken is not None and ranges.pay(experts, expected, part.dtype):
        outputs = ranges.apply(experts, rows, taken.reshape(-1, size).sum(axis=1, dtype=jnp.int32), expected)
    else:
        outputs = expert_ops.apply(experts, rows)
    return outputs.reshape(experts.count, part.shape[0], size, -1).swapaxes(0, 1).reshape(part.shape)


def _places(counts, sizes, shards: int, groups: int, per_device: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and first row of the buffer of every (token group, expert), all router groups in turn.

    A token group's rows lie side by side, in them each device's, in them each local expert's.
    """
    rows, offsets, before = [], [], 0
    for count, size in zip(counts, sizes, strict=True):
        expert = np.arange(count * shards)
        rows.append(np.full(count * shards, size))
        offsets.append(expert // count * per_device + before + expert % count * size)
        before += count * size
    whole = shards * per_device * np.arange(groups)[:, None]
    return np.tile(np.concatenate(rows), groups), (whole + np.concatenate(offsets)).reshape(-1)
