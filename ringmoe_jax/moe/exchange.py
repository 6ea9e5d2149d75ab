"""Rows of different numbers between the devices of the expert axis: ragged all-to-all.

Inside `jax.shard_map` only. XLA for CPU has no ragged all-to-all (jax 0.10 and 0.12), so there every
device gathers everything and picks its rows: the same values, for tests.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ringmoe_jax.parallel.mesh import EXPERT_AXIS


class Plan(NamedTuple):
    """Who sends how many rows to whom; S devices, E / S experts each.

    Attributes:
        counts: [S, S, E / S] int32, rows that device i sends to device j for j's local experts.
        reverse: whether this is the way back: the same rows, from j to i.
    """

    counts: jax.Array
    reverse: bool = False

    @property
    def sent(self) -> jax.Array:
        """[E] int32, rows that this device sends for each expert."""
        return self.counts[jax.lax.axis_index(EXPERT_AXIS)].reshape(-1)

    @property
    def back(self) -> Plan:
        """The way back."""
        return Plan(self.counts, not self.reverse)


def plan(load: jax.Array, shards: int, room: int | None = None) -> Plan:
    """Tells all devices each device's rows per expert.

    Args:
        load: [E] int32, of this device's choices.
        shards: S.
        room: rows that a device can receive. Where more would arrive, every sender sends the same share of its rows
            for each expert there, rounded down, so that no device's tokens are served first (our choice). None:
            whatever arrives.
    """
    counts = jax.lax.all_gather(load, EXPERT_AXIS).reshape(shards, shards, -1)
    if room is not None:
        share = jnp.minimum(1.0, room / jnp.maximum(counts.sum(axis=(0, 2)), 1))  # [j]
        counts = jnp.floor(counts * share[:, None]).astype(jnp.int32)
    return Plan(counts)


def send(rows: jax.Array, plan: Plan, room: int, platform: str) -> jax.Array:
    """Moves rows to their devices.

    On the way out `rows` are sorted by expert, so by device; received rows are sorted by sender, then
    expert. The way back restores the sender's order.

    Args:
        rows: [R, D].
        plan: from `plan`, or its `back`.
        room: rows of the result; must hold all that arrive.
        platform: "cpu" emulates.

    Returns:
        [room, D], zeros where nothing arrived.
    """
    sent = plan.counts.sum(axis=2)  # [i, j]
    out, arrived = _starts(sent, axis=1), _starts(sent, axis=0)  # where i keeps what goes to j; where j puts it
    if plan.reverse:
        sent, out, arrived = sent.T, arrived.T, out.T
    me = jax.lax.axis_index(EXPERT_AXIS)
    if platform == "cpu":
        return _emulated(rows, sent[:, me], out[:, me], arrived[:, me], room)
    empty = jnp.zeros((room, rows.shape[1]), rows.dtype)
    return jax.lax.ragged_all_to_all(rows, empty, out[me], sent[me], arrived[me], sent[:, me], axis_name=EXPERT_AXIS)


def local_experts(plan: Plan, room: int) -> jax.Array:
    """Local expert of every received row, [room] int32; E / S, nobody, where nothing arrived."""
    mine = plan.counts[:, jax.lax.axis_index(EXPERT_AXIS)]  # [S, E / S]
    segment = jnp.sum(jnp.cumsum(mine.reshape(-1)) <= jnp.arange(room)[:, None], axis=1)
    return jnp.where(segment < mine.size, segment % mine.shape[1], mine.shape[1]).astype(jnp.int32)


def _starts(sizes: jax.Array, axis: int) -> jax.Array:
    return jnp.cumsum(sizes, axis=axis) - sizes


def _emulated(rows, sizes, begin, arrive, room):
    """[room, D] of this device: from device s, `sizes[s]` rows from its row `begin[s]` on, put at `arrive[s]`."""
    everyone = jax.lax.all_gather(rows, EXPERT_AXIS)  # [S, R, D]
    row = jnp.arange(room)[:, None]
    mine = (row >= arrive) & (row < arrive + sizes)  # [room, S]
    source = jnp.argmax(mine, axis=1)
    index = source * rows.shape[0] + begin[source] + row[:, 0] - arrive[source]
    flat = everyone.reshape(-1, rows.shape[1])
    return flat.at[jnp.where(mine.any(axis=1), index, flat.shape[0])].get(mode="fill", fill_value=0)
