"""What a source hands to the writer: places, none of them read yet, and a report of what was found on the way.

A place is what is read at once: an image with its labels, a patch, a window of a video. It gives any number of samples.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.schema import BOXES, MULTILABEL, TRACKS, UNLABELLED, VALUE, LabelInfo, Sample

GSD_SPREAD = 1.05  # of metres a pixel, from which on it is noted (our choice)


class Report:
    """What was left out of a data set or understood in one of several ways, and how often each class occurs in its
    training split.

    Attributes:
        left_out: rows by reason and image.
        seen: samples of the training split that hold a class, by label.
        notes: further lines for a person to read.
    """

    def __init__(self):
        self.left_out: dict[str, collections.Counter] = {}
        self.seen: dict[str, np.ndarray] = {}
        self.notes: list[str] = []
        self._said: dict[str, dict[str, None]] = {}
        self._gsd: dict[str, list[float]] = {}

    def note(self, sentences: Iterable[str], where: str) -> None:
        """Counts the files that something is true of.

        Args:
            sentences: each completes "3 files, a.tif among them, ...".
            where: the file; naming it again changes nothing.
        """
        for sentence in sentences:
            self._said.setdefault(sentence, {})[where] = None

    def measure(self, sensor: str, stored: float, found: float | None) -> None:
        """Compares metres a pixel of a file with those that the metadata says; None of a file without place."""
        if found is not None:
            known = self._gsd.setdefault(sensor, [stored, found, found])
            known[1:] = min(known[1], found), max(known[2], found)

    def leave_out(self, why: str, where: str, count: int = 1) -> None:
        """Counts rows that were left out.

        Args:
            why: completes "12 boxes of 3 images ...", for example "had no area".
            where: id of the image.
            count: number of rows; nothing is noted for 0.
        """
        if count:
            self.left_out.setdefault(why, collections.Counter())[where] += int(count)

    def watch(self, samples: Iterable[Sample], labels: Mapping[str, LabelInfo]) -> Iterator[Sample]:
        """Hands samples of the training split on and counts, label by label, how many of them hold each class."""
        for name, info in labels.items():
            if info.kind != VALUE:
                self.seen.setdefault(name, np.zeros(len(info.names), np.int64))
        for sample in samples:
            for name, counts in self.seen.items():
                counts[_present(np.asarray(sample.labels[name]), labels[name].kind)] += 1
            yield sample

    def taken(self) -> Report:
        """What was found so far, as a report of its own; this one begins anew."""
        other = Report()
        self.__dict__, other.__dict__ = other.__dict__, self.__dict__
        return other

    def merge(self, other: Report) -> None:
        """Adds what a report of later places found."""
        for why, images in other.left_out.items():
            self.left_out.setdefault(why, collections.Counter()).update(images)
        for name, counts in other.seen.items():
            self.seen[name] = self.seen.get(name, 0) + counts
        self.notes += other.notes
        for sentence, said in other._said.items():
            self._said.setdefault(sentence, {}).update(said)
        for sensor, (stored, low, high) in other._gsd.items():
            self.measure(sensor, stored, low)
            self.measure(sensor, stored, high)

    def lines(self, labels: Mapping[str, LabelInfo]) -> list[str]:
        """What a person should know, a line each; empty where all is well."""
        lines = list(self.notes)
        for sentence, said in self._said.items():
            lines.append(f"{len(said)} files, {next(iter(said))} among them, {sentence}")
        for name, (stored, low, high) in self._gsd.items():
            if high > GSD_SPREAD * min(low, stored) or stored > GSD_SPREAD * low:
                lines.append(f"{name}: files have {low:.3g} to {high:.3g} m a pixel, the metadata says {stored:.3g} m")
        lines += [
            f"{sum(images.values())} boxes of {len(images)} images {why}: left out"
            for why, images in sorted(self.left_out.items())
        ]
        for name, counts in self.seen.items():
            if absent := [labels[name].names[i] for i in np.flatnonzero(counts == 0)]:
                lines.append(f"{name}: no sample of the training split holds {', '.join(absent)}")
        return lines


@dataclasses.dataclass(frozen=True)
class Places:
    """Places of one split. Iterating reads one after another; any of them can be read alone, by another program, too.

    Attributes:
        keys: what a place is known by to `read`, in the order of the split.
        read: function from some keys to what these places give, one by one: samples, or scenes of a layout.
        report: what `read` writes to.
        name: function from a key to what a person calls the place.
    """

    keys: Sequence[Any]
    read: Callable[[Sequence[Any]], Iterator[Any]]
    report: Report = dataclasses.field(default_factory=Report)
    name: Callable[[Any], str] = str

    def __iter__(self) -> Iterator[Any]:
        return self.read(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def then(self, step: Callable[[Iterator[Any]], Iterator[Any]]) -> Places:
        """The same places, and what a function makes of what they give."""
        return dataclasses.replace(self, read=functools.partial(_then, self.read, step))

    def watched(self, labels: Mapping[str, LabelInfo]) -> Places:
        """The same places of a training split, whose classes the report counts."""
        return self.then(functools.partial(self.report.watch, labels=labels))


def _then(read: Callable, step: Callable, keys: Sequence[Any]) -> Iterator[Any]:
    return step(read(keys))


def _present(value: np.ndarray, kind: str) -> np.ndarray:
    """Classes that a label of one sample holds."""
    if kind == MULTILABEL:
        return np.flatnonzero(value > 0)
    classes = np.unique(value[:, 0] if kind in (BOXES, TRACKS) else value).astype(int)
    return classes[classes != UNLABELLED]
