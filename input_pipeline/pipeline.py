"""The tf.data graph of the reader "tf": positions -> records -> samples -> batches."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from input_pipeline import augment, masking, rules, schema, views
from input_pipeline.cpu_tf import tf, tfds
from input_pipeline.dataset import Dataset
from input_pipeline.views import View
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError
from ringmoe_jax.sensors import COMPLEX

PARALLEL = max(2, os.cpu_count() or 2)
untouched = tf.autograph.experimental.do_not_convert  # our graphs are plain: no Python to translate


class Reading:
    """NumPy batches of a tf.data set that calls Python on the way.

    It hands the first Python error on as it is, where TensorFlow would raise a page of text, and it stops
    the background threads before the interpreter goes: one that still wanted to call Python would hang it.
    """

    _running: ClassVar = weakref.WeakSet()

    def __init__(self):
        self._error: Exception | None = None
        self._iterator = None

    def guard(self, function: Callable) -> Callable:
        """`function`, remembering the first error that it raises."""

        def guarded(*arguments):
            try:
                return function(*arguments)
            except Exception as error:
                self._error = self._error or error
                raise

        return guarded

    def start(self, dataset) -> Reading:
        """Begins to read ahead."""
        self._iterator = dataset.with_options(_options()).as_numpy_iterator()
        self._running.add(self)
        return self

    def __iter__(self) -> Iterator[dict]:
        return self

    def __next__(self) -> dict:
        if self._iterator is None:
            raise self._error or StopIteration
        try:
            return next(self._iterator)
        except StopIteration:
            self.close()
            raise
        except tf.errors.OpError as error:
            self._error = self._error or DataError(f"TensorFlow cannot read the data: {str(error).splitlines()[0]}")
            self.close()
            raise self._error from None

    def close(self) -> None:
        """Stops the threads and frees the buffers."""
        self._iterator = None
        self._running.discard(self)


@atexit.register
def _close_all() -> None:
    for reading in list(Reading._running):
        reading.close()


def read_map(read: Callable[[np.ndarray], tuple[Sequence[int], Sequence[bytes]]], reading: Reading) -> Callable:
    """Wraps `read` for `tf.data.Dataset.map`: [n] int64 numbers of samples to (these, record positions, payloads)."""

    def numpy_read(numbers):
        positions, payloads = read(numbers)
        return np.asarray(positions, np.int64), np.asarray(payloads, object)

    def mapped(numbers):
        positions, payloads = tf.numpy_function(reading.guard(numpy_read), [numbers], [tf.int64, tf.string])
        return numbers, tf.ensure_shape(positions, numbers.shape), tf.ensure_shape(payloads, numbers.shape)

    return untouched(mapped)


def parse(dataset: Dataset) -> Callable:
    """Returns a function from a serialised example to arrays as they are stored.

    It gives a dict: `sensors` by name with `stored` [T, H, W, all bands], `valid` [T, H, W] bool, `time`
    [T] int32 and `location` [2] float32 degrees; and `labels` where there are any.
    """
    parser = tfds.core.example_parser.ExampleParser(dataset.features().get_serialized_info())

    def array(text, dtype, shape):
        return tf.reshape(tf.io.decode_raw(text, dtype), shape)

    def parsed(payload):
        example = parser.parse_example(payload)
        location = tf.stack([example["latitude"], example["longitude"]])
        sensors = {}
        for name in dataset.sensors:
            info, entry = dataset.metadata.sensors[name], example["sensors"][name]
            sensors[name] = {
                "stored": array(entry["pixels"], info.dtype, [*info.shape, len(info.bands)]),
                "valid": array(entry["valid"], tf.uint8, info.shape) > 0,
                "time": entry["time"],
                "location": location,
            }
        labels = dict(example.get("labels", {}))
        for name, info in dataset.labels.items():
            if info.kind == schema.MAP:
                labels[name] = tf.cast(array(labels[name], tf.int16, info.shape(dataset.metadata.sensors)), tf.int32)
        return {"sensors": sensors, **({"labels": labels} if labels else {})}

    return parsed


def physical(dataset: Dataset, name: str, stored, valid):
    """Stored values to the chosen bands in the sensor's unit.

    Args:
        dataset: whose values they are.
        name: sensor.
        stored: [T, H, W, all bands], storage dtype.
        valid: [T, H, W] bool.

    Returns:
        pixels [T, H, W, C] float32, 0 where not valid; valid [T, H, W] bool, False also where a chosen
        band holds the no-data value, NaN or infinity.
    """
    stored = _chosen(dataset, name, stored)
    pixels = _scaled(dataset.metadata.sensors[name], stored)
    valid = _observed(dataset.metadata.sensors[name], stored, pixels, valid)
    return tf.where(valid[..., None], pixels, 0.0), valid


def _chosen(dataset: Dataset, name: str, stored):
    channels = dataset.channels[name]
    everything = channels == tuple(range(len(dataset.metadata.sensors[name].bands)))
    return stored if everything else tf.gather(stored, channels, axis=-1)


def _scaled(info: schema.SensorInfo, stored):
    pixels = tf.cast(stored, tf.float32)
    return pixels if (info.scale, info.offset) == (1, 0) else pixels * info.scale + info.offset


def _observed(info: schema.SensorInfo, stored, pixels, valid):
    if stored.dtype.is_floating:
        valid &= tf.reduce_all(tf.math.is_finite(pixels), -1)
    if info.no_data is not None:
        valid &= tf.reduce_all(stored != tf.cast(info.no_data, stored.dtype), -1)
    return valid


def place(dataset: Dataset, sample: dict, view: View) -> dict:
    """Brings what a view shows to images in physical units.

    Args:
        dataset: whose sample it is.
        sample: of `parse`.
        view: what to show, and how.

    Returns:
        By sensor of the view a dict of `pixels` [T, size, size, C] float32, `valid` [T, size, size] bool, `time` [T]
        int32, `location` [2] float32 and `gsd` [] float32; and `ground` [2, 3] float32 of `augment.ground` where the
        view asks for it. T is what `view.frames` says: dates with a valid pixel in the box, in their stored order,
        then invalid ones.
    """
    seeds = view.seeds()
    return {name: _place(dataset, name, sample["sensors"][name], view, seeds[name]) for name in view.sizes}


def _place(dataset: Dataset, name: str, entry: dict, view: View, seeds: tuple) -> dict:
    stored, valid, time = entry["stored"], entry["valid"], entry["time"]
    size, resampling = view.sizes[name], dataset.sensors[name].resampling
    frame_seed, date_seed, value_seed = seeds
    inner, further = None, {}
    if view.tile_power and resampling == COMPLEX:
        further["power"] = power_limits(*physical(dataset, name, stored, valid))
    if view.box is not None:  # only what the crop and the dates need is converted
        stored, valid, inner = augment.window(stored, valid, view.box, size, resampling)
    if name in view.frames:
        index, present = _frames(dataset, name, stored, valid, inner, view.frames[name], frame_seed)
        stored, valid = tf.gather(stored, index), tf.gather(valid, index) & present[:, None, None]
        time = tf.where(present, tf.gather(time, index), NO_TIME)
        further = {key: tf.where(present[:, None], tf.gather(of, index), 0.0) for key, of in further.items()}
    pixels, valid = physical(dataset, name, stored, valid)
    if inner is not None:
        pixels, valid = augment.resample(pixels, valid, inner, size, resampling)
    if name in view.photometric:
        pixels, valid = augment.disturb(
            pixels, valid, value_seed, view.photometric[name], resampling, view.statistics[name]
        )
    if view.date_jitter:
        time = views.move_dates(time, view.date_jitter, date_seed)
    placed = {
        "pixels": view.move_values(pixels, dataset.sensors[name]),
        "valid": view.move(valid[..., None])[..., 0],
        "time": time,
        "location": entry["location"],
        **further,
    }
    rows, columns = dataset.shape(name)[1:]
    box = None if view.box is None else augment.shown(view.box, rows, columns, size, resampling)
    share = 1.0 if box is None else box[2] * rows / size  # of a stored pixel's side
    placed["gsd"] = tf.cast(dataset.metadata.sensors[name].gsd * share, tf.float32)
    if view.grounded:
        placed["ground"] = augment.ground(box, *view.turned)
    return placed


def power_limits(pixels, valid):
    """Smallest and largest total power of valid pixels: [T, H, W, C] and [T, H, W] to [T, 2] float32, 0 for none."""
    power = tf.reduce_sum(tf.square(pixels), -1)
    low = tf.reduce_min(tf.where(valid, power, power.dtype.max), [1, 2])
    high = tf.reduce_max(tf.where(valid, power, 0.0), [1, 2])
    return tf.stack([tf.minimum(low, high), high], 1)


def _frames(dataset: Dataset, name: str, stored, valid, inner, count: int, seed):
    """`views.choose_frames` among the dates on which every chosen band of a pixel in the box was observed."""
    info, stored = dataset.metadata.sensors[name], _chosen(dataset, name, stored)
    pixels = _scaled(info, stored) if stored.dtype.is_floating else None
    valid = _observed(info, stored, pixels, valid)
    if inner is not None:  # a window reaches beyond its box
        height, width = (tf.range(tf.shape(valid)[axis], dtype=tf.float32) for axis in (1, 2))
        rows = (height + 1 > inner[0] + rules.LEAST) & (height < inner[0] + inner[2] - rules.LEAST)
        columns = (width + 1 > inner[1] + rules.LEAST) & (width < inner[1] + inner[3] - rules.LEAST)
        valid &= rows[:, None] & columns
    return views.choose_frames(tf.reduce_any(valid, [1, 2]), count, seed)


def place_labels(dataset: Dataset, sample: dict, view: View) -> dict:
    """Labels of what a view shows.

    Args:
        dataset: whose sample it is.
        sample: of `parse`.
        view: what is shown. Maps and boxes have the size of the sensor that they lie on, or the view's `image_size`
            where it is not shown.

    Returns:
        By name, as `schema.LabelInfo` describes them. None of kind `BOXES` or `TRACKS` where the view may stretch
        (`StreamConfig.crop_ratio`), for an oriented box cannot; and no `TRACKS` where it shows chosen dates, for they
        count all stored ones.
    """
    labels = dict(sample.get("labels", {}))
    whole = tf.constant([0.0, 0.0, 1.0, 1.0]) if view.box is None else view.box
    for name, info in dataset.labels.items():
        size = view.sizes.get(dataset.carrier(name), view.image_size)
        if info.kind == schema.MAP:
            labels[name] = view.move(augment.crop_map(labels[name], whole, size)[..., None])[..., 0]
        elif info.kind in (schema.BOXES, schema.TRACKS):
            rows = labels.pop(name)
            if not view.stretched and rules.shows_rows(dataset, name, view.sizes, view.frames):
                rows = crop_boxes(rows, whole, dataset.shape(info.sensor)[1:], size)
                labels[name] = view.move_boxes(rows, size)
    return labels


def crop_boxes(rows, box, grid: tuple[int, int], size: int):
    """Boxes or tracks, in pixels of a grid, to pixels of a crop; those whose centre it misses are not used.

    Of the others, boxes of angle 0 are clipped to the crop, and turned ones are kept whole, because what a border
    leaves of them is no rectangle (as `layouts.tiles.cut`).

    Args:
        rows: [N, 6 or 8] float32 as `schema.BOX` and `schema.TRACK` describe them.
        box: [4] float32 of `augment`, square on the ground.
        grid: rows and columns of the tile that `rows` count in.
        size: rows and columns of the crop.

    Returns:
        [N, 6 or 8] float32; rows that are not used hold `schema.UNLABELLED` throughout.
    """
    scale = size / (box[2:] * tf.constant(grid, tf.float32))  # of y and of x
    centre = (rows[:, 1:3] - (box[:2] * tf.constant(grid, tf.float32))[::-1]) * scale[::-1]
    extent = rows[:, 3:5] * tf.sqrt(scale[0] * scale[1])
    used = (rows[:, :1] >= 0) & tf.reduce_all((centre >= 0) & (centre < size), 1, keepdims=True)
    clipped = tf.cast(rows[:, 5:6] == 0, tf.float32)
    before = clipped * tf.maximum(extent / 2 - centre, 0.0)
    beyond = clipped * tf.maximum(centre + extent / 2 - size, 0.0)
    centre, extent = centre + (before - beyond) / 2, extent - before - beyond
    return tf.where(used, tf.concat([rows[:, :1], centre, extent, rows[:, 5:]], 1), float(schema.UNLABELLED))


def hide(entries: dict, seed, sizes: Mapping[str, int], unit: int, ratio: float) -> dict:
    """Adds to every sensor a `mask` [size / unit, size / unit] bool of its own; none where `unit` is 0."""
    if not unit:
        return entries
    seeds = tf.random.experimental.stateless_split(seed, len(entries))
    cells = {name: sizes[name] // unit for name in entries}
    return {
        name: {**entry, "mask": masking.random_mask(seeds[i], cells[name], cells[name], ratio)}
        for i, (name, entry) in enumerate(entries.items())
    }


def _options():
    """tf.data options: deterministic, one thread an operation, no buffers but ours (as big_vision)."""
    chosen = tf.data.Options()
    chosen.deterministic = True
    chosen.threading.private_threadpool_size = min(48, 2 * PARALLEL)
    chosen.threading.max_intra_op_parallelism = 1
    chosen.experimental_optimization.inject_prefetch = False
    # Every number here is ours, so there is nothing to tune; and freeing an iterator can miss to wake its tuning
    # thread, which then sleeps for up to a minute while the program waits to end (TensorFlow 2.21).
    chosen.autotune.enabled = False
    return chosen
