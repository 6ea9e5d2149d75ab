"""Objects as annotation files name them, read into boxes and tracks as `schema.BOX` and `schema.TRACK` count them.

    coco          one JSON: [left, top, width, height] from the image's upper left corner, class ids with gaps
    voc           one XML an image: pixels xmin..xmax, ymin..ymax; also DIOR
    dota          one text an image: x1 y1 .. x4 y4 class difficult, below two lines of header
    dior_r        one XML an image: four corners in `robndbox`
    hrsc2016      one XML an image: centre, extents and angle in radians in `mbox_*`
    fair1m        one XML an image: a closed polygon in `points`
    motchallenge  one gt.txt a sequence: frame, track, left, top, width, height, use, class, visibility

Our coordinates are continuous: 0 is the left edge of the first pixel, 1 its right edge. Polygons become the smallest
rectangle around them. Rectangles that may be oriented get their longer side as width, and an angle of -pi/2 <= angle <
pi/2 (our choice, as DOTA's detectors have it). Objects marked as difficult are objects like others. Boxes without area
or outside the image are returned as they are: `tiles.cut` leaves them out and counts them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from xml.parsers import expat

import numpy as np

from input_pipeline.places import Report
from input_pipeline.schema import BOX, TRACK
from ringmoe_jax.errors import DataError, nearest
from ringmoe_jax.files import read_bytes, read_json, read_text, stem

_CORNERS = ("left_top", "right_top", "right_bottom", "left_bottom")  # of DIOR-R
XML_BYTES, XML_DEPTH = 2**26, 64  # of a file of one image (our choice)
_HEADER = ("imagesource", "gsd")  # of DOTA


@dataclasses.dataclass(frozen=True)
class Annotations:
    """Objects of a data set.

    Attributes:
        names: classes, in the order of their index.
        images: float64 rows by image, [n, 6] of `schema.BOX`, or by sequence, [n, 8] of `schema.TRACK`; [0, 6] where
            a file says that there is nothing. An image is named by its file's name without folders and ending.
        left_out: rows that are not in `images`, for each reason by image; the reason completes "12 boxes ...".
        sizes: height and width of the images that the objects were drawn on, where files say them.
    """

    names: tuple[str, ...]
    images: dict[str, np.ndarray]
    left_out: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    sizes: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    def on(self, name: str, size: tuple[int, int], report: Report) -> np.ndarray:
        """Rows of an image, scaled where the objects were drawn on it at another size.

        Args:
            name: of the image.
            size: height and width of its file.
            report: notes what is scaled.

        Raises:
            DataError: the sizes differ in shape, so the file shows another part of the ground, or turned.
        """
        rows, drawn = self.images[name], self.sizes.get(name, size)
        if drawn == size:
            return rows
        ratio = size[0] / drawn[0], size[1] / drawn[1]
        if abs(ratio[0] / ratio[1] - 1) * max(size) > 1:
            raise DataError(
                f'"{name}" has {size[0]} x {size[1]} px, its objects were drawn on {drawn[0]:g} x {drawn[1]:g}: wanted '
                "the same image; correct the size in the annotations, or give the image that they belong to"
            )
        report.note([f"have another size than their objects say, {ratio[1]:g} times as large: scaled"], name)
        scaled = rows.copy()
        scaled[:, [BOX.index("x"), BOX.index("width")]] *= ratio[1]
        scaled[:, [BOX.index("y"), BOX.index("height")]] *= ratio[0]
        return scaled


@dataclasses.dataclass(frozen=True)
class _Object:
    """One object: where its annotation stands, what it is, and x, y, width, height, angle."""

    where: str
    name: str
    box: Sequence[float]


def coco(path: Path, names: Sequence[str] | None = None) -> Annotations:
    """Horizontal boxes of a COCO file. Crowds (`iscrowd`), which outline no single object, are left out.

    Args:
        path: the JSON file.
        names: classes; those of the file, ordered by their id, by default.

    Raises:
        DataError: the file is no COCO file, a class is not in `names`, or two images share a name.
    """
    content = read_json(path, "a COCO file")
    try:
        files = {image["id"]: stem(str(image["file_name"])) for image in content["images"]}
        sizes = {files[i["id"]]: (float(i["height"]), float(i["width"])) for i in content["images"] if _sized(i)}
        classes = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        entries = [(a["image_id"], a["category_id"], a["bbox"], a.get("iscrowd", 0)) for a in content["annotations"]]
        for image, kind, *_ in entries:
            hash(image), hash(kind)
        for key, known in (("images", files), ("categories", classes)):
            if len(known) < len(content[key]):
                raise DataError(f"{path} lists {len(content[key])} {key} with {len(known)} ids: wanted each id once")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path} lacks {error}: wanted images, categories and annotations as COCO has them") from None
    objects: dict[str, list[_Object]] = {image: [] for image in files.values()}
    if len(objects) < len(files):
        raise DataError(f"{path} names {len(files)} images, {len(objects)} without folder and ending: rename them")
    crowds: dict[str, int] = {}
    for i, (image, kind, box, crowd) in enumerate(entries):
        where = f"{path}, annotation {i}"
        for key, value, known in (("image_id", image, files), ("category_id", kind, classes)):
            if value not in known:
                raise DataError(f"{where} has {key} = {value}, which the file does not list: add or remove it")
        if crowd:
            crowds[files[image]] = crowds.get(files[image], 0) + 1
            continue
        left, top, width, height = _numbers(box, 4, where, "[left, top, width, height]")
        objects[files[image]].append(
            _Object(where, classes[kind], (left + width / 2, top + height / 2, width, height, 0))
        )
    _check_extents(path, objects, sizes)
    names = classes.values() if names is None else names
    return _indexed(objects, names, {"were crowds": crowds} if crowds else {}, sizes)


def _check_extents(path: Path, objects: Mapping[str, Sequence[_Object]], sizes: Mapping[str, tuple]) -> None:
    """Raises where width and height are the right and lower edge: boxes leave their images, as corners none does."""
    boxes = [(*entry.box[:4], *sizes[image]) for image, found in objects.items() if image in sizes for entry in found]
    if not boxes:
        return
    x, y, width, height, rows, columns = np.array(boxes).T
    left, top = x - width / 2, y - height / 2
    leaves = (left + width > columns + 1) | (top + height > rows + 1)
    fits = (width > left) & (height > top) & (width <= columns) & (height <= rows)
    if leaves.any() and fits.all():
        raise DataError(
            f"{path}: {leaves.sum()} of {len(boxes)} boxes leave their images, and none does as [left, top, right, "
            "bottom]: wanted [left, top, width, height]"
        )


def _sized(image: Mapping) -> bool:
    """Whether an image of COCO says its size."""
    return bool(image.get("height")) and bool(image.get("width"))


def voc(paths: Iterable[Path], names: Sequence[str] | None = None) -> Annotations:
    """Horizontal boxes of Pascal VOC files, named as their images. Parts of objects are not read.

    Pixels count from 1 and the last one belongs to the box, as VOC says: xmin 3, xmax 4 are the two pixels from 2.0 to
    4.0. Boxes of tools that count edges from 0 come out a pixel larger to the left and to the top.

    Args:
        paths: XML files.
        names: classes; those that occur, sorted, by default.

    Raises:
        DataError: a file is not as described or two have the same name, or a class is not in `names`.
    """

    def box(entry: _Entry) -> tuple[float, ...]:
        left, top, right, bottom = (entry.number(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax"))
        left, top = left - 1, top - 1
        return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top, 0

    return _xml(paths, names, "annotation", "object", "name", box)


def dior_r(paths: Iterable[Path], names: Sequence[str] | None = None) -> Annotations:
    """Oriented boxes of DIOR-R (Cheng et al. 2022), from the corners in `robndbox`. Arguments and errors as `voc`."""

    def box(entry: _Entry) -> np.ndarray:
        return rectangle([[entry.number(f"robndbox/{axis}_{key}") for axis in "xy"] for key in _CORNERS])

    return _xml(paths, names, "annotation", "object", "name", box)


def fair1m(paths: Iterable[Path], names: Sequence[str] | None = None) -> Annotations:
    """Oriented boxes of FAIR1M (Sun et al. 2022), from `points`; first of the possible classes. Otherwise as `voc`."""

    def box(entry: _Entry) -> np.ndarray:
        points = [_numbers(text.split(","), 2, entry.where, "points x,y") for text in entry.texts("points/point")]
        return rectangle(points)

    return _xml(paths, names, "annotation", "object", "possibleresult/name", box)


def hrsc2016(paths: Iterable[Path]) -> Annotations:
    """Oriented boxes of HRSC2016 (Liu et al. 2017), all of the class ship, as its task L1 has it. Errors as `voc`."""

    def box(entry: _Entry) -> tuple[float, ...]:
        return _long_side(*(entry.number(f"mbox_{key}") for key in ("cx", "cy", "w", "h", "ang")))

    return _xml(paths, ("ship",), "HRSC_Image", "HRSC_Object", "", box)


def dota(paths: Iterable[Path], names: Sequence[str] | None = None) -> Annotations:
    """Oriented boxes of DOTA (Xia et al. 2018) text files, named as their images. Arguments and errors as `voc`."""
    objects = {}
    for path in _distinct(paths):
        found = objects[stem(path)] = []
        for i, line in enumerate(read_text(path, "annotations").splitlines()):
            words, where = line.split(), f"{path}, line {i + 1}"
            if not words or line.partition(":")[0] in _HEADER:
                continue
            if len(words) not in (9, 10):
                raise DataError(f"{where} has {len(words)} words: wanted x1 y1 x2 y2 x3 y3 x4 y4 class difficult")
            corners = np.reshape(_numbers(words[:8], 8, where, "eight coordinates"), (4, 2))
            found.append(_Object(where, words[8], rectangle(corners)))
    return _indexed(objects, names)


def motchallenge(paths: Iterable[Path], names: Sequence[str]) -> Annotations:
    """Tracks of MOTChallenge ground truth (Milan et al. 2016): date = frame - 1, angle 0.

    Pixels count from 1 there: left 1 is 0.0 here. Rows whose seventh column is 0 are not to be counted, says the
    format, and are left out.

    Args:
        paths: files SEQUENCE/gt/gt.txt, or SEQUENCE.txt.
        names: classes; number 1 of a file is the first one. Where there is one, files may write -1 or no class.

    Raises:
        DataError: a line is not as described, a class is not in `names`, or an object is twice in a frame.
    """
    images, unused = {}, {}
    for path in paths:
        sequence = path.parents[1].name if path.parent.name == "gt" else path.stem
        if sequence in images:
            raise DataError(f'{path}: there is a sequence "{sequence}" already: rename it')
        rows, seen = [], set()
        for i, line in enumerate(read_text(path, "annotations").splitlines()):
            words, where = line.split(","), f"{path}, line {i + 1}"
            if not line.strip():
                continue
            if len(words) < 6:
                raise DataError(f"{where} has {len(words)} values: wanted frame,track,left,top,width,height,use,class")
            frame, track, left, top, width, height, use, number = _numbers([*words, 1, -1][:8], 8, where, "numbers")
            if frame < 1 or frame % 1 or track % 1 or (frame, track) in seen:
                hint = "once" if (frame, track) in seen else "whole numbers, frames from 1 on"
                raise DataError(f"{where} has track {track:g} in frame {frame:g}: wanted {hint}")
            if use == 0:
                unused[sequence] = unused.get(sequence, 0) + 1
                continue
            seen.add((frame, track))
            kind = 0 if number == -1 and len(names) == 1 else number - 1
            if kind % 1 or not 0 <= kind < len(names):
                raise DataError(f"{where} has class {number:g}: wanted 1 to {len(names)} for {', '.join(names)}")
            x, y = left - 1 + width / 2, top - 1 + height / 2
            rows.append((kind, x, y, width, height, 0, track, frame - 1))
        images[sequence] = np.reshape(np.array(rows, np.float64), (-1, len(TRACK)))
    return Annotations(tuple(names), images, {"were marked as not to be counted": unused} if unused else {})


def rectangle(points: Sequence[Sequence[float]]) -> tuple[float, float, float, float, float]:
    """The smallest rectangle around points, and their own if they are one: x, y, width, height, angle of `schema.BOX`.

    One of its sides lies on an edge of the convex hull (Freeman and Shapira 1975), and every edge joins two points: so
    trying the directions of all pairs is enough.

    Args:
        points: [n, 2] x and y.
    """
    points = np.asarray(points, np.float64)
    between = (points[:, None] - points).reshape(-1, 2)
    length = np.hypot(*between.T)
    if not length.any():
        return (*points[0], 0.0, 0.0, 0.0)
    along = between[length > 0] / length[length > 0, None]
    axes = np.stack([along, np.stack([-along[:, 1], along[:, 0]], 1)], 1)  # [directions, 2 axes, x and y]
    places = points @ axes.transpose(0, 2, 1)  # [directions, points, 2]
    low, high = places.min(1), places.max(1)
    best = np.argmin(np.prod(high - low, 1))
    x, y = (low[best] + high[best]) / 2 @ axes[best]
    return _long_side(x, y, *(high - low)[best], math.atan2(along[best, 1], along[best, 0]))


def _long_side(x: float, y: float, width: float, height: float, angle: float) -> tuple[float, ...]:
    """The same rectangle with width >= height; a square with its angle nearest to 0; -pi/2 <= angle < pi/2."""
    angle -= math.pi * math.floor(angle / math.pi + 0.5)
    square = math.isclose(width, height, rel_tol=1e-9)
    if (not -math.pi / 4 <= angle < math.pi / 4) if square else height > width:
        width, height = height, width
        angle += -math.pi / 2 if angle >= 0 else math.pi / 2
    return tuple(map(float, (x, y, width, height, angle)))


def _xml(
    paths: Iterable[Path],
    names: Sequence[str] | None,
    root: str,
    tag: str,
    name: str,
    box: Callable[[_Entry], Sequence[float]],
) -> Annotations:
    """Objects of XML files: elements `tag` below `root`, with their class at `name`, or of the only class."""
    objects, sizes = {}, {}
    for path in _distinct(paths):
        read = _Entries(path, root, tag)
        objects[stem(path)] = [
            _Object(entry.where, entry.text(name) if name else names[0], box(entry)) for entry in read.found
        ]
        if read.size:
            sizes[stem(path)] = read.size
    return _indexed(objects, names, sizes=sizes)


def _indexed(
    objects: dict[str, list[_Object]],
    names: Iterable[str] | None,
    left_out: dict | None = None,
    sizes: dict | None = None,
) -> Annotations:
    """Gives classes their index; case does not matter, for files of one data set differ in it (DIOR)."""
    if names is None:
        names = sorted({o.name.lower(): o.name for found in objects.values() for o in found}.values())
    names = tuple(names)
    index = {name.lower(): i for i, name in enumerate(names)}
    if len(index) < len(names):
        raise DataError(f"classes {', '.join(names)}: wanted names that differ in more than case")
    images = {}
    _check_pixels([entry for found in objects.values() for entry in found])
    for image, found in objects.items():
        rows = np.zeros((len(found), len(BOX)))
        for row, entry in zip(rows, found, strict=True):
            if entry.name.lower() not in index:
                raise DataError(f'{entry.where}: unknown class "{entry.name}": {nearest(entry.name, names)}')
            row[:] = index[entry.name.lower()], *entry.box
        images[image] = rows
    return Annotations(names, images, left_out or {}, sizes or {})


def _check_pixels(objects: Sequence[_Object]) -> None:
    """Raises where no object leaves the first pixel of its image."""
    ends = [(x + width / 2, y + height / 2) for x, y, width, height, _ in (entry.box for entry in objects)]
    if ends and np.max(ends) <= 1:
        raise DataError(
            f"{objects[0].where}: all boxes lie within the first pixel, so they are shares of the image: multiply them "
            "by its width and height in pixels"
        )


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One element of an XML file: where it stands, and its texts by their path below it."""

    where: str
    values: dict[str, list[str]]

    def texts(self, key: str) -> list[str]:
        if not self.values.get(key):
            raise DataError(f"{self.where} has no <{key}>: wanted one in every object")
        return self.values[key]

    def text(self, key: str) -> str:
        return self.texts(key)[0]

    def number(self, key: str) -> float:
        return _numbers(self.texts(key)[:1], 1, self.where, f"a number in <{key}>")[0]


