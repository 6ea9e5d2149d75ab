"""Two routers: every expert by a sigmoid of its own, and experts that choose their tokens."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ringmoe_jax.moe.routing import Router, Routing, highest, masked


@dataclasses.dataclass(frozen=True)
class SigmoidTopK(Router):
    """The k experts of the highest sigmoid, which is their gate: one expert's chance does not lower another's."""

    takes_bias: ClassVar[bool] = True
    temperature: float = 1.0

    def __call__(self, scores, modality, allowed, k, bias=None):
        chances = jax.nn.sigmoid(masked(scores, modality, allowed) / self.temperature)  # 0 out of reach
        gates, experts = highest(chances, k, modality, allowed, bias)
        return Routing(experts, gates, chances / (chances.sum(axis=-1, keepdims=True) + 1e-9))


@dataclasses.dataclass(frozen=True)
class ExpertChoice(Router):
    """Every expert takes the k N / E tokens that like it most (Zhou et al. 2022): even loads; a token may get none."""

    def __call__(self, scores, modality, allowed, k):
        tokens, experts = scores.shape
        chances = jax.nn.softmax(masked(scores, modality, allowed), axis=-1)
        rows = min(tokens, -(-k * tokens // experts))
        taken = jax.lax.top_k(chances.T, rows)[1]  # [E, rows] tokens
        chosen = jnp.zeros(scores.shape, bool).at[taken, jnp.arange(experts)[:, None]].set(True)
        gates, order = jax.lax.top_k(jnp.where(chosen, chances, 0.0), experts)
        return Routing(jnp.where(gates > 0, order, experts), gates, chances)  # index E: nobody
