"""Kernels as 8-bit integers with one scale for each output: a quarter of the bytes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ringmoe_jax.models import Params
from ringmoe_jax.parallel.sharding import path_name

KERNELS = ("kernel", "wi", "wo")  # last part of a path; a router stays as it is, since rounding would move choices


class Quantised(NamedTuple):
    """A kernel, values * scale.

    Attributes:
        values: [..., D, F] int8 in -127..127.
        scale: [..., 1, F] float32, of each output of each layer and expert.
    """

    values: jax.Array
    scale: jax.Array


@jax.jit
def quantise(params: Params) -> Any:
    """Rounds all kernels to int8, symmetric, with a scale of max |w| / 127 for each output (our choice).

    Every layer of a stack and every expert has scales of its own. Routers, biases, norms, position tables and the mask
    token stay as they are. |w - values * scale| <= scale / 2.

    Args:
        params: nested dict of float arrays.

    Returns:
        The same tree with a `Quantised` in the place of every kernel.
    """

    def leaf(path, w):
        return _round(w) if path_name(path).rpartition("/")[2] in KERNELS else w

    return jax.tree_util.tree_map_with_path(leaf, params)


@jax.jit
def dequantise(tree: Any) -> Params:
    """Parameters in float32 again, for `Model.apply`: jitted together, they are read from memory as int8."""
    whole = lambda leaf: leaf.values * leaf.scale if isinstance(leaf, Quantised) else leaf  # noqa: E731
    return jax.tree.map(whole, tree, is_leaf=lambda leaf: isinstance(leaf, Quantised))


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of what shapes stand for."""
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def _round(w: jax.Array) -> Quantised:
    w = w.astype(jnp.float32)
    scale = jnp.max(jnp.abs(w), axis=-2, keepdims=True) / 127
    steps = jnp.where(scale > 0, w / jnp.where(scale > 0, scale, 1), 0)
    return Quantised(jnp.clip(jnp.round(steps), -127, 127).astype(jnp.int8), scale)
