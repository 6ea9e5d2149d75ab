"""Features of hidden cells as a teacher that sees them describes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.base import NOTHING, Objective, Result, masked_mean, register
from ringmoe_jax.objectives.matching import smooth_l1, standardised


@register("latent_targets")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentTargets(Objective):
    """Smooth L1 between prediction and target of every hidden cell, see `ringmoe_jax.pretext.latent`.

    Targets are standardised over the D channels of their cell (data2vec, I-JEPA).

    L = mean over channels of |d| - beta / 2 where |d| > beta, else d^2 / (2 beta) (data2vec, arXiv 2202.03555, Eq. 2).

    Metrics: "cosine", mean cosine of both; "spread", mean standard deviation of a target's channel over the hidden
    cells: towards 0 all cells are described alike, the teacher has collapsed.

    Attributes:
        sensor: name in `ringmoe_jax.sensors`.
        beta: error from which on the loss grows linearly, in standard deviations of a token's channels, > 0.
    """

    sensor: str
    beta: float = 1.0

    def __post_init__(self):
        if not self.beta > 0:
            raise ConfigError(f"LatentTargets: beta = {self.beta}, wanted > 0")

    def projections(self) -> dict[str, tuple[str, ...]]:
        return {self.sensor: ("latent",)}

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        found = outputs["latent"].get(self.sensor)
        if found is None:
            return NOTHING
        prediction, target, weight = found["prediction"], standardised(found["target"]), found["weight"]
        value, count, _ = masked_mean(smooth_l1(prediction - target, self.beta), weight)
        share = weight[..., None] / jnp.maximum(count, 1)
        mean = jnp.sum(share * target, axis=(0, 1, 2, 3))
        spread = jnp.sqrt(jnp.sum(share * jnp.square(target - mean), axis=(0, 1, 2, 3)))
        norms = jnp.linalg.norm(prediction, axis=-1) * jnp.linalg.norm(target, axis=-1)
        cosine = jnp.sum(prediction * target, axis=-1) / jnp.maximum(norms, 1e-6)
        metrics = {"cosine": jnp.sum(share[..., 0] * cosine), "spread": jnp.mean(spread)}
        return value, count, metrics
