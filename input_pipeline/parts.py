"""Writes a data set part by part, so that several programs share the work and a killed one costs no more than its part.

A part is some places that follow each other. Whoever has time takes one, reads its places and writes their records to
a file of its own. Once all parts are there, their records are gathered into shards: record i of a split goes to shard
i modulo their number, as one program alone writes them, so that the number of workers changes no byte.

Parts lie in `.NAME.parts` beside the data set, in a folder that all workers see. A file gets its name when it is whole
and on the disk: a part may be written twice, never half. After a kill the same command keeps the parts that are there.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import pickle
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.encode import Encoder, Facts, Totals
from input_pipeline.places import Places, Report
from input_pipeline.records import FOOTER, HEADER, Shard, ShardWriter, payload_of
from input_pipeline.schema import Metadata
from ringmoe_jax import files
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import DataError

PARTS = 4096  # at most (our choice): many times as many as workers, and few enough to open all of them for a shard
SECONDS = 2.0  # between looks at what workers have done
NAMED = 3  # places that an error names


def alone(task: Callable[[int], None], count: int, folder: Path) -> None:
    """Does one task after another in this program."""
    for number in range(count):
        task(number)


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who shares the work, and what may go wrong.

    Attributes:
        each: function (task, count, folder): calls task(i) once or more for every i below count, wherever it likes,
            and returns when all are done. What it has to hand to other programs it puts in the folder.
        max_bad: places that may be left out because they cannot be read; one more is an error. All are named in
            `NAME.left_out.csv` beside the data set.
        command: what decides the records beside their places and metadata: parts of another command are no use.
    """

    each: Callable[[Callable[[int], None], int, Path], None] = alone
    max_bad: int = 0
    command: str = ""


def write(
    directory: Path,
    draft: Path,
    samples: Mapping[str, Places],
    metadata: Metadata,
    totals: Totals,
    shards: int,
    workers: Workers,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, list[Shard]]:
    """Writes parts, then shards.

    Args:
        directory: the data set's folder; parts lie beside it.
        draft: where the shards go.
        samples: places by split; their reports learn what was found.
        metadata: without statistics.
        totals: all records are added to them, in order.
        shards: files a split.
        workers: who reads and writes.
        progress: called with what is counted, and how much of it is done.

    Returns:
        The shards of every split, in `draft`.

    Raises:
        DataError: a split cannot be divided or is empty, an id appears twice, or more places than
            `workers.max_bad` cannot be read.
    """
    for split, places in samples.items():
        if not isinstance(places, Places):
            raise DataError(f'"{metadata.name}": the split "{split}" is read in one piece: leave the workers out')
    reading = _reading(_home(directory), samples, metadata, workers)
    reports = [(places.report, places.report.taken()) for places in samples.values()]
    with _counted(progress, "parts read, of", len(reading.parts), reading.folder, "part-*.facts"):
        workers.each(reading, len(reading.parts), reading.folder)
    for report, before in reports:
        report.merge(before)
    lengths = _merge(reading, samples, totals, directory)
    for split in samples:
        if not any(len(found) for _, found in lengths[split]):
            raise DataError(f'"{metadata.name}": the split "{split}" has no sample')
    gathering = Gathering.of(reading.folder, lengths, shards)
    with _counted(progress, "shards written, of", len(gathering.shards), gathering.out, "*-[0-9][0-9][0-9][0-9][0-9]"):
        workers.each(gathering, len(gathering.shards), reading.folder)
    return gathering.shards_in(draft)


def clear(directory: Path) -> None:
    """Deletes the parts of a data set that is whole."""
    shutil.rmtree(_home(directory), ignore_errors=True)


