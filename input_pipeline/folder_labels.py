"""Labels of a user's folder, beside its images. `input_pipeline.folder` says how they lie.

    label    CLASSES       labels.csv, or images in a folder a class; unknown where an ID has no row
    labels   MULTILABEL    labels.csv with "|" in it; "ID," for a place that shows none of the classes
    mask     MAP           mask/: see `input_pipeline.folder_masks`; void where an ID has no file
    change   MAP           change/: 0 unchanged, 1 or 255 changed; -1 and no-data are void
    boxes    BOXES         boxes.json or boxes/: classes as the files name them

Masks lie on the grid of the first sensor that has their size, changes on that of one with several dates, and boxes on
that of the first sensor.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline import folder_masks
from input_pipeline.folder_images import by_stem, listed
from input_pipeline.folder_masks import Masks
from input_pipeline.layouts import annotations
from input_pipeline.places import Report
from input_pipeline.schema import BOXES, CLASSES, MAP, MULTILABEL, UNLABELLED, LabelInfo
from ringmoe_jax import files, geo
from ringmoe_jax.errors import DataError

CHANGE = ("unchanged", "changed")
NOTHING = ("nan", "n/a", "<na>", "null")  # what tables of pandas and databases hold where nothing is known
_PARSERS = {".xml": annotations.voc, ".txt": annotations.dota}
FOLDERS = {
    "mask": folder_masks.ENDINGS,
    "change": folder_masks.ENDINGS,
    "boxes": tuple(_PARSERS),
}  # endings that are read


@dataclasses.dataclass(frozen=True)
class Table:
    """Classes of whole places.

    Attributes:
        name: of the label.
        info: what it is.
        where: the file, from the source folder.
        rows: class index, or 0/1 a class, by ID.
        unknown: label of a place that has no row.
        complete: every place has to have a row.
    """

    name: str
    info: LabelInfo
    where: str
    rows: Mapping[str, int | np.ndarray]
    unknown: int | np.ndarray
    complete: bool = False

    @property
    def ids(self) -> Collection[str]:
        """Places that have a row."""
        return self.rows.keys()

    def at(self, stem: str, grid: geo.Grid) -> int | np.ndarray:
        """Label of a place; `grid` does not matter."""
        return self.rows.get(stem, self.unknown)


@dataclasses.dataclass(frozen=True)
class Objects:
    """Boxes, as an annotation file has them.

    A place without boxes shows none, so every place has to say that it was looked at.

    Attributes:
        name: as the further ones, see `Table`.
        found: rows by ID, and the sizes of the images that they were drawn on.
        report: notes boxes that are scaled.
    """

    name: str
    info: LabelInfo
    where: str
    found: annotations.Annotations
    report: Report
    complete: bool = True

    @property
    def ids(self) -> Collection[str]:
        """Places that have boxes, or are said to have none."""
        return self.found.images.keys()

    def at(self, stem: str, grid: geo.Grid) -> np.ndarray:
        """[n, 6] float64 of a place, in pixels of its whole image; see `Annotations.on`."""
        return self.found.on(stem, (grid.height, grid.width), self.report)


def find(
    source: Path,
    shapes: Mapping[str, tuple[int, int, int]],
    ids: Collection[str],
    classes: Mapping[str, str],
    report: Report,
    ignored: Sequence[int] | None = None,
) -> list[Table | Masks | Objects]:
    """All labels of a folder.

    Args:
        source: the folder.
        shapes: T, H, W of a place by sensor, the first one first.
        ids: places that have an image.
        classes: class by ID where the images lie in a folder a class.
        report: counts boxes that a file says are none, and notes what was understood in one of several ways.
        ignored: values of masks that are void; None for the rule of `folder_masks`.

    Raises:
        DataError: a file of labels is not as described.
    """
    labels = [_table(source, ids, classes, report)]
    labels += [_masks(source, shapes, ignored, report), _changes(source, shapes, ignored)]
    return [label for label in (*labels, _objects(source, next(iter(shapes)), report)) if label]


def _table(source: Path, ids: Collection[str], classes: Mapping[str, str], report: Report) -> Table | None:
    path = source / "labels.csv"
    if not path.exists():
        return _classes(classes, "folder that the image lies in", "the folders of classes") if classes else None
    rows = csv.reader(files.read_text(path, "a table").splitlines())
    lines = [(number, [cell.strip() for cell in row]) for number, row in enumerate(rows, 1) if row]
    if lines and len(lines[0][1]) == 2 and _is_header(*lines[0][1], [row for _, row in lines[1:]], ids):
        report.notes.append(
            f"{path.name}: its first row, {','.join(lines[0][1])}, is taken for the titles of its columns"
        )
        lines = lines[1:]
    given: dict[str, list[str]] = {}
    for number, row in lines:
        if len(row) != 2 or listed(row[0], ids) in given:
            hint = "one row an ID" if len(row) == 2 else "ID,label or ID,label|label"
            hint += ", with commas in place of semicolons" if ";" in row[0] else ""
            raise DataError(f"{path}, line {number}: row {','.join(row)!r}: wanted {hint}")
        given[listed(row[0], ids)] = [name.strip() for name in row[1].split("|") if name.strip()]
    if any("|" in row[1] for _, row in lines):
        names = _names((name for several in given.values() for name in several), str(path))
        known = {stem: np.isin(names, several).astype(np.float32) for stem, several in given.items()}
        info = LabelInfo(MULTILABEL, names, "labels.csv of the folder")
        return Table("labels", info, path.name, known, np.full(len(names), UNLABELLED, np.float32))
    for number, row in lines:
        if not row[1]:
            raise DataError(f"{path}, line {number}: {row[0]!r} has no label: leave the row out")
    return _classes({stem: name for stem, (name,) in given.items()}, "labels.csv of the folder", path.name)


def _classes(given: Mapping[str, str], what: str, where: str) -> Table:
    names = _names(given.values(), where)
    rows = {stem: names.index(name) for stem, name in given.items()}
    return Table("label", LabelInfo(CLASSES, names, what), where, rows, UNLABELLED)


def _names(given: Iterable[str], where: str) -> tuple[str, ...]:
    """The classes that are named, sorted.

    Raises:
        DataError: one says that there is no class, or two are one that is spelt in two ways.
    """
    names, known = tuple(sorted(set(given))), {}
    for name in names:
        if name.lower() in NOTHING:
            raise DataError(f'{where} has the class "{name}", as programs write what is missing: leave those rows out')
        try:
            key = float(name)
        except ValueError:
            key = name.casefold()
        if other := known.get(key):
            raise DataError(f'{where} has the classes "{other}" and "{name}": wanted one spelling of a class')
        known[key] = name
    return names


def _is_header(first: str, second: str, others: Sequence[Sequence[str]], ids: Collection[str]) -> bool:
    """Whether a row titles its columns: it names no image, and a class that no other row has."""
    return bool(others) and first not in ids and all(second not in row[1:] for row in others)


def _masks(source: Path, shapes: Mapping[str, tuple[int, int, int]], ignored, report: Report) -> Masks | None:
    if not (source / "mask").is_dir():
        return None
    files = folder_masks.mask_files(source / "mask")
    legend = folder_masks.legend(source, files, ignored, report)
    void = ", ".join(map(str, legend.voids)) + ("" if ignored is not None else " and declared no-data")
    what = f"mask of the folder; void: {void or 'nothing'}"
    info = LabelInfo(MAP, legend.names, what, _grid(files, shapes), colours=legend.colours)
    return Masks("mask", info, "mask", files, legend)


def _changes(source: Path, shapes: Mapping[str, tuple[int, int, int]], ignored) -> Masks | None:
    if not (source / "change").is_dir():
        return None
    several = {name: shape for name, shape in shapes.items() if shape[0] > 1}
    if not several:
        name = next(iter(shapes))
        raise DataError(f"{source}/change needs two dates of a sensor, for example {name}@1/ID.png and {name}@2/ID.png")
    files = folder_masks.mask_files(source / "change")
    what = "change between the first and the last date"
    info = LabelInfo(MAP, CHANGE, what, _grid(files, several), change=True)
    values = (0, 1, 255) if 255 not in (ignored or ()) else (0, 1)  # of two colours, as most programs save it
    void = None if ignored is None else tuple(ignored)
    return Masks("change", info, "change", files, folder_masks.Legend(CHANGE, values, void=void))


def _grid(files: Mapping[str, Path], shapes: Mapping[str, tuple[int, int, int]]) -> str:
    """The first sensor whose images have the size of the first mask; else the first one, and cutting says so."""
    size = folder_masks.size(files[min(files)])
    return next((name for name, shape in shapes.items() if shape[1:] == size), next(iter(shapes)))


def _objects(source: Path, sensor: str, report: Report) -> Objects | None:
    table, folder = source / "boxes.json", source / "boxes"
    if table.exists() and folder.is_dir():
        raise DataError(f"{source} holds boxes.json and boxes: wanted one of them")
    if table.exists():
        found, where, kind = annotations.coco(table), table.name, "COCO"
    elif folder.is_dir():
        paths = list(by_stem(p for p in folder.iterdir() if p.suffix.lower() in _PARSERS and p.name[0] != ".").values())
        kinds = sorted({path.suffix.lower() for path in paths})
        if len(kinds) != 1:
            raise DataError(f"{folder} holds {', '.join(kinds) or 'no boxes'}: wanted ID.xml (VOC) or ID.txt (DOTA)")
        found, where, kind = _PARSERS[kinds[0]](paths), folder.name, {".xml": "VOC", ".txt": "DOTA"}[kinds[0]]
    else:
        return None
    if not found.names:
        raise DataError(f"{source / where} holds no box at all: remove it, or add some")
    for why, images in found.left_out.items():
        for name, count in images.items():
            report.leave_out(why, name, count)
    return Objects("boxes", LabelInfo(BOXES, found.names, f"{kind} files of the folder", sensor), where, found, report)
