"""Masked image modelling: one pass over images whose hidden cells the pipeline has drawn (SimMIM, RingMoE)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.contracts import cells_to_pixels, standardise
from ringmoe_jax.errors import DataError
from ringmoe_jax.models.api import Model
from ringmoe_jax.pretext.base import PRETEXTS, Pretext, PretextConfig, PretextSpec
from ringmoe_jax.sensors import COMPLEX


def masked(model: Model) -> Pretext:
    """One forward pass with the batch's own masks; no state.

    Raises (when traced):
        DataError: a sensor of the batch has no "mask".
    """

    def apply(params, state, batch, *, key, train):
        require_masks(batch)
        return model.apply(params, batch, key=key, train=train), state

    return Pretext(apply)


def masked_parts(model: Model) -> Pretext:
    """As `masked`, and half of the images of complex sensors lose their real or imaginary part (set to 0).

    Which images and which part is drawn anew every step; without a key, every image loses its imaginary part.
    Outputs say what was withheld of visible, valid pixels under "withheld" and keep the whole image as
    "standardised". For `part_independence`. Source: MERLIN (Dalsasso, Denis and Tupin 2021); half of the images,
    so that encoders also meet whole pixels, is our choice.

    Raises (when traced):
        DataError: a sensor of the batch has no "mask".
    """

    def apply(params, state, batch, *, key, train):
        require_masks(batch)
        complex_sensors = [n for n in batch["sensors"] if sensor_table.get(n).resampling == COMPLEX]
        keys = [None] * len(complex_sensors)
        if key is not None:
            key, *keys = jax.random.split(key, 1 + len(complex_sensors))
        shown = dict(batch["sensors"])
        withheld = {}
        for name, draw in zip(complex_sensors, keys, strict=True):
            lost = _lost_parts(shown[name], draw)
            entry = shown[name]
            shown[name] = entry | {"pixels": jnp.where(lost, 0, entry["pixels"])}
            hidden = cells_to_pixels(entry["mask"], *entry["valid"].shape[2:])[:, None]
            withheld[name] = lost & (entry["valid"] & ~hidden)[..., None]
        outputs = model.apply(params, batch | {"sensors": shown}, key=key, train=train)
        whole = {
            name: standardise(entry["pixels"], entry["valid"], outputs["statistics"][name])
            for name, entry in batch["sensors"].items()
        }
        return outputs | {"standardised": whole, "withheld": withheld}, state

    return Pretext(apply)


@PRETEXTS.register("masked")
@dataclasses.dataclass(frozen=True)
class Masked(PretextConfig):
    """See `masked`."""

    def build(self, model: Model, spec: PretextSpec) -> Pretext:
        return masked(model)


@PRETEXTS.register("masked_parts")
@dataclasses.dataclass(frozen=True)
class MaskedParts(PretextConfig):
    """See `masked_parts`."""

    def build(self, model: Model, spec: PretextSpec) -> Pretext:
        return masked_parts(model)


def _lost_parts(entry, key) -> jax.Array:
    """[B, T, 1, 1, C] bool: channels (re, im, re, im ...) that each image loses."""
    images, channels = entry["pixels"].shape[:2], jnp.arange(entry["pixels"].shape[-1])
    if key is None:
        loses, part = jnp.ones(images, bool), jnp.ones(images, jnp.int32)
    else:
        first, second = jax.random.split(key)
        loses, part = jax.random.bernoulli(first, shape=images), jax.random.randint(second, images, 0, 2)
    lost = loses[..., None] & (channels % 2 == part[..., None])
    return lost[:, :, None, None, :]


def require_masks(batch) -> None:
    """Raises a DataError where a sensor of the batch has no "mask"."""
    without = [name for name, entry in batch["sensors"].items() if "mask" not in entry]
    if without:
        raise DataError(f"masked pre-training needs hidden cells for {', '.join(without)}: set data.mask_ratio > 0")
