"""Batches of the reader "device": rows of arrays that lie on the device, by one jitted function a stream.

The function takes the arrays as arguments, so that they are no part of the program. What crosses from the host at
every batch is which rows, and the numbers of the samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from input_pipeline.device import looks, samples, storage
from input_pipeline.device.looks import Look
from input_pipeline.device.samples import Shows
from input_pipeline.records import Records
from input_pipeline.rules import Shown
from ringmoe_jax.data_config import DataConfig


def training(config: DataConfig, streams: Mapping) -> Training:
    """Source of training batches.

    Args:
        config: what to read.
        streams: `input_pipeline.reader.Stream` by name.

    Raises:
        DataError: they do not fit into the device's memory.
    """
    storage.check_fits({name: (stream.dataset, len(stream.positions)) for name, stream in streams.items()})
    return Training(config, streams)


class Training:
    """See `training`."""

    def __init__(self, config: DataConfig, streams: Mapping):
        self._streams = {name: _Stream(config, stream) for name, stream in streams.items()}

    def start(self, number: int) -> Iterator[dict]:
        """Parts of batches by stream from a number on, without end. Splits are read first, and freed by `close`."""
        arrays = {name: stream.load() for name, stream in self._streams.items()}
        while True:
            yield {name: stream.batch(arrays[name], number) for name, stream in self._streams.items()}
            number += 1


class _Stream:
    def __init__(self, config: DataConfig, stream):
        self._config, self._stream = config, stream
        self._make = jax.jit(self._batch)

    def load(self) -> dict:
        stream = self._stream
        return storage.load(stream.dataset, stream.records, stream.positions)

    def batch(self, arrays: Mapping, number: int) -> dict:
        """This host's rows of batch `number`."""
        stream = self._stream
        numbers, bad = stream.numbers(number), stream.records.bad
        positions = np.array([next(p for p in several if p not in bad) for several in stream.candidates(numbers)])
        rows = np.searchsorted(stream.positions, positions).astype(np.int32)
        numbers = np.stack(np.divmod(numbers, 2**32), axis=1).astype(np.uint32)
        return {**self._make(arrays, *jax.device_put((rows, numbers))), "index": positions}

    def _batch(self, arrays, rows, numbers):
        config, stream = self._config, self._stream
        counts = samples.draws(stream.dataset)
        keys = looks.keys_of(stream.seed, numbers, 2)
        drawn = jax.vmap(functools.partial(looks.draw, stream.rules, counts))(keys[:, 0])
        taken = jax.tree.map(lambda array: array[rows], arrays)
        show = functools.partial(samples.train_sample, config, stream.rules, stream.dataset)
        return jax.vmap(show)(taken, drawn, keys[:, 1])


def evaluation(shown: Shown) -> Callable[[Records, np.ndarray, int], Iterator[dict]]:
    """Reads batches of an evaluation, as NumPy arrays. Records are read as they are needed: each is shown once.

    Args:
        shown: what of every sample.

    Returns:
        A function of the split's records, the order [batches * batch_size] of positions, -1 for samples that fill up,
        and the batch size of this host.
    """
    dataset = shown.dataset
    shows = Shows(dataset, shown.sizes, shown.image_size, shown.frames, tile_power=shown.tile_power)

    def one(sample, key):
        box = None if shown.box is None else np.array(shown.box, np.float32)
        look = Look(box, np.array(False), np.array(0, np.int32), None)
        entries = samples.place(shows, sample, look)
        batch = {"sensors": samples.hide(entries, key, shown.sizes, shown.mask_unit, shown.mask_ratio)}
        labels = samples.place_labels(shows, sample, look)
        return {**batch, **({"labels": labels} if labels else {})}

    make = jax.jit(lambda arrays, numbers: jax.vmap(one)(arrays, looks.keys_of((shown.seed,), numbers, 1)[:, 0]))

    def read(records: Records, order: np.ndarray, batch_size: int) -> Iterator[dict]:
        for positions in order.reshape(-1, batch_size):
            payloads = records.read_known(positions)
            index = np.array([-1 if payload is None else p for p, payload in zip(positions, payloads, strict=True)])
            arrays = storage.blank(dataset, batch_size)
            storage.fill(dataset, arrays, payloads)
            numbers = np.stack([np.zeros_like(index), index], 1).astype(np.uint32)
            batch = jax.device_get(make(*jax.device_put((arrays, numbers))))
            yield {**batch, "index": index, "real": index >= 0}

    return read
