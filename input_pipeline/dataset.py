"""Opens a data set and checks that it holds what the model reads, in the units that it reads."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from input_pipeline import example, scenes, schema
from input_pipeline.records import Records
from input_pipeline.schema import LabelInfo, Metadata, SensorInfo
from ringmoe_jax import files as stored_files
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.sensors import Sensor, Statistics

FARTHEST = 1e6  # times the sensor's range: no mean or spread even of uncalibrated data lies beyond (our choice)
LEAST_STD = 1e-9  # of the sensor's range: less, but not 0, is no spread of measured values (our choice)
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened data set.

    Attributes:
        directory: where it lies.
        metadata: what it says of itself.
        sensors: the sensors that are read, with the chosen bands, by name.
        channels: for every sensor the stored channels that are read, in the order of its bands.
        files: file names by split.
        counts: records of every file, by split.
    """

    directory: str
    metadata: Metadata
    sensors: Mapping[str, Sensor]
    channels: Mapping[str, tuple[int, ...]]
    files: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, tuple[int, ...]]

    @property
    def labels(self) -> Mapping[str, LabelInfo]:
        """Labels of the data set; they hold for every sensor, for all of a sample show the same ground."""
        return self.metadata.labels

    def size(self, split: str) -> int:
        """Number of samples of a split.

        Raises:
            DataError: there is no such split.
        """
        if split not in self.counts:
            raise DataError(f'{self.directory} has no split "{split}": {nearest(split, self.counts)}')
        return sum(self.counts[split])

    def shape(self, sensor: str) -> tuple[int, int, int]:
        """T, H, W of the stored tiles."""
        return tuple(self.metadata.sensors[sensor].shape)

    def carrier(self, label: str) -> str:
        """The sensor that is read whose grid a label lies on; "" for a label of whole images, and where there is none.

        It is the label's own sensor, or where that is not read the first one whose tiles have as many dates, rows and
        columns: all sensors of a sample show the same ground.
        """
        own = self.labels[label].sensor
        if own in self.sensors or not own:
            return own
        return next((name for name in self.sensors if self.shape(name) == self.shape(own)), "")

    def statistics(self, sensor: str) -> Statistics:
        """Per-band statistics of the training split, in the order of the bands that are read.

        Raises:
            DataError: the data set was written without a training split, or a band has no spread.
        """
        info = self.metadata.sensors[sensor]
        if info.mean is None:
            raise DataError(
                f'{self.directory} has no statistics of "{sensor}", for no valid pixel was in a split "train": '
                'write it again with one, or set statistics = "table"'
            )
        mean, std = (tuple(values[i] for i in self.channels[sensor]) for values in (info.mean, info.std))
        low, high = self.sensors[sensor].valid_range
        if min(std) < LEAST_STD * (high - low):
            raise DataError(
                f'{self.directory}: "{sensor}" has a band of std {min(std):g}, which shows nothing or is damaged: '
                'leave the band out (data.bands), or set statistics = "table"'
            )
        return Statistics(mean, std, f'data set "{self.metadata.name}", {info.pixels} training pixels')

    def nbytes(self, split: str) -> int:
        """Bytes of the files of a split."""
        return sum((epath.Path(self.directory) / file).stat().length for file in self.files[split])

    def fingerprint(self, split: str) -> str:
        """Changes where a position would mean another sample: another name, schema or number of records."""
        text = json.dumps([self.metadata.name, self.metadata.schema_version, split, self.counts[split]])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def about(self) -> dict[str, Any]:
        """What a report says of it, JSON types; "simulated" says whether any sensor that is read is."""
        metadata = self.metadata
        return {
            "name": metadata.name,
            "directory": self.directory,
            "description": metadata.description,
            "licence": metadata.licence,
            "source": metadata.source,
            "citation": metadata.citation,
            "simulated": any(metadata.sensors[name].simulated for name in self.sensors),
            "samples": {split: self.size(split) for split in self.counts},
        }

    def scenes(self, split: str) -> scenes.Scenes | None:
        """What the samples of a split were cut from; None where an older version wrote the data set.

        Raises:
            DataError: the file that says it is damaged.
        """
        return scenes.read(epath.Path(self.directory), split)

    def features(self):
        """TFDS features of the sensors that are read; the others are not parsed."""
        return schema.features(self.metadata, self.sensors)

    def records(self, split: str, max_bad: int) -> Records:
        """Random access to a split; records that do not hold the sensors' arrays count as broken."""
        self.size(split)
        return Records(
            self.directory,
            split,
            self.files[split],
            self.counts[split],
            max_bad=max_bad,
            check=self._checker(),
        )

    def _checker(self) -> Callable[[bytes], None]:
        sizes = {}
        for name in self.sensors:
            info = self.metadata.sensors[name]
            pixels = int(np.prod(info.shape))
            sizes[f"sensors/{name}/pixels"] = pixels * len(info.bands) * np.dtype(info.dtype).itemsize
            sizes[f"sensors/{name}/valid"] = pixels

        def check(payload: bytes) -> None:
            features = example.parse(payload)
            for key, size in sizes.items():
                texts = [value for value in features.get(key, ()) if isinstance(value, bytes)]
                if len(texts) != 1 or len(texts[0]) != size:
                    raise ValueError(f"{key} holds {sum(map(len, texts))} bytes, wanted {size}")

        return check


