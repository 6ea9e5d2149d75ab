"""Published data sets as a table: an entry says how the files lie and what they mean, `prepare` writes our records.

A data set is an entry of `images`, `pixels` or `objects`, by what its labels speak of, not a class of its own. An entry
of your own is an `Entry` in a file of yours, `prepare --dataset my_data:ENTRY`; or call `register`, in a module that
`prepare --modules` names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from input_pipeline.builder import write_dataset
from input_pipeline.catalog import images, objects, pixels
from input_pipeline.catalog.entry import CustomReader, Entry
from input_pipeline.layouts import Opened, Request, tiles
from input_pipeline.parts import Workers
from input_pipeline.places import Report
from input_pipeline.schema import CLASSES, MAP, MULTILABEL, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import DataError, nearest
from ringmoe_jax.registry import Registry

CATALOG = Registry("data set", Entry)
for _entry in (*images.TABLE, *pixels.TABLE, *objects.TABLE):
    CATALOG.add(_entry.name, _entry)
_OF_IMAGES = (CLASSES, MULTILABEL)  # labels that say something of a whole image, which then stays whole


def register(entry: Entry) -> Entry:
    """Adds a data set of your own to the table.

    Raises:
        ConfigError: there is another one of that name.
    """
    return CATALOG.add(entry.name, entry)


def get(name: str) -> Entry:
    """Looks a data set up, by its name or as `module:ENTRY` of your own file.

    Raises:
        ConfigError: unknown name; the message names the nearest one.
    """
    return CATALOG.find(name)


def prepare(
    name: str,
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    sensors: tuple[str, ...] | None = None,
    tile: int | None = None,
    stride: int | None = None,
    max_frames: int | None = None,
    splits: str = "",
    shards: int = 8,
    overwrite: bool = False,
    progress: Callable[[str, int], None] | None = None,
    report: Report | None = None,
    workers: Workers | None = None,
) -> Metadata:
    """Cuts a published data set into tiles and writes it.

    Images with one label for the whole stay one sample each: the middle of a larger one is taken.

    Args:
        name: of the entry, or `module:ENTRY`.
        source: folder of the unpacked files, as the entry's layout says, or a zip archive of it, which is unpacked
            beside `out` while it is read.
        out: the data set's folder.
        sensors: some of the layout's, the first one sets the grid; all by default.
        tile: side of a tile in pixels of the first sensor; the entry's by default.
        stride: pixels from tile to tile; the entry's by default, or `tile` where that is given.
        max_frames: longest series or window of a video, for entries with `series`.
        splits: a key of the entry's `divisions`; its own splits by default.
        shards: files a split.
        overwrite: replace a data set that is there.
        progress: called with the split and the number of samples written so far.
        report: counts what is left out, and classes without training samples.
        workers: see `builder.write_dataset`.

    Returns:
        The metadata with statistics.

    Raises:
        ConfigError: unknown name.
        DataError: a file is not as the entry says, or an argument does not apply.
    """
    entry, report = get(name), Report() if report is None else report
    if max_frames is not None and (not entry.series or max_frames < 1):
        raise DataError(f'max_frames = {max_frames}: wanted 1 or more, and "{name}" to hold series of dates')
    entry = _divided(entry, splits) if splits else entry
    common = dict(shards=shards, overwrite=overwrite, progress=progress, workers=workers)
    options = dict(sensors=sensors, tile=tile, stride=stride, max_frames=max_frames)
    with _unpacked(Path(source), Path(out)) as folder:
        if isinstance(entry.layout, CustomReader):
            return _own(entry, folder, out, options, common)
        lists = (Path(source).parent,) * (folder != Path(source))
        request = dataclasses.replace(_request(entry, folder, **options), report=report, lists=lists)
        opened = entry.layout.open(request)
        metadata = _metadata(entry, request, opened)
        cut = functools.partial(_samples, metadata=metadata, request=request)
        samples = {split: scenes.then(cut) for split, scenes in opened.scenes.items()}
        samples |= {split: found.watched(metadata.labels) for split, found in samples.items() if split == "train"}
        return write_dataset(out, samples, metadata, **common)


@contextlib.contextmanager
def _unpacked(source: Path, out: Path) -> Iterator[Path]:
    """The folder of a data set; that of a zip archive lies beside `out` and is deleted afterwards."""
    if source.suffix.lower() != ".zip" or source.is_dir():
        yield source
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.unpacked-", dir=out.parent) as folder:
        try:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{source} cannot be unpacked ({error}): wanted the data set's zip archive") from error
        yield Path(folder)


def _divided(entry: Entry, splits: str) -> Entry:
    """The entry with another of its published splits."""
    if splits not in entry.divisions:
        known = nearest(splits, entry.divisions) if entry.divisions else "it has one way alone"
        raise DataError(f'splits "{splits}" are not published for {entry.name}: {known}')
    return dataclasses.replace(entry, layout=dataclasses.replace(entry.layout, splits=entry.divisions[splits]))


def _request(entry: Entry, source: Path, *, sensors, tile, stride, max_frames) -> Request:
    """What the layout is asked for; arguments as those of `prepare`."""
    for wanted in sensors or ():
        if wanted not in entry.layout.sensors:
            raise DataError(f'sensor "{wanted}" is not in {entry.name}: {nearest(wanted, entry.layout.sensors)}')
    if tile is None:
        tile, stride = entry.tile, entry.stride if stride is None else stride
    stride = tile if stride is None else stride
    if tile < 1 or stride < 1:
        raise DataError(f"tile = {tile}, stride = {stride}: wanted pixels > 0")
    chosen = tuple(n for n in entry.layout.sensors if not sensors or n in sensors)
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: wanted the zip archive or the unpacked files of {entry.name}")
    return Request(source, chosen, entry.classes, tile, stride, max_frames)


def _metadata(entry: Entry, request: Request, opened: Opened) -> Metadata:
    """What the data set will say of itself."""
    shape = (request.tile, request.tile)
    sensors = {
        name: SensorInfo.of(sensor_table.get(name), (opened.frames[name], *shape), opened.gsd[name])
        for name in request.sensors
    }
    cutting = f"Tiles of {request.tile} px every {request.stride} px." if not _whole(opened.labels) else ""
    note = f"Note: {entry.note}." if entry.note else ""
    return Metadata(
        name=entry.name,
        sensors=sensors,
        description=" ".join(filter(None, (f"{entry.title}. Splits: {opened.rule}.", cutting, note))),
        licence=entry.licence,
        source=entry.source,
        citation=entry.citation,
        labels={
            label: dataclasses.replace(info, scoring=entry.scoring, unscored=entry.unscored if info.kind == MAP else ())
            for label, info in opened.labels.items()
        },
    )


def _samples(found, metadata: Metadata, request: Request) -> Iterator[Sample]:
    whole = _whole(metadata.labels)
    for scene in found:
        size = next(iter(scene.images.values())).pixels.shape[1:3]
        corners = tiles.middle(size, (request.tile, request.tile)) if whole else None
        yield from tiles.cut(
            scene, metadata.sensors, metadata.labels, stride=request.stride, corners=corners, report=request.report
        )


def _whole(labels) -> bool:
    return any(info.kind in _OF_IMAGES for info in labels.values())


def _own(entry: Entry, source, out, options: dict, common: dict) -> Metadata:
    """Runs the reader of a data set that has its own."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in given:
        if name not in entry.layout.options:
            raise DataError(f'{name} = {given[name]} does not apply to "{entry.name}": leave it out')
    return importlib.import_module(entry.layout.module).prepare(source, out, **given, **common)
