"""Two views of one place should say the same: self-distillation of a student by its moving average."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.objectives.base import NOTHING, Objective, Result, register

LEVELS = ("pixel", "object", "image")


@register("self_distillation")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfDistillation(Objective):
    """Cross-entropy from the teacher's target distribution to the student's prediction, one level of one stream.

    L = -sum_k t_k ln softmax_k(cosines / temperature), in nats, the mean over the pairs that both views show. One
    such term a level and stream, all with scale 1, is SkySense's L_FGCL (its section 3); the form of the loss is
    DINO's (Caron et al. 2021), which is our choice. Needs `pretext.name = "contrastive"`.

    Metrics: "teacher_entropy", mean entropy of one target, and "usage", entropy of the mean target over the batch,
    both as a share of ln K. A collapse shows as usage near 0 (one output for everything) or as a teacher entropy
    near 1 (all outputs alike). "agreement": share of pairs whose largest outputs agree.

    Attributes:
        stream: a sensor of the model, or "fused".
        level: "pixel" (same ground), "object" (same cluster) or "image".
        temperature: of the student, > 0.
    """

    stream: str
    level: str
    temperature: float = 0.1

    def __post_init__(self):
        if self.level not in LEVELS:
            raise ConfigError(f'SelfDistillation: level = "{self.level}" does not exist: {nearest(self.level, LEVELS)}')
        if not self.temperature > 0:
            raise ConfigError(f"SelfDistillation: temperature = {self.temperature}, wanted > 0")

    def projections(self) -> dict[str, tuple[str, ...]]:
        return {self.stream: (self.level,)}

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        pairs = outputs["contrast"].get(self.stream, {}).get(self.level)
        if pairs is None:
            return NOTHING
        target, weight = pairs["teacher"], pairs["weight"]
        nats = -jnp.sum(target * jax.nn.log_softmax(pairs["student"] / self.temperature), axis=-1)
        total = jnp.maximum(weight.sum(), 1)
        mean = jnp.einsum("n,nk->k", weight, target) / total
        most = jnp.log(target.shape[-1])
        agree = jnp.argmax(target, axis=-1) == jnp.argmax(pairs["student"], axis=-1)
        return (
            jnp.sum(nats * weight),
            weight.sum(),
            {
                "teacher_entropy": jnp.sum(_entropy(target) * weight) / total / most,
                "usage": _entropy(mean) / most,
                "agreement": jnp.sum(agree * weight) / total,
            },
        )


def _entropy(p: jax.Array) -> jax.Array:
    """[..., K] probabilities -> [...] nats."""
    return -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-30)), axis=-1)
