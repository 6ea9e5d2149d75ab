"""Images with boxes, and videos with tracks, read by the parsers of `annotations`."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from input_pipeline.layouts import Opened, Request, annotations, templates, tiles
from input_pipeline.layouts.annotations import Annotations
from input_pipeline.layouts.rasters import Raster
from input_pipeline.layouts.splits import Folders, Fractions, Lists, Named
from input_pipeline.layouts.tiles import Scene
from input_pipeline.places import Places
from input_pipeline.schema import BOXES, TRACK, TRACKS, Image, LabelInfo
from ringmoe_jax.errors import DataError

_DATE = TRACK.index("date")


class _OfOneSensor:
    """What the layouts of this module share."""

    @property
    def sensors(self) -> tuple[str, ...]:
        """The sensor of the images or frames."""
        return (self.raster.sensor,)

    @property
    def rule(self) -> str:
        """How splits are made."""
        return self.splits.rule


@dataclasses.dataclass(frozen=True)
class Boxes(_OfOneSensor):
    """Images with one file of boxes each.

    Attributes:
        raster: the images.
        annotations: template of their boxes' files.
        parse: parser of `input_pipeline.layouts.annotations`: function (paths, classes) -> `Annotations`.
        splits: who is in which split.
    """

    raster: Raster
    annotations: str
    parse: Callable[..., Annotations]
    splits: Folders | Fractions | Lists | Named

    def open(self, request: Request) -> Opened:
        """Finds the files and reads all boxes, see `Opened`; every image has to have its file of boxes."""
        places, rule = self.splits.divide(request, self.raster.template)
        rows = {}
        for split, found in places.items():
            paths = [request.source / templates.fill(self.annotations, fields) for fields in found]
            read = _noted(self.parse(paths, request.classes), request)
            rows[split] = [
                _on_image(read, path.stem, self.raster, fields, request)
                for path, fields in zip(paths, found, strict=True)
            ]
        return _boxes(self.raster, request, places, rows, rule)


@dataclasses.dataclass(frozen=True)
class Coco(_OfOneSensor):
    """Images that COCO files list, with their boxes.

    Attributes:
        raster: the images; the field `id` of the path is their name in the file, without folders and ending.
        files: COCO file by split.
    """

    raster: Raster
    files: Mapping[str, str]

    @property
    def splits(self) -> Lists:
        """How the files divide, as `Lists` says it."""
        return Lists(self.files)

    def open(self, request: Request) -> Opened:
        """Reads all boxes, see `Opened`."""
        places, rows = {}, {}
        for split, path in self.files.items():
            read = _noted(annotations.coco(request.source / path, request.classes), request)
            places[split] = [{"id": name} for name in read.images]
            rows[split] = [_on_image(read, place["id"], self.raster, place, request) for place in places[split]]
        return _boxes(self.raster, request, places, rows, self.splits.rule)


@dataclasses.dataclass(frozen=True)
class Tracks(_OfOneSensor):
    """Videos: one folder of frames each, and one file of tracks as MOTChallenge has it. Windows of frames are samples.

    Attributes:
        raster: the frames; the field `frame` of its path counts them.
        annotations: template of the tracks' files.
        splits: who is in which split.
        window: frames of a sample, unless the request says how many; the last window of a video may be shorter.
    """

    raster: Raster
    annotations: str
    splits: Folders | Fractions | Lists | Named
    window: int

    def open(self, request: Request) -> Opened:
        """Finds the frames and reads all tracks, see `Opened`."""
        places, rule = self.splits.divide(request, self.annotations)
        window = request.max_frames or self.window
        videos = {split: [self._video(request, fields, window) for fields in found] for split, found in places.items()}
        parts = {split: [part for video in found for part in video] for split, found in videos.items()}
        count = 0
        for found in parts.values():
            for frames, rows, *_ in found:
                size = self.raster.size(request.source, frames[0])
                count = max(count, tiles.most(rows, size, (request.tile, request.tile), request.stride))
        info = LabelInfo(TRACKS, request.classes, "tracks of the data set", self.raster.sensor, max(count, 1))
        return Opened(
            {
                split: Places(found, functools.partial(self._scenes, request), request.report, operator.itemgetter(2))
                for split, found in parts.items()
            },
            {"tracks": info},
            {self.raster.sensor: window},
            {self.raster.sensor: self.raster.gsd},
            f"{rule}; videos are cut into windows of {window} frames",
        )

    def _video(self, request: Request, fields: Mapping[str, str], window: int):
        """Windows of one video: fields of the frames, rows of `TRACK` that count dates from the first one, the
        video's name, and its frame that is the first one."""
        path = request.source / templates.fill(self.annotations, fields)
        read = _noted(annotations.motchallenge([path], request.classes), request)
        rows = next(iter(read.images.values()))
        frames = templates.find(request.source, self.raster.template, **fields)
        if not frames or rows[:, _DATE].max(initial=0) >= len(frames):
            last = int(rows[:, _DATE].max(initial=0)) + 1
            raise DataError(f"{path} speaks of frame {last}, the video has {len(frames)} frames")
        name = templates.joined(fields)
        for start in range(0, len(frames), window):
            part = rows[(rows[:, _DATE] >= start) & (rows[:, _DATE] < start + window)].copy()
            part[:, _DATE] -= start
            yield frames[start : start + window], part, name, start

    def _scenes(self, request: Request, parts) -> Iterator[Scene]:
        for frames, rows, name, start in parts:
            images = [self.raster.read(request.source, fields, request.report)[0] for fields in frames]
            if len({image.pixels.shape for image in images}) > 1:
                raise DataError(f'"{name}/{start}": frames differ in size: wanted one')
            image = Image(
                np.concatenate([image.pixels for image in images]), np.concatenate([image.valid for image in images])
            )
            yield Scene(f"{name}/{start}", {self.raster.sensor: image}, {"tracks": rows}, series=name, date=start)


