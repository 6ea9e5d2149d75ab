"""Files that are whole or absent: drafts that replace, checksums of a folder, and whose a folder is.

A folder of ours holds `checksums.json`, which names every file that we wrote there. Only such a folder is ever
replaced, and only while nothing else lies in it. What is read back is compared with its checksum first.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import stat
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ringmoe_jax.errors import ConfigError, DataError

MANIFEST = "checksums.json"
TEXT_BYTES = 2**30  # of a text file that is read whole


# ---- Reading ------------------------------------------------------------------------------------------


def stem(name: str | Path) -> str:
    """The name of a file without folders, of Windows too, and ending; accents as NFC, in which systems differ."""
    return unicodedata.normalize("NFC", Path(str(name).replace("\\", "/")).stem)


def check_local(path: str | Path) -> Path:
    """The path, if it is one of this machine: what is written and read but runs and data sets.

    Raises:
        ConfigError: an address such as gs://bucket/folder, which would mean a folder named "gs:" here.
    """
    if "://" in str(path):
        raise ConfigError(
            f"{path}: wanted a local path: copy from and to the bucket (gcloud storage cp -r), or mount it"
        )
    return Path(path)


def read_bytes(path: Path, wanted: str, most: int = TEXT_BYTES) -> bytes:
    """What a regular file holds; a pipe, which would wait forever, is none.

    Args:
        path: of the file.
        wanted: what it ought to be, for messages.
        most: bytes.

    Raises:
        DataError: it is missing, no file, larger, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is no file: wanted {wanted}")
        if status.st_size > most:
            raise DataError(f"{path} has {status.st_size:,} bytes: wanted {wanted} of at most {most:,}")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({_reason(error)}): wanted {wanted}") from error


def read_text(path: Path, wanted: str, most: int = TEXT_BYTES) -> str:
    """A text file in UTF-8, with or without a byte order mark; otherwise as `read_bytes`.

    Raises:
        DataError: also where it is in another encoding, which the message names where it is known.
    """
    content = read_bytes(path, wanted, most)
    for mark, name in ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if content.startswith(mark):
            raise DataError(f"{path} is {name}: wanted {wanted} in UTF-8; save it again as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at, byte = error.start, content[error.start]
        raise DataError(
            f"{path} is not UTF-8 (byte {byte:#x} at {at}; Latin-1 or Windows-1252?): wanted {wanted} in UTF-8; save "
            "it again as UTF-8"
        ) from error


def read_json(path: Path, wanted: str) -> Any:
    """What a JSON file holds; raises a `DataError` that names the line where it is none."""
    try:
        return json.loads(read_text(path, wanted))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: {error.msg}: wanted {wanted} (JSON)") from None
    except RecursionError:
        raise DataError(f"{path} is nested too deeply: wanted {wanted} (JSON)") from None


# ---- Writing ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, an `OSError` such as a full disk becomes a `DataError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({_reason(error)}): make room or choose another place, then run the same "
            "command again"
        ) from error


