"""Images found by their paths, with a class in the path, with masks, or with neither."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from input_pipeline.layouts import Opened, Request, templates
from input_pipeline.layouts.rasters import Mask, Raster
from input_pipeline.layouts.splits import Folders, Fractions, Lists, Named, mixing
from input_pipeline.layouts.tiles import Scene
from input_pipeline.places import Places
from input_pipeline.schema import CLASSES, MAP, UNLABELLED, LabelInfo
from ringmoe_jax.errors import DataError, nearest

LABEL = "label"  # of classification data sets


@dataclasses.dataclass(frozen=True)
class Files:
    """Images of one or several sensors, one file a date or a band.

    The class of an image is the field `class` of the paths, where they have one. Paths that begin with it may lie
    deeper: the folder that holds the class folders is looked for. A mask lies on the grid of the first sensor. A scene
    is named by the fields of its first path.

    Attributes:
        rasters: images by sensor; the first one sets the grid.
        splits: who is in which split.
        mask: one class a pixel, or None.
    """

    rasters: tuple[Raster, ...]
    splits: Folders | Fractions | Lists | Named
    mask: Mask | None = None

    @property
    def sensors(self) -> tuple[str, ...]:
        """Sensors that the files hold."""
        return tuple(raster.sensor for raster in self.rasters)

    @property
    def rule(self) -> str:
        """How splits are made."""
        return self.splits.rule

    def open(self, request: Request) -> Opened:
        """Finds and splits the files, see `Opened`.

        Raises:
            DataError: files, lists or classes are not as described.
        """
        template = self.mask.path if self.mask else self.rasters[0].template
        if template.startswith("{class}/"):
            root = _root(request.source, request.classes)
            request = dataclasses.replace(request, source=root, lists=(request.source, *request.lists))
        places, rule = self.splits.divide(request, template)
        if "class" in templates.names(template):  # the first tiles of a split, and those of a batch, are of all classes
            order = lambda fields: mixing(templates.joined(fields))  # noqa: E731
            places = {split: sorted(found, key=order) for split, found in places.items()}
        rasters = [raster for raster in self.rasters if raster.sensor in request.sensors]
        read = functools.partial(self._scenes, request, rasters)
        return Opened(
            {split: Places(found, read, request.report, templates.joined) for split, found in places.items()},
            self._labels(request, template),
            {raster.sensor: len(raster.paths) for raster in rasters},
            {raster.sensor: raster.gsd for raster in rasters},
            rule,
        )

    def _labels(self, request: Request, template: str) -> dict[str, LabelInfo]:
        if self.mask:
            info = LabelInfo(MAP, request.classes, "mask of the data set", request.sensors[0], change=self.mask.change)
            return {self.mask.label: info}
        if "class" in templates.names(template):
            return {LABEL: LabelInfo(CLASSES, request.classes, "class in the file's path")}
        return {}

    def _scenes(self, request: Request, rasters, places: Sequence[Mapping[str, str]]) -> Iterator[Scene]:
        naming = templates.names(self.rasters[0].template)
        for fields in places:
            read = {raster.sensor: raster.read(request.source, fields, request.report) for raster in rasters}
            labels = {}
            if self.mask:
                grid = rasters[0].grid(request.source, fields)
                classes = self.mask.read(request.source, fields, len(request.classes), grid)
                if self.mask.observed:
                    for image, _ in read.values():
                        classes[~image.valid.all(axis=0)] = UNLABELLED
                labels[self.mask.label] = classes
            elif "class" in fields:
                labels[LABEL] = index(fields["class"], request.classes, templates.joined(fields))
            images = {name: image for name, (image, _) in read.items()}
            place = next(iter(read.values()))[1]
            yield Scene("/".join(fields[name] for name in naming), images, labels, place)


def _root(source: Path, classes: Sequence[str]) -> Path:
    """The folder nearest to `source` that holds folders named as classes; `source` where there is none.

    Raises:
        DataError: several lie equally near.
    """
    level = [source]
    while level:
        if holding := [folder for folder in level if any((folder / name).is_dir() for name in classes)]:
            if len(holding) > 1:
                some = " and ".join(folder.relative_to(source).as_posix() for folder in holding[:2])
                raise DataError(f"{source} holds folders of classes in {some}: give one of them as the source")
            return holding[0]
        inner = (path for folder in level for path in sorted(folder.iterdir()) if path.is_dir())
        level = [path for path in inner if not path.name.startswith((".", "__"))]  # __MACOSX holds no images
    return source


def index(name: str, classes: Sequence[str], where: str) -> int:
    """Index of a class by its name.

    Raises:
        DataError: there is no such class; names the nearest one.
    """
    if name not in classes:
        raise DataError(f'{where}: unknown class "{name}": {nearest(name, classes)}')
    return classes.index(name)
