"""Records to arrays: of a whole split on the device, or of some samples on the host.

Arrays of n samples are a dict:

    sensors/<name>/stored   [n, T, H, W, C] of the bands that are read, in the storage dtype
    sensors/<name>/valid    [n, T, H, W] bool: every one of these bands was observed; absent where that is so throughout
    sensors/<name>/time     [n, T] int32
    location                [n, 2] float32 degrees, NaN where unknown
    labels/<name>           [n, ...] as they are stored
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from input_pipeline import example, schema
from input_pipeline.dataset import Dataset
from input_pipeline.device.values import observed
from input_pipeline.records import Records
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError

SHARE = 0.5  # of the device's memory that data may take: the rest is the model's (our choice)
_AT_ONCE = 256  # records in memory while a split is read
_DTYPES = {schema.CLASSES: np.int32, schema.MAP: np.int16}  # of labels; float32 otherwise


def blank(dataset: Dataset, count: int) -> dict:
    """Arrays of samples that hold nothing: no pixel valid, no date, no place, labels unknown or zero."""
    sensors = {}
    for name, channels in dataset.channels.items():
        info = dataset.metadata.sensors[name]
        sensors[name] = {
            "stored": np.zeros((count, *info.shape, len(channels)), info.dtype),
            "valid": np.zeros((count, *info.shape), np.bool_),
            "time": np.full((count, info.shape[0]), NO_TIME, np.int32),
        }
    labels = {
        name: np.tile(np.asarray(value, _DTYPES.get(dataset.labels[name].kind, np.float32)), (count, *[1] * value.ndim))
        for name, value in schema.blank(dataset.metadata).labels.items()
    }
    return {"sensors": sensors, "location": np.full((count, 2), np.nan, np.float32), "labels": labels}


def fill(dataset: Dataset, arrays: Mapping, payloads: Sequence[bytes | None], start: int = 0) -> None:
    """Decodes records into rows of `blank` arrays from row `start` on; None leaves a row as it is."""
    for row, payload in enumerate(payloads, start):
        if payload is None:
            continue
        features = example.parse(payload)
        arrays["location"][row] = features["latitude"][0], features["longitude"][0]
        for name, entry in arrays["sensors"].items():
            info = dataset.metadata.sensors[name]
            stored = np.frombuffer(features[f"sensors/{name}/pixels"][0], info.dtype).reshape(*info.shape, -1)
            channels = dataset.channels[name]
            everything = channels == tuple(range(stored.shape[-1]))
            entry["stored"][row] = stored if everything else stored[..., channels]
            valid = np.frombuffer(features[f"sensors/{name}/valid"][0], np.bool_).reshape(info.shape)
            entry["valid"][row] = observed(info, entry["stored"][row], valid)
            entry["time"][row] = features[f"sensors/{name}/time"]
        for name, label in arrays["labels"].items():
            values = features[f"labels/{name}"]
            if dataset.labels[name].kind == schema.MAP:
                values = np.frombuffer(values[0], label.dtype)
            label[row] = np.reshape(values, label.shape[1:])


def load(dataset: Dataset, records: Records, positions: np.ndarray) -> dict:
    """Reads samples of a split and puts them on the device.

    Args:
        dataset: opened.
        records: of the split; broken ones are noted there, and their rows hold nothing.
        positions: [n] of the samples.

    Raises:
        DataError: more records are broken than are tolerated.
    """
    arrays = blank(dataset, len(positions))
    for start in range(0, len(positions), _AT_ONCE):
        fill(dataset, arrays, records.read(positions[start : start + _AT_ONCE]), start)
    broken = np.array([position in records.bad for position in positions])
    for entry in arrays["sensors"].values():
        if (entry["valid"].all((1, 2, 3)) | broken).all():
            del entry["valid"]
    return jax.device_put(arrays)


def check_fits(samples: Mapping[str, tuple[Dataset, int]]) -> None:
    """Refuses data that would take more than `SHARE` of the device's memory.

    Args:
        samples: data set and number of its samples, by stream.

    Raises:
        DataError: says how large it is, and what to do.
    """
    needed = sum(count * _bytes(blank(dataset, 1)) for dataset, count in samples.values())
    memory = _memory()
    if needed > SHARE * memory:
        number = sum(count for _, count in samples.values())
        raise DataError(
            f'data.reader = "device": {number} samples take {needed / 2**30:.3g} GiB, more than {SHARE:.0%} of the '
            f'{memory / 2**30:.3g} GiB of the device: set data.reader = "tf", or a smaller data.streams.<name>.fraction'
        )


def _bytes(arrays: Mapping) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(arrays))


def _memory() -> int:
    """Bytes of the first device's memory that JAX may use; of the host's where a device does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
