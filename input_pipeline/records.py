"""Random access to TFRecord files: an index of every record, checksums, and broken records by name.

A sequential reader can neither shuffle globally nor resume without reading what it skips, and one
flipped byte ends it. Here a record is a byte range: any order costs the same, a resumed run starts
at once, and a broken record is named exactly and costs only itself.

A TFRecord file is a sequence of frames: length (uint64), masked CRC32C of the length (uint32),
payload, masked CRC32C of the payload (uint32), all little-endian.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import google_crc32c
import numpy as np
import tensorstore as ts
from etils import epath

from ringmoe_jax.errors import DataError

HEADER, FOOTER = 12, 4  # bytes around a payload
INDEX = "index.npz"
_log = logging.getLogger(__name__)


def masked_crc(data: bytes) -> int:
    """TFRecord's masked CRC32C of some bytes."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class Shard:
    """A TFRecord file and the lengths of its payloads in bytes."""

    path: Path
    lengths: Sequence[int]


class ShardWriter:
    """Writes one TFRecord file and remembers the length of every payload."""

    def __init__(self, path: Path):
        self.path = path
        self.lengths: list[int] = []

    def __enter__(self):
        self._file = open(self.path, "wb")
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, payload: bytes) -> None:
        """Appends one record."""
        length = struct.pack("<Q", len(payload))
        self._file.write(length + struct.pack("<I", masked_crc(length)))
        self._file.write(payload)
        self._file.write(struct.pack("<I", masked_crc(payload)))
        self.lengths.append(len(payload))

    def cut(self, count: int) -> None:
        """Takes back all records but the first `count`."""
        for length in self.lengths[count:]:
            self._file.seek(-(HEADER + length + FOOTER), os.SEEK_CUR)
        self._file.truncate()
        del self.lengths[count:]


