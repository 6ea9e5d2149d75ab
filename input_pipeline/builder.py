"""Writes a data set: streaming, sharded, atomic, with statistics and a record index."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from input_pipeline import records, scenes, schema
from input_pipeline.schema import BOX, BOXES, TRACKS, UNLABELLED, Metadata, Sample, SensorInfo
from ringmoe_jax import files
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import DataError

VERSION = "1.0.0"  # TFDS wants one; the schema's own version is in the metadata


def write_dataset(
    directory: str | os.PathLike,
    samples: Mapping[str, Iterable[Sample]],
    metadata: Metadata,
    *,
    shards: int = 8,
    overwrite: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> Metadata:
    """Writes every split, one sample in memory at a time.

    Everything goes to a folder beside `directory` that gets its name only when all is done, so that a
    write that failed or was killed never looks complete. `directory` is local; copy it to a bucket
    afterwards (`gcloud storage cp -r`).

    Args:
        directory: the data set's folder; its parents are made.
        samples: by split; statistics are taken over the split "train".
        metadata: without statistics.
        shards: files a split (fewer only where a split has fewer samples); at least 8 a host reads well.
        overwrite: replace a data set that is there already, see `files.check_replaceable`.
        progress: called with the split and the number of samples written so far.

    Returns:
        The metadata with statistics, as stored.

    Raises:
        DataError: the folder is not empty and `overwrite` is False, or holds what we did not write, a split is empty,
            an id appears twice or a sample is not what the metadata says. Nothing is left behind then.
    """
    with files.draft_folder(Path(directory), overwrite=overwrite) as draft:
        return _write(draft, samples, metadata, shards, progress)


def _write(draft: Path, samples, metadata: Metadata, shards: int, progress) -> Metadata:
    from input_pipeline.cpu_tf import tfds

    features = schema.features(metadata)
    serialise = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info()).serialize_example
    statistics = {name: BandStatistics(len(info.bands)) for name, info in metadata.sensors.items()}
    seen: set[str] = set()
    oriented: set[str] = set()
    splits, index, cut = [], {}, scenes.Writer()

    for split, stream in samples.items():
        with contextlib.ExitStack() as stack:
            writers: list[records.ShardWriter] = []
            for count, sample in enumerate(stream):
                if sample.id in seen:
                    raise DataError(f'"{metadata.name}": the id "{sample.id}" appears twice, ids must be unique')
                seen.add(sample.id)
                example = schema.to_example(sample, metadata)
                if len(writers) < shards:
                    path = draft / f"{split}-{len(writers):05d}"
                    writers.append(stack.enter_context(records.ShardWriter(path)))
                writers[count % shards].write(serialise(features.encode_example(example)))
                cut.add(split, count % shards, sample)
                if split == "train":
                    _count(statistics, example, metadata)
                oriented |= _oriented(example, metadata)
                if progress:
                    progress(split, count + 1)
        if not writers:
            raise DataError(f'"{metadata.name}": the split "{split}" has no sample')
        splits.append(_name_shards(draft, split, metadata, writers))
        index[split] = [writer.lengths for writer in writers]

    metadata = dataclasses.replace(
        metadata,
        sensors={name: statistics[name].into(info) for name, info in metadata.sensors.items()},
        labels={n: dataclasses.replace(info, oriented=n in oriented) for n, info in metadata.labels.items()},
    )
    records.save_index(draft, index)
    cut.save(draft)
    _write_info(draft, metadata, features, splits)
    return metadata


def _name_shards(draft: Path, split: str, metadata: Metadata, writers: list[records.ShardWriter]):
    """Gives shards their final names, now that their number is known, and returns the split's TFDS info."""
    from input_pipeline.cpu_tf import tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=draft, dataset_name=metadata.name, split=split, filetype_suffix="tfrecord"
    )
    for shard, writer in enumerate(writers):
        writer.path.rename(template.sharded_filepath(shard_index=shard, num_shards=len(writers)))
    lengths = [len(writer.lengths) for writer in writers]
    size = sum(sum(writer.lengths) for writer in writers)
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)


def _write_info(draft: Path, metadata: Metadata, features, splits) -> None:
    from input_pipeline.cpu_tf import tfds

    identity = tfds.core.dataset_info.DatasetIdentity(
        name=metadata.name, version=tfds.core.Version(VERSION), data_dir=str(draft), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=metadata.description,
        features=features,
        homepage=metadata.source,
        citation=metadata.citation,
        license=metadata.licence,
        metadata=tfds.core.MetadataDict(metadata.to_json()),
    )
    info.set_file_format("tfrecord")
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(draft)


class BandStatistics:
    """Mean and standard deviation per band, merged sample by sample in float64 (Chan et al. 1979)."""

    def __init__(self, channels: int):
        self.count = 0
        self.mean = np.zeros(channels)
        self.squares = np.zeros(channels)  # sum of squared deviations from the mean

    def add(self, values: np.ndarray) -> None:
        """Adds [N, C] values in the physical unit."""
        if not len(values):
            return
        values = values.astype(np.float64)
        mean, total = values.mean(0), self.count + len(values)
        shift = mean - self.mean
        values -= mean
        self.squares += np.einsum("nc,nc->c", values, values) + shift**2 * self.count * len(values) / total
        self.mean += shift * len(values) / total
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


def _oriented(example: Mapping, metadata: Metadata) -> set[str]:
    """Labels of a sample that hold a turned box."""
    rows = {n: example["labels"][n] for n, info in metadata.labels.items() if info.kind in (BOXES, TRACKS)}
    return {n for n, row in rows.items() if ((row[:, 0] != UNLABELLED) & (row[:, BOX.index("angle")] != 0)).any()}


def _count(statistics: Mapping[str, BandStatistics], example: Mapping, metadata: Metadata) -> None:
    for name, info in metadata.sensors.items():
        entry = example["sensors"][name]
        stored = entry["pixels"][entry["valid"]]
        good = np.isfinite(stored).all(-1) if stored.dtype.kind == "f" else np.ones(len(stored), np.bool_)
        if info.no_data is not None:
            good &= (stored != info.no_data).all(-1)
        statistics[name].add(stored[good] * np.float64(info.scale) + info.offset)
