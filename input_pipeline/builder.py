"""Writes a data set: streaming, sharded, atomic, with statistics and a record index."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from input_pipeline import parts, records, schema
from input_pipeline.encode import Encoder, Totals
from input_pipeline.parts import Workers
from input_pipeline.records import Shard
from input_pipeline.schema import Metadata, Sample
from ringmoe_jax import files
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
    workers: Workers | None = None,
) -> Metadata:
    """Writes every split, one sample in memory at a time.

    Everything goes to a folder beside `directory` that gets its name only when all is done, so that a
    write that failed or was killed never looks complete. `directory` is local; copy it to a bucket
    afterwards (`gcloud storage cp -r`). Who does the work changes no byte of what is written.

    Args:
        directory: the data set's folder; its parents are made.
        samples: by split, as `Places` where there are workers; statistics are taken over the split "train".
        metadata: without statistics.
        shards: files a split (fewer only where a split has fewer samples); at least 8 a host reads well.
        overwrite: replace a data set that is there already, see `files.check_replaceable`.
        progress: called with the split and the number of samples written so far; of workers, see `parts.write`.
        workers: who shares the work, see `parts`; by default this program reads one sample after another.

    Returns:
        The metadata with statistics, as stored.

    Raises:
        DataError: the folder is not empty and `overwrite` is False, or holds what we did not write, a split is empty,
            an id appears twice or a sample is not what the metadata says. Nothing is left behind then, but parts
            that workers finished.
    """
    directory = Path(directory)
    with files.draft_folder(directory, overwrite=overwrite) as draft:
        totals = Totals(metadata)
        if workers:
            written = parts.write(directory, draft, samples, metadata, totals, shards, workers, progress)
        else:
            written = _stream(draft, samples, metadata, totals, shards, progress)
        metadata = totals.metadata()
        splits = [_name_shards(draft, split, metadata, found) for split, found in written.items()]
        records.save_index(draft, {split: [shard.lengths for shard in found] for split, found in written.items()})
        totals.scenes.save(draft, shards)
        _write_info(draft, metadata, splits)
    if workers:
        parts.clear(directory)
    return metadata


def _stream(draft: Path, samples, metadata: Metadata, totals: Totals, shards: int, progress) -> dict[str, list[Shard]]:
    """Shards of every split: sample i goes to shard i modulo their number."""
    encode, written = Encoder(metadata), {}
    for split, stream in samples.items():
        with contextlib.ExitStack() as stack:
            writers: list[records.ShardWriter] = []
            for count, sample in enumerate(stream):
                record, facts = encode(sample, split)
                totals.add(split, facts)
                if len(writers) < shards:
                    path = draft / f"{split}-{len(writers):05d}"
                    writers.append(stack.enter_context(records.ShardWriter(path)))
                writers[count % shards].write(record)
                if progress:
                    progress(split, count + 1)
        if not writers:
            raise DataError(f'"{metadata.name}": the split "{split}" has no sample')
        written[split] = [Shard(writer.path, writer.lengths) for writer in writers]
    return written


def _name_shards(draft: Path, split: str, metadata: Metadata, shards: Sequence[Shard]):
    """Gives shards their final names, now that their number is known, and returns the split's TFDS info."""
    from input_pipeline.cpu_tf import tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=draft, dataset_name=metadata.name, split=split, filetype_suffix="tfrecord"
    )
    for number, shard in enumerate(shards):
        shard.path.rename(template.sharded_filepath(shard_index=number, num_shards=len(shards)))
    lengths = [len(shard.lengths) for shard in shards]
    size = sum(int(sum(shard.lengths)) for shard in shards)
    return tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template)


def _write_info(draft: Path, metadata: Metadata, splits) -> None:
    from input_pipeline.cpu_tf import tfds

    identity = tfds.core.dataset_info.DatasetIdentity(
        name=metadata.name, version=tfds.core.Version(VERSION), data_dir=str(draft), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=metadata.description,
        features=schema.features(metadata),
        homepage=metadata.source,
        citation=metadata.citation,
        license=metadata.licence,
        metadata=tfds.core.MetadataDict(metadata.to_json()),
    )
    info.set_file_format("tfrecord")
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(draft)
