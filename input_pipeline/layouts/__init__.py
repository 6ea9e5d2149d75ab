"""How the files of published data sets lie on disk: a handful of readers, all of which give `tiles.Scene`s.

    files        images by path: classes by folder or file name, masks, pairs and series of dates (`Files`)
    objects      images with boxes, and videos with tracks (`Boxes`, `Coco`, `Tracks`)
    bigearthnet  one folder a patch, labels and splits in a Parquet table (`BigEarthNet`)
    cubes        arrays: So2Sat in HDF5, PASTIS in NPY (`So2Sat`, `Pastis`)
    prepared     what TFDS has prepared (`Tfds`)

Every layout is a frozen dataclass that follows `Layout`. `input_pipeline.catalog` names one for every data set;
`tiles` cuts what they give.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from input_pipeline.places import Places, Report
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
        lists: further folders where lists of splits may lie, such as the one of an archive.
    """

    source: Path
    sensors: tuple[str, ...]
    classes: tuple[str, ...]
    tile: int
    stride: int
    max_frames: int | None = None
    report: Report = dataclasses.field(default_factory=Report)
    lists: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Opened:
    """A data set whose files are found and split, but not read.

    Attributes:
        scenes: places by split; each gives one `tiles.Scene`.
        labels: by label name; `count` of boxes and tracks is that of the fullest tile.
        frames: T of every sensor.
        gsd: metres a pixel of every sensor.
        rule: how the splits were made, a sentence without its full stop.
    """

    scenes: Mapping[str, Places]
    labels: Mapping[str, LabelInfo]
    frames: Mapping[str, int]
    gsd: Mapping[str, float]
    rule: str


class Layout(Protocol):
    """What all readers have in common."""

    @property
    def sensors(self) -> tuple[str, ...]:
        """Names of all sensors that the data set holds; the first one sets the grid."""

    @property
    def rule(self) -> str:
        """How splits are made, for a person to read."""

    def open(self, request: Request) -> Opened:
        """Finds files and reads labels, but no images.

        Raises:
            DataError: a file is missing or not as the layout says.
        """
