"""A user's own files as a data set: GeoTIFF, PNG, JPEG or NPY, one sub-folder a sensor, labels beside them.

    source/s2_12/ID.tif           bands by their GeoTIFF descriptions, else in the sensor table's order
    source/s1_grd/ID.tif          another sensor of the same places: the same file names
    source/slc_dual/ID.tif        complex bands, or one file a polarisation: ID_VV.tif, ID_VH.tif,
                                  or ID.npy: complex [P, H, W]
    source/rgb/ID.npy             arrays: [H, W, C]
    source/ndsm/ID.tif            heights are a sensor like others, in metres
    source/rgb@1/, rgb@2/         several dates of a sensor, in this order; or rgb@2019-05-01/, ...
    source/train.txt, val.txt, test.txt     optional: IDs of the splits, one a line

A place may lack a sensor, as long as one place has them all: it is stored as not observed. A place may lack a class, a
mask or a change: nobody knows it then. What was found missing is counted in the report.

Labels are optional, and `input_pipeline.folder_labels` says how they are read:

    source/labels.csv             ID,label: classes; with a "|" (ID,a|b) several of them
    source/rgb/forest/ID.tif      or images in a folder a class
    source/mask/ID.png            or tif: one class a pixel, named in source/classes.txt, one a line (name,#rrggbb)
    source/change/ID.png          or tif: 0 unchanged, 1 or 255 changed, between the first and the last date
    source/boxes.json             COCO
    source/boxes/ID.xml, ID.txt   Pascal VOC, or DOTA

Values are stored as they are, so they have to be what `ringmoe_jax.sensors` says of the sensor: dtype,
unit and scale. Sensors of a place must cover the same ground; a finer grid gets larger tiles. `layouts.tiles` cuts.
Without split lists, the IDs (ordered by CRC-32, so not by name) give every fifth to validation; with
fewer than five, the right quarter of every image is kept for validation, one tile apart from the rest.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from input_pipeline import folder_labels
from input_pipeline.builder import write_dataset
from input_pipeline.folder_images import EXTENSIONS, Frame, Images, listed
from input_pipeline.layouts import tiles
from input_pipeline.layouts.tiles import Scene
from input_pipeline.parts import Workers
from input_pipeline.places import Places, Report
from input_pipeline.schema import BOX, BOXES, UNLABELLED, Image, Metadata, Sample, SensorInfo
from ringmoe_jax import files, geo, rasters, units
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError, nearest
from ringmoe_jax.sensors import Sensor

TILE = 128  # pixels
FEW = 5  # images, below which each is in both splits, by its columns
LISTS = {"train": "train.txt", "validation": "val.txt", "test": "test.txt"}
SIDECARS = (".xml", ".tfw", ".pgw", ".jgw", ".wld", ".prj", ".ovr", ".msk", ".hdr", ".qml", ".json", ".txt", ".csv")
_log = logging.getLogger(__name__)


def prepare(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    sensors: Sequence[str] | None = None,
    tile: int | None = None,
    stride: int | None = None,
    shards: int = 8,
    licence: str = "unknown",
    ignored: Sequence[int] | None = None,
    check_units: bool = True,
    overwrite: bool = False,
    progress: Callable[[str, int], None] | None = None,
    report: Report | None = None,
    workers: Workers | None = None,
) -> Metadata:
    """Cuts every image of a folder into tiles and writes them as a data set.

    Args:
        source: see the module's text.
        out: the data set's folder; its name is the data set's name.
        sensors: sub-folders to read, the first one sets the grid of `tile`; all known ones by default: optical,
            radar, heights.
        tile: side of a tile in pixels of the first sensor; None for `TILE`, or less where images are smaller.
        stride: pixels from tile to tile of the first sensor; `tile` by default.
        shards: files a split.
        licence: licence of the data, for the metadata.
        ignored: values of masks that are void; None for 255, -1 and declared no-data, where they are no class.
        check_units: refuse values that cannot be the sensor's unit; False for data that nobody calibrated.
        overwrite: replace a data set that is there.
        progress: called with the split and the number of samples written so far.
        report: counts what is missing or left out, and classes without an example.
        workers: see `builder.write_dataset`.

    Returns:
        The metadata with statistics.

    Raises:
        DataError: a folder, file, band, dtype, grid or label is not as described; names what to change.
    """
    source, out = Path(source), Path(out)
    if (tile is not None and tile < 1) or (stride is not None and stride < 1):
        raise DataError(f"tile = {tile}, stride = {stride}: wanted pixels > 0")
    report = Report() if report is None else report
    chosen = [sensor_table.get(name) for name in sensors or _sensors(source)]
    chosen = chosen if check_units else [units.unchecked(sensor) for sensor in chosen]
    folder = _Folder(source, chosen, tile, stride, report, ignored)
    metadata = folder.metadata("".join(c if c.isalnum() else "_" for c in out.resolve().name.lower()), licence)
    samples = {split: folder.samples(split, metadata) for split in folder.splits}
    options = dict(shards=shards, overwrite=overwrite, progress=progress, workers=workers)
    return write_dataset(out, samples, metadata, **options)


class _Folder:
    """The files of a source folder, and how they are cut and split."""

    def __init__(
        self,
        source: Path,
        sensors: Sequence[Sensor],
        tile: int | None,
        stride: int | None,
        report: Report,
        ignored: Sequence[int] | None,
    ):
        self.source, self.report = source, report
        self.images = {sensor.name: Images.find(source, sensor) for sensor in sensors}
        self.first = sensors[0].name
        self.ids = sorted(set().union(*(images.ids for images in self.images.values())))
        self.example = self.place(_complete(source, self.ids, {name: i.ids for name, i in self.images.items()}))
        first = self.example[self.first][0].pixels.shape[:2]
        self.tile = _fitting(*first, shared=len(self.ids) < FEW and not _lists(source)) if tile is None else tile
        self.stride = stride or self.tile
        self.factors = _factors({n: f[0].pixels.shape for n, f in self.example.items()}, self.tile, self.stride)
        shapes = {n: (len(frames), *frames[0].pixels.shape[:2]) for n, frames in self.example.items()}
        classes = {k: v for images in self.images.values() for k, v in images.classes.items()}
        self.labels = folder_labels.find(source, shapes, self.ids, classes, report, ignored)
        for label in self.labels:
            if odd := sorted(set(label.ids) - set(self.ids)):
                raise DataError(f'{source / label.where}: "{odd[0]}" has no image: {nearest(odd[0], self.ids)}')
            if label.complete:
                _same_ids(source, self.first, self.ids, label.where, label.ids)
        self._note_missing()
        self.splits, self.halves = _splits(source, self.ids, self._fits(first))

    def _note_missing(self) -> None:
        """Counts places without a sensor or label, and files that are no images."""
        for name, ids in {n: images.ids for n, images in self.images.items()}.items():
            if missing := sorted(set(self.ids) - set(ids)):
                what = f'{len(missing)} of {len(self.ids)} places, "{missing[0]}" among them'
                self.report.notes.append(f"{what}, have no {name}: stored as not observed")
        for label in self.labels:
            if missing := sorted(set(self.ids) - set(label.ids)):
                what = f'{len(missing)} of {len(self.ids)} places, "{missing[0]}" among them'
                self.report.notes.append(f"{what}, are not in {label.where}: their {label.name} is unknown")
        if hidden := sum(1 for _ in self.source.rglob("._*")):
            self.report.notes.append(f"{hidden} files named ._* are leftovers of macOS and no images: not read")
        for folder in sorted(path for path in self.source.iterdir() if path.is_dir()):
            name = folder.name.partition("@")[0]
            endings = EXTENSIONS if name in self.images else folder_labels.FOLDERS.get(name)
            if odd := [p for p in folder.rglob("*") if endings and p.is_file() and _unread(p, endings)]:
                kinds = ", ".join(sorted({path.suffix or "nothing" for path in odd}))
                self.report.notes.append(f"{len(odd)} files in {folder.name} end with {kinds}: not read")

    def place(self, stem: str) -> dict[str, list[Frame]]:
        """All images of one place, by sensor and date."""
        return {name: images.read(stem) for name, images in self.images.items() if stem in images.ids}

    def size(self, stem: str) -> tuple[int, int]:
        """Height and width of a place in pixels of the first sensor, from the header of one of its files."""
        name = next(name for name, images in self.images.items() if stem in images.ids)
        grid = self.images[name].grid(stem)
        return round(grid.height / self.factors[name]), round(grid.width / self.factors[name])

    def metadata(self, name: str, licence: str) -> Metadata:
        """What the data set will say of itself; tile sizes and GSD as in the first place."""
        infos = {}
        for sensor, images in self.images.items():
            size, frames = round(self.tile * self.factors[sensor]), self.example[sensor]
            gsd = frames[0].grid.gsd or images.sensor.gsd
            infos[sensor] = SensorInfo.of(images.sensor, (len(frames), size, size), gsd)
        labels = {label.name: label.info for label in self.labels}
        for label in self.labels:
            if label.info.kind == BOXES:
                labels[label.name] = dataclasses.replace(label.info, count=self._room(label, infos))
        folder = self.source.resolve().name
        return Metadata(
            name=name,
            sensors=infos,
            description=f"Files of {folder}: tiles of {self.tile} px every {self.stride} px of {self.first}.",
            licence=licence,
            source=folder,
            labels=labels,
        )

    def samples(self, split: str, metadata: Metadata) -> Places:
        """Tiles of one split, one place in memory at a time; those for training are counted by class."""
        found = Places(self.splits[split], functools.partial(self._tiles, split, metadata), self.report)
        return found.watched(metadata.labels) if split == "train" else found

    def _tiles(self, split: str, metadata: Metadata, stems: Sequence[str]) -> Iterator[Sample]:
        for stem in stems:
            frames, size = self.place(stem), self.size(stem)
            _same_ground(stem, frames)
            images = {name: _stacked(stem, name, several, self.report) for name, several in frames.items()}
            for name, frame in ((name, frame) for name, several in frames.items() for frame in several):
                self.report.note(frame.notes, str(frame.path))
                self.report.measure(name, metadata.sensors[name].gsd, frame.grid.gsd)
            labels = {}
            for label in self.labels:
                value = label.at(stem, self._grid(label.info.sensor or self.first, frames, size))
                labels[label.name] = self._part(split, value, size) if label.info.kind == BOXES else value
            scene = Scene(stem, images, labels, self._georeference(frames))
            corners = self._corners(split, size)
            yield from tiles.cut(
                scene, metadata.sensors, metadata.labels, stride=self.stride, corners=corners, report=self.report
            )

    def _grid(self, sensor: str, frames: Mapping[str, Sequence[Frame]], size: tuple[int, int]) -> geo.Grid:
        """Where a sensor's image of a place lies, or would lie if the place had one."""
        if sensor in frames:
            return frames[sensor][0].grid
        factor = self.factors[sensor]
        return geo.Grid.nowhere(round(size[0] * factor), round(size[1] * factor))

    def _georeference(self, frames: Mapping[str, Sequence[Frame]]) -> Callable[[float, float], tuple[float, float]]:
        """(row, column) in pixels of the first sensor to degrees, by the first sensor that the place has."""
        name, (frame, *_) = next(iter(frames.items()))
        factor = self.factors[name]
        crs, transform = frame.grid.crs, frame.grid.transform
        return lambda row, column: geo.latitude_longitude(crs, transform, row * factor, column * factor)

    def _room(self, label: folder_labels.Objects, infos: Mapping[str, SensorInfo]) -> int:
        """The largest number of objects in a tile: blank images are cut to see."""
        info, most = {self.first: infos[self.first]}, 1
        for split, stems in self.splits.items():
            for stem in stems:
                size = self.size(stem)
                rows = label.at(stem, geo.Grid.nowhere(*size))
                if len(rows) <= most:
                    continue
                blank = Image(np.broadcast_to(np.uint8(0), (1, *size, 1)))
                scene = Scene(stem, {self.first: blank}, {label.name: self._part(split, rows, size)})
                known = {label.name: dataclasses.replace(label.info, count=len(rows))}
                for sample in tiles.cut(scene, info, known, stride=self.stride, corners=self._corners(split, size)):
                    most = max(most, int(np.sum(sample.labels[label.name][:, 0] != UNLABELLED)))
        return most

    def _columns(self, split: str, width: int) -> tuple[int, int]:
        """First and last column of a split where every image is in both."""
        border = 3 * width // 4
        return (0, border - self.tile) if split == "train" else (border, width)

    def _corners(self, split: str, size: tuple[int, int]) -> list[tuple[int, int]] | None:
        """Tiles of a split; None for a grid over the whole image."""
        if not self.halves:
            return None
        start, end = self._columns(split, size[1])
        columns = geo.offsets(end, self.tile, self.stride, start)
        return [(top, left) for top in geo.offsets(size[0], self.tile, self.stride) for left in columns]

    def _fits(self, size: tuple[int, int]) -> bool:
        """Whether both parts of an image of this size hold a tile."""
        widths = [end - start for start, end in (self._columns(split, size[1]) for split in ("train", "validation"))]
        return min(size[0], *widths) >= self.tile

    def _part(self, split: str, rows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Boxes of the part of an image that a split is made of; those between the parts count as training's."""
        if not self.halves:
            return rows
        right = rows[:, BOX.index("x")] >= self._columns("validation", size[1])[0]
        return rows[~right if split == "train" else right]


def _sensors(source: Path) -> list[str]:
    """Sensors that have a folder; a warning for folders that mean nothing."""
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: give one that holds a folder a sensor")
    inside = sorted(path.name for path in source.iterdir() if path.is_dir())
    names = list(dict.fromkeys(name.partition("@")[0] for name in inside))
    known = [name for name in names if name in sensor_table.SENSORS]
    if not known:
        hint = nearest("".join(names[:1]), sensor_table.SENSORS, most=len(sensor_table.SENSORS))
        raise DataError(f"{source} holds no folder named like a sensor, got {inside[:5]}: {hint}")
    for name in set(names) - set(known) - set(folder_labels.FOLDERS):
        hint = nearest(name, (*sensor_table.SENSORS, *folder_labels.FOLDERS))
        labels = ", ".join(folder_labels.FOLDERS)
        line = "%s/%s is not read, it is named like no sensor and no label: %s; labels lie in %s"
        _log.warning(line, source, name, hint, labels)
    table = sensor_table.resolve(known)
    return sorted(known, key=lambda name: (table[name].modality == "elevation", table[name].looks is not None))


def _same_ids(source: Path, first: str, ids: Sequence[str], other: str, found: Sequence[str]) -> None:
    if odd := sorted(set(ids) ^ set(found)):
        lacking, has = (other, first) if odd[0] in ids else (first, other)
        raise DataError(f'{source}: "{odd[0]}" has no file in {lacking}, but one in {has}: add or remove it')


def _complete(source: Path, ids: Sequence[str], by_sensor: Mapping[str, Collection[str]]) -> str:
    """The first place that every sensor has seen."""
    for stem in ids:
        if all(stem in known for known in by_sensor.values()):
            return stem
    names = ", ".join(f'{name} has "{min(known)}"' for name, known in by_sensor.items())
    raise DataError(
        f"{source}: no place has an image of every sensor ({names}): give the files of one place the same name, or "
        "choose sensors by --sensors"
    )


def _fitting(height: int, width: int, *, shared: bool) -> int:
    """Side of a tile where nobody says one (our choice): at most `TILE`, within the image, and easy to halve.

    Args:
        height: of an image in pixels.
        width: of an image in pixels.
        shared: the right quarter of every image is for validation, and has to hold a tile.
    """
    side = min(height, width)
    if shared and width // 4 >= 32:
        side = min(side, width // 4)
    for tile in range(min(side, TILE) // 8 * 8, 0, -8):
        if tile % 32 == 0 or tile < 32:
            return tile
    return side


def _factors(shapes: dict[str, tuple[int, ...]], tile: int, stride: int) -> dict[str, float]:
    """Pixels of every sensor for one pixel of the first."""
    first, (height, width, _) = next(iter(shapes.items()))
    factors = {}
    for name, shape in shapes.items():
        factor = factors[name] = shape[0] / height
        if abs(factor - shape[1] / width) > 1e-9 or any(
            abs(v * factor - round(v * factor)) > 1e-9 for v in (tile, stride)
        ):
            raise DataError(
                f'"{name}" has {shape[0]} x {shape[1]} px where "{first}" has {height} x {width}: tile {tile} and '
                f"stride {stride} of {first} are no whole pixels of {name}; choose others, or resample the files"
            )
    return factors


def _same_ground(stem: str, frames: Mapping[str, Sequence[Frame]]) -> None:
    """Raises unless all images have the same corners, to a pixel, where they are known."""
    (first_name, (first, *_)), *_ = frames.items()
    for name, frame in ((name, frame) for name, several in frames.items() for frame in several):
        far = first.grid.distance(frame.grid)
        if far > max(filter(None, (first.grid.gsd, frame.grid.gsd)), default=0):  # not where unknown: NaN
            raise DataError(
                f'"{stem}": a corner of {name} is {far:.0f} m away from the one of {first_name}: '
                "sensors of one place must cover the same ground; crop them to it (gdalwarp -te)"
            )


def _stacked(stem: str, name: str, frames: Sequence[Frame], report: Report) -> Image:
    """The dates of a sensor as one image; times where all are known and ascend, as dates do."""
    if len({frame.pixels.shape for frame in frames}) > 1:
        sizes = " and ".join(f"{frame.pixels.shape[0]} x {frame.pixels.shape[1]} px" for frame in frames)
        raise DataError(f'"{stem}": the dates of {name} have {sizes}: wanted one size')
    days = np.array([frame.day for frame in frames])
    time = None if (days == NO_TIME).any() else days
    if time is not None and (np.diff(time) < 0).any():
        report.note([rasters.DISORDER], str(frames[0].path))
        time = None
    return Image(np.stack([frame.pixels for frame in frames]), np.stack([frame.valid for frame in frames]), time)


def _unread(path: Path, endings: Collection[str]) -> bool:
    """Whether a file is neither read nor one of those that programs put beside images."""
    return path.suffix.lower() not in (*endings, *SIDECARS) and not path.name.startswith(".")


def _lists(source: Path) -> dict[str, Path]:
    return {split: source / file for split, file in LISTS.items() if (source / file).exists()}


def _splits(source: Path, ids: Sequence[str], fits: bool) -> tuple[dict[str, list[str]], bool]:
    """IDs by split, and whether every image is in both splits, by its columns."""
    lists = _lists(source)
    if not lists:
        if len(ids) >= FEW:
            return geo.split_places(ids), False
        if fits:
            return {"train": list(ids), "validation": list(ids)}, True
        _log.warning("%s: too few and too small images for a validation split: all tiles go to training", source)
        return {"train": list(ids)}, False
    chosen: dict[str, list[str]] = {}
    for split, path in lists.items():
        lines = [
            listed(line.strip(), ids)
            for line in files.read_text(path, "a list of a split").splitlines()
            if line.strip()
        ]
        stems = [stem for line in lines for stem in ([line] if line in ids else line.split())]
        if unknown := sorted(set(stems) - set(ids)):
            raise DataError(f'{path}: "{unknown[0]}" has no file: {nearest(unknown[0], ids)}')
        if twice := [stem for stem, count in collections.Counter(stems).items() if count > 1]:
            raise DataError(f'{path}: "{twice[0]}" is listed more than once: a sample is in a split once')
        for earlier, others in chosen.items():
            if both := set(others) & set(stems):
                raise DataError(
                    f'{source}: "{min(both)}" is in {LISTS[earlier]} and in {path.name}: a sample has one split'
                )
        chosen[split] = stems
    if unused := len(set(ids).difference(*chosen.values())):
        _log.warning("%s: %d of %d images are in no list and are not read", source, unused, len(ids))
    return chosen, False
