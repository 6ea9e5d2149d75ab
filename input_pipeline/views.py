"""Which ground, which dates and how disturbed: one look at a sample, and how training draws looks.

Training on two views (SkySense, CVPR 2024) draws for each its own box, flip, rotation, sub-sequence of dates,
disturbance of dates and of values. The sensors of a view share box, flip and rotation. Every number is a pure
function of the sample's seed, so that a resumed run draws the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from input_pipeline import augment, rules
from input_pipeline.cpu_tf import tf
from ringmoe_jax.contracts import NO_TIME, SECOND
from ringmoe_jax.data_config import PhotometricConfig
from ringmoe_jax.sensors import Sensor, Statistics


@dataclasses.dataclass(frozen=True)
class View:
    """One look at a sample.

    Attributes:
        box: [4] float32 of `augment`, or None to show tiles of the right size as they are.
        sizes: rows and columns by sensor, in pixels, of the sensors that are shown.
        image_size: rows and columns of labels on the grid of a sensor that is not.
        frames: dates by sensor; all stored ones where absent.
        turned: mirrored and quarters of `augment.turn`; None leaves pixels where they are.
        seed: [2] integers; None draws nothing and chooses evenly spaced dates.
        date_jitter: largest number of days that a date moves.
        photometric: by sensor.
        statistics: of the sensors that `photometric` names.
        grounded: entries say where they lie in the tile.
        stretched: the box may be no square on the ground, so that images show the ground stretched.
        tile_power: entries of complex sensors hold the limits of their tile's total power.
    """

    box: Any
    sizes: Mapping[str, int]
    image_size: int
    frames: Mapping[str, int] = dataclasses.field(default_factory=dict)
    turned: tuple[Any, Any] | None = None
    seed: Any = None
    date_jitter: int = 0
    photometric: Mapping[str, PhotometricConfig] = dataclasses.field(default_factory=dict)
    statistics: Mapping[str, Statistics] = dataclasses.field(default_factory=dict)
    grounded: bool = False
    stretched: bool = False
    tile_power: bool = False

    def move(self, image):
        """Mirrors and rotates a [..., H, W, C] tensor as the view does."""
        return image if self.turned is None else augment.turn(image, *self.turned)

    def move_values(self, pixels, sensor: Sensor):
        """The same of the values of a sensor, of which some flip their sign in a mirror, see `rules.mirror_signs`."""
        signs = rules.mirror_signs(sensor)
        if self.turned is None or min(signs) > 0:
            return self.move(pixels)
        return self.move(pixels) * tf.where(self.turned[0], tf.constant(signs), 1.0)

    def move_boxes(self, rows, size: int):
        """Mirrors and rotates boxes or tracks of an image of `size` rows and columns as the view does."""
        return rows if self.turned is None else augment.turn_boxes(rows, *self.turned, size)

    def seeds(self) -> Mapping[str, tuple]:
        """Of the dates, their disturbance and that of the values, by sensor; None where nothing is drawn."""
        if self.seed is None:
            return dict.fromkeys(self.sizes, (None, None, None))
        rows = tf.random.experimental.stateless_split(self.seed, 3 * len(self.sizes))
        return {name: tuple(tf.unstack(rows[3 * i : 3 * i + 3])) for i, name in enumerate(self.sizes)}


class Views:
    """Draws the views of a stream's samples."""

    def __init__(self, chosen: rules.ViewRules):
        """Args: how views are drawn."""
        self._rules = chosen

    def first(self, crop_seed, turn_seed, seed) -> View:
        """The view of a sample that every training shows.

        Args:
            crop_seed: [2] integers: of the box.
            turn_seed: [2] integers: of flip and rotation.
            seed: [2] integers: of dates and values.
        """
        return self._view(self._box(crop_seed), self._rules.sizes, turn_seed, seed)

    def others(self, first: View, seed) -> dict[str, View]:
        """The second view and the local crops, by their key in a batch; none where they are not asked for.

        Args:
            first: first view of the sample.
            seed: [2] integers of the sample.
        """
        chosen, views = self._rules, self._rules.views
        if not views:
            return {}
        box_seed, turn_seed, own = tf.unstack(
            tf.random.experimental.stateless_split(tf.random.experimental.stateless_fold_in(seed, 1), 3)
        )
        seeds = tf.unstack(tf.random.experimental.stateless_split(box_seed, rules.CANDIDATES - 1))
        candidates = [*map(self._box, seeds), first.box]
        box = overlapping(first.box, tf.stack(candidates), views.overlap)
        shown = {SECOND: self._view(box, chosen.sizes, turn_seed, own)}
        for i in range(views.local if chosen.local_sizes else 0):
            box_seed, turn_seed, own = tf.unstack(
                tf.random.experimental.stateless_split(tf.random.experimental.stateless_fold_in(seed, 2 + i), 3)
            )
            inner = local_box(box_seed, box, chosen.local_share, chosen.local_shape)
            shown[f"local{i}"] = self._view(inner, chosen.local_sizes, turn_seed, own)
        return shown

    def _box(self, seed):
        chosen = self._rules
        if chosen.snapped:
            return augment.random_sample_box(seed, *chosen.shape, chosen.sizes[chosen.snapped])
        return augment.random_box(seed, chosen.scale, chosen.ratio, *chosen.shape)

    def _view(self, box, sizes: Mapping[str, int], turn_seed, seed) -> View:
        config = self._rules.config
        draw = tf.random.stateless_uniform([2], turn_seed)
        mirrored = (draw[0] < 0.5) if config.flip else tf.constant(False)
        quarters = tf.cast(draw[1] * 4, tf.int32) if config.rotate else tf.constant(0)
        turned, stretched = (mirrored, quarters), self._rules.stretched
        always = dict(stretched=stretched, tile_power=config.tile_power)
        view = View(box, sizes, config.image_size, config.frames, turned, seed, **always)
        if not config.views:
            return view
        return dataclasses.replace(
            view,
            date_jitter=config.views.date_jitter,
            photometric=config.views.photometric,
            statistics=self._rules.statistics,
            grounded=True,
        )


