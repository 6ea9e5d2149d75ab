"""Scalars to standard output, JSON lines and TensorBoard event files."""

from __future__ import annotations

import itertools
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from ringmoe_jax import files, remote

_NUMBERS = itertools.count()  # of this process's event files


class MetricsWriter:
    """Writes one record a logged step; on restart, records after the resumed step are taken back.

    `metrics.jsonl` is always written, one JSON object a line with "step" and the scalars. TensorBoard
    event files are written where the `tensorboard` package is installed, record by record: its own writer of event
    files imports TensorFlow where that is installed, which takes seconds. Only process 0 writes.

    Args:
        workdir: folder of the run.
        resume_step: records of later steps are removed.

    Raises:
        DataError: from every method, where the disk is full.
    """

    def __init__(self, workdir: str | Path, resume_step: int = 0):
        self.path = Path(workdir) / "metrics.jsonl"
        self.folder = self.path.with_name("tensorboard")
        self._events = None
        self._active = jax.process_index() == 0
        if not self._active:
            return
        with files.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= resume_step]
            rewritten = self.path.with_suffix(".tmp")
            rewritten.write_text("".join(line + "\n" for line in kept))
            rewritten.replace(self.path)
        try:
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            print("tensorboard is not installed: metrics go to metrics.jsonl only")
            return
        started = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"
        with files.writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            self._events = RecordWriter((self.folder / f"events.out.tfevents.{started}").open("wb"))
        self._record(file_version="brain.Event:2")

    def write(self, step: int, scalars: Mapping[str, float], tables: Mapping[str, np.ndarray] | None = None) -> None:
        """Appends one record.

        Args:
            step: optimiser steps taken.
            scalars: one number each.
            tables: arrays, for metrics.jsonl only; rounded to 4 digits, None where not finite.
        """
        if not self._active:
            return
        record = {"step": step} | {name: float(value) for name, value in scalars.items()}
        with files.writing(self.path), self.path.open("a") as file:
            file.write(json.dumps(record | {name: _listed(values) for name, values in (tables or {}).items()}) + "\n")
        if self._events is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary

            values = [Summary.Value(tag=name, simple_value=value) for name, value in record.items() if name != "step"]
            self._record(step=step, summary=Summary(value=values))
        remote.send(self.path.parent, every=remote.EVERY)

    def close(self) -> None:
        """Closes the event file."""
        if self._events is not None:
            with files.writing(self.folder):
                self._events.close()

    def _record(self, **fields) -> None:
        """Appends one event."""
        from tensorboard.compat.proto.event_pb2 import Event

        with files.writing(self.folder):
            self._events.write(Event(wall_time=time.time(), **fields).SerializeToString())
            self._events.flush()


def read(workdir: str | Path) -> list[dict]:
    """All records of a run, in the order of writing."""
    return [json.loads(line) for line in _lines(Path(workdir) / "metrics.jsonl")]


def _listed(values: np.ndarray) -> list | float | None:
    """Nested lists of an array."""
    if np.ndim(values):
        return [_listed(part) for part in values]
    return round(float(values), 4) if math.isfinite(values) else None


def _lines(path: Path) -> list[str]:
    """Whole lines; a half-written last line of a killed run is left out."""
    if not path.exists():
        return []
    return [line for line in path.read_text().split("\n")[:-1] if line]


def not_finite(scalars: Mapping[str, float]) -> list[str]:
    """Names of scalars that are NaN or infinite."""
    return [name for name, value in scalars.items() if not math.isfinite(value)]
