"""The input pipeline: images a second that reach a train step, beside reading the same records alone."""

from __future__ import annotations

import itertools
import time

import jax
import numpy as np

from input_pipeline.dataset import open_dataset
from input_pipeline.reader import train_batches
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.training.loop import count_images


def measure(config: DataConfig, batches: int) -> dict[str, float]:
    """Reads, decodes, crops, augments, masks and batches as `experiments.pretrain` does.

    Args:
        config: of the data.
        batches: how many are timed, after a few that fill buffers.

    Returns:
        Images a second of the whole pipeline and of its records alone (checksums included, decoding not), and their
        quotient.
    """
    iterator = train_batches(config)
    for batch in itertools.islice(iterator, 2 * config.prefetch + 2):
        per_batch = count_images(batch)
    started = time.perf_counter()
    for _ in range(batches):
        jax.block_until_ready(next(iterator))
    pipeline = batches * per_batch / (time.perf_counter() - started)
    iterator.close()
    alone = _records(config, batches)
    return {"pipeline": pipeline, "records alone": alone, "fraction": pipeline / alone}


def _records(config: DataConfig, batches: int) -> float:
    """Records a second, as many of each stream as `batches` batches take, in random order."""
    rng, count, seconds = np.random.default_rng(0), 0, 0.0
    for stream in config.streams.values():
        dataset = open_dataset(stream.directory, stream.sensors)
        records = dataset.records(stream.split, 0)
        for _ in range(batches):
            positions = rng.integers(len(records), size=config.batch_size)
            started = time.perf_counter()
            records.read(positions)
            seconds += time.perf_counter() - started
            count += len(positions)
    return count / seconds
