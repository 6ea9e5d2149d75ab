"""Grouped experts without a grouped product, for CPUs: one expert after the other, each on the range of its rows.

Rows lie sorted by expert. A range is computed in parts: as many of the largest size on a short ladder as it fills, and
one of the smallest size that holds the rest. So a program has few products, of shapes that are known, and yet an expert
computes few rows that are not its own: what a part has too many belongs to the experts behind, who come later and write
over it. An expert's weights are read once for many rows, and the gradients of its weights are written once. Our choice;
measured in docs/benchmarks.md.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ringmoe_jax.moe import dispatch as dispatching
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.parallel import hlo

SHARES = (0.25, 0.5, 0.75, 1.5, 2.0)  # of the mean load: sizes of parts under skew
DEVIATIONS = (0.5, 1.5, 3.0)  # above the mean load, of a Poisson law: sizes of parts under even random routing

WORTH = 2**24  # products of numbers (rows, D, F) an expert, from which on its range is faster than its buffer: measured

_rows = jax.lax.dynamic_slice_in_dim
_write = jax.lax.dynamic_update_slice_in_dim


def sizes(expected: float, most: int) -> tuple[int, ...]:
    """Rows of the parts, ascending. They decide about speed and change no value.

    Args:
        expected: mean load of an expert.
        most: the largest possible load.
    """
    wanted = [share * expected for share in SHARES]
    wanted += [expected + times * math.sqrt(expected) for times in DEVIATIONS]
    return tuple(sorted({min(8 * math.ceil(rows / 8), most) for rows in wanted}))


def pay(experts: Experts, expected: float, dtype) -> bool:
    """Whether a CPU computes a buffer's rows faster by `apply` than all together.

    Small parts cost more by their number than by their rows. In bfloat16, which XLA computes in float32 there, every
    part converts its weights.

    Args:
        experts: whose D and F count.
        expected: mean load.
        dtype: of the rows.
    """
    return dtype == jnp.float32 and expected * math.prod(experts.wi.shape[1:]) >= WORTH


def grouped(tokens: jax.Array, chosen: jax.Array, gates: jax.Array, experts: Experts, expected: float) -> jax.Array:
    """As `blocks.grouped`; `expected` sizes the parts."""
    ladder = sizes(expected, tokens.shape[0])
    beyond = max(size - smaller for smaller, size in itertools.pairwise((0, *ladder)))  # rows of the last part
    with jax.named_scope("dispatch"):
        choices = dispatching.sort(chosen, experts.count)
        dispatch = dispatching.compact(choices, chosen.shape, spare=beyond)
        x = dispatching.gather(tokens, dispatch)
    with jax.named_scope("experts"):
        y = _compute(ladder, expected, choices.start, choices.load, x, experts.astype(tokens.dtype))
    with jax.named_scope("combine"):
        return dispatching.combine(y, dispatch, gates)


def apply(experts: Experts, x: jax.Array, load: jax.Array, expected: float) -> jax.Array:
    """As `experts.apply`, but of the first rows of every expert alone.

    Args:
        experts: weights, cast to the dtype of `x`.
        x: [E, R, D], R rows for each expert.
        load: [E] int32, how many of them hold a token, R at most.
        expected: mean load; sizes the parts.

    Returns:
        [E, R, D] in the dtype of `x`; rows past an expert's load hold anything finite.
    """
    count, rows, depth = x.shape
    start = jnp.arange(count, dtype=jnp.int32) * rows
    ladder = tuple(sorted({*sizes(expected, rows), rows}))  # one part an expert, which ends with its rows
    y = _compute(ladder, expected, start, load, x.reshape(-1, depth), experts.astype(x.dtype))
    return y.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _compute(
    ladder: tuple[int, ...], expected: float, start: jax.Array, load: jax.Array, x: jax.Array, experts: Experts
):
    """Every expert on its range. x [R, D] to [R, D]; rows of nobody hold anything finite."""
    return _forward(ladder, expected, start, load, x, experts)[0]


def _forward(ladder, expected, start, load, x, experts):
    wi, bi, wo, bo = experts

    def part(size, carry, expert, at, _, __):
        y, z = carry
        part_z = _rows(x, at, size) @ wi[expert] + bi[expert]
        part_y = jax.nn.gelu(part_z) @ wo[expert] + bo[expert]
        return _write(y, part_y, at, 0), _write(z, part_z, at, 0)

    shape = (len(x), wi.shape[2])
    y, z = _over_parts(ladder, expected, start, load, part, (jnp.zeros_like(x), jnp.zeros(shape, x.dtype)))
    return y, (start, load, x, z, experts)


def _backward(ladder, expected, saved, d_y):
    start, load, x, z, experts = saved
    wi, _, wo, _ = experts

    def part(size, carry, expert, at, filled, first):
        d_x, d_experts = carry
        part_y = jnp.where((jnp.arange(size) < filled)[:, None], _rows(d_y, at, size), 0)
        hidden, to_z = jax.vjp(jax.nn.gelu, _rows(z, at, size))
        (part_z,) = to_z(part_y @ wo[expert].T)
        found = Experts(_rows(x, at, size).T @ part_z, part_z.sum(0), hidden.T @ part_y, part_y.sum(0))

        def added(total, one):
            before = 0 if first else jax.lax.dynamic_index_in_dim(total, expert, 0, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(total, before + one, expert, 0)

        return _write(d_x, part_z @ wi[expert].T, at, 0), jax.tree.map(added, d_experts, found)

    unwritten = jax.tree.map(jnp.zeros_like, (x, experts))
    d_x, d_experts = _over_parts(ladder, expected, start, load, part, unwritten)
    return None, None, d_x, d_experts


_compute.defvjp(_forward, _backward)


def _over_parts(
    ladder: tuple[int, ...], expected: float, start: jax.Array, load: jax.Array, part: Callable, carry: Any
) -> Any:
    """Runs carry = part(size, carry, expert, at, filled, first) over all parts, ranges in their order.

    Every size is a loop of one turn or none, for what a branch returns would be copied whole. The turn enters the
    place: what does not depend on it the compiler would take out of the loop, and compute always.

    Args:
        ladder: sizes of parts.
        expected: mean load, whose part alone counts where FLOPs are counted: an expert takes one of them.
        start: [E] int32, first row of every range.
        load: [E] int32, rows of every range.
        part: computes `size` rows from row `at` on, of which `filled` are the expert's; `first` for the first part of a
            range. `size` and `first` are static. An expert without rows has one part of size 0.
        carry: arrays.
    """
    largest = ladder[-1]
    usual = next((size for size in ladder if size >= expected), largest)

    def range_of(expert, carry):
        many = jnp.maximum(load[expert] - 1, 0) // largest
        rest = load[expert] - many * largest
        wanted = jnp.sum(jnp.asarray((0, *ladder)) < rest)
        for index, size in enumerate((0, *ladder)):

            def last(turn, carry, size=size):
                return part(size, carry, expert, start[expert] + many * largest + turn, rest, True)

            with jax.named_scope("part" if size == usual else hlo.UNCOUNTED):
                carry = jax.lax.fori_loop(0, (wanted == index).astype(jnp.int32), last, carry)

        def whole(turn, carry):
            return part(largest, carry, expert, start[expert] + turn * largest, largest, False)

        with jax.named_scope(hlo.UNCOUNTED):
            return jax.lax.fori_loop(0, many, whole, carry)

    return jax.lax.fori_loop(0, len(load), range_of, carry)
