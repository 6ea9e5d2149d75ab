"""Loads, drops, entropies and balance losses, per modality, from the first step on.

Pruning, every routing picture and the balance losses need the same few sums, so a layer returns
them once. All are sums over the global batch; ratios are taken by whoever reads them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.moe.contribution import Contribution
from ringmoe_jax.moe.routing import Routing, normalised


class RoutingStatistics(NamedTuple):
    """Sums over the tokens of each modality, for one router; stacked layers add a leading L.

    Attributes:
        tokens: [M] tokens.
        load: [M, E] choices that fell on each expert, dropped ones included.
        probability: [M, E] sum of router probabilities (differentiable).
        reach: [M, E] tokens that could have chosen each expert.
        dropped: [M] choices that found their expert full.
        entropy: [M] sum of the routers' entropies, in nats.
        gate: [M, E] sum of the gates with which each expert was chosen.
        balance: [] Switch balance loss of this router group, see `balance_loss` (differentiable).
        contribution: what the experts add, where it was measured (`MoEConfig.measure`), else None.
    """

    tokens: jax.Array
    load: jax.Array
    probability: jax.Array
    reach: jax.Array
    dropped: jax.Array
    entropy: jax.Array
    gate: jax.Array
    balance: jax.Array
    contribution: Contribution | None = None


def layer(
    routing: Routing,
    kept: jax.Array,
    modality: jax.Array,
    allowed: np.ndarray,
    *,
    group: np.ndarray | None = None,
    groups: int = 1,
    rounds: bool = False,
) -> RoutingStatistics:
    """Sums one router's decisions.

    Args:
        routing: decisions for N tokens.
        kept: [N, K] bool, from the engine.
        modality: [N] int32 in 0..M-1, or `routing.NOTHING`: such tokens count nowhere.
        allowed: [M, E] bool, the table that the router used.
        group: [N] int32 in 0..groups-1, token groups that are balanced each for itself; None is one of all tokens.
        groups: their number.
        rounds: balance losses are those of `by_round`, added up.
    """
    member = jax.nn.one_hot(modality, allowed.shape[0], dtype=jnp.float32)  # [N, M], a row of zeros for nothing
    probabilities = routing.probabilities
    choices = jax.nn.one_hot(routing.experts, probabilities.shape[-1], dtype=jnp.float32)  # [N, K, E]
    gates = jnp.einsum("nk,nke->ne", routing.gates, choices)
    entropy = -jnp.sum(jax.scipy.special.xlogy(probabilities, jnp.where(probabilities > 0, probabilities, 1)), axis=-1)
    exact = jax.lax.Precision.HIGHEST  # counts stay whole numbers on accelerators that round products
    tokens = member.sum(axis=0)
    load = jnp.dot(member.T, choices.sum(axis=1), precision=exact)
    probability = jnp.dot(member.T, probabilities, precision=exact)
    if routing.reach is None:
        reach = tokens[:, None] * allowed
    else:
        reach = jnp.dot(member.T, routing.reach.astype(jnp.float32), precision=exact)
    lost = ~kept & (routing.experts < probabilities.shape[-1])
    if rounds or group is not None:
        asked = by_round(routing, kept) if rounds else [(choices.sum(axis=1), probabilities)]
        group = 0 if group is None else group
        balance = sum(_balance_of_groups(modality, group, groups, *one, allowed) for one in asked)
    else:
        balance = balance_loss(tokens, load, probability, allowed)
    return RoutingStatistics(
        tokens=tokens,
        load=load,
        probability=probability,
        reach=reach,
        dropped=jnp.dot(member.T, jnp.sum(lost, axis=1).astype(jnp.float32), precision=exact),
        entropy=jax.lax.stop_gradient(jnp.dot(member.T, entropy, precision=exact)),
        gate=jax.lax.stop_gradient(jnp.dot(member.T, gates, precision=exact)),
        balance=balance,
    )


def by_round(routing: Routing, kept: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """The k choices as the released RingMoE code makes them, one after the other: whom a token asks, and with what.

    A token has left the probabilities of those experts that did not take it yet, over their sum. So one whose choice
    found its expert full asks the same again.

    Args:
        routing: decisions for N tokens.
        kept: [N, K] bool, from an engine with `Layout.rounds`.

    Returns:
        A round each: [N, E] float32, 1 where a token asks an expert; and [N, E] float32, what it had left.
    """
    left, asked, stuck, found = routing.probabilities, routing.experts[:, 0], jnp.zeros(len(kept), bool), []
    for choice, has_row in zip(routing.experts.T, kept.T, strict=True):
        asked = jnp.where(stuck, asked, choice)
        chosen = jax.nn.one_hot(asked, left.shape[-1], dtype=jnp.float32)
        found.append((chosen, normalised(left)))
        stuck |= ~has_row
        left = left * (1 - chosen * has_row[:, None])
    return found


def _balance_of_groups(modality, group, groups: int, choices, probabilities, allowed: np.ndarray) -> jax.Array:
    """`balance_loss`, the mean over the token groups that hold any; choices and probabilities [N, E]."""
    count = len(allowed)
    row = jnp.where(modality < 0, groups * count, group * count + modality)  # beyond the last one: left out
    load, probability = (
        jax.ops.segment_sum(values, row, groups * count).reshape(groups, count, -1)
        for values in (choices, probabilities)
    )
    tokens = jax.ops.segment_sum(jnp.ones(len(row)), row, groups * count).reshape(groups, count)
    losses = jax.vmap(functools.partial(balance_loss, allowed=allowed))(tokens, load, probability)
    seen = tokens.sum(axis=1) > 0
    return jnp.sum(losses * seen) / jnp.maximum(seen.sum(), 1)


def excess(statistics: RoutingStatistics) -> jax.Array:
    """Choices that each expert got beyond its even share, [E] or stacked [L, E]; they sum to 0.

    The even share is what falls on an expert where every modality spreads its choices evenly over the experts in its
    reach: of one router, the mean load (Wang et al. 2024, Algorithm 1); over several, our choice. An absent modality
    adds nothing. Sums over micro-batches are those of the batch.
    """
    share = statistics.reach / jnp.maximum(statistics.reach.sum(axis=-1, keepdims=True), 1)
    even = statistics.load.sum(axis=-1, keepdims=True) * share
    return jnp.sum(statistics.load - even, axis=-2)


def expand(statistics: RoutingStatistics, columns: np.ndarray | slice, experts: int) -> RoutingStatistics:
    """Puts the statistics of a selection of experts, `columns` [E'], back among all E."""
    if statistics.load.shape[-1] == experts:
        return statistics
    wide = lambda x: jnp.zeros((x.shape[0], experts, *x.shape[2:]), x.dtype).at[:, columns].set(x)  # noqa: E731
    by_expert = {name: getattr(statistics, name) for name in ("load", "probability", "reach", "gate", "contribution")}
    return statistics._replace(**jax.tree.map(wide, by_expert))


def nothing(modalities: int, experts: int, hidden: int | None = None) -> RoutingStatistics:
    """Statistics of a layer in which all E experts of a router group are gone.

    Args:
        modalities: M.
        experts: E.
        hidden: F where contributions are measured, else None.
    """
    zeros = lambda *shape: jnp.zeros(shape, jnp.float32)  # noqa: E731
    one, each = zeros(modalities), zeros(modalities, experts)
    measured = None if hidden is None else Contribution(each, zeros(modalities, experts, hidden))
    return RoutingStatistics(one, each, each, each, one, one, each, zeros(), measured)


def balance_loss(tokens: jax.Array, load: jax.Array, probability: jax.Array, allowed: np.ndarray) -> jax.Array:
    """Switch balance loss, N_E * sum_e f_e P_e: 1 where load and probability are uniform.

    Modalities that share the same allowed experts share one router and are balanced together, over
    the global batch, so that each may prefer its own experts. The loss is the mean over routers that
    saw tokens: for specialised experts the mean over modalities (paper Eq. 3 and released code, there
    with N_E^2 of a flag; Switch Transformer Eq. 4 for the scale).

    Args:
        tokens: [M] tokens.
        load: [M, E] choices that fell on each expert; no gradient flows through it.
        probability: [M, E] sum of router probabilities.
        allowed: [M, E] bool.

    Returns:
        [] float32.
    """
    rows, router = np.unique(allowed, axis=0, return_inverse=True)
    join = jnp.asarray(np.eye(len(rows), dtype=np.float32)[np.reshape(router, -1)].T)  # [routers, M]
    load, tokens = jax.lax.stop_gradient(join @ load), join @ tokens
    fraction = load / jnp.maximum(load.sum(axis=1, keepdims=True), 1.0)  # f_e
    mean_probability = (join @ probability) / jnp.maximum(tokens, 1.0)[:, None]  # P_e
    per_router = rows.sum(axis=1) * jnp.sum(fraction * mean_probability, axis=1)
    seen = (tokens > 0) & rows.any(axis=1)
    return jnp.sum(per_router * seen) / jnp.maximum(seen.sum(), 1)