def open_dataset(directory: str, sensors: Sequence[str], bands: Mapping[str, Sequence[str]] | None = None) -> Dataset:
    """Opens a data set for some sensors of the sensor table.

    Args:
        directory: TFDS directory, local or `gs://`.
        sensors: names to read.
        bands: by sensor: band names or STAC common names, in the model's order; all bands of the table
            where a sensor is absent.

    Raises:
        DataError: the folder is missing, empty or no data set of ours; a sensor or band is missing; or
            a unit, scale, offset, dtype, no-data value or resampling rule differs from the table's.
        ConfigError: the sensor table does not know a name.
    """
    files, counts, metadata = _load(directory)
    bands = bands or {}
    chosen, channels = {}, {}
    for name in sensors:
        table = sensor_table.get(name)
        if name not in metadata.sensors:
            raise DataError(
                f'{directory} has no sensor "{name}": {nearest(name, metadata.sensors)}; set the sensors of '
                "config.data.streams and of config.model to those that it has"
            )
        chosen[name] = table.select(bands[name]) if name in bands else table
        _compare(directory, chosen[name], metadata.sensors[name])
        channels[name] = _channels(directory, chosen[name], metadata.sensors[name])
    return Dataset(
        directory=str(directory),
        metadata=metadata,
        sensors=chosen,
        channels=channels,
        files=files,
        counts=counts,
    )


def _load(directory: str) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[int, ...]], Metadata]:
    """File names and records of every shard, by split, and the metadata: what TFDS would say, without it."""
    folder = epath.Path(directory)
    hint = "write one with `python -m experiments.prepare`"
    if not folder.exists():
        raise DataError(f"{directory} does not exist: give the folder of a data set, or {hint}")
    if not (folder / "dataset_info.json").exists():
        inside = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        found = f"holds {', '.join(inside[:3])}{', ...' if len(inside) > 3 else ''}" if inside else "is empty"
        raise DataError(f"{directory} {found}, but no dataset_info.json: it is not a data set; {hint}")
    try:
        content = _checked(folder)
        info = json.loads(content["dataset_info.json"])
        counts = {split["name"]: tuple(map(int, split["shardLengths"])) for split in info["splits"]}
        files = {split["name"]: _names(info, split) for split in info["splits"]}
        stored = json.loads(content.get("metadata.json", "{}"))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, IndexError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise DataError(f"{directory} cannot be opened ({type(error).__name__}: {reason}); {hint}") from error
    if not isinstance(stored, dict) or "sensors" not in stored:
        raise DataError(f"{directory} is a TFDS data set without our metadata.json; {hint}")
    try:
        metadata = Metadata.from_json(stored, f"{directory}/metadata.json")
    except ConfigError as error:
        raise DataError(f"{error} (edited by hand?); {hint}") from error
    for name, info in metadata.sensors.items():
        _check_plausible(directory, name, info)
    return files, counts, metadata


