"""Parameters far from their start, drawn without compiling an initialisation."""

import jax
import numpy as np
from flax import nnx


def stirred(shapes, seed=7, scale=0.3):
    """Random parameters of given shapes: blocks start as the identity and would hide mistakes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def stirred_module(make, seed=7, scale=0.3):
    """The `nnx` module that `make()` builds, with such parameters, and these as a nested dict."""
    graph, state = nnx.split(nnx.eval_shape(make))
    params = stirred(nnx.to_pure_dict(state), seed, scale)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state), params
