"""How training draws looks at a sample; every number is a pure function of its key, so a resumed run draws the same.

Twin of `input_pipeline.views.Views`: the same distributions, other numbers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from input_pipeline import rules
from input_pipeline.device import boxes
from ringmoe_jax.data_config import DataConfig


class Look(NamedTuple):
    """One look at a sample, or several of them along a leading axis.

    Attributes:
        box: [4] float32 of `boxes`, or None to show tiles of the right size as they are.
        mirrored: [] bool: left to right, before the rotation.
        quarters: [] int32, 0..3: of a turn, counter-clockwise.
        draws: by sensor [n] uniform numbers, `samples.draws` of them, that dates and values are drawn by; None draws
            nothing and chooses evenly spaced dates.
    """

    box: Any
    mirrored: Any
    quarters: Any
    draws: Any


def keys_of(seed: Sequence[int], numbers, count: int):
    """Keys of samples, for as many purposes: [n, count].

    Args:
        seed: integers >= 0.
        numbers: [n, 2] uint32: high and low halves of the numbers of the samples.
        count: of purposes.
    """
    words = np.random.SeedSequence(seed).generate_state(2, np.uint32)
    fold = lambda number: functools.reduce(jax.random.fold_in, number, jax.random.wrap_key_data(words))  # noqa: E731
    return jax.vmap(lambda number: jax.random.split(fold(number), count))(numbers)


def draw(chosen: rules.ViewRules, counts: Mapping[str, int], key) -> tuple[Look, Look | None]:
    """The looks at one sample.

    Args:
        chosen: how they are drawn.
        counts: length of `Look.draws` by sensor.
        key: of the sample.

    Returns:
        The first view, and the second where there are views, along a leading axis of 1 or 2; and likewise the local
        crops, or None where there are none.
    """
    views, key = chosen.views, jax.random.split(key)
    boxes_drawn = rules.CANDIDATES if views else 1
    local = views.local if views and chosen.local_sizes else 0
    # Few calls of the generator, each for many numbers: they are most of what is compiled.
    corners, inner, turns = _uniform(key[0], (boxes_drawn, 4), (local, 2), (2 + local, 2))
    names = (*chosen.sizes, *chosen.local_sizes)
    shapes = [(local if i >= len(chosen.sizes) else 2, counts[name]) for i, name in enumerate(names)]
    draws = _uniform(key[1], *shapes)
    by_sensor, by_local = draws[: len(chosen.sizes)], draws[len(chosen.sizes) :]

    drawn = jax.vmap(functools.partial(_box, chosen))(corners)
    if views:
        second = boxes.overlapping(drawn[0], jnp.roll(drawn, -1, 0), views.overlap)
        drawn = jnp.stack([drawn[0], second])
    values = {name: numbers[: len(drawn)] for name, numbers in zip(chosen.sizes, by_sensor, strict=True)}
    shown = _looks(chosen.config, drawn, turns[: len(drawn)], values)
    if not local:
        return shown, None
    inside = functools.partial(boxes.local_box, view=second, share=chosen.local_share, grid=chosen.local_shape)
    values = dict(zip(chosen.local_sizes, by_local, strict=True))
    return shown, _looks(chosen.config, jax.vmap(inside)(inner), turns[2:], values)


def _uniform(key, *shapes: tuple[int, ...]) -> list:
    """Uniform numbers of some shapes, drawn at once."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    numbers = jnp.split(jax.random.uniform(key, (ends[-1],)), ends[:-1])
    return [part.reshape(shape) for part, shape in zip(numbers, shapes, strict=True)]


def _box(chosen: rules.ViewRules, draw):
    if chosen.snapped:
        return boxes.random_sample_box(draw, *chosen.shape, chosen.sizes[chosen.snapped])
    return boxes.random_box(draw, chosen.scale, chosen.ratio, *chosen.shape)


def _looks(config: DataConfig, drawn, turns, draws) -> Look:
    """Looks at [n, 4] boxes, each with its own turn by [n, 2] uniform numbers."""
    mirrored = turns[:, 0] < (0.5 if config.flip else 0.0)
    quarters = (turns[:, 1] * (4 if config.rotate else 0)).astype(jnp.int32)
    return Look(drawn, mirrored, quarters, draws)
