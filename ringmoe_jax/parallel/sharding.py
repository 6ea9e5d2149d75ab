"""Where every parameter lives, by rules over its path. The same rules place the optimiser's state."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.parallel.mesh import EXPERT_AXIS, FSDP_AXIS

# First match wins. A rule is a regular expression searched in "backbone/stages/stage0/blocks/run0/ffn/shared/wi/kernel"
# and either a tuple, one mesh axis (or None) per trailing dimension, or "fsdp" (the largest dimension
# that divides) or "replicated". Stacked layers keep their leading axis whole.
Rules = Sequence[tuple[str, str | tuple[str | None, ...]]]
DEFAULT_RULES: Rules = (
    (r"(specialised|collaborative)/wi$", (EXPERT_AXIS, None, FSDP_AXIS)),  # [L, E, D, F]
    (r"(specialised|collaborative)/wo$", (EXPERT_AXIS, FSDP_AXIS, None)),  # [L, E, F, D]
    (r"(specialised|collaborative)/b[io]$", (EXPERT_AXIS, None)),  # [L, E, F] or [L, E, D]
    (r"/router$", "replicated"),
    (r".*", "fsdp"),
)
SMALL = 2**12  # arrays below this many elements are not worth a collective


def path_name(path) -> str:
    """Slash-separated name of a tree path, for example "mask_token" or "backbone/stages/stage0/..."."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def shardings(tree, mesh: Mesh, rules: Rules = DEFAULT_RULES):
    """A `NamedSharding` for every leaf of parameters, gradients or a whole training state.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`.
        mesh: axes ("data", "fsdp", "expert").
        rules: see `DEFAULT_RULES`.

    Raises:
        ConfigError: the expert axis does not divide an expert dimension.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _spec(path_name(path), leaf.shape, mesh, rules)), tree
    )


def placed(shapes, places):
    """A tree of `jax.ShapeDtypeStruct` with its shardings, as `jitted.lower` and checkpoints take them."""
    return jax.tree.map(lambda leaf, place: leaf.update(sharding=place), shapes, places)


def to_host(tree):
    """Copies of whole arrays, on the host of every process, whichever devices hold their parts; all have to ask."""

    def copied(leaf: jax.Array) -> np.ndarray:
        here = leaf.is_fully_addressable or leaf.is_fully_replicated
        return np.array(leaf) if here else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(copied, tree)


def _spec(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules) -> P:
    rule = next((rule for pattern, rule in rules if re.search(pattern, name)), "replicated")
    if rule == "replicated" or not shape:
        return P()
    if rule == "fsdp":
        size = mesh.shape[FSDP_AXIS]
        fits = [i for i, n in enumerate(shape) if n % size == 0 and n >= size]
        if size == 1 or _elements(shape) < SMALL or not fits:
            return P()
        largest = max(fits, key=lambda i: (shape[i], i))
        return P(*(FSDP_AXIS if i == largest else None for i in range(len(shape))))
    axes = (None,) * (len(shape) - len(rule)) + tuple(rule)
    if EXPERT_AXIS in axes and shape[axes.index(EXPERT_AXIS)] % mesh.shape[EXPERT_AXIS]:
        raise ConfigError(
            f"{shape[axes.index(EXPERT_AXIS)]} experts of {name} do not divide over the "
            f"{mesh.shape[EXPERT_AXIS]} devices of the expert axis: change mesh.expert"
        )
    return P(*(a if a and shape[i] % mesh.shape[a] == 0 else None for i, a in enumerate(axes)))


def _elements(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size
