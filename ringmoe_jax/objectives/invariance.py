"""Embeddings of one place alike, those of all places spread: invariance with a term against collapse, no teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.base import NOTHING, Objective, Result, register


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointEmbedding(Objective):
    """What objectives on `outputs["embeddings"]` share. Values are of a micro-batch, not sums over all of them.

    Attributes:
        streams: sensors of one place, or "fused": all their views of a place are to agree.
    """

    streams: tuple[str, ...]

    def __post_init__(self):
        if not self.streams:
            raise ConfigError(f"{type(self).__name__}: streams is empty: name at least one sensor")

    def together(self) -> tuple[str, ...]:
        return self.streams if len(self.streams) > 1 else ()

    def projections(self) -> dict[str, tuple[str, ...]]:
        return dict.fromkeys(self.streams, ("embedding",))

    def embeddings(self, outputs: Mapping) -> tuple[jax.Array, jax.Array, jax.Array] | None:
        """Of all streams that the batch shows: z [B, V, K], weight [B, V] and which views are full, [V]."""
        shown = [outputs["embeddings"][s] for s in self.streams if s in outputs["embeddings"]]
        if not shown:
            return None
        z, weight = (jnp.concatenate([part[name] for part in shown], axis=1) for name in ("rows", "weight"))
        full = jnp.concatenate([jnp.arange(part["weight"].shape[1]) < part["full"] for part in shown])
        return z, weight, full


def invariance(z: jax.Array, weight: jax.Array, full: jax.Array) -> jax.Array:
    """Mean squared distance of all views to the mean of a place's full views, per component.

    Args:
        z: [B, V, K].
        weight: [B, V], 1 where a view counts.
        full: [V] bool.
    """
    anchors = weight * full
    centre = jnp.einsum("bv,bvk->bk", anchors, z) / jnp.maximum(anchors.sum(axis=1), 1)[:, None]
    counts = weight * (anchors.sum(axis=1) > 0)[:, None]
    distance = jnp.mean(jnp.square(z - centre[:, None]), axis=-1)
    return jnp.sum(counts * distance) / jnp.maximum(counts.sum(), 1)


@register("vicreg")
@dataclasses.dataclass(frozen=True, kw_only=True)
class VICReg(JointEmbedding):
    """Variance, invariance, covariance (Bardes et al. 2022, arXiv 2105.04906, Eq. 1 to 6).

    L = invariance * s + variance * v + covariance * c over embeddings z [B, V, K]:
    s, mean squared distance to the mean of a place's full views (ours, for any number of views, as in LeJEPA; of two it
    is a quarter of the mean squared difference between them that the released code takes); v, mean over components of
    max(0, 1 - std) over the places; c, sum of squared covariances of different components over K. v and c are means
    over the views.

    Metrics: the three parts without their weights, and "std", the mean standard deviation of a component.

    Attributes:
        invariance: weight of s.
        variance: weight of v.
        covariance: weight of c.
        joint: v and c are those of the covariance within views, averaged over them, and not means of each view's:
            with few places and many views an estimate with less noise, to which c owes (K - 1) / B (our choice).
    """

    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0
    joint: bool = False

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        found = self.embeddings(outputs)
        if found is None:
            return NOTHING
        z, weight, full = found
        count = jnp.maximum(weight.sum(axis=0), 2)  # [V]
        centred = (z - (jnp.einsum("bv,bvk->vk", weight, z) / count[:, None])) * weight[..., None]
        products, freedom = jnp.einsum("bvi,bvj->vij", centred, centred), count - 1
        if self.joint:
            products, freedom = products.sum(axis=0, keepdims=True), freedom.sum(keepdims=True)
        covariance = products / freedom[:, None, None]
        diagonal = jnp.diagonal(covariance, axis1=1, axis2=2)
        std = jnp.sqrt(diagonal + 1e-4)
        variance = jnp.mean(jax.nn.relu(1 - std))
        off = (jnp.sum(jnp.square(covariance), axis=(1, 2)) - jnp.sum(jnp.square(diagonal), axis=1)) / z.shape[-1]
        parts = {"invariance": invariance(z, weight, full), "variance": variance, "covariance": jnp.mean(off)}
        value = sum(getattr(self, name) * part for name, part in parts.items())
        return value, jnp.float32(1), parts | {"std": jnp.mean(std)}


@register("sigreg")
@dataclasses.dataclass(frozen=True, kw_only=True)
class SIGReg(JointEmbedding):
    """Invariance, and embeddings that are isotropic Gaussian along random directions (LeJEPA, arXiv 2511.08544).

    L = (1 - spread) * invariance + spread * B * mean over directions a of the Epps-Pulley statistic

        integral of |mean over places of exp(i t a.z) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt, t from -5 to 5,

    by the trapezoid rule, a mean over views. Directions are drawn anew every step.

    Metrics: "invariance" and "spread", the parts without their weights.

    Attributes:
        spread: weight of the statistic, 0..1; the authors' small runs take 0.02, the default is our choice.
        directions: number of random unit vectors.
        knots: points t of the rule, an odd number; the half from 0 on is computed, for the integrand is even.
    """

    spread: float = 0.05
    directions: int = 256
    knots: int = 17

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.spread <= 1:
            raise ConfigError(f"{type(self).__name__}: spread = {self.spread}, wanted 0 to 1")
        if self.directions < 1 or self.knots < 3 or self.knots % 2 == 0:
            raise ConfigError(f"{type(self).__name__}: wanted directions from 1 and an odd number of knots from 3")

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        found = self.embeddings(outputs)
        if found is None:
            return NOTHING
        z, weight, full = found
        a = jax.random.normal(outputs["draw"], (z.shape[-1], self.directions))
        a = a / jnp.linalg.norm(a, axis=0)
        t = jnp.linspace(0.0, 5.0, (self.knots + 1) // 2)
        normal = jnp.exp(-jnp.square(t) / 2)
        angle = jnp.einsum("bvk,ka->bva", z, a)[..., None] * t
        count = jnp.maximum(weight.sum(axis=0), 1)
        real, imaginary = (
            jnp.einsum("bv,bvat->vat", weight, f(angle)) / count[:, None, None] for f in (jnp.cos, jnp.sin)
        )
        error = (jnp.square(real - normal) + jnp.square(imaginary)) * normal
        statistic = 2 * jnp.trapezoid(error, t, axis=-1).mean(axis=-1)  # [V]
        parts = {"invariance": invariance(z, weight, full), "spread": jnp.mean(count * statistic)}
        value = (1 - self.spread) * parts["invariance"] + self.spread * parts["spread"]
        return value, jnp.float32(1), parts
