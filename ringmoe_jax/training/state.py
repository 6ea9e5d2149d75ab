"""Everything that a step changes, in one frozen pytree."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ringmoe_jax.config import merged
from ringmoe_jax.errors import DataError
from ringmoe_jax.models import resampling
from ringmoe_jax.models.api import Model, Params
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
    model: Model,
    pretext: Pretext,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    mesh=None,
    known: Params | None = None,
) -> TrainState:
    """Initialises a state directly in its place on the mesh.

    Args:
        model: gives the parameters.
        pretext: gives its own state, of `known` parameters where there are any: a teacher begins as its student.
        optimizer: gives its own state.
        seed: of the initialisation.
        mesh: None is one device.
        known: parameters of the model that are not drawn, nested as the model's; see `known_of`.
    """

    init, key, known = functools.partial(_init, model, pretext, optimizer), jax.random.key(seed), known or {}
    if mesh is None:
        return run_once(init)(key, known)
    placed = jax.tree.map(_place, known, sharding.shardings(known, mesh))
    return run_once(init, out_shardings=state_shardings(jax.eval_shape(init, key, placed), mesh))(key, placed)


def known_of(model: Model, params: Params) -> Params:
    """The parameters of a checkpoint that a model has as well, for `create`; position tables are resampled.

    Parameters that the model lacks (decoders, sensors that it is not shown) are left out.

    Args:
        model: that is to begin with them.
        params: of the checkpoint.

    Raises:
        DataError: they share none, or a parameter has another shape and is no position table, see `models.resampling`.
    """

    def shared(wanted, old, path):
        if isinstance(wanted, Mapping):
            return {k: shared(part, old[k], (*path, k)) for k, part in wanted.items() if k in old}
        return resampling.fitted(np.asarray(old), wanted.shape, "/".join(path))

    found = shared(model.shapes(), params, ())
    if not jax.tree.leaves(found):
        raise DataError(f"the checkpoint has none of the model's parameters ({', '.join(model.shapes())}): begin anew")
    return found


def shapes(model: Model, pretext: Pretext, optimizer: optax.GradientTransformation, mesh=None) -> TrainState:
    """Shapes, dtypes and places of what `create` makes, without making it."""
    found = jax.eval_shape(functools.partial(_init, model, pretext, optimizer), jax.random.key(0), {})
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = jax.tree.map(lambda _: one, found) if mesh is None else state_shardings(found, mesh)
    return sharding.placed(found, places)


def _init(
    model: Model, pretext: Pretext, optimizer: optax.GradientTransformation, key: jax.Array, known: Params
) -> TrainState:
    params, state = pretext.init(merged(model.init(key), known), jax.random.fold_in(key, 1))
    return TrainState(jnp.int32(0), params, optimizer.init(params), state)


def _place(values: np.ndarray, where: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(values.shape, where, lambda part: values[part])


def state_shardings(state: TrainState, mesh) -> TrainState:
    """Placement of every leaf of a state (arrays or shapes)."""
    placed = sharding.shardings(state, mesh)
    return dataclasses.replace(placed, step=replicated(mesh))