def save_index(directory: Path, lengths: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Writes `index.npz`: payload lengths in bytes, by split and shard; offsets follow from them."""
    arrays = {f"{split}-{i}": np.asarray(n, np.int64) for split, by in lengths.items() for i, n in enumerate(by)}
    with open(directory / INDEX, "wb") as file:
        np.savez(file, **arrays)


class Records:
    """Reads records of one split by their position, checks them and keeps count of broken ones."""

    def __init__(
        self,
        directory: str | os.PathLike,
        split: str,
        files: Sequence[str],
        counts: Sequence[int],
        *,
        max_bad: int = 0,
        check: Callable[[bytes], None] = lambda payload: None,
    ):
        """Opens a split.

        Args:
            directory: the data set's folder, local or `gs://`.
            split: name of the split.
            files: file names of its shards, in order.
            counts: number of records of every shard, as the data set's metadata says.
            max_bad: distinct broken records that are tolerated; one more raises DataError.
            check: raises ValueError with the reason if a payload cannot be used.
        """
        self.bad: dict[int, str] = {}  # position -> file, record and reason
        self._files, self._max_bad, self._check = list(files), max_bad, check
        self._store = open_store(str(directory))
        self._shard = np.repeat(np.arange(len(files)), counts)
        self._lock = threading.Lock()
        self._first = np.cumsum([0, *counts])
        lengths = _load_index(directory, split, self._files, counts)
        starts = [np.cumsum([0, *(n + HEADER + FOOTER)])[:-1] for n in lengths]
        self._length = np.concatenate([_resize(n, c, -1) for n, c in zip(lengths, counts, strict=True)])
        self._start = np.concatenate([_resize(s, c, 0) for s, c in zip(starts, counts, strict=True)])

    def __len__(self) -> int:
        return len(self._shard)

    def read(self, positions: Sequence[int]) -> list[bytes | None]:
        """Payloads at these positions, None where a record is broken.

        Raises:
            DataError: more than `max_bad` records are broken, or all of them; names the first ones.
        """
        batch = ts.Batch()
        futures = [self._request(int(p), batch) for p in positions]
        batch.submit()
        return [self._payload(int(p), future) for p, future in zip(positions, futures, strict=True)]

    def read_known(self, positions: Sequence[int]) -> list[bytes | None]:
        """As `read`, and None where a position is negative: nothing is there."""
        payloads = iter(self.read([p for p in positions if p >= 0]))
        return [next(payloads) if p >= 0 else None for p in positions]

    def read_or_next(self, candidates: Sequence[Iterator[int]]) -> list[tuple[int, bytes]]:
        """For each of several sequences of positions, the first record that is whole, and its position.

        Raises:
            DataError: as `read`, or a sequence has no record that is whole, as other threads may have found.
        """
        positions = [next(several) for several in candidates]
        payloads = self.read(positions)
        for i, several in enumerate(candidates):
            while payloads[i] is None:
                if (position := next(several, None)) is None:
                    raise self._none_is_whole()
                positions[i], payloads[i] = position, self.read([position])[0]
        return list(zip(positions, payloads, strict=True))

    def _request(self, position: int, batch):
        if position in self.bad or self._length[position] < 0:
            return None
        start = int(self._start[position])
        end = start + HEADER + int(self._length[position]) + FOOTER
        return self._store.read(self._files[self._shard[position]], byte_range=slice(start, end), batch=batch)

    def _payload(self, position: int, future) -> bytes | None:
        if position in self.bad:
            return None
        try:
            payload = _unframe(future, int(self._length[position]))
            self._check(payload)
        except ValueError as error:
            self._note(position, str(error))
            return None
        return payload

    def _note(self, position: int, reason: str) -> None:
        shard = self._shard[position]
        name = f"{self._files[shard]} record {position - self._first[shard]}: {reason}"
        with self._lock:
            if position not in self.bad:
                self.bad[position] = name
                _log.warning("broken record skipped: %s", name)
            if len(self.bad) == len(self):
                raise self._none_is_whole()
            if len(self.bad) > self._max_bad:
                raise DataError(
                    f"{len(self.bad)} broken records, {self._max_bad} allowed (max_bad_records): {self._describe()}; "
                    "write or copy the data set again, or allow more"
                )

    def _none_is_whole(self) -> DataError:
        return DataError(f"every record is broken: {self._describe()}")

    def _describe(self, most: int = 5) -> str:
        names = list(self.bad.values())
        return "; ".join(names[:most]) + (f"; and {len(names) - most} more" if len(names) > most else "")


def _unframe(future, length: int) -> bytes:
    if future is None:
        raise ValueError("not in the file: it is missing, cut short, or has a broken header before this record")
    try:
        result = future.result()
    except Exception as error:  # tensorstore raises ValueError, OSError and its own types
        if "range" in str(error).lower():
            raise ValueError("the file ends before it") from error
        raise ValueError(f"cannot be read ({str(error).splitlines()[0]})") from error
    if result.state == "missing":
        raise ValueError("the file is missing")
    return payload_of(result.value, length)


def payload_of(frame: bytes, length: int) -> bytes:
    """The payload of a record as it lies in a file.

    Raises:
        ValueError: it is not whole, or not of this length in bytes.
    """
    if len(frame) != HEADER + length + FOOTER:
        raise ValueError("the file ends before it")
    size, crc = struct.unpack_from("<QI", frame)
    if crc != masked_crc(frame[:8]):
        raise ValueError("the header's checksum is wrong")
    if size != length:
        raise ValueError(f"the header says {size} bytes, the index {length}")
    payload = frame[HEADER:-FOOTER]
    if masked_crc(payload) != struct.unpack("<I", frame[-FOOTER:])[0]:
        raise ValueError("the payload's checksum is wrong")
    return payload


def open_store(directory: str):
    """Where files lie: `read(name, byte_range=..., batch=...)` asks at once, and `result()` of what it gives waits."""
    if "://" in directory:
        return ts.KvStore.open(directory.rstrip("/") + "/").result()
    return ts.KvStore.open({"driver": "file", "path": f"{Path(directory).resolve()}/"}).result()


def _resize(values: np.ndarray, count: int, fill: int) -> np.ndarray:
    return np.concatenate([values[:count], np.full(max(0, count - len(values)), fill, np.int64)])


def _load_index(directory, split: str, files: Sequence[str], counts: Sequence[int]) -> list[np.ndarray]:
    """Payload lengths by shard, from the index where it fits the files, else from the files."""
    folder = epath.Path(directory)
    try:
        stored = dict(np.load(io.BytesIO((folder / INDEX).read_bytes())))
    except Exception as error:  # a damaged archive raises whatever its damaged part leads to; the files know better
        _log.warning("%s cannot be read (%s): built anew from the records", folder / INDEX, type(error).__name__)
        stored = {}
    lengths = []
    for i, (name, count) in enumerate(zip(files, counts, strict=True)):
        known = stored.get(f"{split}-{i}")
        path = folder / name
        size = path.stat().length if path.exists() else -1
        if known is not None and len(known) == count and size == int((known + HEADER + FOOTER).sum()):
            lengths.append(known)
            continue
        lengths.append(_scan(path) if size >= 0 else np.zeros(0, np.int64))
        _log.warning(
            "%s: index %s, found %d of %d records by scanning the file",
            path,
            "missing" if known is None else "does not fit the file",
            len(lengths[-1]),
            count,
        )
    return lengths


def _scan(path: epath.Path) -> np.ndarray:
    """Payload lengths from the frame headers; stops where a header is broken or the file ends."""
    lengths, position, end = [], 0, path.stat().length
    with path.open("rb") as file:
        while True:
            file.seek(position)
            header = file.read(HEADER)
            if len(header) < HEADER:
                break
            length, crc = struct.unpack("<QI", header)
            if crc != masked_crc(header[:8]) or position + HEADER + length + FOOTER > end:
                break
            lengths.append(length)
            position += HEADER + length + FOOTER
    return np.asarray(lengths, np.int64)
