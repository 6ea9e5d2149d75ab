"""A moving average of the trained parameters, for evaluation and export; any pretext task."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from ringmoe_jax.pretext.base import Pretext

AVERAGE, STEPS = "average", "averaged_steps"  # in the state, beside the task's own entries


def averaged(pretext: Pretext, momentum: float) -> Pretext:
    """The pretext task, which also keeps an average of its parameters and exports that.

    After step n (from 1) the average moves by 1 - min(momentum, n / (n + 9)) towards the parameters, so that the
    start is soon forgotten (Polyak and Juditsky 1992; the warm-up of TensorFlow's `ExponentialMovingAverage`).

    Args:
        pretext: whose state is a dict.
        momentum: at least 0 and below 1; 1 / (1 - momentum) steps are averaged. 0 gives the task as it is.
    """
    if not momentum:
        return pretext

    def init(params, key):
        trained, state = pretext.init(params, key)
        return trained, state | {AVERAGE: jax.tree.map(jnp.copy, trained), STEPS: jnp.int32(0)}

    def after(params, state):
        steps = state[STEPS] + 1
        m = jnp.minimum(momentum, steps / (steps + 9))
        average = jax.tree.map(lambda a, p: m * a + (1 - m) * p, state[AVERAGE], params)
        return pretext.after(params, state) | {AVERAGE: average, STEPS: steps}

    def export(params, state):
        return pretext.export(state[AVERAGE], state)

    return dataclasses.replace(pretext, init=init, after=after, export=export)
