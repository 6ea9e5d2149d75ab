"""What the table says of a data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from input_pipeline.layouts import Layout
from input_pipeline.layouts.splits import Lists


@dataclasses.dataclass(frozen=True)
class CustomReader:
    """A data set with a reader of its own: time series of several sensors that fit no layout.

    Attributes:
        module: with a function `prepare(source, out, ...)`.
        sensors: that it holds.
        rule: how splits are made.
        options: arguments of `prepare` beside those of all data sets.
    """

    module: str
    sensors: tuple[str, ...]
    rule: str
    options: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One published data set.

    Attributes:
        name: what `--dataset` says, snake_case.
        title: what it is, a sentence without its full stop.
        task: what is learnt from it.
        layout: how its files lie, see `input_pipeline.layouts`; says sensors, bands and units, splits and labels.
        classes: names in the order of their index, as the files have them where they name classes.
        tile: default side of a tile in pixels of the first sensor.
        stride: default pixels from tile to tile; `tile` by default.
        series: holds several dates or frames whose number can be limited.
        licence: of the data.
        source: address.
        citation: how to cite it.
        note: traps.
        unscored: classes that the data set's own scores leave out of their means.
        scoring: how published scores differ from those made here.
        divisions: other published splits that `--splits` names, in place of the layout's own.
        evidence: where names of files, bands, classes and splits are known from. Nothing here was tried on a whole
            data set unless it says so.
    """

    name: str
    title: str
    task: str
    layout: Layout | CustomReader
    classes: tuple[str, ...]
    tile: int
    licence: str
    source: str
    citation: str
    evidence: str
    note: str = ""
    stride: int | None = None
    series: bool = False
    unscored: tuple[str, ...] = ()
    scoring: str = ""
    divisions: Mapping[str, Lists] = dataclasses.field(default_factory=dict)