def check_room(folder: Path, needed: int) -> None:
    """Raises where a file system has no room for so many bytes, for writers that say so in a hundred lines.

    Raises:
        OSError: its `strerror` says how much is missing.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {needed:,} bytes are needed, {free:,} are free")


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A draft of a file, which gets the file's name once it is whole and on the disk; its folder is made.

    Raises:
        DataError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.draft")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; errors as `replaced`."""
    with replaced(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file whole or not at all; errors as `replaced`. PyTorch reads it by `safetensors.torch`."""
    with replaced(path) as draft:
        draft.touch()
        mode = draft.stat().st_mode  # safetensors writes for its owner alone
        # It writes memory as it lies, and arrays of a checkpoint may lie transposed.
        try:
            save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, draft, dict(metadata or {}))
        except SafetensorError as error:  # of a full disk too, which is no OSError there
            raise OSError(str(error)) from error
        draft.chmod(mode)


@contextlib.contextmanager
def draft_folder(directory: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A draft of a folder, which gets the folder's name, with its checksums, once all is written.

    A draft that a killed process left is begun anew, and a folder that it had put aside comes back.

    Args:
        directory: local; its parents are made.
        overwrite: replace what is there, see `check_replaceable`.

    Raises:
        DataError: it is not ours to replace, another process writes it, or it cannot be written.
    """
    directory = Path(os.path.realpath(directory))
    draft, old = (directory.with_name(f".{directory.name}.{kind}") for kind in ("draft", "old"))
    with writing(directory):
        if old.exists() and not directory.exists():
            old.rename(directory)
        check_replaceable(directory, overwrite=overwrite)
        draft.mkdir(parents=True, exist_ok=True)
        with locked(draft, directory):
            for entry in draft.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            try:
                yield draft
                seal(draft, [path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file()])
                shutil.rmtree(old, ignore_errors=True)
                if directory.exists():
                    directory.rename(old)
                draft.rename(directory)
            except BaseException:
                if old.exists() and not directory.exists():
                    old.rename(directory)
                shutil.rmtree(draft, ignore_errors=True)
                raise
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def locked(draft: Path, path: Path) -> Iterator[None]:
    """Holds the folder of a draft of `path` for this process alone; a killed process holds nothing.

    Raises:
        DataError: another process holds it.
    """
    descriptor = os.open(draft, os.O_RDONLY)
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if draft.exists() and os.fstat(descriptor).st_ino == draft.stat().st_ino:  # else it was published just now
                yield
                return
        raise DataError(f"{path} is being written by another process: wait for it, or choose another place")
    finally:
        os.close(descriptor)


# ---- Checksums, and whose a folder is -----------------------------------------------------------------


def seal(folder: Path, names: Collection[str]) -> None:
    """Adds files of a folder to its checksums.

    Args:
        folder: of ours.
        names: of its files, from there. Records, which have checksums of their own, are kept by their size alone.
    """
    known = _manifest(folder) if (folder / MANIFEST).exists() else {}
    known |= {name: _facts(folder / name) for name in names}
    write_text(folder / MANIFEST, json.dumps({"files": dict(sorted(known.items()))}, indent=1) + "\n")


def check_replaceable(directory: Path, *, overwrite: bool) -> None:
    """Raises unless a folder is absent, empty, or ours and as we left it.

    Args:
        directory: that is about to be replaced.
        overwrite: whether what is ours may be.

    Raises:
        DataError: a file lies there that we did not write, or that was changed since; names it.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise DataError(f"{directory} is a file: give the name of a folder")
    inside = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())
    known = _manifest(directory) if (directory / MANIFEST).exists() else {}
    for name in inside:  # looked at one by one: somebody's home folder is refused at its first file
        if not overwrite:
            raise DataError(f"{directory} is not empty: choose another folder, or overwrite it (--overwrite)")
        if name != MANIFEST and name not in known:
            raise DataError(
                f"{directory} holds {name}, which was not written by this command: move it away, or choose another "
                "folder; nothing was replaced"
            )
        if name != MANIFEST and known[name] != _facts(directory / name):
            raise DataError(f"{directory / name} was changed since it was written: move it away; nothing was replaced")


def checked_bytes(folder: Any, name: str, manifest: Mapping[str, Any] | None) -> bytes:
    """What a file of a folder of ours holds, once it is compared with its checksum.

    Args:
        folder: a path, local or `gs://`.
        name: of the file.
        manifest: of `read_manifest`; None for a folder that an older version wrote, which has none.

    Raises:
        DataError: it is missing, or not what was written.
    """
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_reason(error)}): copy the whole folder again") from error
    if manifest is not None and (name not in manifest or manifest[name] != _digest(content)):
        raise DataError(
            f"{path} is not what was written (its checksum differs from {MANIFEST}): damaged, or edited by hand; copy "
            "or write it again"
        )
    return content


def verify(folder: Path) -> None:
    """Compares every file that a folder's checksums name with them; nothing to compare where it has none.

    Raises:
        DataError: one line: the first file that is missing or not what was written.
    """
    for name, facts in (read_manifest(folder) or {}).items():
        path = folder / name
        try:
            whole = _facts(path) == facts
        except OSError as error:
            raise DataError(f"{path} cannot be read ({_reason(error)})") from error
        if not whole:
            raise DataError(f"{path} is not what was written (its checksum differs from {MANIFEST})")


def read_manifest(folder: Any) -> dict[str, Any] | None:
    """Sizes and checksums of the files that were written to a folder, by name; None where it has none."""
    return _manifest(folder) if (folder / MANIFEST).exists() else None


def _manifest(folder: Any) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        known = json.loads(path.read_bytes())["files"]
        if all(isinstance(facts, dict) for facts in known.values()):
            return known
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DataError(f"{path} is damaged: copy or write the folder again")


def _facts(path: Path) -> dict[str, Any]:
    if ".tfrecord" in path.name:
        return {"bytes": path.stat().st_size}
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _digest(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _reason(error: Exception) -> str:
    """Of an `OSError` without its file, which the message names already."""
    return getattr(error, "strerror", None) or str(error).splitlines()[0]
