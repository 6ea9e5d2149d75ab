"""A model is two pure functions over a nested dict of arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Model:
    """What the rest of the library knows of a network.

    Attributes:
        init: `init(key) -> params`, a nested dict of float32 arrays.
        apply: `apply(params, batch, *, key=None, train=False) -> outputs`, see `ringmoe_jax.contracts`. Entries of
            `params` that `init` does not make, such as the projections of a pretext task, are not looked at.
        streams: width D of each kind of features, by sensor and "fused": what `outputs["tokens"]` and
            `outputs["fused"]` hold.
    """

    init: Callable[..., Params]
    apply: Callable[..., dict]
    streams: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def shapes(self) -> Params:
        """Shapes and dtypes of the parameters, without memory."""
        return jax.eval_shape(self.init, jax.random.key(0))


def from_module(make: Callable[[nnx.Rngs], nnx.Module], streams: Mapping[str, int] | None = None) -> Model:
    """Wraps an `nnx` module class: the functional subset (split, merge) and nothing else of Flax.

    Args:
        make: builds the module from its random number streams. Its `__call__` takes
            `(batch, *, key, train)`.
        streams: see `Model`.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    own = tuple(nnx.to_pure_dict(abstract))

    def init(key: jax.Array) -> Params:
        return nnx.to_pure_dict(nnx.split(make(nnx.Rngs(key)))[1])

    def apply(params: Params, batch, *, key: jax.Array | None = None, train: bool = False) -> dict:
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, {name: params[name] for name in own})
        return nnx.merge(graph, state)(batch, key=key, train=train)

    return Model(init, apply, dict(streams or {}))