class _Entries:
    """All elements `tag` of an XML file, with their lines, which ElementTree does not tell.

    Attributes:
        found: the elements.
        size: height and width of the image, where <size> says them.
    """

    def __init__(self, path: Path, root: str, tag: str):
        self.found: list[_Entry] = []
        self._path, self._root, self._tag = path, root, tag
        self.size: tuple[float, float] | None = None
        self._path_to: list[str] = []
        self._size: dict[str, str] = {}
        self._depth, self._below, self._text = 0, None, []
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler, self._parser.EndElementHandler = self._start, self._end
        self._parser.CharacterDataHandler = lambda text: self._text.append(text)
        self._parser.StartDoctypeDeclHandler = self._refuse
        try:
            self._parser.Parse(read_bytes(path, "XML of annotations", XML_BYTES), True)
        except expat.ExpatError as error:
            message = expat.ErrorString(error.code)
            raise DataError(f"{path}, line {error.lineno}: {message}: wanted XML with <{root}>") from None
        with contextlib.suppress(KeyError, ValueError):
            height, width = (float(self._size[name]) for name in ("height", "width"))
            self.size = (height, width) if height > 0 and width > 0 else None

    def _refuse(self, *_) -> None:
        raise DataError(f"{self._path} declares a document type, which may hold anything: remove <!DOCTYPE ...>")

    def _start(self, name: str, _) -> None:
        if not self._depth and name != self._root:
            raise DataError(f"{self._path} begins with <{name}>, wanted <{self._root}>: is it of another data set?")
        self._depth, self._text = self._depth + 1, []
        if self._depth > XML_DEPTH:
            raise DataError(f"{self._path} is nested deeper than {XML_DEPTH} elements: wanted annotations")
        self._path_to.append(name)
        if self._below is not None:
            self._below.append(name)
        elif name == self._tag:
            self._below = []
            self.found.append(_Entry(f"{self._path}, line {self._parser.CurrentLineNumber}", {}))

    def _end(self, _) -> None:
        self._depth -= 1
        *_, parent, name = ("", *self._path_to)
        self._path_to.pop()
        if parent == "size" and self._depth == 2:
            self._size[name] = "".join(self._text)
        if self._below:
            self.found[-1].values.setdefault("/".join(self._below), []).append("".join(self._text).strip())
            self._below.pop()
            self._text = []
        else:
            self._below = None


def _numbers(values: Sequence, count: int, where: str, wanted: str) -> list[float]:
    """Finite numbers, as many as they should be."""
    try:
        numbers = [float(value) for value in values]
        if len(numbers) == count and all(map(math.isfinite, numbers)):
            return numbers
    except (TypeError, ValueError):
        pass
    raise DataError(f"{where} holds {values}: wanted {wanted}")


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """The paths, if no two have the same name without folders and ending."""
    found: dict[str, Path] = {}
    for path in paths:
        if other := found.get(stem(path)):
            raise DataError(f"{path} and {other} name the same image: remove one")
        found[stem(path)] = path
    return list(found.values())
