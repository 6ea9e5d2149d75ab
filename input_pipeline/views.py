"""Which ground, which dates and how disturbed: one look at a sample, and how training draws looks.

Training on two views (SkySense, CVPR 2024) draws for each its own box, flip, rotation, sub-sequence of dates,
disturbance of dates and of values. The sensors of a view share box, flip and rotation. Every number is a pure
function of the sample's seed, so that a resumed run draws the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from input_pipeline import augment
from input_pipeline.cpu_tf import tf
from input_pipeline.dataset import Dataset
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.contracts import NO_TIME, SECOND
from ringmoe_jax.data_config import DataConfig, PhotometricConfig
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.sensors import Sensor

_CANDIDATES = 8  # boxes that may become the second view; the last is the first view's
_REFLECTANCE = 2.0  # largest plausible value of what is solarised: 1, or reflectance with clouds


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
        grounded: entries say where they lie in the tile.
        stretched: the box may be no square on the ground, so that images show the ground stretched.
    """

    box: Any
    sizes: Mapping[str, int]
    image_size: int
    frames: Mapping[str, int] = dataclasses.field(default_factory=dict)
    turned: tuple[Any, Any] | None = None
    seed: Any = None
    date_jitter: int = 0
    photometric: Mapping[str, PhotometricConfig] = dataclasses.field(default_factory=dict)
    grounded: bool = False
    stretched: bool = False

    def move(self, image):
        """Mirrors and rotates a [..., H, W, C] tensor as the view does."""
        return image if self.turned is None else augment.turn(image, *self.turned)

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

    def __init__(self, config: DataConfig, stream: str, dataset: Dataset):
        """Opens the views of a stream.

        Args:
            config: what training reads.
            stream: name of the stream.
            dataset: its data set.

        Raises:
            ConfigError: two sensors cannot share a box, or a sensor does not allow a disturbance.
            DataError: a tile is smaller than its window, or has fewer dates than are asked for.
        """
        self._config = config
        self._scale, self._ratio = config.streams[stream].crop_scale, config.streams[stream].crop_ratio
        self._sizes = {name: config.size(name) for name in dataset.sensors}
        check_frames(dataset, config.frames)
        self._frames = config.frames
        grid = config.views.grid if config.views else ""
        self._snapped = snapping_sensor(dataset, self._sizes, grid, f"data.streams.{stream}")
        # Any grid will do where boxes need not hit its pixels.
        self._shape = dataset.shape(self._snapped or next(iter(dataset.sensors)))[1:]
        fits = self._scale[1] * max(self._shape) <= min(self._shape)  # no side of a square is cut off
        self._stretched = not self._snapped and not (fits and tuple(self._ratio) == (1, 1))
        self._local_shape = None
        if config.views:
            check_photometric(dataset.sensors, config.views.photometric)
            local = config.views.local_sensor
            native = local in dataset.sensors and dataset.sensors[local].resampling == sensor_table.COMPLEX
            if grid or native:
                self._local_shape = dataset.shape(grid or local)[1:]

    def first(self, crop_seed, turn_seed, seed) -> View:
        """The view of a sample that every training shows.

        Args:
            crop_seed: [2] integers: of the box.
            turn_seed: [2] integers: of flip and rotation.
            seed: [2] integers: of dates and values.
        """
        return self._view(self._box(crop_seed), self._sizes, turn_seed, seed)

    def others(self, first: View, seed) -> dict[str, View]:
        """The second view and the local crops, by their key in a batch; none where they are not asked for.

        Args:
            first: first view of the sample.
            seed: [2] integers of the sample.
        """
        views = self._config.views
        if not views:
            return {}
        box_seed, turn_seed, own = tf.unstack(
            tf.random.experimental.stateless_split(tf.random.experimental.stateless_fold_in(seed, 1), 3)
        )
        seeds = tf.unstack(tf.random.experimental.stateless_split(box_seed, _CANDIDATES - 1))
        candidates = [*map(self._box, seeds), first.box]
        box = overlapping(first.box, tf.stack(candidates), views.overlap)
        shown = {SECOND: self._view(box, self._sizes, turn_seed, own)}
        if views.local_sensor in self._sizes:
            sizes = {views.local_sensor: views.local_size}
            share = views.local_size / self._sizes[views.local_sensor]
            for i in range(views.local):
                box_seed, turn_seed, own = tf.unstack(
                    tf.random.experimental.stateless_split(tf.random.experimental.stateless_fold_in(seed, 2 + i), 3)
                )
                inner = local_box(box_seed, box, share, self._local_shape)
                shown[f"local{i}"] = self._view(inner, sizes, turn_seed, own)
        return shown

    def _box(self, seed):
        if self._snapped:
            return augment.random_sample_box(seed, *self._shape, self._sizes[self._snapped])
        return augment.random_box(seed, self._scale, self._ratio, *self._shape)

    def _view(self, box, sizes: Mapping[str, int], turn_seed, seed) -> View:
        config = self._config
        draw = tf.random.stateless_uniform([2], turn_seed)
        mirrored = (draw[0] < 0.5) if config.flip else tf.constant(False)
        quarters = tf.cast(draw[1] * 4, tf.int32) if config.rotate else tf.constant(0)
        turned = (mirrored, quarters)
        view = View(box, sizes, config.image_size, self._frames, turned, seed, stretched=self._stretched)
        if not config.views:
            return view
        views = config.views
        return dataclasses.replace(view, date_jitter=views.date_jitter, photometric=views.photometric, grounded=True)


