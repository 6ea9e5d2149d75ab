"""Projection heads of self-distillation and contrast."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.models.api import Model, from_module
from ringmoe_jax.models.layers import layer_norm


class Projection(nnx.Module):
    """DINO's head: a norm, an MLP of three layers to a narrow unit vector, then cosines with K learned directions.

    Source: Caron et al. 2021 (their weight-normalised last layer with its gain fixed at 1). Kernels start with variance
    1 / inputs, which at their width is DINO's 0.02, and does not vanish in narrow heads. SkySense's features end
    without a norm, and start so small that biases would drown them; hence the norm (both our choice).

    Args:
        width: D of the features.
        hidden: of the MLP.
        bottleneck: width of the unit vector.
        outputs: K; 0 ends at the bottleneck, before it is made a unit vector.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, outputs: int, rngs: nnx.Rngs):
        self.norm = layer_norm(width, rngs, dtype=jnp.float32)
        self.first = nnx.Linear(width, hidden, rngs=rngs)
        self.middle = nnx.Linear(hidden, hidden, rngs=rngs) if outputs else None
        self.last = nnx.Linear(hidden, bottleneck, rngs=rngs)
        if outputs:
            drawn = jax.random.normal(rngs.params(), (bottleneck, outputs)) * bottleneck**-0.5
            self.directions = nnx.Param(drawn)

    def __call__(self, features: jax.Array, *, key=None, train: bool = False) -> jax.Array:
        """[..., D] -> [..., K] float32 in -1..1, or [..., bottleneck]."""
        x = jax.nn.gelu(self.first(self.norm(features)))
        if self.middle is None:
            return self.last(x)
        x = self.last(jax.nn.gelu(self.middle(x)))
        x = x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
        directions = self.directions[...]
        length = jax.lax.rsqrt(jnp.sum(jnp.square(directions), axis=0) + 1e-12)
        return (x @ directions) * length


def build(width: int, hidden: int, bottleneck: int, outputs: int) -> Model:
    """`Projection` as two pure functions, `init(key)` and `apply(params, features)`."""
    return from_module(functools.partial(Projection, width, hidden, bottleneck, outputs))
