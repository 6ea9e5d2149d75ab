"""Masked reconstruction of optical, multispectral and SAR-L2 images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ringmoe_jax.objectives.base import Reconstruction, register


@register("masked_l1")
@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedL1(Reconstruction):
    """L = sum(mask |x - x_hat|) / sum(mask) / C on standardised pixels, without per-patch normalisation.

    Source: released RingMoE code (SimMIM). Assumes independent Laplacian errors of equal scale in every
    standardised band. Without unit.
    """

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        return outputs["standardised"][self.sensor]

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.abs(prediction - target)
