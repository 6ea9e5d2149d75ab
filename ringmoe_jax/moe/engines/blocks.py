"""Grouped experts without a grouped product: one batched product, and blocks for what does not fit it.

A buffer of C rows per expert is filled and computed as one batched product, at the speed of a dense
layer. Choices beyond an expert's C rows follow in blocks, first large ones and then small ones, each with
the weights of its expert, in loops that run as often as there are blocks: nothing is dropped and no expert
computes another's rows. C is taken from a short ladder when the routing is known, so that an even routing
pays for little padding and a skewed one for few empty buffers. Our choice; measured in docs/benchmarks.md.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.moe import dispatch as dispatching
from ringmoe_jax.moe import experts as expert_ops
from ringmoe_jax.moe.dispatch import Sorted
from ringmoe_jax.moe.experts import Experts

ROW_COST = 1.15  # time of a row in a block over that of a row in the buffer, measured on CPU
FEW_ROWS = 64  # below, an expert's weights cost more time than its rows
BLOCK_COST = 110  # time that a block takes beside its rows, for its expert's weights, in rows of the buffer


class Sizes(NamedTuple):
    """Static shapes. They decide about speed and change no value.

    Attributes:
        ladder: buffer rows per expert to choose from, ascending.
        blocks: rows of a block, descending.
    """

    ladder: tuple[int, ...]
    blocks: tuple[int, ...]


def sizes(expected: float, most: int) -> Sizes:
    """Shapes for a mean load per expert.

    Many rows an expert: a buffer for even random routing up to 1.5 standard deviations of a Poisson load, and
    one half as large for skewed routing. Few rows: rows are cheap beside an expert's weights, so the buffers
    hold 4 standard deviations, and three times that.

    Args:
        expected: mean load of an expert.
        most: the largest possible load.
    """
    deviation = math.sqrt(expected)
    wanted = (expected / 2, expected + 1.5 * deviation)
    if expected < FEW_ROWS:
        wanted = (expected + 4 * deviation, 3 * (expected + 4 * deviation))
    ladder = {min(8 * math.ceil(rows / 8), most) for rows in wanted}
    small = min(max(2 ** round(math.log2(max(expected, 1))), FEW_ROWS), 128)
    return Sizes(tuple(sorted(ladder)), (4 * small, small))


def grouped(tokens: jax.Array, chosen: jax.Array, gates: jax.Array, experts: Experts, expected: float) -> jax.Array:
    """sum_k gate_k * expert_k(token), nothing dropped.

    Args:
        tokens: [N, D].
        chosen: [N, K] int32, E where a choice is nobody's.
        gates: [N, K] float32.
        experts: E experts.
        expected: choices per expert under even routing; sizes buffer and blocks, changes no value.

    Returns:
        [N, D] in the dtype of `tokens`.
    """
    with jax.named_scope("dispatch"):
        choices = dispatching.sort(chosen, experts.count)
        shapes = sizes(expected, tokens.shape[0])
        ladder = np.asarray(shapes.ladder)
        excess = jnp.maximum(choices.load - ladder[:, None], 0)  # [ladder, E]
        cost = sum(
            count * (ROW_COST * size + BLOCK_COST)
            for count, size in zip(_counts(excess, shapes.blocks), shapes.blocks, strict=True)
        )
        index = jnp.argmin(experts.count * ladder + cost.sum(axis=1))
    return _compute(shapes, index, choices, tokens, gates, experts.astype(tokens.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _compute(shapes: Sizes, index: jax.Array, choices: Sorted, tokens, gates, experts):
    return _forward(shapes, index, choices, tokens, gates, experts)[0]


def _forward(shapes, index, choices, tokens, gates, experts):
    count, depth, most = *experts.wi.shape[:2], shapes.ladder[-1]

    def buffer(rows):
        dispatch = _dispatch(choices, rows, gates.shape)
        z = expert_ops.expand(experts, _rows(tokens, dispatch, count))
        y = expert_ops.contract(experts, z)
        saved = tuple(jnp.pad(x, ((0, 0), (0, most - rows), (0, 0))) for x in (z, y))
        return dispatching.combine(y.reshape(-1, depth), dispatch, gates), saved

    def block(outputs, token, choice, expert):
        x, gate, weights = _block_inputs(tokens, gates, experts, token, choice, expert)
        return outputs.at[token].add(_block(x, gate, weights), mode="drop")

    with jax.named_scope("experts"):
        outputs, saved = jax.lax.switch(index, [functools.partial(buffer, rows) for rows in shapes.ladder])
        outputs = _over_blocks(block, outputs, shapes, index, choices, gates.shape)
    return outputs, (index, choices, tokens, gates, experts, saved)


def _backward(shapes, saved, outputs):
    index, choices, tokens, gates, experts, (z, y) = saved

    def buffer(rows):
        dispatch = _dispatch(choices, rows, gates.shape)
        x, to_tokens = jax.vjp(lambda t: _rows(t, dispatch, experts.count), tokens)
        _, to_gates = jax.vjp(dispatching.combine, y[:, :rows].reshape(-1, y.shape[-1]), dispatch, gates)
        _, to_hidden = jax.vjp(expert_ops.contract, experts, z[:, :rows])
        _, to_rows = jax.vjp(lambda wi, x: expert_ops.expand(experts._replace(wi=wi), x), experts.wi, x)
        d_y, _, d_gates = to_gates(outputs)
        d_experts, d_z = to_hidden(d_y.reshape(experts.count, rows, -1))
        d_wi, d_x = to_rows(d_z)
        return *to_tokens(d_x), d_gates, d_experts._replace(wi=d_wi)

    def block(gradients, token, choice, expert):
        d_tokens, d_gates, d_experts = gradients
        _, pull = jax.vjp(_block, *_block_inputs(tokens, gates, experts, token, choice, expert))
        d_x, d_gate, d_expert = pull(outputs.at[token].get(mode="fill", fill_value=0))
        d_tokens = d_tokens.at[token].add(d_x, mode="drop")
        d_gates = d_gates.at[token, choice].set(d_gate, mode="drop")
        return d_tokens, d_gates, jax.tree.map(lambda total, part: total.at[expert].add(part), d_experts, d_expert)

    with jax.named_scope("experts"):
        gradients = jax.lax.switch(index, [functools.partial(buffer, rows) for rows in shapes.ladder])
        gradients = _over_blocks(block, gradients, shapes, index, choices, gates.shape)
    return None, None, *gradients


_compute.defvjp(_forward, _backward)


def _dispatch(choices: Sorted, rows: int, shape: tuple[int, int]) -> dispatching.Dispatch:
    count = choices.load.shape[0]
    return dispatching.fill(choices, np.full(count, rows), np.arange(count) * rows, shape)


def _rows(tokens, dispatch, count):
    return dispatching.gather(tokens, dispatch).reshape(count, -1, tokens.shape[-1])


def _over_blocks(body, carry, shapes: Sizes, index: jax.Array, choices: Sorted, shape: tuple[int, int]):
    """Runs carry = body(carry, token [R], choice [R], expert) over the blocks beyond the buffer.

    Rows of a block that are not filled have token N and choice K.
    """
    n, k = shape
    done = jnp.full_like(choices.load, jnp.asarray(shapes.ladder)[index])  # rows of each expert that are computed
    for size, counts in zip(shapes.blocks, _counts(jnp.maximum(choices.load - done, 0), shapes.blocks), strict=True):
        end = jnp.cumsum(counts)

        def step(b, carry, size=size, counts=counts, end=end, done=done):
            expert = jnp.sum(end <= b)
            rank = done[expert] + (b - (end - counts)[expert]) * size + jnp.arange(size)
            filled = rank < choices.load[expert]
            place = choices.order[jnp.minimum(choices.start[expert] + rank, n * k - 1)]
            token, choice = jnp.where(filled, place % n, n), jnp.where(filled, place // n, k)
            return body(carry, token, choice, expert)

        carry = jax.lax.fori_loop(0, end[-1], step, carry)
        done = done + counts * size
    return carry


def _counts(excess: jax.Array, sizes: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Large and small blocks for `excess` rows: at most half of a large block is left to small ones."""
    large, small = sizes
    many = (excess + large // 2 - 1) // large
    return many, -(-jnp.maximum(excess - many * large, 0) // small)


def _block_inputs(tokens, gates, experts, token, choice, expert):
    x = tokens.at[token].get(mode="fill", fill_value=0)
    gate = gates.at[token, choice].get(mode="fill", fill_value=0)
    return x, gate, jax.tree.map(lambda w: w[expert], experts)


def _block(x, gate, weights):
    """One expert, without leading axis, on x [R, D] with gate [R]."""
    one = jax.tree.map(lambda w: w[None], weights)
    return expert_ops.contract(one, expert_ops.expand(one, x[None]), gate[None])[0]
