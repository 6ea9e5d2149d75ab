"""Checkpoints of a few numbers, without a model."""

import jax.numpy as jnp
import numpy as np

from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.state import TrainState


def state(step):
    values = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
    return TrainState(jnp.int32(step), {"kernel": jnp.asarray(values)}, {"mu": jnp.zeros(3)}, {})


def save(folder, *steps, record=None):
    checkpointer = Checkpointer(folder, keep=3)
    for step in steps:
        checkpointer.save(step, state(step), record or {"config": {}})
    checkpointer.wait()
    checkpointer.close()
