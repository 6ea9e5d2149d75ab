"""Sinkhorn-Knopp: soft assignments that use every column alike (Cuturi 2013; SwAV, Caron et al. 2020)."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sinkhorn(
    scores: jax.Array, weight: jax.Array | None = None, *, temperature: jax.Array | float, iterations: int = 3
) -> jax.Array:
    """Assigns rows to columns so that all columns get the same mass.

    Works on logarithms, so no temperature overflows. No gradient passes.

    Args:
        scores: [..., N, K], larger is closer.
        weight: [..., N] mass of each row, 0 leaves a row out of the columns' mass; default: all 1.
        temperature: > 0, divides scores; the entropy weight of optimal transport.
        iterations: column and row normalisations.

    Returns:
        [..., N, K] float32; every row sums to 1, and with enough iterations sum_n weight_n P_nk = sum(weight) / K.
    """
    scores = jax.lax.stop_gradient(scores).astype(jnp.float32) / temperature
    weight = jnp.ones(scores.shape[:-1]) if weight is None else weight
    mass = jax.lax.stop_gradient(weight).astype(jnp.float32)
    mass = jnp.where(mass > 0, jnp.log(jnp.maximum(mass, 1e-30)), -1e9)[..., None]

    columns = jnp.zeros((*scores.shape[:-2], 1, scores.shape[-1]))
    for _ in range(iterations):
        rows = -jax.nn.logsumexp(scores + columns, axis=-1, keepdims=True)
        columns = -jax.nn.logsumexp(scores + rows + mass, axis=-2, keepdims=True)
    return jax.nn.softmax(scores + columns)
