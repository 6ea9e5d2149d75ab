"""One writer at a time: a lock on a folder, which is taken back from whoever is killed.

On a disk the system does so. In a bucket, where nothing can be locked, the lock is an object that its holder writes
again and again: one that nobody wrote for a while is nobody's.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ringmoe_jax import files, remote
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.parallel import processes

LOCK = ".lock"  # says who writes; empty when nobody does
LATE = 60.0  # seconds that other hosts may see a file later
BEAT = 15.0  # seconds between two times that the lock of a bucket is written
STALE = 60.0  # seconds after which one that was not written is nobody's
SETTLE = 2.0  # seconds in which a second one, who saw no lock either, has written


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Holds a folder for this job, all of its processes together, and makes it where it does not exist.

    Args:
        folder: on a file system that all hosts of the job share, or of a bucket.

    Raises:
        ConfigError: another program holds it, or the hosts see different folders.
    """
    path = remote.place(folder) / LOCK
    held = _leased if remote.is_remote(path) else _held
    with held(path) if processes.number() == 0 else contextlib.nullcontext("") as holder:
        written = processes.from_first(lambda: holder)
        seen = processes.exchange(_read(path, written))
        if lost := [number for number, text in enumerate(seen) if text != written]:
            raise ConfigError(
                f"{folder} of process {lost[0]} is not the folder of process 0: give one on a file system that all "
                "hosts share"
            )
        yield


def _read(path: Any, wanted: str) -> str:
    """What a file says once it says what is wanted, or at last: file systems take a while to tell other hosts."""
    deadline = time.monotonic() + LATE
    while True:
        text = _text(path).partition("\n")[0]
        if text == wanted or time.monotonic() > deadline:
            return text
        time.sleep(1)


def _text(path: Any) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _refusal(path: Any, holder: str) -> ConfigError:
    return ConfigError(
        f"{path.parent} is being written by {holder.strip() or 'another program'}: wait until that ends, or choose "
        "another folder. Processes of one job have to be connected, see docs/launch.md"
    )


def _self() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {datetime.datetime.now(datetime.UTC):%F %T} UTC"


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
            raise _refusal(path, path.read_text()) from None
        except OSError as error:
            print(f"note        {path.parent} lies where nothing can be locked ({error}): start one program at a time")
        holder = _self()
        with files.writing(path):
            file.truncate(0)
            file.write(holder)
            file.flush()
            os.fsync(file.fileno())  # other hosts read it
        try:
            yield holder
        finally:
            file.truncate(0)


@contextlib.contextmanager
def _leased(path: Any) -> Iterator[str]:
    """Takes the lock of a bucket's folder; gives the text that says who holds it."""
    with remote.reached(path.parent):
        _wait_until_free(path)
        holder, done = _self(), threading.Event()
        path.write_text(f"{holder}\n0")
        time.sleep(SETTLE)
        if (text := _text(path)) != f"{holder}\n0":
            raise _refusal(path, text.partition("\n")[0])
    beating = threading.Thread(target=_beat, args=(path, holder, done), daemon=True)
    beating.start()
    try:
        yield holder
    finally:
        done.set()
        beating.join()
        path.unlink(missing_ok=True)


def _wait_until_free(path: Any) -> None:
    """Returns at once where there is no lock, and after `STALE` seconds where nobody writes the one that is there."""
    before = _text(path)
    deadline = time.monotonic() + STALE
    if before:
        print(f"note        {path} was not taken back: looking for {STALE:.0f} s whether anyone still writes it")
    while before and time.monotonic() < deadline:
        time.sleep(min(1.0, STALE / 10))
        if (text := _text(path)) != before:
            if not text:
                return
            raise _refusal(path, text.partition("\n")[0])


def _beat(path: Any, holder: str, done: threading.Event) -> None:
    """Writes a lock again until `done`; ends the program where another one took it: there is one writer."""
    number = 0
    while not done.wait(BEAT):
        number += 1
        with contextlib.suppress(Exception):  # the bucket may be out of reach for a while
            if (text := _text(path)).partition("\n")[0] not in ("", holder):
                print(f"error: {_refusal(path, text)}, after this one was silent for long", file=sys.stderr, flush=True)
                os._exit(1)
            path.write_text(f"{holder}\n{number}")
