"""Masks of a user's folder: which value of a file means which class, what is void, and colours.

`classes.txt` has one line a class. Values count from 0 on unless the lines say them, and colours are optional:

    water                      class of the value 0, 1, ... in the order of the lines
    water,#2060c0              the same with a colour
    255,water,#2060c0          the class of the value 255
    255,32,96,192,255,water    as QGIS exports a colour map: value, red, green, blue, alpha, label

Void, so neither learnt nor scored: values given as ignored; else 255, -1 and the no-data value that a file declares,
as long as they are no class. Of two classes neither is void, for one alone cannot be learnt. Pixels that a file's
internal mask hides are void in any case, and so are places without a mask.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline import folder_images
from input_pipeline.layouts import rasters
from input_pipeline.places import Report
from input_pipeline.schema import UNLABELLED, LabelInfo
from ringmoe_jax import files, geo
from ringmoe_jax.errors import DataError
from ringmoe_jax.rasters import open_raster

VOID = (255, UNLABELLED)
BINARY = (0, 255)  # as most programs save masks of one thing
ENDINGS = (".png", ".tif", ".tiff")
_COLOUR = re.compile("#[0-9a-fA-F]{6}")
_NUMBERED = re.compile(r"-?\d+\s*[\s:;=]\s*\S")  # a value, something that is no comma, and a name
_LISTED = 8  # values in a message


@dataclasses.dataclass(frozen=True)
class Legend:
    """What the values of masks mean.

    Attributes:
        names: of the classes.
        values: of the classes in the files; further ones mean the last class.
        colours: "#rrggbb" of the classes, or none.
        void: values that are no class; None for `VOID` and declared no-data.
        stated: whether the values were written down, and not counted from 0 on.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    colours: tuple[str, ...] = ()
    void: tuple[int, ...] | None = None
    stated: bool = False

    def without(self, ignored: Sequence[int]) -> Legend:
        """The classes whose values are not ignored."""
        kept = [i for i, value in enumerate(self.values) if value not in ignored]
        names, values = (tuple(of[i] for i in kept) for of in (self.names, self.values))
        return dataclasses.replace(
            self, names=names, values=values, colours=tuple(self.colours[i] for i in kept if self.colours), void=ignored
        )

    @property
    def voids(self) -> tuple[int, ...]:
        """Values that are void in every file."""
        return tuple(value for value in (VOID if self.void is None else self.void) if value not in self.values)

    def classes(self, path: Path, image: geo.Grid | None = None) -> np.ndarray:
        """[H, W] int16 of a file: class indices, -1 where void.

        Args:
            path: of the file.
            image: where its image lies, see `rasters.load_mask`.

        Raises:
            DataError: a value means nothing, a class has the value that the file declares to be no data, the file lies
                elsewhere than its image, or holds several channels that are no colours of the legend.
        """
        values, no_data, hidden, _ = rasters.load_mask(path, image)
        if values.shape[-1] != 1:
            if not self.colours or values.shape[-1] not in (3, 4):
                raise DataError(
                    f"{path} has {values.shape[-1]} channels, wanted one that holds class indices, or a colour for "
                    "every class in classes.txt (name,#rrggbb) and red, green, blue"
                )
            known = tuple((int(c[1:3], 16), int(c[3:5], 16), int(c[5:7], 16)) for c in self.colours)
            return np.where(hidden, UNLABELLED, rasters.Colours(known).classes(values, str(path)))
        void = hidden | ~np.isfinite(values[..., 0])
        if no_data in self.values and self.void is None:
            name = self.names[min(self.values.index(no_data), len(self.names) - 1)]
            raise DataError(
                f'{path} declares {no_data:g} as "no data", but it is the value of the class "{name}": say --ignore '
                f"{no_data:g} if nobody labelled it, or --ignore none if it is a class"
            )
        if no_data is not None and no_data not in self.values:
            void |= values[..., 0] == no_data
        numbers = np.where(void[..., None], UNLABELLED, values.astype(np.float64))
        voids = tuple(dict.fromkeys((*self.voids, UNLABELLED)))
        try:
            found = rasters.Values(self.values, voids).classes(numbers, str(path))
        except DataError as error:
            raise DataError(f"{error}; write VALUE,NAME in classes.txt, or leave values out by --ignore") from None
        return np.minimum(found, len(self.names) - 1)


@dataclasses.dataclass(frozen=True)
class Masks:
    """One class a pixel.

    Attributes:
        name: of the label.
        info: what it is.
        where: the folder, from the source folder.
        files: by ID.
        legend: what their values mean.
        complete: every place has to have one.
    """

    name: str
    info: LabelInfo
    where: str
    files: Mapping[str, Path]
    legend: Legend
    complete: bool = False

    @property
    def ids(self) -> Collection[str]:
        """Places that have a file."""
        return self.files.keys()

    def at(self, stem: str, grid: geo.Grid) -> np.ndarray:
        """[H, W] int16 of a place, whose image lies on `grid`; void where it has no file.

        Raises:
            DataError: see `Legend.classes`.
        """
        if stem not in self.files:
            return np.full((grid.height, grid.width), UNLABELLED, np.int16)
        return self.legend.classes(self.files[stem], grid)


