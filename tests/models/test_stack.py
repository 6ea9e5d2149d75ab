"""Equal blocks written out are those of the loop, and what is to be computed again is not kept."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from numpy.testing import assert_allclose

from ringmoe_jax.models.stack import scan, stack


class Block(nnx.Module):
    def __init__(self, rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (8, 8)) / 3)

    def __call__(self, x, rate):
        return x + rate * jnp.tanh(x @ self.weight[...])


def gradient(depth, remat, unroll):
    """A compiled gradient, and its value."""
    graph, params = nnx.split(stack(Block, depth, nnx.Rngs(0)))
    x, rates = jax.random.normal(jax.random.key(1), (4, 8)), jnp.linspace(0.5, 1, depth)

    def loss(params, x):
        call = lambda block, x, rate: (block(x, rate), None)  # noqa: E731
        return jnp.sum(scan(call, nnx.merge(graph, params), x, (rates,), remat, unroll=unroll)[0] ** 2)

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, x).compile()
    return program, program(params, x)


def test_written_out_or_in_a_loop_blocks_give_the_same():
    _, loop = gradient(5, "none", False)
    for remat in ("none", "full"):
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), loop, gradient(5, remat, True)[1])


@pytest.mark.parametrize(("depth", "unroll"), [(5, True), (1, True), (1, False)])
def test_blocks_without_a_loop_are_computed_again_where_asked(depth, unroll):
    for remat, computed in (("none", depth), ("full", 2 * depth)):
        assert len(re.findall(r" tanh\(", gradient(depth, remat, unroll)[0].as_text())) == computed
