"""What experts serve: how much the choice of an expert says about the kind of an image, beside chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import entr, rel_entr

from ringmoe_jax.models import Model, Params

SHUFFLES = 20


class Specialisation(NamedTuple):
    """A router group over L layers.

    Attributes:
        information: [L] mutual information of chosen expert and kind over tokens, in nats.
        shuffled: [L] the same where kinds are dealt to images at random, mean of the draws: what chance gives.
        use: [L] perplexity of the experts' use, from 1 (all tokens go to one) to E (all are used alike).
    """

    information: np.ndarray
    shuffled: np.ndarray
    use: np.ndarray


class Choices(NamedTuple):
    """What the tokens of every sample chose in a router group, float32.

    Attributes:
        load: [B, L, M, E] choices that fell on each expert.
        reach: [B, L, M, E] tokens that could have chosen it.
    """

    load: jax.Array
    reach: jax.Array


def counter(model: Model) -> Callable[[Params, Mapping], dict[str, Choices]]:
    """A compiled `(params, sensors) -> {router group: Choices}`.

    Args:
        model: with routers; samples are routed one by one.

    Its `sensors` are those of a batch, see `ringmoe_jax.contracts`.
    """

    def choices(params: Params, sample: Mapping) -> dict[str, Choices]:
        outputs = model.apply(params, {"sensors": jax.tree.map(lambda x: x[None], sample)})
        return {group: Choices(told.load, told.reach) for group, told in outputs.get("routing", {}).items()}

    return jax.jit(jax.vmap(choices, in_axes=(None, 0)))


def mutual_information(counts: np.ndarray) -> np.ndarray:
    """Mutual information of the last two axes of tables of counts, [..., K, E] -> [...], in nats; 0 of empty ones."""
    joint = counts / np.maximum(counts.sum(axis=(-2, -1), keepdims=True), 1)
    return rel_entr(joint, joint.sum(axis=-1, keepdims=True) * joint.sum(axis=-2, keepdims=True)).sum(axis=(-2, -1))


def specialisation(loads: np.ndarray, kinds: np.ndarray, seed: int = 0, shuffles: int = SHUFFLES) -> Specialisation:
    """How far experts tell kinds of images apart, beside a shuffled baseline.

    Args:
        loads: [N, L, E] choices of the tokens of N images.
        kinds: [N] int from 0, such as land cover or sensor; below 0 where unknown: these are left out.
        seed: of the shuffles.
        shuffles: their number.
    """
    known = (kinds >= 0) & (loads.sum(axis=(1, 2)) > 0)
    loads, kinds = loads[known].astype(np.float64), kinds[known]
    members = np.eye(kinds.max(initial=0) + 1)[kinds]
    told = lambda rows: mutual_information(np.einsum("nk,nle->lke", rows, loads))  # noqa: E731
    random = np.random.default_rng(seed)
    chance = np.mean([told(random.permutation(members)) for _ in range(shuffles)], axis=0)
    share = loads.sum(axis=0)
    share /= np.maximum(share.sum(axis=-1, keepdims=True), 1)
    return Specialisation(told(members), chance, np.exp(entr(share).sum(axis=-1)))
