"""The input pipeline: what a second and a core of each reader give, what a host needs, and what a slow store costs."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

from input_pipeline import records
from input_pipeline.dataset import open_dataset
from input_pipeline.reader import BatchIterator, train_batches
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.data_config import DataConfig, StreamConfig
from ringmoe_jax.errors import UserError
from ringmoe_jax.training.loop import count_images

READERS = ("tf", "device")
REQUESTS = 32  # to a store at once, as TensorStore has it for Cloud Storage


@dataclasses.dataclass(frozen=True)
class Rate:
    """What was read in one second, and by one second of one core: a core that other programs share loses seconds."""

    images: float
    records: float
    megabytes: float
    records_a_core: float
    megabytes_a_core: float

    def __str__(self) -> str:
        return (
            f"{self.images:,.0f} images/s, {self.records:,.0f} records/s, {self.megabytes:,.1f} MB/s; a core "
            f"{self.records_a_core:,.0f} records/s, {self.megabytes_a_core:,.1f} MB/s"
        )


def measure(config: DataConfig, batches: int) -> dict[str, Rate]:
    """Records alone (checksums included, decoding not), and what each reader makes of them, as training reads.

    Args:
        config: of the data; its reader is each in turn.
        batches: how many are timed, after a few that fill buffers.

    Returns:
        By reader, those that do not read this data here left out with a line; and "records alone".
    """
    found = {"records alone": _alone(config, batches)}
    for name in READERS:
        try:
            iterator = train_batches(dataclasses.replace(config, reader=name))
            for batch in itertools.islice(iterator, 2 * config.prefetch + 2):
                images = count_images(batch)
        except UserError as error:
            print(f"{name}: not measured: {error}")
            continue
        count, size = _step(config, iterator.sizes)
        with contextlib.closing(iterator):
            read = lambda iterator=iterator: jax.block_until_ready(next(iterator))  # noqa: E731
            found[name] = _rate(read, batches, images, count, size)
    return found


def _alone(config: DataConfig, batches: int) -> Rate:
    """Reads as many records of each stream as a batch takes, in random order."""
    rng, opened = np.random.default_rng(0), {}
    for name, stream in config.streams.items():
        opened[name] = open_dataset(stream.directory, stream.sensors).records(stream.split, 0)

    def read() -> None:
        for split in opened.values():
            split.read(rng.integers(len(split), size=config.batch_size))

    sizes = dict.fromkeys(opened, config.batch_size)
    images = sum(config.batch_size * len(stream.sensors) for stream in config.streams.values())
    return _rate(read, batches, images, *_step(config, sizes))


def _rate(read: Callable[[], object], batches: int, images: int, count: int, size: float) -> Rate:
    """Of `batches` steps of so many images, records and bytes."""
    started, spent = time.perf_counter(), time.process_time()
    for _ in range(batches):
        read()
    wall, core = time.perf_counter() - started, time.process_time() - spent
    a_second, a_core = batches / wall, batches / core
    return Rate(images * a_second, count * a_second, size * a_second / 1e6, count * a_core, size * a_core / 1e6)


def _step(config: DataConfig, sizes: dict[str, int]) -> tuple[int, float]:
    """Records and bytes of a step with so many samples of each stream."""
    streams = config.streams
    return sum(sizes.values()), sum(n * record_bytes(config, streams[name]) for name, n in sizes.items())


def record_bytes(config: DataConfig, stream: StreamConfig) -> float:
    """Bytes of a stream's record: of its data set, or at least, by the sizes that are shown, where it is not there."""
    if Path(stream.directory).exists() or "://" in stream.directory:
        dataset = open_dataset(stream.directory, stream.sensors)
        return dataset.nbytes(stream.split) / dataset.size(stream.split)
    total = 0
    for name in stream.sensors:
        sensor = sensor_table.get(name)
        pixels = config.frames.get(name, 1) * config.size(name) ** 2
        total += pixels * (sensor.channels * np.dtype(sensor.dtype).itemsize + 1)  # a byte says what was observed
    return total


def needs(config: DataConfig, hosts: int, seconds: float) -> tuple[float, float]:
    """Records and MB a second that each of some hosts has to read for steps of so many seconds."""
    count, size = _step(config, dict.fromkeys(config.streams, config.batch_size))
    return count / hosts / seconds, size / hosts / seconds / 1e6


# ---- A slow store -------------------------------------------------------------------------------------


class SlowStore:
    """A store that answers every request so many seconds later, `REQUESTS` of them at once."""

    def __init__(self, store, seconds: float):
        self._store, self._seconds = store, seconds
        self._threads = concurrent.futures.ThreadPoolExecutor(REQUESTS)

    def read(self, name: str, *, byte_range: slice, batch: object = None) -> concurrent.futures.Future:
        """Asks; `result()` of what it gives waits."""
        return self._threads.submit(self._answer, name, byte_range)

    def _answer(self, name: str, byte_range: slice):
        time.sleep(self._seconds)
        return self._store.read(name, byte_range=byte_range).result()


@contextlib.contextmanager
def slow(seconds: float) -> Iterator[None]:
    """Within it, data sets that are opened lie in a `SlowStore`."""
    usual = records.open_store
    records.open_store = lambda directory: SlowStore(usual(directory), seconds)
    try:
        yield
    finally:
        records.open_store = usual


def stalls(config: DataConfig, seconds: float, delay: float, steps: int) -> dict[str, float]:
    """What steps of so many seconds wait for their batch, on average and in seconds, where a request takes `delay`.

    Returns:
        "read ahead": the reader "tf"; "when asked for": the same records, read once the step wants them.
    """
    with slow(delay), contextlib.closing(train_batches(dataclasses.replace(config, reader="tf"))) as iterator:
        for _ in range(config.prefetch):
            next(iterator)
        ahead = _waits(lambda: next(iterator), seconds, steps)
        asked = _waits(_asked(config, iterator), seconds, steps)
    return {"read ahead": ahead, "when asked for": asked}


def _asked(config: DataConfig, iterator: BatchIterator) -> Callable[[], None]:
    """Reads what the next batch of every stream holds."""
    rng = np.random.default_rng(0)
    splits = {name: dataset.records(config.streams[name].split, 0) for name, dataset in iterator.datasets.items()}

    def read() -> None:
        for name, split in splits.items():
            split.read(rng.integers(len(split), size=iterator.sizes[name]))

    return read


def _waits(read: Callable[[], object], seconds: float, steps: int) -> float:
    waited = 0.0
    for _ in range(steps):
        time.sleep(seconds)
        started = time.perf_counter()
        read()
        waited += time.perf_counter() - started
    return waited / steps