@functools.cache
def _say_unchecked(folder: epath.Path) -> None:
    """Once a folder: many parts of a program open it."""
    _log.warning("%s has no %s: an older version wrote it, damage is not noticed", folder, stored_files.MANIFEST)


def _checked(folder: epath.Path) -> dict[str, bytes]:
    """What the files of a data set that describe it hold, by name, compared with their checksums."""
    manifest = stored_files.read_manifest(folder)
    if manifest is None:
        _say_unchecked(folder)
    described = [name for name in ("dataset_info.json", "metadata.json", "features.json") if (folder / name).exists()]
    return {name: stored_files.checked_bytes(folder, name, manifest) for name in described}


def _check_plausible(directory: str, name: str, info: SensorInfo) -> None:
    """Raises unless shape and statistics are possible for a sensor; those out of the table have no range."""
    where = f'{directory}/metadata.json: "{name}"'
    if len(info.shape) != 3 or min(info.shape) < 1 or not info.gsd > 0:
        raise DataError(f"{where} has shape {list(info.shape)}, {info.gsd:g} m a pixel: wanted T, H, W and gsd > 0")
    if info.mean is None or name not in sensor_table.SENSORS:
        return
    if not len(info.mean) == len(info.std or ()) == len(info.bands):
        raise DataError(
            f"{where} has {len(info.mean)} means of {len(info.bands)} bands: wanted a mean and a std a band"
        )
    low, high = sensor_table.get(name).valid_range
    most = FARTHEST * (high - low)
    for band, mean, std in zip(info.bands, info.mean, info.std, strict=True):
        if not (abs(mean) <= most and 0 <= std <= most):
            raise DataError(f"{where} has mean {mean:g}, std {std:g} in {band}: implausible; write the data set again")


def _names(info: Mapping[str, Any], split: Mapping[str, Any]) -> tuple[str, ...]:
    """File names of a split's shards, by its template (`tfds.core.ShardedFileTemplate`)."""
    total = len(split["shardLengths"])
    return tuple(
        split["filepathTemplate"].format(
            DATASET=info["name"],
            SPLIT=split["name"],
            FILEFORMAT=info["fileFormat"],
            SHARD_INDEX=f"{shard:05d}",
            NUM_SHARDS=f"{total:05d}",
            SHARD_X_OF_Y=f"{shard:05d}-of-{total:05d}",
        )
        for shard in range(total)
    )


def _compare(directory: str, table: Sensor, stored: SensorInfo) -> None:
    for field in ("unit", "dtype", "scale", "offset", "no_data", "resampling"):
        wanted, got = getattr(table, field), getattr(stored, field)
        same = wanted == got
        if isinstance(wanted, float | int) and isinstance(got, float | int):
            same = bool(np.isclose(wanted, got, rtol=1e-6, atol=0))
        if not same:
            raise DataError(
                f'{directory}: "{table.name}" is stored with {field} = {got!r}, the sensor table says {wanted!r}: '
                f"write the data set again, or register a sensor of its own with {field} = {got!r}"
            )


def _channels(directory: str, wanted: Sensor, stored: SensorInfo) -> tuple[int, ...]:
    positions = {name: i for i, name in enumerate(stored.bands)}
    channels = []
    for band in wanted.bands:
        position = positions.get(band.name, positions.get(band.alias) if band.alias else None)
        if position is None:
            raise DataError(
                f'{directory}: "{wanted.name}" has no band "{band.name}": {nearest(band.name, stored.bands)}; '
                f"choose with data.bands.{wanted.name}"
            )
        channels.append(position)
    return tuple(channels)
