"""Small heads as pure functions, and random feature pyramids."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from ringmoe_jax.models.heads import HEADS
from tests.helpers.parameters import stirred

FOUR = {"widths": (4, 6, 8, 10), "grids": ((9, 7), (5, 4), (3, 2), (2, 1))}  # odd, and finer ones no multiples
ONE = {"widths": (6,), "grids": ((3, 5),)}
SIZE = (18, 13)


def build(name, widths, outputs, *, dtype=jnp.float32, seed=0, **fields):
    """A head's parameters (a nested dict) and `apply(params, levels, key, train, size)`, jitted."""
    make = lambda rngs: nnx.split(HEADS[name](**fields).build(widths, outputs, rngs, dtype=dtype))  # noqa: E731
    graph, state = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    params = stirred(nnx.to_pure_dict(state), seed)

    def apply(params, levels, key=None, train=False, size=SIZE):
        merged = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(merged, params)
        return nnx.merge(graph, merged)(levels, size, key=key, train=train)

    return params, jax.jit(apply, static_argnums=(3, 4))


def pyramid(widths, grids, rows=2, dates=(), seed=0):
    """Random levels [rows, *dates, h, w, D]."""
    rng = np.random.default_rng(seed)
    return tuple(
        rng.normal(size=(rows, *dates, *grid, width)).astype(np.float32)
        for width, grid in zip(widths, grids, strict=True)
    )


def with_another_second_row(levels):
    """The levels with another image in row 1: of the same shapes, so nothing is compiled again."""
    return tuple(np.stack([level[0], 1 - 2 * level[1]]) for level in levels)


def fit(apply, params, levels, loss, steps, rate=1e-2):
    """Losses before every Adam step, and the last one: can the head learn images by heart?"""
    optimizer = optax.adam(rate)

    @jax.jit
    def run(params):
        def step(carry, _):
            params, memory = carry
            value, gradient = jax.value_and_grad(lambda p: loss(apply(p, levels)))(params)
            updates, memory = optimizer.update(gradient, memory)
            return (optax.apply_updates(params, updates), memory), value

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
        return jnp.append(losses, loss(apply(params, levels)))

    return np.asarray(run(params))
