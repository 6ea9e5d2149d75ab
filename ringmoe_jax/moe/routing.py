"""From tokens to expert indices and gates. Always in float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Routing(NamedTuple):
    """What a router decided.

    Attributes:
        experts: [N, K] int32, chosen experts, best first.
        gates: [N, K] float32 in 0..1, weight of each chosen expert's output.
        probabilities: [N, E] float32, softmax over the allowed experts, 0 elsewhere.
    """

    experts: jax.Array
    gates: jax.Array
    probabilities: jax.Array


def logits(tokens: jax.Array, kernels: Sequence[jax.Array]) -> list[jax.Array]:
    """Router scores of several router groups by one product.

    Args:
        tokens: [N, D], any float dtype; cast to float32.
        kernels: [D, E_g] float32 each, no bias (released RingMoE code).

    Returns:
        [N, E_g] float32 each.
    """
    joined = jnp.concatenate([kernel.astype(jnp.float32) for kernel in kernels], axis=1)
    scores = jnp.dot(tokens.astype(jnp.float32), joined, precision=jax.lax.Precision.HIGHEST)
    return jnp.split(scores, np.cumsum([kernel.shape[1] for kernel in kernels])[:-1], axis=1)


def route(
    logits: jax.Array, modality: jax.Array, allowed: np.ndarray, *, k: int, normalise_gates: bool = False
) -> Routing:
    """Top-k softmax routing within the experts that a token's modality may choose.

    Args:
        logits: [N, E] float32.
        modality: [N] int32, row of `allowed` for each token.
        allowed: [M, E] bool; every row allows at least `k` experts.
        k: experts per token.
        normalise_gates: divide the gates by their sum over the chosen experts. With k = 1 the
            gate is then exactly 1 and the task sends no gradient to the router, as in the
            released code; False keeps the softmax probability (Switch Transformer), our default.

    Returns:
        `Routing`. Ties go to the lower expert index.
    """
    if not allowed.all():
        logits = jnp.where(jnp.asarray(allowed)[modality], logits, -jnp.inf)
    probabilities = jax.nn.softmax(logits, axis=-1)
    gates, experts = jax.lax.top_k(probabilities, k)
    if normalise_gates:
        gates = gates / (gates.sum(axis=-1, keepdims=True) + 1e-9)
    return Routing(experts, gates, probabilities)
