"""A model as a StableHLO program: a pure function of weights and images, of any number of images at once.

The program is the model on one image, vectorised by `jax.vmap` over a batch axis of unknown length: what is said of an
image hangs on that image alone, and nothing in a model has to know that its batch is symbolic. Models whose experts are
routed are best built with the "dense" engine: static shapes, nothing dropped, and a bounded cost, for every expert
computes every token (on a CPU 1.5 times that of the "blocks" engine with a fixed batch, at a third of its compilation).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as stablehlo

from ringmoe_jax.parallel.sharding import path_name

PLATFORMS = ("cpu", "cuda", "tpu")

# apply(params, inputs) -> outputs: {name: [B, ...]} to {name: [B, ...]}, parameters any tree
Apply = Callable[[Any, Mapping[str, jax.Array]], Mapping[str, jax.Array]]


class Used(NamedTuple):
    """A model without what it does not read.

    Attributes:
        apply: of the parameters and inputs that are left.
        params: any tree; of `trim` a flat dict {path: array}.
        inputs: {name: shape and dtype of one image's}, without a batch axis.
    """

    apply: Apply
    params: Any
    inputs: Mapping[str, jax.ShapeDtypeStruct]


class Program(NamedTuple):
    """A model that runs without this package.

    Attributes:
        serialised: of `jax.export`: program(weights, inputs) -> outputs, three flat dicts of arrays; inputs and outputs
            with one symbolic leading axis b >= 1.
        weights: {path: array}, for example "backbone/stages/stage0/blocks/run0/norm1/scale".
        inputs: {name: shape and dtype of one image's}, without the batch axis.
        outputs: likewise.
    """

    serialised: bytes
    weights: dict[str, np.ndarray]
    inputs: dict[str, jax.ShapeDtypeStruct]
    outputs: dict[str, jax.ShapeDtypeStruct]


def trim(apply: Apply, params: Any, inputs: Mapping[str, jax.ShapeDtypeStruct]) -> Used:
    """Leaves out parameters and inputs that no output depends on, such as decoders, or dates where nobody reads them.

    Args:
        apply: see `Apply`.
        params: nested dict.
        inputs: {name: shape and dtype of one image's}.
    """
    flat, tree = _flatten(params)
    whole = {**_abstract(flat)}, {name: _batched(x, 1) for name, x in inputs.items()}
    rebuilt = lambda weights, x: apply(tree.unflatten([weights[name] for name in flat]), x)  # noqa: E731
    kept = stablehlo.export(jax.jit(rebuilt))(*whole).module_kept_var_idx
    names = [*sorted(flat), *sorted(inputs)]  # JAX sorts the keys of dicts
    read = {(i < len(flat), names[i]) for i in kept}

    def trimmed(weights, x):
        size = len(next(iter(x.values())))
        weights = {name: weights[name] if name in weights else _blank(leaf) for name, leaf in whole[0].items()}
        return rebuilt(
            weights, {name: x[name] if name in x else _blank(_batched(inputs[name], size)) for name in inputs}
        )

    return Used(
        trimmed,
        {name: leaf for name, leaf in flat.items() if (True, name) in read},
        {name: x for name, x in inputs.items() if (False, name) in read},
    )


def lower(apply: Apply, params: Any, inputs: Mapping[str, jax.ShapeDtypeStruct], platforms=PLATFORMS) -> Program:
    """Lowers a model for several platforms; none of their devices has to be there.

    Args:
        apply: see `Apply`.
        params: any tree of arrays, for example of `compress.quantise`; each becomes one entry of the weights.
        inputs: {name: shape and dtype of one image's}; the program reads all of them.
        platforms: names that `jax.export` knows.
    """
    flat, tree = _flatten(params)

    def program(weights, inputs):
        whole = tree.unflatten([weights[name] for name in flat])
        one = lambda image: {n: y[0] for n, y in apply(whole, {n: x[None] for n, x in image.items()}).items()}  # noqa: E731
        return jax.vmap(one)(inputs)

    (batch,) = stablehlo.symbolic_shape("b")
    exported = stablehlo.export(jax.jit(program), platforms=platforms)(
        _abstract(flat), {name: _batched(x, batch) for name, x in inputs.items()}
    )
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return Program(
        exported.serialize(),
        {name: np.asarray(leaf) for name, leaf in flat.items()},
        dict(inputs),
        {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in outputs.items()},
    )


def _flatten(params: Any) -> tuple[dict[str, Any], Any]:
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    return {path_name(path): leaf for path, leaf in leaves}, tree


def _abstract(flat: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in flat.items()}


def _batched(x: jax.ShapeDtypeStruct, size: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((size, *x.shape), x.dtype)


def _blank(x: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(x.shape, x.dtype)
