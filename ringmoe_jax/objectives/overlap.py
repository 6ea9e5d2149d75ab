"""Overlap of predicted and true areas: soft Dice and the Lovasz extension of the Jaccard index.

Both are taken for every image by itself and averaged over images, so that they add up under accumulation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.base import Result, register
from ringmoe_jax.objectives.supervised import ClassificationObjective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overlap(ClassificationObjective):
    """Mean over images of the mean over those of their classes that are there; subclasses give `distance`.

    Images that show none of the classes add nothing, so a term that sees them, cross_entropy, belongs beside. Unknown
    pixels (-1) add nothing; see `objectives.supervised` for labels that are no class.

    Metric: "shown", share of images that show one of the classes.

    Attributes:
        classes: indices that count, for example (1,) for the changed pixels of a change map; () is all.
    """

    classes: tuple[int, ...] = ()

    def distance(self, p: jax.Array, truth: jax.Array) -> jax.Array:
        """1 - overlap, 0..1.

        Args:
            p: [N, P, K] float32 probabilities of the classes that count; 0 where not known.
            truth: [N, P, K] float32, 1 where it is that class; 0 where not known.

        Returns:
            [N, K] float32; anything where no pixel is of the class.
        """
        raise NotImplementedError(f"{type(self).__name__} must define distance(p, truth)")

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        logits, label, known = self.pair(outputs, batch)
        rows, count = logits.shape[0], logits.shape[-1]
        chosen = np.asarray(self._chosen(count))
        known = known.reshape(rows, -1, 1)
        p = jax.nn.softmax(logits).reshape(rows, -1, count)[..., chosen]
        truth = known & (label.reshape(rows, -1, 1) == chosen)
        there = truth.any(axis=1)
        each = self.distance(jnp.where(known, p, 0), truth.astype(jnp.float32))
        number = there.sum(axis=1)
        value = jnp.sum(jnp.where(there, each, 0).sum(axis=1) / jnp.maximum(number, 1))
        shown = number > 0
        weight = jnp.sum(shown, dtype=jnp.float32)
        return self.or_nan(value, batch, count), weight, {"shown": jnp.mean(shown)}

    def _chosen(self, count: int) -> tuple[int, ...]:
        for i in self.classes:
            if not 0 <= i < count:
                raise ConfigError(f"{type(self).__name__}: classes = {self.classes}, wanted 0 to {count - 1}")
        return self.classes or tuple(range(count))


@register("dice")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dice(Overlap):
    """1 - 2 sum p t / (sum p + sum t), sums over the known pixels of an image, p = softmax(logits), t = 0 or 1.

    Source: Sudre et al. 2017 (arXiv 1707.03237), without its class weights; averages as in `Overlap`, our choice.
    """

    def distance(self, p: jax.Array, truth: jax.Array) -> jax.Array:
        both, total = jnp.sum(p * truth, axis=1), jnp.sum(p + truth, axis=1)
        return 1 - 2 * both / jnp.where(total > 0, total, 1)


@register("lovasz")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lovasz(Overlap):
    """Lovasz-Softmax (Berman et al. 2018, arXiv 1705.08790, Eq. 8-9), by image, over the classes that it shows.

    The convex extension of 1 - IoU from sets of wrong pixels to errors |t - p|; of predictions that are sure it is
    1 - IoU itself. Sorts all pixels of an image for every class.
    """

    def distance(self, p: jax.Array, truth: jax.Array) -> jax.Array:
        error = jnp.abs(truth - p)
        order = jnp.argsort(-error, axis=1)  # unknown pixels have none and come last
        error, truth = (jnp.take_along_axis(x, order, axis=1) for x in (error, truth))
        area = truth.sum(axis=1, keepdims=True)
        union = area + jnp.cumsum(1 - truth, axis=1)  # of the class and the first wrong pixels
        lost = 1 - (area - jnp.cumsum(truth, axis=1)) / jnp.maximum(union, 1)
        return jnp.sum(error * jnp.diff(lost, axis=1, prepend=0), axis=1)
