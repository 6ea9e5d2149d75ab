"""One writer at a time: a lock on a folder, which the system takes back from whoever is killed."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.parallel import processes

LOCK = ".lock"  # says who writes; empty when nobody does
LATE = 60.0  # seconds that other hosts may see a file later


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Holds a folder for this job, all of its processes together, and makes it where it does not exist.

    Args:
        folder: on a file system that all hosts of the job share.

    Raises:
        ConfigError: another program holds it, or the hosts see different folders.
    """
    path = Path(folder) / LOCK
    with _held(path) if processes.number() == 0 else contextlib.nullcontext("") as holder:
        written = processes.from_first(lambda: holder)
        seen = processes.exchange(_read(path, written))
        if lost := [number for number, text in enumerate(seen) if text != written]:
            raise ConfigError(
                f"{folder} of process {lost[0]} is not the folder of process 0: give one on a file system that all "
                "hosts share"
            )
        yield


def _read(path: Path, wanted: str) -> str:
    """What a file says once it says what is wanted, or at last: file systems take a while to tell other hosts."""
    deadline = time.monotonic() + LATE
    while True:
        text = path.read_text() if path.exists() else ""
        if text == wanted or time.monotonic() > deadline:
            return text
        time.sleep(1)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[str]:
    """Takes the lock; gives the text that says who holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path.parent} cannot be made ({error.strerror}): give another place") from None
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"{path.parent} is being written by {path.read_text().strip() or 'another program'}: wait until that "
                "ends, or choose another folder. Processes of one job have to be connected, see docs/launch.md"
            ) from None
        except OSError as error:
            print(f"note        {path.parent} lies where nothing can be locked ({error}): start one program at a time")
        holder = (
            f"process {os.getpid()} on {socket.gethostname()} since {datetime.datetime.now(datetime.UTC):%F %T} UTC"
        )
        file.truncate(0)
        file.write(holder)
        file.flush()
        os.fsync(file.fileno())  # other hosts read it
        try:
            yield holder
        finally:
            file.truncate(0)
