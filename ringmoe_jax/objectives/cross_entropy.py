"""One class is right: cross-entropy of images or pixels, plain, smoothed, weighted or focal."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.base import Result, register
from ringmoe_jax.objectives.supervised import ClassificationObjective


@register("cross_entropy")
@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEntropy(ClassificationObjective):
    """L = -w_y (1 - p_y)^gamma sum_k t_k ln p_k, p = softmax(logits), divided by the sum of w_y; nats.

    t_k is 1 - smoothing for the true class y and smoothing / C for every class beside (Szegedy et al. 2016). With
    gamma > 0 it is the focal loss (Lin et al. 2017, arXiv 1708.02002) of many classes. That w_y weighs the smoothed
    whole, and that sums of weights divide, is our choice. Unknown labels (-1) add nothing; see
    `objectives.supervised` for labels that are no class.

    Metrics: "accuracy", share of known labels whose logit is the largest; "known", share of labels that are known.

    Attributes:
        smoothing: 0 to below 1.
        class_weights: w, one a class, at least 0; () is 1 for all.
        gamma: exponent of the focal loss, 0 (off) or at least 1.
    """

    smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    gamma: float = 0.0

    def __post_init__(self):
        if not 0 <= self.smoothing < 1:
            raise ConfigError(f"CrossEntropy: smoothing = {self.smoothing}, wanted 0 to below 1")
        if not (self.gamma == 0 or self.gamma >= 1):
            raise ConfigError(f"CrossEntropy: gamma = {self.gamma}, wanted 0 or at least 1")
        if not all(0 <= w < np.inf for w in self.class_weights):
            raise ConfigError(f"CrossEntropy: class_weights = {self.class_weights}, wanted 0 or more for every class")

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        logits, label, known = self.pair(outputs, batch)
        count = logits.shape[-1]
        log_p = jax.nn.log_softmax(logits)
        own = jnp.take_along_axis(log_p, label[..., None], axis=-1)[..., 0]
        nats = -(1 - self.smoothing) * own - self.smoothing * log_p.mean(axis=-1)
        if self.gamma:
            nats *= (-jnp.expm1(own)) ** self.gamma
        weight = jnp.where(known, self._weights(count)[label], 0)
        right = known & (jnp.argmax(logits, axis=-1) == label)
        metrics = {"accuracy": jnp.sum(right) / jnp.maximum(jnp.sum(known), 1), "known": jnp.mean(known)}
        return self.or_nan(jnp.sum(weight * nats), batch, count), jnp.sum(weight), metrics

    def _weights(self, count: int) -> jax.Array:
        """w, [C] float32."""
        weights = self.class_weights or (1.0,) * count
        if len(weights) != count:
            raise ConfigError(f"CrossEntropy: {len(weights)} class_weights for {count} classes: give one a class")
        return jnp.asarray(weights, jnp.float32)
