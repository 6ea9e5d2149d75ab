"""Sensors that saw the same place should have like features: alignment by contrast."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from ringmoe_jax.contracts import valid_cells
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.layers import unit
from ringmoe_jax.objectives.base import NOTHING, Objective, Result, register
from ringmoe_jax.sensors import Sensor

AWAY = -1e9  # logit of what may not be chosen


@register("alignment")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment(Objective):
    """Symmetric InfoNCE between the pooled features of two co-registered sensors, over the global (micro-)batch.

    L = -ln softmax_j(cos(a_i, b_j) / temperature)[i], and the same from b to a, in nats a row and direction.
    Between optical and SAR little more than "the same place" holds physically, so only that is asked for.
    Features are the means of the last tokens over what both sensors validly observed (`shared_cells`), so a
    swath's edge or a cloud mask is no cue. Rows that share no valid pixel, or whose known locations differ,
    neither count nor serve as negatives. Chance is ln B, with the B of a micro-batch under `train.accumulate`.
    Sources: van den Oord et al. 2018; symmetric form Radford et al. 2021; SkySense's L_align is the sum of three such
    terms over its pairs of sensors, on features before fusion.

    Attributes:
        sensors: two names; one stream of the data has to hold both (`data.streams`).
        temperature: > 0.
        projected: compares a learned projection of the tokens, which `pretext.name = "contrastive"` makes, and not
            the tokens themselves (our choice).
    """

    sensors: tuple[str, ...]
    temperature: float = 0.1
    projected: bool = False

    def __post_init__(self):
        if len(set(self.sensors)) != 2 or len(self.sensors) != 2:
            raise ConfigError(f"Alignment: sensors = {self.sensors}, wanted two different names")
        if not self.temperature > 0:
            raise ConfigError(f"Alignment: temperature = {self.temperature}, wanted > 0")

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        for name in self.sensors:
            if name not in sensors:
                raise ConfigError(f'Alignment of "{name}": not in model.sensors: {nearest(name, sensors)}')
        return {}

    def projections(self) -> dict[str, tuple[str, ...]]:
        return dict.fromkeys(self.sensors, ("align",)) if self.projected else {}

    def together(self) -> tuple[str, ...]:
        return self.sensors

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        tokens = outputs["projected" if self.projected else "tokens"]
        if any(name not in tokens for name in self.sensors):
            return NOTHING
        entries = [batch["sensors"][name] for name in self.sensors]
        cells = shared_cells(entries, tokens[self.sensors[0]].shape[2:4])
        places = [entry.get("location") for entry in entries]
        usable = jnp.any(cells, axis=(1, 2))
        if all(place is not None for place in places):
            apart = jnp.abs(places[0] - places[1]) > 1e-3  # degrees; NaN compares as False
            usable &= ~jnp.any(apart, axis=-1)
        a, b = (
            _pooled(tokens[name], cells[:, None] & valid_cells(entry["valid"], cells.shape[1:]))
            for name, entry in zip(self.sensors, entries, strict=True)
        )
        nats, hits = info_nce(a, b, usable, self.temperature)
        weight = jnp.sum(usable, dtype=jnp.float32)
        return nats, weight, {"accuracy": hits / jnp.maximum(weight, 1)}


def shared_cells(entries: Sequence[Mapping], grid: tuple[int, int]) -> jax.Array:
    """Cells in which every sensor has a valid pixel at some date.

    Args:
        entries: of `batch["sensors"]`, rows show the same place.
        grid: cells h, w; divide every image's height and width.

    Returns:
        [B, h, w] bool.
    """
    return jnp.all(jnp.stack([valid_cells(entry["valid"], grid).any(axis=1) for entry in entries]), axis=0)


def _pooled(tokens: jax.Array, seen: jax.Array) -> jax.Array:
    """[B, T, h, w, D] -> [B, D] float32 unit vectors: the mean over dates and cells of `seen` [B, T, h, w] bool."""
    x = jnp.sum(jnp.where(seen[..., None], tokens.astype(jnp.float32), 0), axis=(1, 2, 3))
    return unit(x)


def info_nce(a: jax.Array, b: jax.Array, usable: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    """Symmetric InfoNCE of unit vectors.

    Args:
        a: [B, D]; row i belongs to row i of b.
        b: [B, D].
        usable: [B] bool; other rows are neither counted nor negatives.
        temperature: divides cosines.

    Returns:
        Sum over usable rows of the mean of both directions, nats []; and how many rows find their partner [],
        mean of both directions.
    """
    logits = a @ b.T / temperature
    own = jnp.eye(len(logits), dtype=bool)
    logits = jnp.where(usable[None, :] & usable[:, None] | own, logits, AWAY)
    nats = hits = jnp.float32(0)
    for x in (logits, logits.T):
        chosen = -jnp.diagonal(jax.nn.log_softmax(x, axis=-1))
        nats += jnp.sum(jnp.where(usable, chosen, 0)) / 2
        hits += jnp.sum(usable & (jnp.argmax(x, axis=-1) == jnp.arange(len(x)))) / 2
    return nats, hits