def snapping_sensor(dataset: Dataset, sizes: Mapping[str, int], grid: str, where: str) -> str:
    """The sensor whose whole pixels boxes are made of: `grid`, else a complex one, else "".

    Args:
        dataset: whose tiles are shown.
        sizes: rows and columns by sensor, in pixels.
        grid: sensor that boxes are snapped to, or "".
        where: names the stream in messages.

    Raises:
        ConfigError: `grid` is not read, or its window and a complex sensor's show different ground.
        DataError: a tile of `grid` or of a complex sensor is smaller than its window.
    """
    shapes = {name: dataset.shape(name) for name in dataset.sensors}
    resampling = {name: sensor.resampling for name, sensor in dataset.sensors.items()}
    native = augment.complex_box(shapes, resampling, sizes, where)
    complex_sensor = next((name for name in shapes if resampling[name] == sensor_table.COMPLEX), "")
    if not grid:
        return complex_sensor
    if grid not in shapes:
        raise ConfigError(f'{where} reads no sensor "{grid}", which is the grid of its views: {nearest(grid, shapes)}')
    height, width = shapes[grid][1:]
    if min(height, width) < sizes[grid]:
        raise DataError(
            f'{where}: tiles of "{grid}" are {height} x {width} px, smaller than the {sizes[grid]} px of a view that '
            f"is snapped to them: set sizes.{grid} to at most {min(height, width)}, or cut larger tiles"
        )
    window = (sizes[grid] / height, sizes[grid] / width)
    if native and native != window:
        raise ConfigError(
            f'{where}: {sizes[grid]} px of the grid "{grid}" are {window[0]:.4g} x {window[1]:.4g} of a tile and '
            f'{sizes[complex_sensor]} samples of "{complex_sensor}" {native[0]:.4g} x {native[1]:.4g}, and complex '
            "data is never resampled: choose sizes that show the same ground"
        )
    return grid


def check_names(key: str, names: Iterable[str]) -> None:
    """Refuses sensors that the table does not know; those that are not read may stand in a config.

    Raises:
        ConfigError: names the nearest sensor.
    """
    for name in names:
        if name not in sensor_table.SENSORS:
            raise ConfigError(f'{key} names "{name}", which is no sensor: {nearest(name, sensor_table.SENSORS)}')


def check_frames(dataset: Dataset, frames: Mapping[str, int]) -> None:
    """Refuses more dates than are stored.

    Raises:
        DataError: names the sensor.
    """
    for name in dataset.sensors:
        stored = dataset.shape(name)[0]
        if not 1 <= frames.get(name, 1) <= stored:
            raise DataError(
                f'{dataset.directory}: "{name}" has {stored} dates, and frames.{name} = {frames[name]}: '
                f"wanted 1 to {stored}"
            )


def check_photometric(sensors: Mapping[str, Sensor], photometric: Mapping[str, PhotometricConfig]) -> None:
    """Refuses what the physics of a sensor does not allow.

    Raises:
        ConfigError: a blur of complex samples, which would change their power; or a solarisation of values that are
            no reflectance or brightness of 0 to 1.
    """
    for name, config in photometric.items():
        if name not in sensors:
            continue
        key, sensor = f"data.views.photometric.{name}", sensors[name]
        if config.blur and sensor.resampling == sensor_table.COMPLEX:
            raise ConfigError(f"{key}.blur = {config.blur}: complex samples are never averaged, wanted 0")
        low, high = sensor.valid_range
        if config.solarise and not (sensor.resampling == sensor_table.LINEAR and low >= 0 and high <= _REFLECTANCE):
            raise ConfigError(
                f'{key}.solarise = {config.solarise}: values are in "{sensor.unit}", {low:g} to {high:g}, and only '
                "brightness or reflectance of 0 to 1 can be solarised: wanted 0"
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
