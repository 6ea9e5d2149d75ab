"""An engine: one expert after the other. Slow, and easy to read."""

import jax
import jax.numpy as jnp

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.moe import experts as products


def one_by_one(tokens, routings, experts, layout):
    if layout.shards > 1:
        raise ConfigError("one_by_one computes all experts on one device: set mesh.expert = 1")
    outputs = jnp.zeros_like(tokens)
    for routing, group in zip(routings, experts, strict=True):
        for number in range(group.count):
            expert = jax.tree.map(lambda weights, n=number: weights[n : n + 1], group)
            gate = jnp.sum(routing.gates * (routing.experts == number), axis=1)
            outputs += gate[:, None].astype(tokens.dtype) * products.apply(expert, tokens[None])[0]
    return outputs, tuple(jnp.ones(routing.experts.shape, bool) for routing in routings)
