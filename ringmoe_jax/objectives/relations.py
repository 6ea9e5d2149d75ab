"""Images that are alike to a teacher should be alike to the student, whatever the widths of their features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ringmoe_jax.contracts import mean_of_cells, valid_cells
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.objectives.base import NOTHING, Objective, Result, find, register
from ringmoe_jax.objectives.matching import LEVELS, teacher_of
from ringmoe_jax.sensors import Sensor

NEVER = -1e9  # whose softmax is 0


@register("relation_matching")
@dataclasses.dataclass(frozen=True, kw_only=True)
class RelationMatching(Objective):
    """Kullback-Leibler divergence between whom of a batch an image is like, to the teacher and to the student.

    p_ij = softmax over j != i of cos(t_i, t_j) / temperature, q_ij the same of the student, L = sum_j p_ij ln(p_ij /
    q_ij) in nats, the mean over images i. Features are means over the cells that show anything, less their mean over
    the batch, for what all images have in common says nothing. Nothing of it asks for equal widths or grids, so any
    released model may be the teacher (`config.teacher`). Source: SEED (Fang et al. 2021, arXiv 2101.04731), whose
    queue of older images is left out; similarities within a batch as Tung and Mori 2019 (arXiv 1907.09682).

    Metric: "agreement", share of images whose nearest one is the same to both.

    Attributes:
        sensor: name in `ringmoe_jax.sensors`.
        level: of the student, "tokens", what the encoder gives, or "stages", all of them joined. Of the teacher it is
            always "tokens".
        temperature: > 0.
    """

    sensor: str
    level: str = "stages"
    temperature: float = 0.1

    def __post_init__(self):
        if self.level not in LEVELS:
            raise ConfigError(f'RelationMatching: level = "{self.level}" does not exist: {nearest(self.level, LEVELS)}')
        if not self.temperature > 0:
            raise ConfigError(f"RelationMatching: temperature = {self.temperature}, wanted > 0")

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        find(self, sensors)
        return {}

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        """Raises a `ConfigError` where there is no teacher, or it does not know the sensor."""
        if self.sensor not in outputs["tokens"]:
            return NOTHING
        teacher = teacher_of(outputs, self)
        if self.sensor not in teacher["tokens"]:
            raise ConfigError(
                f'RelationMatching of "{self.sensor}": the teacher does not know it: '
                f"{nearest(self.sensor, teacher['tokens'])}"
            )
        valid = batch["sensors"][self.sensor]["valid"]
        seen = valid.any(axis=(1, 2, 3))
        wanted = _log_likeness([teacher["tokens"][self.sensor]], valid, seen, self.temperature)
        own = outputs["tokens"] if self.level == "tokens" else outputs["stages"]
        maps = own[self.sensor] if self.level == "stages" else [own[self.sensor]]
        said = _log_likeness(maps, valid, seen, self.temperature)
        nats = jnp.sum(jnp.exp(wanted) * (wanted - said), axis=1)
        counted = seen & (seen.sum() > 2)  # of two images each is all that the other can be like
        agree = jnp.argmax(said, axis=1) == jnp.argmax(wanted, axis=1)
        weight = jnp.sum(counted, dtype=jnp.float32)
        value = jnp.sum(jnp.where(counted, nats, 0))
        return value, weight, {"agreement": jnp.sum(counted & agree) / jnp.maximum(weight, 1)}


def _log_likeness(maps, valid: jax.Array, seen: jax.Array, temperature: float) -> jax.Array:
    """[B, B] float32, ln of the softmax of cosines over the other images that show anything.

    Args:
        maps: [B, T, h, w, D] each.
        valid: [B, T, H, W] bool.
        seen: [B] bool, images that show anything.
        temperature: of the softmax.
    """
    means = [mean_of_cells(x, valid_cells(valid, x.shape[2:4])) for x in maps]
    features = jnp.concatenate(means, axis=1)
    share = seen[:, None] / jnp.maximum(seen.sum(), 1)
    features = features - jnp.sum(share * features, axis=0)
    features = features * jax.lax.rsqrt(jnp.sum(jnp.square(features), axis=1, keepdims=True) + 1e-6)
    others = seen[None] & ~jnp.eye(len(seen), dtype=bool)
    return jax.nn.log_softmax(jnp.where(others, features @ features.T / temperature, NEVER), axis=1)
