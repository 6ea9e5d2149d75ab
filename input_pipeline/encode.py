"""From samples to records, and from what is known of every record to what a data set says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from input_pipeline import scenes, schema
from input_pipeline.schema import BOX, BOXES, TRACKS, UNLABELLED, Metadata, Origin, Sample, SensorInfo
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import DataError


class BandStatistics:
    """Mean and standard deviation per band, merged sample by sample in float64 (Chan et al. 1979)."""

    def __init__(self, channels: int):
        self.count = 0
        self.mean = np.zeros(channels)
        self.squares = np.zeros(channels)  # sum of squared deviations from the mean

    @staticmethod
    def of(values: np.ndarray) -> BandStatistics:
        """Statistics of [N, C] values in the physical unit."""
        found = BandStatistics(values.shape[-1])
        if len(values):
            values = values.astype(np.float64)
            found.count, found.mean = len(values), values.mean(0)
            values -= found.mean
            found.squares = np.einsum("nc,nc->c", values, values)
        return found

    def merge(self, other: BandStatistics) -> None:
        """Adds what was counted elsewhere. The order of merging changes the last digits."""
        if not other.count:
            return
        total, shift = self.count + other.count, other.mean - self.mean
        self.squares += other.squares + shift**2 * self.count * other.count / total
        self.mean += shift * other.count / total
        self.count = total

    def into(self, info: SensorInfo) -> SensorInfo:
        """The sensor's info with these statistics in it."""
        if not self.count:
            return info
        mean, variance = self.mean, self.squares / self.count
        if info.resampling == sensor_table.COMPLEX:
            variance = np.full_like(mean, np.mean(variance + mean**2))
            mean = np.zeros_like(mean)
        return dataclasses.replace(
            info, mean=tuple(mean.tolist()), std=tuple(np.sqrt(variance).tolist()), pixels=self.count
        )


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the metadata of a data set needs to know of one of its records.

    Attributes:
        id: of the sample.
        statistics: by sensor; of training samples only.
        oriented: labels that hold a turned box.
        origin: where the sample was cut from.
    """

    id: str
    statistics: Mapping[str, BandStatistics]
    oriented: frozenset[str]
    origin: Origin | None = None


class Encoder:
    """From a sample to its record, checked against the metadata."""

    def __init__(self, metadata: Metadata):
        self._metadata, self._serialise = metadata, schema.serialiser(metadata)

    def __call__(self, sample: Sample, split: str) -> tuple[bytes, Facts]:
        """The serialised tf.train.Example, and what is known of it.

        Raises:
            DataError: the sample is not what the metadata says.
        """
        example = schema.to_example(sample, self._metadata)
        statistics = _statistics(example, self._metadata) if split == "train" else {}
        return self._serialise(example), Facts(sample.id, statistics, _oriented(example, self._metadata), sample.origin)


class Totals:
    """What is known of all records so far; those of a split are added in the order in which they are read.

    Attributes:
        scenes: where samples were cut from.
    """

    def __init__(self, metadata: Metadata):
        self._metadata = metadata
        self._statistics = {name: BandStatistics(len(info.bands)) for name, info in metadata.sensors.items()}
        self._ids: set[str] = set()
        self._oriented: set[str] = set()
        self.scenes = scenes.Writer()

    def add(self, split: str, facts: Facts) -> None:
        """Adds a record of a split.

        Raises:
            DataError: there is another one of its id.
        """
        if facts.id in self._ids:
            raise DataError(f'"{self._metadata.name}": the id "{facts.id}" appears twice, ids must be unique')
        self._ids.add(facts.id)
        self._oriented |= facts.oriented
        self.scenes.add(split, facts.origin)
        for name, statistics in facts.statistics.items():
            self._statistics[name].merge(statistics)

    def metadata(self) -> Metadata:
        """The metadata with statistics."""
        known = self._metadata
        return dataclasses.replace(
            known,
            sensors={name: self._statistics[name].into(info) for name, info in known.sensors.items()},
            labels={n: dataclasses.replace(info, oriented=n in self._oriented) for n, info in known.labels.items()},
        )


def _oriented(example: Mapping, metadata: Metadata) -> frozenset[str]:
    """Labels of a sample that hold a turned box."""
    rows = {n: example["labels"][n] for n, info in metadata.labels.items() if info.kind in (BOXES, TRACKS)}
    turned = (n for n, row in rows.items() if ((row[:, 0] != UNLABELLED) & (row[:, BOX.index("angle")] != 0)).any())
    return frozenset(turned)


def _statistics(example: Mapping, metadata: Metadata) -> dict[str, BandStatistics]:
    found = {}
    for name, info in metadata.sensors.items():
        entry = example["sensors"][name]
        stored = entry["pixels"][entry["valid"]]
        good = np.isfinite(stored).all(-1) if stored.dtype.kind == "f" else np.ones(len(stored), np.bool_)
        if info.no_data is not None:
            good &= (stored != info.no_data).all(-1)
        found[name] = BandStatistics.of(stored[good] * np.float64(info.scale) + info.offset)
    return found
