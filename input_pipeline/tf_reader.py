"""The reader "tf": records are read as they are needed, and a tf.data graph makes batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from input_pipeline import pipeline, schema
from input_pipeline.cpu_tf import tf
from input_pipeline.records import Records
from input_pipeline.rules import Shown
from input_pipeline.views import View, Views
from ringmoe_jax.data_config import DataConfig


def training(config: DataConfig, streams: Mapping) -> Training:
    """Source of training batches.

    Args:
        config: what to read.
        streams: `input_pipeline.reader.Stream` by name.
    """
    return Training(config, streams)


class Training:
    """See `training`."""

    def __init__(self, config: DataConfig, streams: Mapping):
        self._prefetch = config.prefetch
        self._streams = {name: _Stream(config, stream) for name, stream in streams.items()}

    def start(self, number: int) -> pipeline.Reading:
        """Parts of batches by stream from a number on, without end."""
        reading = pipeline.Reading()
        streams = {name: stream.batches(number, reading) for name, stream in self._streams.items()}
        return reading.start(tf.data.Dataset.zip(streams).prefetch(self._prefetch))


class _Stream:
    def __init__(self, config: DataConfig, stream):
        self._config, self._stream = config, stream
        self._parse, self._views = pipeline.parse(stream.dataset), Views(stream.rules)

    def batches(self, number: int, reading: pipeline.Reading):
        """tf.data set of this host's batches from a number on, without end."""
        count = self._stream.count
        read = pipeline.read_map(self._read, reading)
        return (
            tf.data.Dataset.range(number, tf.int64.max // (count * self._stream.hosts))
            .map(pipeline.untouched(self._stream.numbers))
            .map(read, num_parallel_calls=2)
            .unbatch()
            .map(pipeline.untouched(self._sample), num_parallel_calls=pipeline.PARALLEL)
            .batch(count, drop_remainder=True)
        )

    def _read(self, numbers: np.ndarray):
        return zip(*self._stream.records.read_or_next(self._stream.candidates(numbers)), strict=True)

    def _sample(self, number, position, payload):
        config, stream = self._config, self._stream
        seed = tf.random.experimental.stateless_fold_in(tf.constant(stream.seed, tf.int64), number)
        crop_seed, turn_seed, mask_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
        view = self._views.first(crop_seed, turn_seed, tf.random.experimental.stateless_fold_in(seed, 0))
        sample = self._parse(payload)
        labels = pipeline.place_labels(stream.dataset, sample, view)
        shown = pipeline.place(stream.dataset, sample, view)
        batch = {
            "sensors": pipeline.hide(shown, mask_seed, view.sizes, config.mask_unit, config.mask_ratio),
            "index": position,
        }
        others = {
            key: pipeline.place(stream.dataset, sample, other) for key, other in self._views.others(view, seed).items()
        }
        return {**batch, **({"labels": labels} if labels else {}), **({"views": others} if others else {})}


def evaluation(shown: Shown) -> Callable[[Records, np.ndarray, int], Iterator[dict]]:
    """Reads batches of an evaluation.

    Args:
        shown: what of every sample.

    Returns:
        A function of the split's records, the order [batches * batch_size] of positions, -1 for samples that fill up,
        and the batch size of this host.
    """
    dataset, parse = shown.dataset, pipeline.parse(shown.dataset)
    box = None if shown.box is None else tf.constant(shown.box, tf.float32)
    view = View(box, shown.sizes, shown.image_size, shown.frames, tile_power=shown.tile_power)
    blank = schema.serialiser(dataset.metadata)(schema.to_example(schema.blank(dataset.metadata), dataset.metadata))

    @tf.function(autograph=False)  # one graph for all passes
    def sample(_, position, payload):
        parsed = parse(payload)
        labels = pipeline.place_labels(dataset, parsed, view)
        seed = tf.random.experimental.stateless_fold_in(tf.constant([shown.seed, 0], tf.int64), position)
        entries = pipeline.place(dataset, parsed, view)
        entries = pipeline.hide(entries, seed, view.sizes, shown.mask_unit, shown.mask_ratio)
        batch = {"sensors": entries, "index": position, "real": position >= 0}
        return {**batch, **({"labels": labels} if labels else {})}

    def read(records: Records, order: np.ndarray, batch_size: int) -> Iterator[dict]:
        reading = pipeline.Reading()

        def whole(positions):
            payloads = records.read_known(positions)
            kept = [-1 if payload is None else p for p, payload in zip(positions, payloads, strict=True)]
            return kept, [payload or blank for payload in payloads]

        batches = (
            tf.data.Dataset.from_tensor_slices(order)
            .batch(batch_size)
            .map(pipeline.read_map(whole, reading))
            .unbatch()
            .map(pipeline.untouched(sample), num_parallel_calls=pipeline.PARALLEL)
            .batch(batch_size)
            .prefetch(1)
        )
        return reading.start(batches)

    return read
