"""What every expert adds to the tokens that chose it, and how active its hidden units are: for pruning and merging."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing


class Contribution(NamedTuple):
    """Sums over the tokens of each modality that chose an expert.

    Attributes:
        norm: [M, E] sum of the Euclidean norms of gate * expert(token), what the expert added.
        hidden: [M, E, F] sum of gate * |hidden unit|, after GELU. Zeros fill up F in the layers of a model whose
            stages differ in width.
    """

    norm: jax.Array
    hidden: jax.Array


def measure(
    tokens: jax.Array, routing: Routing, experts: Experts, modality: jax.Array, modalities: int
) -> Contribution:
    """Runs every expert on every token, one expert at a time: exact, and as slow as that.

    Choices that an engine would drop count like all others.

    Args:
        tokens: [N, D].
        routing: choices of the N tokens among the E experts.
        experts: of one router group.
        modality: [N] int32 in 0..M-1, or `routing.NOTHING`.
        modalities: M.
    """
    member = jax.nn.one_hot(modality, modalities, dtype=jnp.float32)  # [N, M]

    def one(_, expert):
        number, weights = expert
        wi, bi, wo, bo = (leaf.astype(tokens.dtype) for leaf in weights)
        gate = jnp.sum(routing.gates * (routing.experts == number), axis=1)  # [N], 0 where it was not chosen
        hidden = jax.nn.gelu(tokens @ wi + bi)
        norm = jnp.linalg.norm((hidden @ wo + bo).astype(jnp.float32), axis=-1)
        active = gate[:, None] * jnp.abs(hidden.astype(jnp.float32))
        return None, (member.T @ (gate * norm), member.T @ active)

    _, (norm, hidden) = jax.lax.scan(one, None, (jnp.arange(experts.count), experts))
    return Contribution(norm.T, jnp.moveaxis(hidden, 0, 1))
