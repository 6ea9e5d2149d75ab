"""From choices to rows and back: which token fills which row of which expert's buffer.

Both directions are gathers, in the forward and in the backward pass: a row knows its choice and a
choice knows its row, so the transpose of reading by one is reading by the other. Only indices are scattered.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Sorted(NamedTuple):
    """The N * K choices sorted by expert. Choice k * N + n is the k-th of token n.

    Attributes:
        order: [N * K] int32, choices by expert; those of nobody (expert index E) come last.
        start: [E] int32, where each expert's choices begin in `order`.
        load: [E] int32, choices of each expert.
    """

    order: jax.Array
    start: jax.Array
    load: jax.Array


class Dispatch(NamedTuple):
    """A one-to-one map between rows and choices.

    Attributes:
        choice: [R] int32, the choice that fills each row, N * K where the row stays empty.
        slot: [N, K] int32, the row of each choice, R where it has none.
    """

    choice: jax.Array
    slot: jax.Array

    @property
    def kept(self) -> jax.Array:
        """[N, K] bool: the choice has a row."""
        return self.slot < self.choice.shape[0]


def sort(chosen: jax.Array, count: int, priority: jax.Array | None = None) -> Sorted:
    """Sorts choices by expert: all first choices before second choices, then by token.

    Args:
        chosen: [N, K] int32 in 0..count; `count` means nobody.
        count: number of experts, E.
        priority: [N], or [N, K] for every choice its own; tokens of high priority come first in their expert
            instead of in their order (batch-priority routing, V-MoE section 3).
    """
    n, k = chosen.shape
    if priority is None:
        position = jnp.arange(n * k, dtype=jnp.int32)
    else:
        first = jnp.argsort(-priority.reshape(n, -1), axis=0, stable=True).astype(jnp.int32)
        position = (first.T + n * jnp.arange(k)[:, None]).reshape(-1)
    expert = chosen.T.reshape(-1)[position]
    if (count + 1) * n * k < 2**31:  # one key is several times faster to sort than a key and a value
        keys = jnp.sort(expert * (n * k) + jnp.arange(n * k, dtype=jnp.int32))
        expert, order = keys // (n * k), keys % (n * k)
    else:
        order = jnp.argsort(expert, stable=True).astype(jnp.int32)
        expert = expert[order]
    ends = jnp.searchsorted(expert, jnp.arange(count + 1), side="left").astype(jnp.int32)
    return Sorted(position[order], ends[:-1], jnp.diff(ends))


def fill(choices: Sorted, rows: np.ndarray, offset: np.ndarray, shape: tuple[int, int]) -> Dispatch:
    """Gives each expert's first choices a row of its buffer; the others get none.

    Args:
        choices: of E experts.
        rows: [E] buffer rows of each expert, static.
        offset: [E] first row of each expert's buffer, static; buffers cover all rows, in any order.
        shape: (N, K).
    """
    n, k = shape
    total = int(rows.sum())
    owner, within = np.empty(total, np.int32), np.empty(total, np.int32)
    for e, (count, first) in enumerate(zip(rows, offset, strict=True)):
        owner[first : first + count], within[first : first + count] = e, np.arange(count)
    index = jnp.minimum(choices.start[owner] + within, n * k - 1)
    choice = jnp.where(within < choices.load[owner], choices.order[index], n * k)
    return Dispatch(choice, _rows_of_choices(choice, shape))


def compact(choices: Sorted, shape: tuple[int, int], multiple: int = 1, spare: int = 0) -> Dispatch:
    """Rows without gaps between experts, as grouped products take them, filled up to a multiple of rows.

    Args:
        choices: of E experts.
        shape: (N, K).
        multiple: of rows.
        spare: empty rows at the end, at least.
    """
    n, k = shape
    rows = -(-(n * k + spare) // multiple) * multiple
    within = jnp.arange(rows, dtype=jnp.int32)
    order = jnp.pad(choices.order, (0, rows - n * k))
    choice = jnp.where(within < choices.load.sum(), order, n * k)
    return Dispatch(choice, _rows_of_choices(choice, shape))


def first(choices: Sorted, count: jax.Array) -> Sorted:
    """Each expert's first choices alone; the others are nobody's.

    Args:
        choices: of E experts.
        count: [E] int32, how many of each expert's stay, at most its load.
    """
    ends = jnp.cumsum(count)
    row = jnp.arange(len(choices.order), dtype=jnp.int32)
    owner = jnp.minimum(jnp.searchsorted(ends, row, side="right"), len(count) - 1)
    index = choices.start[owner] + row - (ends - count)[owner]
    return Sorted(choices.order[jnp.minimum(index, len(row) - 1)], ends - count, count)


def _rows_of_choices(choice: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Inverse of `choice` [R] as [N, K]; R for choices without a row."""
    (n, k), rows = shape, choice.shape[0]
    slot = jnp.full(n * k, rows, jnp.int32).at[choice].set(jnp.arange(rows, dtype=jnp.int32), mode="drop")
    return slot.reshape(k, n).T


@jax.custom_vjp
def gather(tokens: jax.Array, dispatch: Dispatch) -> jax.Array:
    """The token of every row. tokens [N, D] to [R, D], zeros in empty rows."""
    return _take(tokens, _token(dispatch))


def _gather_backward(dispatch: Dispatch, rows: jax.Array):
    return jnp.sum(_take(rows, dispatch.slot), axis=1), None


gather.defvjp(lambda tokens, dispatch: (gather(tokens, dispatch), dispatch), _gather_backward)


@jax.custom_vjp
def combine(rows: jax.Array, dispatch: Dispatch, gates: jax.Array) -> jax.Array:
    """Gate-weighted sum of every token's rows.

    Args:
        rows: [R, D].
        dispatch: of N tokens with K choices.
        gates: [N, K] float32.

    Returns:
        [N, D] in the dtype of `rows`; a choice without a row adds nothing.
    """
    return jnp.einsum("nk,nkd->nd", gates.astype(rows.dtype), _take(rows, dispatch.slot))


def _combine_forward(rows, dispatch, gates):
    return combine(rows, dispatch, gates), (rows, dispatch, gates)


def _combine_backward(saved, outputs: jax.Array):
    rows, dispatch, gates = saved
    gate = _take(gates.T.reshape(-1), dispatch.choice).astype(rows.dtype)  # [R], 0 in empty rows
    d_rows = gate[:, None] * _take(outputs, _token(dispatch))
    d_gates = jnp.einsum("nd,nkd->nk", outputs, _take(rows, dispatch.slot), preferred_element_type=jnp.float32)
    return d_rows, None, d_gates.astype(gates.dtype)


combine.defvjp(_combine_forward, _combine_backward)


def _token(dispatch: Dispatch) -> jax.Array:
    """[R] token of each row, N where the row is empty."""
    n, k = dispatch.slot.shape
    return jnp.where(dispatch.choice < n * k, dispatch.choice % n, n)


_take = functools.partial(jnp.take, axis=0, mode="fill", fill_value=0)
