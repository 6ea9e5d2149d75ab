"""Labels of a user's folder, beside its images. `input_pipeline.folder` says how they lie.

    label    CLASSES       labels.csv; unknown where an ID has no row
    labels   MULTILABEL    labels.csv with "|" in it; "ID," for a place that shows none of the classes
    map      MAP           mask/: indices of classes.txt; 255, -1 and no-data are void
    change   MAP           change/: -1 and no-data are void
    boxes    BOXES         boxes.json or boxes/: classes as the files name them

Masks lie on the grid of the first sensor that has their size, changes on that of one with several dates, and boxes on
that of the first sensor.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from input_pipeline.layouts import annotations, rasters
from input_pipeline.layouts.tiles import Report
from input_pipeline.schema import BOXES, CLASSES, MAP, MULTILABEL, UNLABELLED, LabelInfo
from ringmoe_jax.errors import DataError

FOLDERS = ("mask", "change", "boxes")
CHANGE = ("unchanged", "changed")
_VOID = 255
_MASKS = (".png", ".tif", ".tiff")
_PARSERS = {".xml": annotations.voc, ".txt": annotations.dota}


@dataclasses.dataclass(frozen=True)
class Table:
    """Classes of whole places.

    Attributes:
        name: of the label.
        info: what it is.
        where: the file, from the source folder.
        rows: class index, or 0/1 a class, by ID.
        complete: every place has to have a row.
    """

    name: str
    info: LabelInfo
    where: str
    rows: Mapping[str, int | np.ndarray]
    complete: bool

    @property
    def ids(self) -> Collection[str]:
        """Places that have a row."""
        return self.rows.keys()

    def of(self, stem: str) -> int | np.ndarray:
        """Label of a place."""
        return self.rows.get(stem, UNLABELLED)


@dataclasses.dataclass(frozen=True)
class Masks:
    """One class a pixel; attributes as those of `Table`.

    Attributes:
        files: by ID.
    """

    name: str
    info: LabelInfo
    where: str
    files: Mapping[str, Path]
    complete: bool = True

    @property
    def ids(self) -> Collection[str]:
        """Places that have a file."""
        return self.files.keys()

    def of(self, stem: str) -> np.ndarray:
        """[H, W] int16 of a place.

        Raises:
            DataError: the file is no image of one channel, or holds a value that is no class.
        """
        values, no_data, _ = rasters.load(self.files[stem])
        where = str(self.files[stem])
        if values.shape[-1] != 1:
            raise DataError(f"{where} has {values.shape[-1]} channels, wanted one that holds class indices")
        void = ~np.isfinite(values) if no_data is None else ~np.isfinite(values) | (values == no_data)
        values = np.where(void, UNLABELLED, values.astype(np.float64))
        if self.name == "change":  # of two colours, as most programs save it
            return rasters.Values((0, 1), (UNLABELLED,)).classes(np.where(values == _VOID, 1, values), where)
        return rasters.Values(tuple(range(len(self.info.names))), (_VOID, UNLABELLED)).classes(values, where)


@dataclasses.dataclass(frozen=True)
class Objects:
    """Boxes; attributes as those of `Table`, rows [n, 6] in pixels of the whole image."""

    name: str
    info: LabelInfo
    where: str
    rows: Mapping[str, np.ndarray]
    complete: bool = True

    @property
    def ids(self) -> Collection[str]:
        """Places that have boxes, or are said to have none."""
        return self.rows.keys()

    def of(self, stem: str) -> np.ndarray:
        """[n, 6] float64 of a place."""
        return self.rows[stem]


def find(source: Path, shapes: Mapping[str, tuple[int, int, int]], report: Report) -> list[Table | Masks | Objects]:
    """All labels of a folder.

    Args:
        source: the folder.
        shapes: T, H, W of a place by sensor, the first one first.
        report: counts boxes that a file says are none.

    Raises:
        DataError: a file of labels is not as described.
    """
    boxes = _objects(source, next(iter(shapes)), report)
    return [label for label in (_table(source), _masks(source, shapes), _changes(source, shapes), boxes) if label]


def _table(source: Path) -> Table | None:
    path = source / "labels.csv"
    if not path.exists():
        return None
    with open(path, newline="") as file:
        lines = [(number, [cell.strip() for cell in row]) for number, row in enumerate(csv.reader(file), 1) if row]
    given: dict[str, list[str]] = {}
    for number, row in lines:
        if len(row) != 2 or row[0] in given:
            hint = "one row an ID" if len(row) == 2 else "ID,label or ID,label|label"
            raise DataError(f"{path}, line {number}: row {','.join(row)!r}: wanted {hint}, without a header")
        given[row[0]] = [name.strip() for name in row[1].split("|") if name.strip()]
    names = tuple(sorted({name for several in given.values() for name in several}))
    if any("|" in row[1] for _, row in lines):
        rows = {stem: np.isin(names, several).astype(np.float32) for stem, several in given.items()}
        return Table("labels", LabelInfo(MULTILABEL, names, "labels.csv of the folder"), path.name, rows, True)
    for number, row in lines:
        if not row[1]:
            raise DataError(f"{path}, line {number}: {row[0]!r} has no label: leave the row out")
    rows = {stem: names.index(name) for stem, (name,) in given.items()}
    return Table("label", LabelInfo(CLASSES, names, "labels.csv of the folder"), path.name, rows, False)


def _masks(source: Path, shapes: Mapping[str, tuple[int, int, int]]) -> Masks | None:
    if not (source / "mask").is_dir():
        return None
    path, files = source / "classes.txt", _mask_files(source / "mask")
    if not path.exists():
        raise DataError(f"{source}/mask needs {path}: write the name of class 0, 1, ..., one a line")
    names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if not names or len(set(names)) < len(names):
        raise DataError(f"{path} names {', '.join(names) or 'nothing'}: wanted one name a line, each once")
    sensor = _grid(files, shapes)
    return Masks("map", LabelInfo(MAP, names, "mask of the folder", sensor), "mask", files)


def _changes(source: Path, shapes: Mapping[str, tuple[int, int, int]]) -> Masks | None:
    if not (source / "change").is_dir():
        return None
    several = {name: shape for name, shape in shapes.items() if shape[0] > 1}
    if not several:
        name = next(iter(shapes))
        raise DataError(f"{source}/change needs two dates of a sensor, for example {name}@1/ID.png and {name}@2/ID.png")
    files = _mask_files(source / "change")
    info = LabelInfo(MAP, CHANGE, "change between the first and the last date", _grid(files, several))
    return Masks("change", info, "change", files)


def _mask_files(folder: Path) -> dict[str, Path]:
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in _MASKS}
    if not files:
        raise DataError(f"{folder} holds no mask: wanted ID{', ID'.join(_MASKS)}")
    return files


def _grid(files: Mapping[str, Path], shapes: Mapping[str, tuple[int, int, int]]) -> str:
    """The first sensor whose images have the size of the first mask; else the first one, and cutting says so."""
    size = rasters.load(files[min(files)])[0].shape[:2]
    return next((name for name, shape in shapes.items() if shape[1:] == size), next(iter(shapes)))


def _objects(source: Path, sensor: str, report: Report) -> Objects | None:
    table, folder = source / "boxes.json", source / "boxes"
    if table.exists() and folder.is_dir():
        raise DataError(f"{source} holds boxes.json and boxes: wanted one of them")
    if table.exists():
        found, where, kind = annotations.coco(table), table.name, "COCO"
    elif folder.is_dir():
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PARSERS)
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
    return Objects("boxes", LabelInfo(BOXES, found.names, f"{kind} files of the folder", sensor), where, found.images)
