"""How the files of published data sets lie on disk: a handful of readers, all of which give `tiles.Scene`s.

    files        images by path: classes by folder or file name, masks, pairs and series of dates (`Files`)
    objects      images with boxes, and videos with tracks (`Boxes`, `Coco`, `Tracks`)
    bigearthnet  one folder a patch, labels and splits in a Parquet table (`BigEarthNet`)
    cubes        arrays: So2Sat in HDF5, PASTIS in NPY (`So2Sat`, `Pastis`)
    prepared     what TFDS has prepared (`Tfds`)

A layout is a frozen dataclass with `sensors`, the names of all sensors that it holds, `splits`, which say how they are
made (`rule`), and `open(request)`, which finds files and labels without reading images. `input_pipeline.catalog` names
one for every data set; `tiles` cuts what they give.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from input_pipeline.layouts.tiles import Report, Scene
from input_pipeline.schema import LabelInfo


@dataclasses.dataclass(frozen=True)
class Request:
    """What a layout is asked for.

    Attributes:
        source: the data set's folder, unpacked.
        sensors: those to read, some of the layout's, in its order.
        classes: names in the order of their index.
        tile: side of a tile in pixels of the first sensor.
        stride: pixels from tile to tile.
        max_frames: longest series; the layout's own by default.
        report: counts what is left out.
    """

    source: Path
    sensors: tuple[str, ...]
    classes: tuple[str, ...]
    tile: int
    stride: int
    max_frames: int | None = None
    report: Report = dataclasses.field(default_factory=Report)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A data set whose files are found and split, but not read.

    Attributes:
        scenes: by split, a function that reads its scenes one by one.
        labels: by label name; a `count` of 0 never stays for boxes that exist.
        frames: T of every sensor.
        gsd: metres a pixel of every sensor.
        rule: how the splits were made, a sentence without its full stop.
    """

    scenes: Mapping[str, Callable[[], Iterator[Scene]]]
    labels: Mapping[str, LabelInfo]
    frames: Mapping[str, int]
    gsd: Mapping[str, float]
    rule: str
