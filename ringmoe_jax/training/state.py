"""Everything that a step changes, in one frozen pytree."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ringmoe_jax.models.api import Model
from ringmoe_jax.parallel import sharding
from ringmoe_jax.parallel.compiling import run_once
from ringmoe_jax.parallel.mesh import replicated
from ringmoe_jax.pretext import Pretext


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds of a run.

    Attributes:
        step: [] int32, optimiser steps taken.
        params: nested dict of float32 arrays, what the optimiser trains.
        optimizer: the optimiser's state.
        pretext: arrays of the pretext task that are not trained (a teacher, prototypes).
    """

    step: jax.Array
    params: Any
    optimizer: Any
    pretext: Any


def create(
    model: Model, pretext: Pretext, optimizer: optax.GradientTransformation, *, seed: int, mesh=None
) -> TrainState:
    """Initialises a state directly in its place on the mesh.

    Args:
        model: gives the parameters.
        pretext: gives its own state.
        optimizer: gives its own state.
        seed: of the initialisation.
        mesh: None is one device.
    """

    init, key = functools.partial(_init, model, pretext, optimizer), jax.random.key(seed)
    if mesh is None:
        return run_once(init)(key)
    return run_once(init, out_shardings=state_shardings(jax.eval_shape(init, key), mesh))(key)


def shapes(model: Model, pretext: Pretext, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and dtypes of what `create` makes, without making it."""
    return jax.eval_shape(functools.partial(_init, model, pretext, optimizer), jax.random.key(0))


def _init(model: Model, pretext: Pretext, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    params, state = pretext.init(model.init(key), jax.random.fold_in(key, 1))
    return TrainState(jnp.int32(0), params, optimizer.init(params), state)


def state_shardings(state: TrainState, mesh) -> TrainState:
    """Placement of every leaf of a state (arrays or shapes)."""
    placed = sharding.shardings(state, mesh)
    return dataclasses.replace(placed, step=replicated(mesh))
