"""Grouped experts on a grouped matrix product: rows sorted by expert, one product over all of them.

ragged    `jax.lax.ragged_dot`: native on TPU from jax 0.12 on; on CPU every expert computes every row
megablox  JAX's Pallas kernel for TPU; exact work on v4, v5e, v5p and v6e with both tested JAX versions
tokamax   Triton and Mosaic kernels for GPU, where the package `tokamax` is installed
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.moe import dispatch as dispatching
from ringmoe_jax.moe.experts import Experts

TILE = 128  # rows are filled up to a multiple, as the kernels ask for


def grouped(product: Callable, tokens: jax.Array, chosen: jax.Array, gates: jax.Array, experts: Experts) -> jax.Array:
    """sum_k gate_k * expert_k(token), nothing dropped.

    Args:
        product: (rows [R, X], weights [E, X, Y], sizes [E]) -> [R, Y]; rows past sum(sizes) may be anything.
        tokens: [N, D].
        chosen: [N, K] int32, E where a choice is nobody's.
        gates: [N, K] float32.
        experts: E experts.

    Returns:
        [N, D] in the dtype of `tokens`.
    """
    experts = experts.astype(tokens.dtype)
    with jax.named_scope("dispatch"):
        choices = dispatching.sort(chosen, experts.count)
        dispatch = dispatching.compact(choices, chosen.shape, TILE)
        rows = dispatching.gather(tokens, dispatch)
        end = jnp.cumsum(choices.load)
        row = jnp.arange(rows.shape[0])[:, None]
        member = ((row < end) & (row >= end - choices.load)).astype(rows.dtype)  # [R, E], one-hot or empty
        filled = row < end[-1]
    with jax.named_scope("experts"):
        # Biases by a product with the membership, so that neither direction scatters. Masked after the sum:
        # rows that are not filled may hold anything, in both directions.
        z = jnp.where(filled, product(rows, experts.wi, choices.load) + member @ experts.bi, 0)
        y = jnp.where(filled, product(jax.nn.gelu(z), experts.wo, choices.load) + member @ experts.bo, 0)
    with jax.named_scope("combine"):
        return dispatching.combine(y, dispatch, gates)


def ragged(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """`jax.lax.ragged_dot`."""
    return jax.lax.ragged_dot(rows, weights, sizes)


def megablox(rows: jax.Array, weights: jax.Array, sizes: jax.Array, *, interpret: bool) -> jax.Array:
    """Megablox `gmm`; `interpret` runs it without a TPU, slowly, for tests."""
    from jax.experimental.pallas.ops.tpu.megablox import ops

    most = [next(size for size in (512, 256, TILE) if rows.shape[0] % size == 0), 1024, 1024]
    sizes_of = (rows.shape[0], *weights.shape[1:])
    tiling = tuple(min(limit, -(-size // TILE) * TILE) for limit, size in zip(most, sizes_of, strict=True))
    return ops.gmm(rows, weights, sizes, rows.dtype, tiling, interpret=interpret)


def tokamax(rows: jax.Array, weights: jax.Array, sizes: jax.Array) -> jax.Array:
    """`tokamax.ragged_dot`, which picks a kernel for the device."""
    try:
        import tokamax as package
    except ImportError as error:
        raise ConfigError('engine "tokamax" needs the package: pip install tokamax, or choose "dropless"') from error
    return package.ragged_dot(rows, weights, group_sizes=sizes)


def by_name(name: str, platform: str) -> Callable:
    """The product of one of this module's names, for a platform "cpu", "gpu" or "tpu"."""
    return {
        "ragged": ragged,
        "megablox": functools.partial(megablox, interpret=platform != "tpu"),
        "tokamax": tokamax,
    }[name]