def _boxes(
    raster: Raster,
    request: Request,
    places: Mapping[str, Sequence[Mapping[str, str]]],
    rows: Mapping[str, Sequence[np.ndarray]],
    rule: str,
) -> Opened:
    """Images with rows of `BOX`; `count` is that of the fullest tile, for which headers of all images are read."""
    count, tile = 0, (request.tile, request.tile)
    for split, found in places.items():
        for fields, objects in zip(found, rows[split], strict=True):
            if len(objects) > count:
                count = max(count, tiles.most(objects, raster.size(request.source, fields), tile, request.stride))

    def scenes(found) -> Iterator[Scene]:
        for fields, objects in found:
            image, place = raster.read(request.source, fields, request.report)
            yield Scene(templates.joined(fields), {raster.sensor: image}, {"boxes": objects}, place)

    info = LabelInfo(BOXES, request.classes, "objects of the data set", raster.sensor, max(count, 1))
    return Opened(
        {
            split: Places(list(zip(found, rows[split], strict=True)), scenes, request.report, _name)
            for split, found in places.items()
        },
        {"boxes": info},
        {raster.sensor: 1},
        {raster.sensor: raster.gsd},
        rule,
    )


def _name(place: tuple[Mapping[str, str], np.ndarray]) -> str:
    return templates.joined(place[0])


def _on_image(read: Annotations, name: str, raster: Raster, fields: Mapping[str, str], request: Request) -> np.ndarray:
    """Rows of one image in its pixels, see `Annotations.on`; headers are read where annotations say a size."""
    if name not in read.sizes:
        return read.images[name]
    return read.on(name, raster.size(request.source, fields), request.report)


def _noted(read: Annotations, request: Request) -> Annotations:
    """The annotations, once the report knows what their parser left out."""
    for why, images in read.left_out.items():
        for name, count in images.items():
            request.report.leave_out(why, name, count)
    return read
