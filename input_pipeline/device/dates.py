"""Which dates of a series an image shows, and how they move: twins of `views.choose_frames` and `views.move_dates`."""

from __future__ import annotations

import jax.numpy as jnp

from ringmoe_jax.contracts import NO_TIME

_LATEST = jnp.iinfo(jnp.int32).max


def choose_frames(shown, count: int, draw=None):
    """Chooses dates among those that show anything.

    Args:
        shown: [T] bool: dates with a valid pixel.
        count: how many, 1..T.
        draw: [T] uniform numbers, by which dates are drawn without replacement; None takes the middle date of each of
            `count` equal parts.

    Returns:
        index [count] int32, in their stored order; and [count] bool, False at the end where too few dates show
        anything, and the index means nothing.
    """
    stored, places = shown.shape[0], jnp.arange(count)
    order, some = jnp.arange(stored), shown.sum()
    present = places < some
    if draw is None:
        ranked = jnp.argsort(jnp.where(shown, order, order + stored))
        middle = (2 * places + 1) * some // (2 * count)
        return ranked[jnp.where(some >= count, middle, places)], present
    drawn = jnp.argsort(jnp.where(shown, draw, 2.0))[:count]
    return jnp.sort(jnp.where(present, drawn, drawn + stored)) % stored, present


def move_dates(time, days: int, draw):
    """Moves every known date by a random whole number of days, -days to days; their order stays.

    Args:
        time: [T] int32, days since 1970-01-01, NO_TIME where unknown.
        days: 0 or more.
        draw: [T] uniform numbers.

    Returns:
        [T] int32; NO_TIME stays, and the k-th earliest date becomes the k-th earliest of the moved ones.
    """
    known = time != NO_TIME
    moved = time + jnp.floor(draw * (2 * days + 1)).astype(jnp.int32) - days
    rank = jnp.argsort(jnp.argsort(jnp.where(known, time, _LATEST), stable=True))
    return jnp.where(known, jnp.sort(jnp.where(known, moved, _LATEST))[rank], NO_TIME)
