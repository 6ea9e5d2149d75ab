"""The tf.data graph behind both readers: positions -> records -> samples -> batches."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds

from input_pipeline import augment, masking, schema
from input_pipeline.cpu_tf import tf
from input_pipeline.dataset import Dataset
from ringmoe_jax.errors import DataError

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
    """Wraps `read` for `tf.data.Dataset.map`: [n] int64 steps to (steps, record positions, payloads)."""

    def numpy_read(steps):
        positions, payloads = read(steps)
        return np.asarray(positions, np.int64), np.asarray(payloads, object)

    def mapped(steps):
        positions, payloads = tf.numpy_function(reading.guard(numpy_read), [steps], [tf.int64, tf.string])
        return steps, tf.ensure_shape(positions, steps.shape), tf.ensure_shape(payloads, steps.shape)

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
    info, channels = dataset.metadata.sensors[name], dataset.channels[name]
    if channels != tuple(range(len(info.bands))):
        stored = tf.gather(stored, channels, axis=-1)
    pixels = tf.cast(stored, tf.float32)
    if (info.scale, info.offset) != (1, 0):
        pixels = pixels * info.scale + info.offset
    if stored.dtype.is_floating:
        valid &= tf.reduce_all(tf.math.is_finite(pixels), -1)
    if info.no_data is not None:
        valid &= tf.reduce_all(stored != tf.cast(info.no_data, stored.dtype), -1)
    return tf.where(valid[..., None], pixels, 0.0), valid


def place(dataset: Dataset, sample: dict, box, size: int, turned: Callable | None = None) -> dict:
    """Brings every sensor and label on a grid to `size` x `size` pixels in physical units.

    Args:
        dataset: whose sample it is.
        sample: of `parse`.
        box: [4] float32 of `augment`, or None to leave tiles of the right size as they are.
        size: rows and columns of the result.
        turned: moves the pixels of a [..., size, size, C] tensor; None leaves them where they are. Boxes and
            tracks are left out where it is given: crops for training stretch, and an oriented box cannot.
    """
    move = turned or (lambda image: image)
    sensors = {}
    for name, entry in sample["sensors"].items():
        stored, valid, resampling = entry["stored"], entry["valid"], dataset.sensors[name].resampling
        if box is None:
            pixels, valid = physical(dataset, name, stored, valid)
        else:
            # Only what the crop needs is converted.
            stored, valid, inner = augment.window(stored, valid, box, size, resampling)
            pixels, valid = physical(dataset, name, stored, valid)
            pixels, valid = augment.resample(pixels, valid, inner, size, resampling)
        sensors[name] = {
            "pixels": move(pixels),
            "valid": move(valid[..., None])[..., 0],
            "time": entry["time"],
            "location": entry["location"],
        }
    labels = dict(sample.get("labels", {}))
    whole = tf.constant([0.0, 0.0, 1.0, 1.0]) if box is None else box
    for name, info in dataset.labels.items():
        if info.kind == schema.MAP:
            labels[name] = move(augment.crop_map(labels[name], whole, size)[..., None])[..., 0]
        elif info.kind in (schema.BOXES, schema.TRACKS):
            rows = labels.pop(name)
            if turned is None:
                labels[name] = crop_boxes(rows, whole, dataset.shape(info.sensor)[1:], size)
    return {"sensors": sensors, **({"labels": labels} if labels else {})}


def crop_boxes(rows, box, grid: tuple[int, int], size: int):
    """Boxes or tracks, in pixels of a grid, to pixels of a crop; those whose centre it misses are not used.

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
    return tf.where(used, tf.concat([rows[:, :1], centre, extent, rows[:, 5:]], 1), float(schema.UNLABELLED))


def hide(sample: dict, seed, size: int, unit: int, ratio: float) -> dict:
    """Adds to every sensor a `mask` [size / unit, size / unit] bool of its own; none where `unit` is 0."""
    if not unit:
        return sample
    seeds = tf.random.experimental.stateless_split(seed, len(sample["sensors"]))
    cells = size // unit
    sensors = {
        name: {**entry, "mask": masking.random_mask(seeds[i], cells, cells, ratio)}
        for i, (name, entry) in enumerate(sample["sensors"].items())
    }
    return {**sample, "sensors": sensors}


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
