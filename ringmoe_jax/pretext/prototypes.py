"""Moves geo-context prototypes towards what a region shows (SkySense, section 4); no gradient is involved."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ringmoe_jax.models.layers import unit
from ringmoe_jax.pretext.sinkhorn import sinkhorn


def update(
    bank: Mapping[str, jax.Array],
    features: jax.Array,
    seen: jax.Array,
    region: jax.Array,
    *,
    momentum: float,
    temperature: float,
    iterations: int = 3,
) -> dict[str, jax.Array]:
    """One step of U-GCPL: P <- unit(m P + (1 - m) S^T F / mass), for the regions of the batch.

    S assigns the locations of one image to its region's prototypes by Sinkhorn-Knopp on cosines, as in the paper.
    Images of one region, on whatever device, are added up before the move. Unit length after it, dividing by the
    mass, and leaving prototypes alone that got less than half of their fair share are our choice. Only rows of
    visited regions are written: all others stay as they are, bit for bit.

    Args:
        bank: "prototypes" [R, P, D] and "visits" [R], float32.
        features: [B, h, w, D] of the student.
        seen: [B, h, w] bool, locations that count.
        region: [B] int32, negative where unknown.
        momentum: m, 0..1.
        temperature: of Sinkhorn-Knopp.
        iterations: of Sinkhorn-Knopp.

    Returns:
        The new bank.
    """
    prototypes, visits = bank["prototypes"], bank["visits"]
    batch, width = len(features), features.shape[-1]
    x = unit(jax.lax.stop_gradient(features).astype(jnp.float32).reshape(batch, -1, width))
    weight = seen.reshape(batch, -1).astype(jnp.float32)
    known = (region >= 0) & (weight.sum(axis=-1) > 0)
    own = prototypes[jnp.maximum(region, 0)]
    assigned = sinkhorn(jnp.einsum("bnd,bpd->bnp", x, own), weight, temperature=temperature, iterations=iterations)
    assigned *= weight[..., None]
    sums, mass = jnp.einsum("bnp,bnd->bpd", assigned, x), assigned.sum(axis=1)

    # All images of a region give the same new row, and the first of them writes it.
    together = (region[:, None] == region) & known[:, None] & known
    sums, mass = (jnp.einsum("bc,c...->b...", together.astype(jnp.float32), v) for v in (sums, mass))
    fair = mass.sum(axis=-1, keepdims=True) / prototypes.shape[1]
    moved = unit(momentum * own + (1 - momentum) * sums / jnp.maximum(mass, 1e-9)[..., None])
    moved = jnp.where((mass > fair / 2)[..., None], moved, own)
    first = known & (jnp.argmax(together, axis=1) == jnp.arange(batch))
    row = jnp.where(first, region, len(prototypes))  # out of range: dropped
    return {
        "prototypes": prototypes.at[row].set(moved, mode="drop"),
        "visits": visits.at[row].add(together.sum(axis=1).astype(jnp.float32), mode="drop"),
    }
