"""Biases that keep the routers from sending everything to a few experts, without a loss; any pretext task.

An expert's bias is added to what a token prefers when it chooses, and not to the gate. After every step it falls by
`rate` where the expert got more than its even share of the choices and rises where it got less (Wang et al. 2024,
arXiv 2408.15664, Algorithm 1; DeepSeek-V3, arXiv 2412.19437, section 2.1.2, where a small balance loss stays beside
it). Gradients are those of the task alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.config import merged
from ringmoe_jax.models import depth
from ringmoe_jax.models.api import Model, Params
from ringmoe_jax.models.paths import flatten, nest
from ringmoe_jax.moe import statistics
from ringmoe_jax.pretext.base import Pretext

BIASES, EXCESS = "biases", "excess"  # in the state, beside the task's own entries
BIAS = r"/(specialised|collaborative)/bias$"  # of `models.moe_ffn.RouterGroup`


def balanced(pretext: Pretext, model: Model, rate: float) -> Pretext:
    """The pretext task, which also moves the routers' biases.

    The model's parameters hold them, so that whoever opens, exports or prunes it routes as it was trained. The
    optimiser is shown parameters without them: in training they are state, where checkpoints keep them, and the task
    sees both. A teacher that follows the student, and `averaged`, average them with all else. Loads are those of the
    whole batch on all devices, all micro-batches together, of the passes that `outputs["routing"]` tells of; choices
    that found their expert full count.

    Args:
        pretext: whose state is a dict.
        model: with biases, `MoEConfig.bias_rate`.
        rate: step of a bias, in units of what the router prefers by, probabilities of 0..1; 0 gives the task as it is.
    """
    if not rate:
        return pretext
    shapes = model.shapes()
    above = flatten(depth.distances(shapes, model.blocks_above))
    layers = {path: -1 - np.ravel(above[path]) for path in flatten(shapes) if re.search(BIAS, path)}  # from the last

    def init(params: Params, key: jax.Array) -> tuple[Params, Any]:
        trained, state = pretext.init(params, key)
        leaves = flatten(trained)
        biases = nest({path: leaves[path] for path in layers})
        return _without(trained, layers), state | {BIASES: biases, EXCESS: jax.tree.map(jnp.zeros_like, biases)}

    def apply(params: Params, state: Any, batch: Mapping, *, key, train: bool) -> tuple[dict, Any]:
        outputs, own = pretext.apply(merged(params, state[BIASES]), _own(state), batch, key=key, train=train)
        moved = {BIASES: state[BIASES], EXCESS: state[EXCESS]}
        if train:
            by_group = {name: statistics.excess(found) for name, found in outputs["routing"].items()}
            seen = nest({path: by_group[path.split("/")[-2]][rows] for path, rows in layers.items()})
            moved[EXCESS] = jax.tree.map(jnp.add, state[EXCESS], seen)
        return outputs, own | moved

    def after(params: Params, state: Any) -> Any:
        biases = jax.tree.map(lambda bias, more: bias - rate * jnp.sign(more), state[BIASES], state[EXCESS])
        own = pretext.after(merged(params, biases), _own(state))
        return own | {BIASES: biases, EXCESS: jax.tree.map(jnp.zeros_like, biases)}

    def export(params: Params, state: Any) -> Params:
        return pretext.export(merged(params, state[BIASES]), _own(state))

    return Pretext(apply, init, after, export)


def _own(state: Mapping) -> dict:
    """The task's part of the state."""
    return {name: value for name, value in state.items() if name not in (BIASES, EXCESS)}


def _without(params: Params, paths: Collection[str], prefix: str = "") -> Params:
    """The same tree without some of its leaves."""
    return {
        name: _without(part, paths, f"{prefix}{name}/") if isinstance(part, Mapping) else part
        for name, part in params.items()
        if prefix + name not in paths
    }