def divided(samples: Mapping[str, Places], parts: int = PARTS) -> tuple[tuple[str, int, int], ...]:
    """At most about `parts` ranges of places of about equal number: split, first place, one after the last."""
    size = max(1, -(-sum(map(len, samples.values())) // parts))
    return tuple(
        (split, first, min(first + size, len(places)))
        for split, places in samples.items()
        for first in range(0, len(places), size)
    )


@dataclasses.dataclass(frozen=True)
class Part:
    """What is known of the records of a part: their lengths in bytes, facts, places without, and what was noted."""

    lengths: Sequence[int]
    facts: Sequence[Facts]
    bad: Sequence[tuple[str, str]]
    report: Report


@dataclasses.dataclass(frozen=True)
class Reading:
    """Reads the places of a part and writes their records, see `__call__`.

    Attributes:
        folder: of the parts.
        metadata: of the data set.
        samples: places by split.
        parts: see `divided`.
        max_bad: see `Workers`.
        sensors: of the data set, as the table has them in the program that divides the work.
    """

    folder: Path
    metadata: Metadata
    samples: Mapping[str, Places]
    parts: Sequence[tuple[str, int, int]]
    max_bad: int
    sensors: Sequence[sensor_table.Sensor]

    def __call__(self, number: int) -> None:
        """Writes a part, unless it is there and lacks no place."""
        if (known := self.done(number)) and not known.bad:
            return
        split, first, last = self.parts[number]
        found = Part([], [], [], Report())
        with _whole(self.records(number)) as draft, ShardWriter(draft) as writer:
            for key in self.samples[split].keys[first:last]:
                self._read(key, split, found, writer)
                if len(found.bad) > self.max_bad:
                    break
        with _whole(self._facts(number)) as draft:
            draft.write_bytes(pickle.dumps(dataclasses.replace(found, lengths=np.asarray(writer.lengths, np.int64))))

    def _read(self, key, split: str, found: Part, writer: ShardWriter) -> None:
        """Adds a place to a part: all of its records, or its name and the reason why not."""
        places, before = self.samples[split], len(found.facts)
        try:
            for sample in places.read([key]):
                record, facts = self._encode(sample, split)
                writer.write(record)
                found.facts.append(facts)
        except DataError as error:
            writer.cut(before)
            del found.facts[before:]
            found.bad.append((places.name(key), str(error)))
            places.report.taken()
        found.report.merge(places.report.taken())

    @functools.cached_property
    def _encode(self) -> Encoder:
        for sensor in self.sensors:
            if sensor.name not in sensor_table.SENSORS:  # of a module of the user's own
                sensor_table.register(sensor)
        return Encoder(self.metadata)

    def done(self, number: int) -> Part | None:
        """What is known of a part; None of one that is not there."""
        path = self._facts(number)
        return pickle.loads(path.read_bytes()) if path.exists() else None

    def records(self, number: int) -> Path:
        """The file of a part's records."""
        return self.folder / f"part-{number:05d}.records"

    def _facts(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.facts"


@dataclasses.dataclass(frozen=True)
class Gathering:
    """Gathers the records of all parts into shards, see `__call__`.

    Attributes:
        folder: of the parts.
        out: folder of the shards; every run has its own.
        lengths: by split: numbers of the parts that hold its records, in order, and their lengths in bytes.
        shards: split and number of every shard.
        counts: shards by split.
    """

    folder: Path
    out: Path
    lengths: Mapping[str, Sequence[tuple[int, np.ndarray]]]
    shards: Sequence[tuple[str, int]]
    counts: Mapping[str, int]

    @staticmethod
    def of(folder: Path, lengths: Mapping[str, Sequence[tuple[int, np.ndarray]]], shards: int) -> Gathering:
        """So many shards a split, fewer only where it has fewer records."""
        for old in folder.glob("shards-*"):
            shutil.rmtree(old)
        counts = {split: min(shards, sum(len(found) for _, found in parts)) for split, parts in lengths.items()}
        every = [(split, number) for split, count in counts.items() for number in range(count)]
        return Gathering(folder, Path(tempfile.mkdtemp(prefix="shards-", dir=folder)), lengths, every, counts)

    def __call__(self, number: int) -> None:
        """Writes a shard."""
        split, shard = self.shards[number]
        with _whole(self._path(split, shard)) as draft, ShardWriter(draft) as writer:
            first = 0
            for part, lengths in self.lengths[split]:
                chosen = range((shard - first) % self.counts[split], len(lengths), self.counts[split])
                first += len(lengths)
                for record in self._records(part, lengths, chosen):
                    writer.write(record)

    def _records(self, part: int, lengths: np.ndarray, chosen: Sequence[int]) -> Iterator[bytes]:
        """Some records of a part."""
        if not chosen:
            return
        path = self.folder / f"part-{part:05d}.records"
        sizes = lengths + HEADER + FOOTER
        starts = np.cumsum(sizes) - sizes
        with path.open("rb") as file:
            for i in chosen:
                file.seek(starts[i])
                try:
                    yield payload_of(file.read(sizes[i]), lengths[i])
                except ValueError as error:
                    path.with_suffix(".facts").unlink(missing_ok=True)
                    raise DataError(f"{path} record {i}: {error}: run the same command again") from error

    def shards_in(self, draft: Path) -> dict[str, list[Shard]]:
        """Moves all shards, once they are as long as they should be."""
        moved: dict[str, list[Shard]] = {}
        for split, number in self.shards:
            lengths = np.concatenate([found for _, found in self.lengths[split]])[number :: self.counts[split]]
            path = self._path(split, number)
            if not path.exists() or path.stat().st_size != int((lengths + HEADER + FOOTER).sum()):
                raise DataError(f"{path} is not whole: do all workers see this folder?")
            path.rename(draft / path.name)
            moved.setdefault(split, []).append(Shard(draft / path.name, lengths))
        return moved

    def _path(self, split: str, number: int) -> Path:
        return self.out / f"{split}-{number:05d}"


def _home(directory: Path) -> Path:
    directory = Path(os.path.realpath(directory))
    return directory.with_name(f".{directory.name}.parts")


def _reading(home: Path, samples: Mapping[str, Places], metadata: Metadata, workers: Workers) -> Reading:
    """The work, in a folder whose name stands for all that decides its records; folders of other work are deleted."""
    parts = divided(samples)
    names = {split: [places.name(key) for key in places.keys] for split, places in samples.items()}
    told = json.dumps([metadata.to_json(), names, parts, workers.command])
    folder = home / hashlib.sha256(told.encode()).hexdigest()[:16]
    with files.writing(home):
        folder.mkdir(parents=True, exist_ok=True)
        for other in home.iterdir():
            if other != folder:
                shutil.rmtree(other)
        for left in folder.glob("*.draft"):
            left.unlink()
    sensors = [sensor_table.get(name) for name in metadata.sensors if name in sensor_table.SENSORS]
    return Reading(folder, metadata, dict(samples), parts, workers.max_bad, sensors)


def _merge(
    reading: Reading, samples: Mapping[str, Places], totals: Totals, directory: Path
) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Lengths of all records by split and part; adds what is known of them, in order, and names what was left out."""
    lengths, bad = {split: [] for split in samples}, []
    for number, (split, *_) in enumerate(reading.parts):
        part = reading.done(number)
        if part is None:
            raise DataError(f"{reading.records(number)} was not written: do all workers see this folder?")
        bad += [(split, *reason) for reason in part.bad]
        samples[split].report.merge(part.report)
        lengths[split].append((number, part.lengths))
        for facts in part.facts:
            totals.add(split, facts)
    listing = directory.with_name(f"{directory.name}.left_out.csv")
    if not bad:
        listing.unlink(missing_ok=True)
        return lengths
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("split", "place", "reason"), *bad])
    files.write_text(listing, text.getvalue())
    if len(bad) > reading.max_bad:
        some = "; ".join(reason for *_, reason in bad[:NAMED]) + (f"; {listing} names all" if len(bad) > NAMED else "")
        if not reading.max_bad:
            raise DataError(some if len(bad) == 1 else f"{len(bad)} places or more cannot be read: {some}")
        raise DataError(f"{len(bad)} places or more cannot be read, {reading.max_bad} allowed (--max-bad): {some}")
    report = next(iter(samples.values())).report
    report.notes.append(f'{len(bad)} places, "{bad[0][1]}" among them, cannot be read: left out, {listing} says why')
    return lengths


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A draft that gets its name once it is on the disk; two programs may write the same."""
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.draft")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _counted(progress, what: str, count: int, folder: Path, pattern: str) -> Iterator[None]:
    """Within it, `progress` hears how many files of a folder there are, every few seconds."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(SECONDS):
            progress(f"{what} {count}", sum(1 for _ in folder.glob(pattern)))

    watcher = threading.Thread(target=look, daemon=True)
    if progress:
        watcher.start()
    try:
        yield
    finally:
        ended.set()
        if progress:
            watcher.join()
