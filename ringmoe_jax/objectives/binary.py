"""Any number of classes are right: binary cross-entropy of every class, plain, focal or asymmetric."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ringmoe_jax.contracts import UNLABELLED
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.objectives.base import Objective, Result, register
from ringmoe_jax.objectives.supervised import labelled, predicted


@register("binary_cross_entropy")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(Objective):
    """L = -y (1 - p)^g+ ln p - (1 - y) q^g- ln(1 - q), p = sigmoid(logit), q = max(p - margin, 0); nats.

    The mean is over all known entries of the batch, images and classes alike. Without exponents and margin it is the
    plain loss, with equal exponents the focal loss (Lin et al. 2017), and with a larger `gamma_negative` the asymmetric
    loss (Ridnik et al. 2021, arXiv 2009.14119, Eq. 7), made for many classes of which few are there; its authors take
    0, 4 and 0.05. Labels may be anything in 0..1. Unknown entries (-1 or NaN) add nothing; any other value makes the
    result NaN, see `objectives.supervised`.

    Metrics: "accuracy", share of known entries on the right side of p = 1/2; "known", share of entries that are known.

    Attributes:
        label: name in `batch["labels"]`: [N, C] float.
        output: name in `outputs["predictions"]`: logits [N, C].
        gamma_positive: g+, 0 or at least 1.
        gamma_negative: g-, 0 or at least 1.
        margin: probabilities up to which absent classes cost nothing, 0 to below 1.
    """

    label: str
    output: str = "logits"
    gamma_positive: float = 0.0
    gamma_negative: float = 0.0
    margin: float = 0.0

    def __post_init__(self):
        for name in ("gamma_positive", "gamma_negative"):
            if not (getattr(self, name) == 0 or getattr(self, name) >= 1):
                raise ConfigError(f"BinaryCrossEntropy: {name} = {getattr(self, name)}, wanted 0 or at least 1")
        if not 0 <= self.margin < 1:
            raise ConfigError(f"BinaryCrossEntropy: margin = {self.margin}, wanted 0 to below 1")

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        who = type(self).__name__
        logits, label = predicted(outputs, self.output, who), labelled(batch, self.label, who)
        if label.shape != logits.shape:
            raise DataError(
                f'{who}: label "{self.label}" is {label.dtype}{list(label.shape)}, wanted 0 or 1 for each of the '
                f'"{self.output}" {list(logits.shape)}; one class index a row wants cross_entropy'
            )
        known = (label >= 0) & (label <= 1)
        y = jnp.where(known, label, 0).astype(jnp.float32)
        nats = jnp.where(known, y * self._present(logits) + (1 - y) * self._absent(logits), 0)
        strange = ~known & (label != UNLABELLED) & ~jnp.isnan(label)
        right = known & ((logits > 0) == (y > 0.5))
        weight = jnp.sum(known, dtype=jnp.float32)
        metrics = {"accuracy": jnp.sum(right) / jnp.maximum(weight, 1), "known": jnp.mean(known)}
        return jnp.where(jnp.any(strange), jnp.nan, jnp.sum(nats)), weight, metrics

    def _present(self, logits: jax.Array) -> jax.Array:
        nats = -jax.nn.log_sigmoid(logits)
        return jax.nn.sigmoid(-logits) ** self.gamma_positive * nats if self.gamma_positive else nats

    def _absent(self, logits: jax.Array) -> jax.Array:
        q = jnp.maximum(jax.nn.sigmoid(logits) - self.margin, 0)
        nats = -jnp.log1p(-q) if self.margin else -jax.nn.log_sigmoid(-logits)
        return q**self.gamma_negative * nats if self.gamma_negative else nats
