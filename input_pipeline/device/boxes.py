"""Boxes in relative coordinates: top, left, height, width as fractions of the tile. Twins of `augment` and `views`."""

from __future__ import annotations

import math

import jax.numpy as jnp

from input_pipeline import rules, schema
from ringmoe_jax import sensors as sensor_table


def random_box(draw, scale: tuple[float, float], ratio: tuple[float, float], height: int, width: int):
    """A box of random area, aspect ratio and place.

    Args:
        draw: [4] uniform numbers.
        scale: smallest and largest area, as a fraction of the tile.
        ratio: smallest and largest width / height on the ground, where the tile is large enough for it.
        height: tile rows, for the aspect ratio of the box on the ground.
        width: tile columns.

    Returns:
        [4] float32, inside 0..1.
    """
    area = (scale[0] + draw[0] * (scale[1] - scale[0])) * (height * width)
    low, high = map(math.log, ratio)
    aspect = jnp.exp(low + draw[1] * (high - low))
    tall = jnp.minimum(jnp.sqrt(area / aspect) / height, 1.0)
    wide = jnp.minimum(jnp.sqrt(area * aspect) / width, 1.0)
    return jnp.stack([draw[2] * (1 - tall), draw[3] * (1 - wide), tall, wide])


def random_sample_box(draw, height: int, width: int, size: int):
    """A box of `size` x `size` whole pixels of a [height, width] grid, by [4] uniform numbers."""
    corner = jnp.floor(draw[:2] * jnp.array([height - size + 1, width - size + 1]))
    return jnp.concatenate([corner, jnp.full(2, size, jnp.float32)]) / jnp.array([height, width] * 2)


def overlapping(first, candidates, overlap: float):
    """The first of [n, 4] boxes that shows at least a share `overlap` of the box `first`; else the last one."""
    begin = jnp.maximum(first[:2], candidates[:, :2])
    end = jnp.minimum(first[:2] + first[2:], candidates[:, :2] + candidates[:, 2:])
    shared = jnp.prod(jnp.maximum(end - begin, 0.0), 1) / jnp.prod(first[2:])
    last = jnp.arange(len(candidates)) == len(candidates) - 1
    return candidates[jnp.argmax((shared >= overlap) | last)]


def local_box(draw, view, share: float, grid: tuple[int, int] | None):
    """A box of a share of the sides of another, anywhere in the tile but with its centre inside that one.

    Args:
        draw: [2] uniform numbers.
        view: [4] float32: the other box.
        share: of its sides, 0..1.
        grid: rows and columns of the tile's pixels that the result consists of whole; None where it need not.

    Returns:
        [4] float32.
    """
    extent = view[2:] * share
    low = jnp.maximum(view[:2] - extent / 2, 0.0)
    high = jnp.minimum(view[:2] + view[2:] - extent / 2, 1.0 - extent)
    if grid is None:
        return jnp.concatenate([low + draw * (high - low), extent])
    pixels = jnp.array(grid, jnp.float32)
    low, high = jnp.ceil(low * pixels - rules.LEAST), jnp.floor(high * pixels + rules.LEAST)
    corner = jnp.minimum(low + jnp.floor(draw * (high - low + 1)), high)
    return jnp.concatenate([corner, jnp.round(extent * pixels)]) / jnp.tile(pixels, 2)


def shown(box, height: int, width: int, size: int, resampling: str):
    """The box that is really shown of a [height, width] tile: complex samples are taken whole."""
    if resampling != sensor_table.COMPLEX:
        return box
    limits = jnp.array([height, width], jnp.float32)
    return jnp.concatenate([jnp.round(box[:2] * limits) / limits, size / limits])


def ground(box, mirrored, quarters):
    """Where the pixels of a turned crop lie in the tile.

    Args:
        box: [4] float32.
        mirrored: [] bool: left to right, before the rotation.
        quarters: [] int32, 0..3: of a turn, counter-clockwise.

    Returns:
        [2, 3] float32, see `input_pipeline.augment.ground`.
    """
    unturned = jnp.array(rules.UNTURN, jnp.float32)[mirrored.astype(jnp.int32), quarters]
    return unturned * box[2:, None] + jnp.pad(box[:2, None], ((0, 0), (2, 0)))


def crop_rows(rows, box, grid: tuple[int, int], size: int):
    """Boxes or tracks of labels, in pixels of a grid, to pixels of a crop: see `input_pipeline.pipeline.crop_boxes`.

    Args:
        rows: [N, 6 or 8] float32 as `schema.BOX` and `schema.TRACK` describe them.
        box: [4] float32, square on the ground.
        grid: rows and columns of the tile that `rows` count in.
        size: rows and columns of the crop.

    Returns:
        [N, 6 or 8] float32; rows whose centre the crop misses hold `schema.UNLABELLED` throughout.
    """
    limits = jnp.array(grid, jnp.float32)
    scale = size / (box[2:] * limits)  # of y and of x
    centre = (rows[:, 1:3] - (box[:2] * limits)[::-1]) * scale[::-1]
    extent = rows[:, 3:5] * jnp.sqrt(scale[0] * scale[1])
    used = (rows[:, :1] >= 0) & ((centre >= 0) & (centre < size)).all(1, keepdims=True)
    clipped = (rows[:, 5:6] == 0).astype(jnp.float32)
    before = clipped * jnp.maximum(extent / 2 - centre, 0.0)
    beyond = clipped * jnp.maximum(centre + extent / 2 - size, 0.0)
    centre, extent = centre + (before - beyond) / 2, extent - before - beyond
    moved = jnp.concatenate([rows[:, :1], centre, extent, rows[:, 5:]], 1)
    return jnp.where(used, moved, float(schema.UNLABELLED))


def turn_rows(rows, mirrored, quarters, size: int):
    """Moves boxes or tracks of labels as their image is turned: see `input_pipeline.augment.turn_boxes`.

    Args:
        rows: [N, 6 or 8] float32 of `schema.BOX` or `schema.TRACK`, in pixels.
        mirrored: as `ground`.
        quarters: as `ground`.
        size: rows and columns of the image.

    Returns:
        [N, 6 or 8] float32, angles from -pi/2 to pi/2; rows that are not used stay as they are.
    """
    x, y, width, height, angle = rows[:, 1:6].T
    upright, aside = angle == 0, quarters % 2 == 1
    x, angle = jnp.where(mirrored, size - x, x), jnp.where(mirrored, -angle, angle)
    angle -= jnp.where(aside, math.pi / 2, 0.0)
    angle -= math.pi * jnp.floor(angle / math.pi + 0.5)
    moved = [
        jnp.stack([x, y, size - x, size - y])[quarters],
        jnp.stack([y, size - x, size - y, x])[quarters],
        jnp.where(upright & aside, height, width),
        jnp.where(upright & aside, width, height),
        jnp.where(upright, 0.0, angle),
    ]
    moved = jnp.concatenate([rows[:, :1], jnp.stack(moved, 1), rows[:, 6:]], 1)
    return jnp.where(rows[:, :1] >= 0, moved, rows)