def legend(source: Path, files: Mapping[str, Path], ignored: Sequence[int] | None, report: Report) -> Legend:
    """The legend of `classes.txt` for the masks of a folder.

    Args:
        source: the folder.
        files: masks by ID.
        ignored: values that are void; None for the rule of the module's text.
        report: notes what was understood in one of several ways.

    Raises:
        DataError: there is no such file, or it is not as described.
    """
    path = source / "classes.txt"
    first = files[min(files)]
    if not path.exists():
        example = "0,background and 1,building"
        raise DataError(
            f"{first.parent} needs {path}: one class a line, such as {example}; {first.name} holds {_listed(first)}"
        )
    known = _parsed(path)
    if ignored is not None:
        known = known.without(tuple(ignored))
    if len(known.names) < 2:
        raise DataError(
            f"{path} names {', '.join(known.names) or 'nothing'}: wanted two classes or more, for a mask of one thing "
            "has a background"
        )
    if not known.stated and known.void is None and len(known.names) == 2 and _is_binary(files):
        known = dataclasses.replace(known, values=BINARY)
        report.notes.append(f'mask: no file holds a 1, so 255 is taken for "{known.names[1]}" and not for void')
    no_data = rasters.load_mask(first)[1]
    if known.void is None and len(known.names) == 2 and no_data in known.values:
        name = known.names[known.values.index(no_data)]
        known = dataclasses.replace(known, void=VOID)
        report.notes.append(f'mask: files declare {no_data:g} as no data, but it is taken for "{name}" of two classes')
    if not known.colours and (palette := rasters.load_mask(first)[-1]):
        colours = tuple("#{:02x}{:02x}{:02x}".format(*palette.get(value, (0, 0, 0))[:3]) for value in known.values)
        if len(set(colours)) == len(colours):
            known = dataclasses.replace(known, colours=colours)
    return known


def mask_files(folder: Path) -> dict[str, Path]:
    """Masks by ID.

    Raises:
        DataError: there are none, or two of one ID.
    """
    files = folder_images.by_stem(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and p.name[0] != ".")
    if not files:
        raise DataError(f"{folder} holds no mask: wanted ID{', ID'.join(ENDINGS)}")
    return files


def size(path: Path) -> tuple[int, int]:
    """Height and width of a mask."""
    with open_raster(path, "a mask (PNG or GeoTIFF)") as file:
        return file.height, file.width


def _parsed(path: Path) -> Legend:
    """`classes.txt`: rows of name, value and colour, of which all or none have a value, and all or none a colour."""
    names, values, colours = [], [], []
    for number, cells in _rows(path):
        colour = cells.pop() if len(cells) > 1 and _COLOUR.fullmatch(cells[-1]) else ""
        value = int(cells.pop(0)) if len(cells) > 1 and re.fullmatch(r"-?\d+", cells[0]) else None
        if len(cells) in (4, 5) and all(cell.isdecimal() and int(cell) < 256 for cell in cells[:3]):
            colour, cells = "#{:02x}{:02x}{:02x}".format(*map(int, cells[:3])), cells[-1:]
        if len(cells) != 1 or not cells[0] or (";" in cells[0] and not _NUMBERED.match(cells[0])):
            raise DataError(
                f"{path}, line {number}: wanted NAME, NAME,#rrggbb, VALUE,NAME, VALUE,NAME,#rrggbb, or "
                "VALUE,RED,GREEN,BLUE,ALPHA,NAME"
            )
        names.append(cells[0])
        values.append(value)
        colours.append(colour)
    for kind, given in (("a value", [v is not None for v in values]), ("a colour", list(map(bool, colours)))):
        if any(given) and not all(given):
            raise DataError(
                f"{path}: {names[given.index(False)]} has no {kind[2:]}: give {kind} to all classes or none"
            )
    stated = any(value is not None for value in values)
    if names and not stated and all(_NUMBERED.match(name) for name in names):
        raise DataError(f"{path}, line 1: {names[0]!r} begins with a number: wanted VALUE,NAME with a comma between")
    numbers = tuple(values) if stated else tuple(range(len(names)))
    for kind, of in (("name", names), ("value", numbers)):
        if len(set(of)) < len(of):
            raise DataError(f"{path} names {', '.join(map(str, of))}: wanted each {kind} once")
    return Legend(tuple(names), numbers, tuple(colours) if any(colours) else (), stated=stated)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of the lines that are neither empty nor part of QGIS's header."""
    for number, cells in enumerate(csv.reader(files.read_text(path, "names of classes").splitlines()), 1):
        cells = [cell.strip() for cell in cells]
        if any(cells) and not re.match("# |INTERPOLATION:", cells[0]):
            yield number, cells


def _is_binary(files: Mapping[str, Path]) -> bool:
    """Whether masks hold 0 and 255 and nothing else, both somewhere; stops at the first that holds more."""
    found: set[float] = set()
    for path in files.values():
        values, no_data, *_ = rasters.load_mask(path)
        found |= set(np.unique(values).tolist())
        if no_data == BINARY[1] or not found <= set(BINARY):
            return False
    return found == set(BINARY)


def _listed(path: Path) -> str:
    """The values of a mask, for messages."""
    values = np.unique(rasters.load_mask(path)[0])
    listed = ", ".join(f"{value:g}" for value in values[:_LISTED])
    return listed + (f" and {len(values) - _LISTED} more values" if len(values) > _LISTED else "")
