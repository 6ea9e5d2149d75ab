"""Parameters by path, "backbone/stages/stage0/...", and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from ringmoe_jax.models.api import Params
from ringmoe_jax.parallel.sharding import path_name


def flatten(params: Params) -> dict[str, Any]:
    """Leaves by path, sorted; numbers of a list are texts there, as in checkpoints."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def nest(leaves: Mapping[str, Any]) -> Params:
    """Nested dicts, inverse of `flatten`."""
    params: Params = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        inner = params
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = leaf
    return params