def overlapping(first, candidates, overlap: float):
    """The first of [n, 4] boxes that shows at least a share `overlap` of the box `first`; else the last one."""
    begin = tf.maximum(first[:2], candidates[:, :2])
    end = tf.minimum(first[:2] + first[2:], candidates[:, :2] + candidates[:, 2:])
    shared = tf.reduce_prod(tf.maximum(end - begin, 0.0), 1) / tf.reduce_prod(first[2:])
    last = tf.range(candidates.shape[0]) == candidates.shape[0] - 1
    return candidates[tf.argmax(tf.cast((shared >= overlap) | last, tf.int32))]


def local_box(seed, view, share: float, grid: tuple[int, int] | None):
    """A box of a share of the sides of another, anywhere in the tile but with its centre inside that one.

    Args:
        seed: [2] integers.
        view: [4] float32: the other box.
        share: of its sides, 0..1.
        grid: rows and columns of the tile's pixels that the result consists of whole; None where it need not.

    Returns:
        [4] float32 of `augment`.
    """
    draw, extent = tf.random.stateless_uniform([2], seed), view[2:] * share
    low = tf.maximum(view[:2] - extent / 2, 0.0)
    high = tf.minimum(view[:2] + view[2:] - extent / 2, 1.0 - extent)
    if grid is None:
        return tf.concat([low + draw * (high - low), extent], 0)
    pixels, rounding = tf.constant(grid, tf.float32), 1e-3
    low, high = tf.math.ceil(low * pixels - rounding), tf.floor(high * pixels + rounding)
    corner = tf.minimum(low + tf.floor(draw * (high - low + 1)), high)
    return tf.concat([corner, tf.round(extent * pixels)], 0) / tf.tile(pixels, [2])


def choose_frames(shown, count: int, seed=None):
    """Chooses dates among those that show anything.

    Args:
        shown: [T] bool: dates with a valid pixel.
        count: how many, 1..T.
        seed: [2] integers: draws without replacement; None takes the middle date of each of `count` equal parts.

    Returns:
        index [count] int32, in their stored order; and [count] bool, False at the end where too few dates show
        anything, and the index means nothing.
    """
    stored = shown.shape[0]
    order = tf.range(stored)
    some = tf.reduce_sum(tf.cast(shown, tf.int32))
    present = tf.range(count) < some
    if seed is None:
        ranked = tf.argsort(tf.where(shown, order, order + stored))
        middle = (2 * tf.range(count) + 1) * some // (2 * count)
        return tf.gather(ranked, tf.where(some >= count, middle, tf.range(count))), present
    noise = tf.random.stateless_uniform([stored], seed)
    drawn = tf.argsort(tf.where(shown, noise, 2.0))[:count]
    return tf.sort(tf.where(present, drawn, drawn + stored)) % stored, present


def move_dates(time, days: int, seed):
    """Moves every known date by a random whole number of days, -days to days; their order stays.

    Args:
        time: [T] int32, days since 1970-01-01, NO_TIME where unknown.
        days: 0 or more.
        seed: [2] integers.

    Returns:
        [T] int32; NO_TIME stays, and the k-th earliest date becomes the k-th earliest of the moved ones.
    """
    known = time != NO_TIME
    moved = time + tf.random.stateless_uniform(time.shape, seed, -days, days + 1, tf.int32)
    rank = tf.argsort(tf.argsort(tf.where(known, time, tf.int32.max), stable=True))
    return tf.where(known, tf.gather(tf.sort(tf.where(known, moved, tf.int32.max)), rank), NO_TIME)
