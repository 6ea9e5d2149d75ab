"""One pass of a model over a scene, strip by strip: reading, computing and writing at the same time.

One thread reads strips and cuts windows, another one shows them to the model and puts together what it says, and the
caller's writes what is finished. Each is a few items ahead of the next at most, so memory stays that of some strips.
"""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from ringmoe_jax.deploy.blending import Lattice
from ringmoe_jax.deploy.maps import Draft
from ringmoe_jax.deploy.overlap import Ahead
from ringmoe_jax.deploy.scenes import Ground, Stack
from ringmoe_jax.deploy.windows import WindowModel
from ringmoe_jax.errors import DataError
from ringmoe_jax.parallel import processes

BLOCK = 8  # strips that a process of several maps in one go, for which it sees the strips before them again
BLOCK_BYTES = 2**26  # of the map that they make, at most, where a block may be smaller
DEPTH = 2  # batches that are read, and that are computed, ahead (our choice)


class Product(Protocol):
    """What is made of a model's answers to windows.

    Attributes:
        rows: windows down the scene.
        columns: windows across it.
        reach: strips of windows before one that have a say in what it finishes.
        shape: rows of the draft are arrays of this shape.
        dtype: of them.
    """

    rows: Lattice
    columns: Lattice
    reach: int
    shape: tuple[int, int]
    dtype: str

    def begin(self) -> None:
        """Forgets all strips: the next one need not follow the last one."""

    def add(self, row: int, column: int, answer: Any) -> None:
        """Takes the answer to a window; strips come from top to bottom."""

    def finish(self, row: int, ground: Ground) -> tuple[np.ndarray, int]:
        """Ends a strip: rows of the draft, and in how many cells something is known."""

    def write(self, draft: Draft, out: Path) -> dict[str, int]:
        """The file of a whole draft, complete or absent; gives what there is to count, fields of `Summary`."""


class Group(NamedTuple):
    """Strips that are read together: their numbers, windows of each in which something was observed, and where."""

    rows: range
    shown: dict[int, int]
    ground: Ground


class Piece(NamedTuple):
    """What is computed at a time: windows (row, column) of a group and their batch; at its end none of both."""

    group: Group
    windows: list[tuple[int, int]]
    batch: dict | None


class Finished(NamedTuple):
    """A strip: rows of the draft, windows that the model saw, others, cells where something is known."""

    rows: np.ndarray
    shown: int
    empty: int
    mapped: int


