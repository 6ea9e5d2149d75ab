"""`allowed[M, E]`: the one mechanism behind specialised, collaborative and pruned experts."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ringmoe_jax.errors import ConfigError


def specialised(modalities: int, per_modality: int) -> np.ndarray:
    """Every modality has `per_modality` experts of its own (RingMoE, paper Eq. 3, router G_m^S).

    Experts are laid out `[N_S, M]`, expert = s * M + m, so that any contiguous expert shard
    holds experts of every modality and shards stay balanced under any modality mix (our choice).

    Returns:
        [M, E] bool with E = per_modality * M.
    """
    return np.tile(np.eye(modalities, dtype=bool), (1, per_modality))


def collaborative(modalities: int, experts: int) -> np.ndarray:
    """Every modality may choose every expert (RingMoE, router G^C). Returns [M, E] bool, all True."""
    return np.ones((modalities, experts), dtype=bool)


def reachable(allowed: np.ndarray, present: tuple[int, ...]) -> np.ndarray:
    """Experts that the present modalities can choose: a sub-model is this slice of the table.

    Args:
        allowed: [M, E] bool.
        present: modality indices that occur.

    Returns:
        [E'] int, ascending expert indices.
    """
    return np.flatnonzero(allowed[list(present)].any(axis=0))


def capacity(allowed: np.ndarray, tokens: tuple[int, ...], k: int, factor: float) -> int:
    """Buffer rows per expert: C = ceil(factor * expected load of the busiest expert).

    For one router over E experts this is the usual ceil(k * N * factor / E)
    (released RingMoE code; GShard; Switch).

    Args:
        allowed: [M, E] bool.
        tokens: M token counts, known when the program is traced.
        k: experts chosen per token.
        factor: capacity factor, > 0.
    """
    choices = allowed.sum(axis=1)
    load = sum(k * n / c * row for n, c, row in zip(tokens, choices, allowed, strict=True) if n and c)
    busiest = float(np.max(load))
    return min(sum(tokens), max(1, math.ceil(factor * busiest - 1e-9)))


class Queue(NamedTuple):
    """Which tokens compete for an expert's rows, and who is served first.

    Attributes:
        group: [N] int32, token group of each token.
        place: [N] int32, the order in which a group's tokens are served.
    """

    group: np.ndarray
    place: np.ndarray


def queue(allowed: np.ndarray, modality: np.ndarray, groups: int) -> Queue:
    """Tokens as the released RingMoE code queues them: those of a modality before those of the next.

    A router, which modalities with the same allowed experts share, cuts its row of tokens in equal groups. So one of
    all modalities has groups of few modalities each, and one of a single modality groups of that one.

    Args:
        allowed: [M, E] bool.
        modality: [N] int, of every token, known when the program is traced.
        groups: number of token groups.

    Raises:
        ConfigError: the tokens of a router do not split in so many groups.
    """
    router = np.unique(allowed, axis=0, return_inverse=True)[1].reshape(-1)
    row = np.argsort(modality, kind="stable")
    group, place = np.empty_like(row), np.empty_like(row)
    place[row] = np.arange(len(row))
    for one in np.unique(router[modality]):
        mine = row[router[modality[row]] == one]
        if len(mine) % groups:
            raise ConfigError(
                f"{len(mine)} tokens of a router do not split in model.moe.groups = {groups}: set it to a divisor of "
                "them, or model.moe.by_modality to False"
            )
        group[mine] = np.arange(len(mine)) // (len(mine) // groups)
    return Queue(group.astype(np.int32), place.astype(np.int32))


def check(allowed: np.ndarray, k: int) -> None:
    """Raises ConfigError unless every modality may choose at least `k` experts."""
    for modality, choices in enumerate(allowed.sum(axis=1)):
        if choices < k:
            raise ConfigError(
                f"top-{k} routing, but modality {modality} may choose {choices} of {allowed.shape[1]} experts: "
                f"lower model.moe.top_k or allow more experts"
            )
