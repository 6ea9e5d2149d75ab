"""How evenly one mixture layer uses its experts as it learns: without help, by the balance loss, by biases."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ringmoe_jax.moe import parallel, routing, statistics
from ringmoe_jax.moe.experts import Experts

TOKENS, WIDTH, HIDDEN, EXPERTS, CLUSTERS = 512, 16, 32, 8, 32
RATE = 3e-3  # of Adam


class Arm(NamedTuple):
    """What balances the layer.

    Attributes:
        loss: weight of the Switch balance loss beside a mean squared error of about 1 at the start.
        bias: rate of the biases.
    """

    loss: float
    bias: float


class Setting(NamedTuple):
    """What the layer meets.

    Attributes:
        popularity: tokens of the n-th of 32 kinds are n ^ -popularity as frequent as those of the first.
        temperature: of the router's softmax.
    """

    popularity: float
    temperature: float


ARMS = {
    "nothing": Arm(0.0, 0.0),
    "loss, 0.01": Arm(0.01, 0.0),
    "biases, 0.001": Arm(0.0, 0.001),
    "biases, 0.01": Arm(0.0, 0.01),
}
SETTINGS = {
    "no kind fills an expert, temperature 1": Setting(0.5, 1.0),
    "a fourth of the tokens is of one kind, temperature 0.1": Setting(1.0, 0.1),
}


def measure(steps: int, seeds: int) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Trains every arm of `ARMS` in every one of `SETTINGS`.

    Tokens are drawn around centres; what is to be learnt is a map of each centre's own. Top-1, softmax, no shared
    expert.

    Args:
        steps: of training.
        seeds: of data and parameters, the same ones for every arm.

    Returns:
        {setting: {arm: {"max_load": load of the busiest expert over the mean, "error": mean squared error}}}, [seeds,
        steps] each.
    """
    run = jax.jit(jax.vmap(functools.partial(_train, steps), in_axes=(None, None, 0)))
    keys, found = jax.random.split(jax.random.key(0), seeds), {}
    for name, setting in SETTINGS.items():
        told = {arm: jax.tree.map(jnp.float32, (setting, values)) for arm, values in ARMS.items()}
        found[name] = {arm: jax.device_get(run(*values, keys)) for arm, values in told.items()}
    return found


def _train(steps: int, setting: Setting, arm: Arm, key: jax.Array) -> dict[str, jax.Array]:
    data, centres, maps, *own = jax.random.split(key, 6)
    centres = jax.random.normal(centres, (CLUSTERS, WIDTH))
    maps = jax.random.normal(maps, (CLUSTERS, WIDTH, WIDTH)) / np.sqrt(WIDTH)
    shapes = ((EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH))
    wi, wo = (jax.random.normal(k, shape) / np.sqrt(shape[1]) for k, shape in zip(own, shapes, strict=False))
    experts = Experts(wi, jnp.zeros((EXPERTS, HIDDEN)), wo, jnp.zeros((EXPERTS, WIDTH)))
    params = {"router": 0.02 * jax.random.normal(own[2], (WIDTH, EXPERTS)), "experts": experts}
    adam = optax.adam(RATE)

    def loss(params, bias, x, y):
        found, told = _layer(params, bias, x, setting.temperature)
        error = jnp.mean(jnp.square(found - y))
        return error + arm.loss * told.balance, (error, told)

    def step(carry, key):
        params, state, bias = carry
        which, noise = jax.random.split(key)
        kinds = -setting.popularity * jnp.log1p(jnp.arange(CLUSTERS))
        cluster = jax.random.categorical(which, kinds, shape=(TOKENS,))
        x = centres[cluster] + 0.3 * jax.random.normal(noise, (TOKENS, WIDTH))
        y = jnp.einsum("nd,nde->ne", x, maps[cluster])
        gradients, (error, told) = jax.grad(loss, has_aux=True)(params, bias, x, y)
        updates, state = adam.update(gradients, state)
        bias = bias - arm.bias * jnp.sign(statistics.excess(told))  # as `pretext.balanced`
        figures = {"max_load": told.load.max() * EXPERTS / told.load.sum(), "error": error}
        return (optax.apply_updates(params, updates), state, bias), figures

    start = (params, adam.init(params), jnp.zeros(EXPERTS))
    return jax.lax.scan(step, start, jax.random.split(data, steps))[1]


def _layer(
    params, bias: jax.Array, x: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, statistics.RoutingStatistics]:
    """[N, D] -> what the experts say of it, and the router's statistics."""
    modality, allowed = jnp.zeros(len(x), jnp.int32), np.ones((1, EXPERTS), bool)
    (scores,) = routing.logits(x, [params["router"]])
    choice = routing.route(scores / temperature, modality, allowed, k=1, bias=bias)
    outputs, (kept,) = parallel.run("dense", x, [choice], [params["experts"]], [0])
    return outputs, statistics.layer(choice, kept, modality, allowed)
