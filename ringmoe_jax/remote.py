"""Runs in a bucket, such as `gs://bucket/runs/a`: what of them lies there, and what is made on this machine first.

Checkpoints are written to the bucket itself, by all hosts. All else of a run is small files (metrics, results,
pictures), which are made in a copy of the folder on this machine's disk and sent when a checkpoint is saved, at most
every `EVERY` seconds between, and when a program ends. The bucket is what counts: a copy is brought up to date when a
program starts, so that a run may go on on a machine that has never seen it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from ringmoe_jax import files
from ringmoe_jax.errors import ConfigError, UserError
from ringmoe_jax.parallel import processes

COPIES = Path(".cache/remote")  # of folders of buckets, from where a program is started
CHECKPOINTS = "checkpoints"  # folders that are never copied
SENT = ".sent.json"  # in a copy: which of its files lie in the bucket as they are here
EVERY = 30.0  # seconds
PACKAGES = {"gs": "gcsfs"}  # what etils.epath needs for an address
_open: dict[Path, Copy] = {}

# One way for hosts with and without TensorFlow. Said before etils.epath opens its first path, which is when it looks.
if importlib.util.find_spec(PACKAGES["gs"]):
    os.environ.setdefault("EPATH_USE_TF", "false")


def is_remote(folder: Any) -> bool:
    """Whether a folder is given by an address."""
    return "://" in str(folder)


def check(folder: str) -> None:
    """Raises a `ConfigError` for an address of a store that cannot be used, or whose package is not installed."""
    scheme, _, rest = folder.partition("://")
    if scheme not in PACKAGES or not rest.strip("/"):
        wanted = " or ".join(f"{known}://bucket/folder" for known in PACKAGES)
        raise ConfigError(f"{folder}: wanted a folder of this machine or {wanted} (docs/launch.md)")
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        raise ConfigError(f"{folder}: {PACKAGES[scheme]} is not installed: pip install {PACKAGES[scheme]}")


def place(folder: str | Path) -> Any:
    """Where checkpoints and the lock of a run lie.

    Args:
        folder: of a run: an address, a folder in a copy that `copied` gave, or any other.

    Returns:
        An `etils.epath.Path` of the bucket for the first two, else the absolute `pathlib.Path`.
    """
    if is_remote(folder):
        return _path(str(folder))
    here = Path(folder).absolute()
    for root, copy in _open.items():
        if here.is_relative_to(root):
            return _path(copy.address) / here.relative_to(root).as_posix()
    return here


def listed(folder: Any) -> list[Any]:
    """What lies in a folder, [] where there is none; `is_dir` would take a bucket out of reach for none."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def shown(folder: str | Path) -> str:
    """What to call a folder in messages: what stands for it in a bucket, where it is in a copy."""
    there = place(folder)
    return str(there) if is_remote(there) else str(folder)


def copied(folder: str) -> str:
    """A folder of this machine that stands for one: itself, or the copy of a bucket's, brought up to date.

    Raises:
        ConfigError: the bucket cannot be reached.
    """
    if not is_remote(folder):
        return folder
    check(folder)
    scheme, _, rest = folder.rstrip("/").partition("://")
    root = (COPIES / scheme / PurePosixPath(rest)).absolute()
    copy = _open[root] = Copy(folder.rstrip("/"), root)
    with reached(folder):
        copy.fetch()
    return str(root)


def send(folder: str | Path | None = None, *, every: float = 0.0) -> None:
    """Sends what changed in a copy to its bucket, from the first process; nothing to do for any other folder.

    Args:
        folder: in a copy; None for all copies.
        every: seconds that have to have passed since the last time.

    Raises:
        ConfigError: the bucket cannot be reached.
    """
    for root, copy in _open.items() if processes.number() == 0 else ():
        inside = folder is None or Path(folder).absolute().is_relative_to(root)
        if inside and time.monotonic() - copy.last >= every:
            with reached(copy.address):
                copy.send()


@dataclasses.dataclass
class Copy:
    """A folder of a bucket, and its copy here without checkpoints.

    Attributes:
        address: of the folder.
        root: of the copy.
        last: when it was sent, by `time.monotonic`.
    """

    address: str
    root: Path
    last: float = dataclasses.field(default_factory=time.monotonic)

    def fetch(self) -> None:
        """Brings the copy up to date; what was sent before and is gone from the bucket goes here, too."""
        there = dict(_files(_path(self.address)))
        known = self._sent()
        for name in known.keys() - there.keys():
            (self.root / name).unlink(missing_ok=True)
        for name, path in there.items():
            self._write(name, path.read_bytes())
        self._keep({name: _facts(self.root / name) for name in there})

    def send(self) -> None:
        """Sends what is not in the bucket as it is here."""
        known, now = self._sent(), {name: _facts(path) for name, path in _files(self.root)}
        for name, facts in now.items():
            if known.get(name) != facts:
                (_path(self.address) / name).write_bytes((self.root / name).read_bytes())
        for name in known.keys() - now.keys():
            (_path(self.address) / name).unlink(missing_ok=True)
        self._keep(now)
        self.last = time.monotonic()

    def _sent(self) -> dict[str, Any]:
        path = self.root / SENT
        return json.loads(path.read_text()) if path.exists() else {}

    def _keep(self, sent: dict[str, Any]) -> None:
        if sent or self.root.exists():
            self._write(SENT, json.dumps(sent).encode())

    def _write(self, name: str, content: bytes) -> None:
        """Whole or not at all; several processes of a machine share a copy and may write the same file."""
        path = self.root / name
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(content)
            draft.replace(path)


def _files(folder: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Names, from `folder`, and paths of its files, but those of checkpoints and hidden ones."""
    for path in listed(folder):
        if path.name.startswith(".") or not path.name:
            continue
        if not path.is_dir():
            yield above + path.name, path
        elif path.name != CHECKPOINTS:
            yield from _files(path, f"{above}{path.name}/")


def _facts(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _path(address: str) -> Any:
    """The path of an address, by the package that `check` asks for; what others write there is seen at once."""
    check(address)
    import fsspec.config
    from etils import epath

    logging.getLogger(PACKAGES["gs"]).setLevel(logging.CRITICAL)  # what it logs is raised, too
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(address)


@contextlib.contextmanager
def reached(address: str | Path) -> Iterator[None]:
    """Within it, what goes wrong on the way to a bucket becomes a `ConfigError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_remote(address):
            raise
        said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise ConfigError(
            f"{address} cannot be reached ({said[:200]}): is there such a bucket, and does this machine have its "
            "rights (gcloud auth application-default login, or the service account of the VM)?"
        ) from error
