"""Batches for training: several data sets, mixed, shuffled, augmented and masked, with exact resume.

Batch k is a pure function of (config, k): the order comes from `order.py`, and every random number from (seed, stream,
number of the sample). Of a batch of B rows host h of H reads the h-th block of B / H, so hosts side by side make the
batch that one would. A resumed run needs one integer, and continues, on any number of hosts, with exactly the batch
that an uninterrupted one would have seen.

Where `DataConfig.views` is set, a batch is

    batch["sensors"][name]             the first view, as `ringmoe_jax.contracts` describes it
    batch["views"]["second"][name]     the second view: the same sensors and rows, without `mask`
    batch["views"]["local0"][name]     local crops, "local0", "local1", ...: only `local_sensor`

and every entry holds `ground` [B, 2, 3] float32, an affine map A from the image to the stored tile. A point at
(row, column) of the image, 0 to 1 between the outer edges of its pixels as they are shown (flipped and rotated), lies
at A[:, :2] @ (row, column) + A[:, 2] of the tile, 0 to 1 between its outer edges. Sensors of a view share it, but for
a complex one whose grid a box cannot hit: it says which samples are shown.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from input_pipeline import rules
from input_pipeline.dataset import Dataset, open_dataset
from input_pipeline.order import Order, temperature_counts
from input_pipeline.subset import subset
from ringmoe_jax.data_config import DataConfig, StreamConfig
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.sensors import Statistics

# Modules with `training(config, streams)` and `evaluation(shown)`, by `DataConfig.reader`.
_READERS = {"tf": "input_pipeline.tf_reader", "device": "input_pipeline.device.reader"}


def load(name: str) -> ModuleType:
    """The module of a reader; only then is TensorFlow imported, where it is needed.

    Raises:
        ConfigError: there is no such reader, or it needs TensorFlow and that is not installed.
    """
    if name not in _READERS:
        raise ConfigError(f'reader "{name}" does not exist: {nearest(name, _READERS)}')
    try:
        return importlib.import_module(_READERS[name])
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("tensorflow", "tensorflow_datasets"):
            raise
        raise ConfigError(
            f'the reader "{name}" needs TensorFlow, which is not installed ({error}): set data.reader = "device", '
            "or pip install -r requirements-data.txt"
        ) from error


def train_batches(config: DataConfig, *, host: int = 0, hosts: int = 1, multiple_of: int = 1) -> BatchIterator:
    """Opens every stream of a mixture for one host.

    Args:
        config: what to read.
        host: index of this process, `jax.process_index()`.
        hosts: number of processes, `jax.process_count()`.
        multiple_of: number of shards that the images of a step are split over (all hosts together).

    Raises:
        ConfigError: a sensor is in two streams or is unknown, sensors cannot share a view or do not allow a
            disturbance, or a batch cannot be split over hosts and shards.
        DataError: a data set is missing or not what the sensor table says, its tiles or series are too small, a
            class that a fraction is taken of has no sample, or the data is too large for the device's memory.
    """
    rules.check_names("data.sizes", config.sizes)
    rules.check_names("data.frames", config.frames)
    if config.views:
        rules.check_names("data.views.sizes", config.views.sizes)
        rules.check_names("data.views.photometric", config.views.photometric)
    datasets = {n: open_dataset(s.directory, s.sensors, config.bands) for n, s in config.streams.items()}
    owners: dict[str, str] = {}
    for name, stream in config.streams.items():
        for sensor in stream.sensors:
            if owners.setdefault(sensor, name) != name:
                raise ConfigError(
                    f'data.streams: "{sensor}" is in "{owners[sensor]}" and "{name}", and a batch holds a sensor once: '
                    "join the data sets, or leave one stream out"
                )
    positions = {n: _positions(datasets[n], s, config.max_bad_records) for n, s in config.streams.items()}
    shards = math.lcm(hosts, multiple_of)
    if config.mixing == "zip":
        counts = dict.fromkeys(datasets, config.batch_size)
    else:
        weights = {n: len(positions[n]) * config.streams[n].weight for n in datasets}
        counts = temperature_counts(weights, config.batch_size, config.temperature, shards)
    if bad := [f"{n}: {c}" for n, c in counts.items() if c % shards]:
        raise ConfigError(f"data.batch_size gives {bad[0]} images a step, wanted a multiple of {shards}")
    streams = {
        name: Stream(name, config, dataset, positions[name], counts[name] // hosts, host, hosts)
        for name, dataset in datasets.items()
    }
    return BatchIterator(config, streams, hosts, load(config.reader).training(config, streams))


def _positions(dataset: Dataset, stream: StreamConfig, max_bad: int) -> np.ndarray:
    """Positions of the records that a stream shows."""
    chosen = stream.fraction, stream.fraction_label, stream.subset_seed
    return subset(dataset, stream.split, *chosen, of=stream.fraction_of, max_bad=max_bad)


class BatchIterator:
    """Endless batches as `ringmoe_jax.contracts` and this module describe them, with a position that can be saved.

    With one stream a batch also holds `index` [B] int64 (position in the split) and the data set's
    `labels` (boxes and tracks where `StreamConfig.crop_ratio` stretches nothing); with several, rows of
    different sensors show different places, and it holds neither. Arrays may be read-only, and lie on the device
    where the reader holds the data there (but for `index`).

    Attributes:
        datasets: the opened data sets, by stream.
        statistics: normalisation of every sensor, as `DataConfig.statistics` chose it.
        sizes: images a step on this host, by stream.
        samples: samples of an epoch, over all hosts, by stream: those of the split, or of its subset.
    """

    def __init__(self, config: DataConfig, streams: Mapping[str, Stream], hosts: int, source: Any):
        """Use `train_batches`. `source.start(number)` gives the parts of batches from that number on, by stream."""
        self.datasets = {name: stream.dataset for name, stream in streams.items()}
        self.sizes = {name: stream.count for name, stream in streams.items()}
        self.samples = {name: len(stream.positions) for name, stream in streams.items()}
        self.statistics: dict[str, Statistics] = {
            sensor: values
            for dataset in self.datasets.values()
            for sensor, values in rules.statistics(config, dataset).items()
        }
        self._source = source
        self._config, self._streams, self._hosts = config, streams, hosts
        self._batches, self._iterator = 0, None

    @property
    def bad_records(self) -> int:
        """Distinct broken records met so far; the log names each once."""
        return sum(len(stream.records.bad) for stream in self._streams.values())

    def __iter__(self) -> Iterator[dict]:
        return self

    def __next__(self) -> dict:
        """The next batch.

        Raises:
            DataError: more records are broken than `max_bad_records`; names them.
        """
        if self._iterator is None:
            self._iterator = self._source.start(self._batches)
        parts = next(self._iterator)
        self._batches += 1
        if len(parts) == 1:
            return next(iter(parts.values()))
        batch = {"sensors": {name: entry for part in parts.values() for name, entry in part["sensors"].items()}}
        for part in parts.values():
            for view, entries in part.get("views", {}).items():
                batch.setdefault("views", {}).setdefault(view, {}).update(entries)
        return batch

    def get_state(self) -> dict:
        """The position and what it depends on, as JSON types."""
        return {
            "batches": self._batches,
            "seed": self._config.shuffle_seed,
            "streams": {
                name: [stream.fingerprint(), stream.count * self._hosts] for name, stream in self._streams.items()
            },
        }

    def set_state(self, state: Mapping) -> None:
        """Continues after `state["batches"]` batches.

        Args:
            state: of `get_state`, of a run with the same data sets, batch sizes and seed, on any number of hosts.

        Raises:
            DataError: the state does not fit, so the next batch would not be the right one.
        """
        own = self.get_state()
        for key in ("streams", "seed"):
            if state.get(key) != own[key]:
                raise DataError(
                    f"the saved data position has {key} = {state.get(key)}, this run {own[key]}: "
                    "start it as before (same data sets and seed), or in another --workdir"
                )
        self.close()
        self._batches = int(state["batches"])

    def close(self) -> None:
        """Stops reading ahead and frees the buffers; `next` would start again where it was."""
        if self._iterator is not None:
            self._iterator.close()
        self._iterator = None


class Stream:
    """One data set of the mixture, as one host reads it.

    Attributes:
        name: of the stream.
        dataset: opened.
        positions: [n] int64, ascending: records that are shown.
        count: samples of a batch on this host.
        host: index of this host.
        hosts: number of them.
        seed: integers that seed everything that is drawn for this stream.
        order: which record comes when.
        records: access to the split.
        rules: how views are drawn.
    """

    def __init__(
        self,
        name: str,
        config: DataConfig,
        dataset: Dataset,
        positions: np.ndarray,
        count: int,
        host: int,
        hosts: int,
    ):
        self.name, self.dataset, self.positions, self.count = name, dataset, positions, count
        self.host, self.hosts, self._split = host, hosts, config.streams[name].split
        # Streams of one directory and seed still differ, by their name.
        self.seed = (config.shuffle_seed, zlib.crc32(name.encode()))
        self.order = Order(positions, self.seed)
        self.records = dataset.records(self._split, config.max_bad_records)
        self.rules = rules.ViewRules.of(config, name, dataset)

    def fingerprint(self) -> str:
        """Changes where a step would show another sample: with the data set, its split and the subset of it."""
        whole = self.dataset.fingerprint(self._split)
        if len(self.positions) == self.dataset.size(self._split):
            return whole
        return hashlib.sha256(whole.encode() + self.positions.astype("<i8").tobytes()).hexdigest()[:16]

    def numbers(self, batch):
        """[count] int64 numbers of this host's samples in a batch, an integer or a tensor."""
        return (batch * self.hosts + self.host) * self.count + np.arange(self.count)

    def candidates(self, numbers: Sequence[int]) -> list[Iterator[int]]:
        """For each sample the record that it shows, then those that replace it if it is broken."""
        return [self.order.candidates(int(number)) for number in numbers]
