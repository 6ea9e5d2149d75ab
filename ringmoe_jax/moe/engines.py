"""Engines: ways to compute sum_k gate_k * expert_k(token). Same values, different cost.

    engine(tokens, routing, experts, capacity) -> (outputs [N, D], kept [N, K] bool)

`kept` is False where a choice found its expert full; that choice contributes nothing
(released RingMoE code, GShard), and `statistics.layer` counts it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ringmoe_jax.moe import experts as expert_ops
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing


def dense(tokens: jax.Array, routing: Routing, experts: Experts, capacity: int = 0) -> tuple[jax.Array, jax.Array]:
    """Every expert computes every token: the reference that all other engines must match.

    Args:
        tokens: [N, D].
        routing: choices for the N tokens.
        experts: E experts.
        capacity: ignored, nothing is ever dropped.

    Returns:
        outputs [N, D] in the dtype of `tokens`; kept [N, K], all True.
    """
    del capacity
    every = expert_ops.apply(experts, jnp.broadcast_to(tokens, (experts.count, *tokens.shape)))  # [E, N, D]
    weight = jnp.einsum("nk,nke->ne", routing.gates, jax.nn.one_hot(routing.experts, experts.count))
    outputs = jnp.einsum("ne,end->nd", weight.astype(tokens.dtype), every)
    return outputs, jnp.ones(routing.experts.shape, bool)


def capacity(tokens: jax.Array, routing: Routing, experts: Experts, capacity: int) -> tuple[jax.Array, jax.Array]:
    """Each expert computes a buffer of `capacity` rows; later tokens than that are dropped.

    First choices of all tokens come before second choices, and within one choice tokens come
    in their order (first come, first served: released RingMoE code, V-MoE without priority).

    Args:
        tokens: [N, D].
        routing: choices for the N tokens.
        experts: E experts.
        capacity: rows per expert, C >= 1.

    Returns:
        outputs [N, D] in the dtype of `tokens`; kept [N, K] bool.
    """
    source, slot, kept = assign(routing.experts, experts.count, capacity)
    rows = gather_rows(tokens, source).reshape(experts.count, capacity, -1)
    return combine(expert_ops.apply(experts, rows), slot, kept, routing.gates), kept


ENGINES = {"dense": dense, "capacity": capacity}


def assign(chosen: jax.Array, count: int, capacity: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives every choice a row in its expert's buffer.

    Args:
        chosen: [N, K] int32 expert indices.
        count: number of experts, E.
        capacity: rows per expert, C.

    Returns:
        source: [E * C] int32, the token that fills each buffer row, N where the row stays empty.
        slot: [N, K] int32, the buffer row of each choice; meaningless where not kept.
        kept: [N, K] bool, False where the expert was full.
    """
    n, k = chosen.shape
    flat = chosen.T.reshape(-1)  # [K * N], first choices first
    order = jnp.argsort(flat, stable=True)  # choices sorted by expert
    load = jnp.sum(jax.nn.one_hot(flat, count, dtype=jnp.int32), axis=0)  # [E]
    start = jnp.cumsum(load) - load
    position = jnp.arange(n * k, dtype=jnp.int32) - start[flat[order]]  # rank within the expert
    rank = jnp.zeros(n * k, jnp.int32).at[order].set(position, unique_indices=True)
    kept = (rank < capacity).reshape(k, n).T
    slot = (flat * capacity + rank).reshape(k, n).T
    row = jnp.arange(capacity, dtype=jnp.int32)
    choice = jnp.minimum(start[:, None] + row, n * k - 1)  # [E, C] index into `order`
    source = jnp.where(row < load[:, None], order[choice] % n, n)
    return source.reshape(-1).astype(jnp.int32), slot, kept


def gather_rows(tokens: jax.Array, source: jax.Array) -> jax.Array:
    """Rows tokens[source]; zeros where `source` is N. [N, D], [R] -> [R, D]."""
    return tokens.at[source].get(mode="fill", fill_value=0)


def combine(rows: jax.Array, slot: jax.Array, kept: jax.Array, gates: jax.Array) -> jax.Array:
    """Gate-weighted sum of each token's expert outputs.

    Args:
        rows: [E, C, D] expert outputs.
        slot: [N, K] int32, row of each choice.
        kept: [N, K] bool.
        gates: [N, K] float32.

    Returns:
        [N, D] in the dtype of `rows`.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    chosen = flat.at[jnp.where(kept, slot, flat.shape[0])].get(mode="fill", fill_value=0)  # [N, K, D]
    return jnp.einsum("nk,nkd->nd", gates.astype(rows.dtype), chosen)
