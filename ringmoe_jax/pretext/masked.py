"""Masked image modelling: one pass over images whose hidden cells the pipeline has drawn (SimMIM, RingMoE)."""

from __future__ import annotations

from ringmoe_jax.errors import DataError
from ringmoe_jax.models.api import Model
from ringmoe_jax.pretext.base import Pretext


def masked(model: Model) -> Pretext:
    """One forward pass with the batch's own masks; no state.

    Raises (when traced):
        DataError: a sensor of the batch has no "mask".
    """

    def apply(params, state, batch, *, key, train):
        without = [name for name, entry in batch["sensors"].items() if "mask" not in entry]
        if without:
            raise DataError(f"masked pre-training needs hidden cells for {', '.join(without)}: set data.mask_ratio > 0")
        return model.apply(params, batch, key=key, train=train), state

    return Pretext(init=lambda params: {}, apply=apply)