class Pass:
    """One pass over a scene.

    Args:
        model: that answers.
        stack: the scene.
        product: that is made.
        batch: windows that the model is shown at a time. Strips of fewer windows share batches, in groups of strips
            that begin at multiples of their number: which windows share a batch hangs on the scene alone.

    Attributes:
        shown: windows that the model saw, of finished strips.
        empty: other windows of them.
        mapped: cells where something is known.
        seconds: that each thread was busy: "reading", "computing", "writing"; "waiting" is what the computing one
            waited for windows.
    """

    def __init__(self, model: WindowModel, stack: Stack, product: Product, batch: int):
        self.model, self.stack, self.product, self.batch = model, stack, product, batch
        self.shown = self.empty = self.mapped = 0
        self.seconds = dict.fromkeys(("reading", "computing", "writing", "waiting"), 0.0)
        self._group = max(1, batch // product.columns.windows)

    def run(self, draft: Draft | None, progress: Callable[[int, int], None]) -> int:
        """Goes on from the strips that the draft holds; the first process has it. Gives their number."""
        rows, across = self.product.rows, self.product.columns.windows
        begun = done = processes.from_first(lambda: draft.strips)
        blocks = self._blocks(begun)
        own = [blocks[i] for i in processes.turns(len(blocks))]
        runs = own if processes.count() > 1 else [range(begun, rows.windows)]
        with Ahead(self._finished(runs), DEPTH) as strips:
            made = (list(itertools.islice(strips, len(block))) for block in own)
            for strip in itertools.chain.from_iterable(processes.in_turn(made)):
                started = time.perf_counter()
                if draft:
                    draft.append(strip.rows)
                self.seconds["writing"] += time.perf_counter() - started
                self.shown, self.empty = self.shown + strip.shown, self.empty + strip.empty
                self.mapped, done = self.mapped + strip.mapped, done + 1
                progress(done * across, rows.windows * across)
        self.seconds["computing"] += strips.busy - self.seconds["waiting"]
        return begun

    def _blocks(self, begun: int) -> list[range]:
        """What is left, in blocks that processes take in turn: one strip where a process has all of them."""
        windows, size = self.product.rows.windows, 1
        if processes.count() > 1:
            strip = self.product.rows.stride * np.dtype(self.product.dtype).itemsize * np.prod(self.product.shape)
            size = max(1, min(BLOCK, BLOCK_BYTES // int(strip), -(-(windows - begun) // processes.count())))
            size = -(-size // self._group) * self._group
        return [range(first, min(first + size, windows)) for first in range(begun, windows, size)]

    # ---- Reading ------------------------------------------------------------------------------------

    def _read(self, run: range) -> Generator[Piece]:
        """All windows that have a say in strips, group by group."""
        rows, columns, side = self.product.rows, self.product.columns, self.model.size
        begin, strip = max(0, run.start - self.product.reach), None
        for first in range(begin - begin % self._group, run.stop, self._group):
            group = range(first, min(first + self._group, rows.windows))
            top = rows.start(first)
            strip = self.stack.strip(top, rows.start(group[-1]) + side - top, strip)
            corners = {(r, c): (rows.start(r), columns.start(c)) for r in group for c in range(columns.windows)}
            seen = [window for window, corner in corners.items() if strip.seen(*corner, side)]
            count = collections.Counter(row for row, _ in seen)
            found = Group(group, {row: count[row] for row in group}, strip.ground(self.model.every_date))
            for i in range(0, len(seen), self.batch):
                chosen = seen[i : i + self.batch]
                yield Piece(found, chosen, strip.batch([corners[window] for window in chosen], side, self.batch))
            yield Piece(found, [], None)

    # ---- Computing ----------------------------------------------------------------------------------

    def _finished(self, runs: Iterable[range]) -> Generator[Finished]:
        """The strips of runs of them, one after the other."""
        for run in runs:
            with Ahead(self._read(run), DEPTH) as pieces:
                try:
                    yield from (strip for row, strip in self._strips(pieces) if row in run)
                finally:
                    self.seconds["reading"] += pieces.busy
                    self.seconds["waiting"] += pieces.waited

    def _strips(self, pieces: Iterator[Piece]) -> Generator[tuple[int, Finished]]:
        """Strips that follow each other, with their numbers."""
        self.product.begin()
        self._next = 0
        for piece, answers in self._answered(pieces):
            for (row, column), answer in zip(piece.windows, answers, strict=True):
                yield from self._ended(piece.group, row)
                self.product.add(row, column, answer)
            if not piece.windows:
                yield from self._ended(piece.group, piece.group.rows.stop)

    def _ended(self, group: Group, before: int) -> Generator[tuple[int, Finished]]:
        """Ends the strips of a group that come before one."""
        for row in range(max(self._next, group.rows.start), before):
            values, mapped = self.product.finish(row, group.ground)
            shown, self._next = group.shown[row], row + 1
            yield row, Finished(values, shown, self.product.columns.windows - shown, mapped)

    def _answered(self, pieces: Iterator[Piece]) -> Generator[tuple[Piece, list]]:
        """Pieces with the answers to their windows; the device works while the last ones are put together."""
        under_way = collections.deque()
        for piece in pieces:
            under_way.append((piece, piece.batch and self.model.answer(piece.batch)))
            if len(under_way) > DEPTH:
                yield self._checked(*under_way.popleft())
        while under_way:
            yield self._checked(*under_way.popleft())

    def _checked(self, piece: Piece, answers: Any) -> tuple[Piece, list]:
        if answers is None:
            return piece, []
        answers = jax.tree.map(np.asarray, answers)
        split = [jax.tree.map(lambda x, i=i: x[i], answers) for i in range(len(piece.windows))]
        for (row, column), answer in zip(piece.windows, split, strict=True):
            if not all(np.isfinite(x).all() for x in jax.tree.leaves(answer)):
                raise DataError(f"the model's answers are not finite in strip {row}, window {column}: a broken run?")
        return piece, split
