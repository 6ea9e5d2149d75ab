"""Work that goes on in a thread of its own while the caller is busy with what came before."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Generator, Iterator
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Ahead(Iterator[T], Generic[T]):
    """What a generator gives, made by a thread of its own, at most `depth` items ahead: a context manager.

    Whatever the generator raises is raised where its item would have come. Leaving the `with` closes the generator,
    after the item that it is at, and ends the thread.

    Args:
        source: runs in that thread alone.
        depth: items that may wait, 1 or more.

    Attributes:
        busy: seconds that the thread spent on items so far.
        waited: seconds that the caller waited for them.
    """

    def __init__(self, source: Generator[T], depth: int):
        self.busy = self.waited = 0.0
        self._source, self._made = source, queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __next__(self) -> T:
        started = time.perf_counter()
        item, error = self._made.get()
        self.waited += time.perf_counter() - started
        if error is None:
            return item
        self._made.put((None, error))  # the thread has ended: there is room, and nothing else comes
        raise error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error) -> None:
        self._stopped.set()
        with contextlib.suppress(queue.Empty):  # so that a thread that waits for room goes on, and sees that it may end
            while True:
                self._made.get_nowait()
        self._thread.join()

    def _work(self) -> None:
        try:
            with contextlib.closing(self._source):
                while not self._stopped.is_set():
                    started = time.perf_counter()
                    try:
                        item = next(self._source)
                    finally:
                        self.busy += time.perf_counter() - started
                    self._made.put((item, None))
        except BaseException as error:  # StopIteration among them: the caller raises it
            self._made.put((None, error))
