"""A user's own files as a data set: GeoTIFF, PNG, JPEG or NPY, one sub-folder a sensor.

    source/s2_12/ID.tif           bands by their GeoTIFF descriptions, else in the sensor table's order
    source/s1_grd/ID.tif          another sensor of the same places: the same file names
    source/slc_dual/ID.tif        complex bands, or one file a polarisation: ID_VV.tif, ID_VH.tif,
                                  or ID.npy: complex [P, H, W]
    source/rgb/ID.npy             arrays: [H, W, C]
    source/train.txt, val.txt     optional: IDs of the splits, one a line
    source/labels.csv             optional: ID,label without a header

Values are stored as they are, so they have to be what `ringmoe_jax.sensors` says of the sensor: dtype,
unit and scale. Sensors of a place must cover the same ground; a finer grid gets larger tiles.
Without split lists, the IDs (ordered by CRC-32, so not by name) give every fifth to validation; with
fewer than five, the right quarter of every image is kept for validation, one tile apart from the rest.
"""

from __future__ import annotations

import csv
import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from input_pipeline import geo
from input_pipeline.builder import write_dataset
from input_pipeline.schema import CLASSES, UNLABELLED, Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.batch import NO_TIME
from ringmoe_jax.errors import DataError, nearest
from ringmoe_jax.sensors import COMPLEX, Sensor

EXTENSIONS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".npy")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Scene:
    """One image of one sensor.

    Attributes:
        pixels: [H, W, C] in storage dtype.
        valid: [H, W] bool.
        crs: coordinate reference system, or None.
        transform: pixels to coordinates.
        day: days since 1970-01-01 (TIFFTAG_DATETIME), or NO_TIME.
    """

    pixels: np.ndarray
    valid: np.ndarray
    crs: object = None
    transform: Affine = dataclasses.field(default_factory=Affine.identity)
    day: int = NO_TIME


def prepare(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    sensors: Sequence[str] | None = None,
    tile: int = 128,
    stride: int | None = None,
    shards: int = 8,
    licence: str = "unknown",
    overwrite: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> Metadata:
    """Cuts every image of a folder into tiles and writes them as a data set.

    Args:
        source: see the module's text.
        out: the data set's folder; its name is the data set's name.
        sensors: sub-folders to read, the first one sets the grid of `tile`; all known ones by default.
        tile: side of a tile in pixels of the first sensor.
        stride: pixels from tile to tile of the first sensor; `tile` by default.
        shards: files a split.
        licence: licence of the data, for the metadata.
        overwrite: replace a data set that is there.
        progress: called with the split and the number of samples written so far.

    Returns:
        The metadata with statistics.

    Raises:
        DataError: a folder, file, band, dtype or grid is not as described; names what to change.
    """
    source, out = Path(source), Path(out)
    if tile < 1 or (stride or tile) < 1:
        raise DataError(f"tile = {tile}, stride = {stride}: wanted pixels > 0")
    folder = _Folder(source, [sensor_table.get(n) for n in sensors or _sensor_folders(source)], tile, stride or tile)
    metadata = folder.metadata("".join(c if c.isalnum() else "_" for c in out.resolve().name.lower()), licence)
    samples = {split: folder.samples(split) for split in folder.splits}
    return write_dataset(out, samples, metadata, shards=shards, overwrite=overwrite, progress=progress)


class _Folder:
    """The files of a source folder, and how they are cut and split."""

    def __init__(self, source: Path, sensors: Sequence[Sensor], tile: int, stride: int):
        self.source, self.tile, self.stride = source, tile, stride
        self.sensors = {sensor.name: sensor for sensor in sensors}
        self.first = sensors[0].name
        self.files = {name: _files(source / name, sensor) for name, sensor in self.sensors.items()}
        self.ids = sorted(self.files[self.first])
        for name, found in self.files.items():
            if odd := sorted(set(self.ids) ^ set(found)):
                lacking, other = (name, self.first) if odd[0] in self.ids else (self.first, name)
                raise DataError(f'{source}: "{odd[0]}" has no file in {lacking}, but one in {other}: add or remove it')
        self.example = self.place(self.ids[0])
        self.factors = _factors({n: scene.pixels.shape for n, scene in self.example.items()}, tile, stride)
        self.classes, self.labels = _labels(source / "labels.csv", self.ids)
        self.splits, self.grid = _splits(source, self.ids, tile, stride, self.example[self.first].pixels.shape)

    def place(self, stem: str) -> dict[str, Scene]:
        """All images of one place."""
        return {name: read(self.files[name][stem], sensor) for name, sensor in self.sensors.items()}

    def metadata(self, name: str, licence: str) -> Metadata:
        """What the data set will say of itself; tile sizes and GSD as in the first place."""

        def info(name: str, sensor: Sensor) -> SensorInfo:
            size = round(self.tile * self.factors[name])
            return SensorInfo.of(sensor, (1, size, size), _gsd(self.example[name], sensor))

        folder = self.source.resolve().name
        return Metadata(
            name=name,
            sensors={name: info(name, sensor) for name, sensor in self.sensors.items()},
            description=f"Files of {folder}: tiles of {self.tile} px every {self.stride} px of {self.first}.",
            licence=licence,
            source=folder,
            labels={"label": LabelInfo(CLASSES, self.classes, "labels.csv of the folder")} if self.classes else {},
        )

    def samples(self, split: str) -> Iterator[Sample]:
        """Tiles of one split, one place in memory at a time."""
        for stem in self.splits[split]:
            images = self.place(stem)
            _same_ground(stem, images, self.factors)
            first = images[self.first]
            for top, left in self.grid(split, first.pixels.shape):
                yield Sample(
                    f"{stem}/{left}/{top}",
                    {name: _cut(scene, top, left, self.tile, self.factors[name]) for name, scene in images.items()},
                    *geo.latitude_longitude(first.crs, first.transform, top + self.tile / 2, left + self.tile / 2),
                    {"label": self.labels.get(stem, UNLABELLED)} if self.classes else {},
                )


def read(files: Sequence[Path], sensor: Sensor) -> Scene:
    """One image, its bands in the sensor's order.

    Args:
        files: one file, or for a complex sensor one a polarisation in its order.
        sensor: what the file has to be.

    Raises:
        DataError: bands, dtype or file format do not fit.
    """
    scenes = [_read_file(path, sensor, len(files)) for path in files]
    pixels = np.concatenate([scene.pixels for scene in scenes], -1)
    where = ", ".join(path.name for path in files)
    if pixels.shape[-1] != sensor.channels:
        raise DataError(
            f'{where} gives {pixels.shape[-1]} channels, "{sensor.name}" has {sensor.channels}: '
            f"{', '.join(sensor.band_names)}; name the bands in the GeoTIFF (descriptions) or choose another sensor"
        )
    if pixels.dtype != sensor.dtype:
        raise DataError(
            f'{where} holds {pixels.dtype}, "{sensor.name}" is stored as {sensor.dtype} in units of '
            f"{sensor.scale:g} {sensor.unit}: convert it (gdal_translate -ot), or register a sensor of your own"
        )
    return dataclasses.replace(scenes[0], pixels=pixels, valid=np.all([s.valid for s in scenes], 0))


def _read_file(path: Path, sensor: Sensor, count: int) -> Scene:
    if path.suffix.lower() == ".npy":
        pixels = np.load(path, allow_pickle=False)
        wanted = "complex [P, H, W]" if sensor.resampling == COMPLEX else "[H, W, C]"
        if pixels.ndim != 3 or np.iscomplexobj(pixels) != (sensor.resampling == COMPLEX):
            raise DataError(f'{path} holds {pixels.dtype}{list(pixels.shape)}, wanted {wanted} for "{sensor.name}"')
        pixels = geo.pairs(pixels.transpose(1, 2, 0)) if sensor.resampling == COMPLEX else pixels
        return Scene(pixels, np.ones(pixels.shape[:2], np.bool_))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                pixels, valid = file.read().transpose(1, 2, 0), file.dataset_mask() > 0
                names, crs, transform = file.descriptions, file.crs, file.transform
                day = file.tags().get("TIFFTAG_DATETIME", "").replace(":", "-")
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path} cannot be read ({error}): wanted GeoTIFF, PNG, JPEG or NPY") from error
    if np.iscomplexobj(pixels):
        pixels = geo.pairs(pixels)
    elif count == 1 and all(names):
        pixels = pixels[..., _by_name(path, names, sensor)]
    return Scene(pixels, valid, crs, transform, geo.days(day) if day else NO_TIME)


def _by_name(path: Path, names: Sequence[str], sensor: Sensor) -> list[int]:
    positions = {name: i for i, name in enumerate(names)}
    for band in sensor.bands:
        if band.name not in positions and band.alias not in positions:
            raise DataError(f'{path} has no band "{band.name}" of "{sensor.name}": {nearest(band.name, names)}')
    return [positions.get(band.name, positions.get(band.alias)) for band in sensor.bands]


def _sensor_folders(source: Path) -> list[str]:
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: give one that holds a folder a sensor")
    inside = sorted(path.name for path in source.iterdir() if path.is_dir())
    known = [name for name in inside if name in sensor_table.SENSORS]
    if not known:
        hint = nearest(inside[0], sensor_table.SENSORS) if inside else f"(known: {', '.join(sensor_table.SENSORS)})"
        raise DataError(f"{source} holds no folder named like a sensor, got {inside[:5]}: {hint}")
    return known


def _files(folder: Path, sensor: Sensor) -> dict[str, list[Path]]:
    """Files by ID; for a complex sensor with one file a polarisation, in the sensor's order."""
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist: wanted the files of the sensor {sensor.name}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)
    if not paths:
        raise DataError(f"{folder} holds no image: wanted files that end with {', '.join(EXTENSIONS)}")
    if sensor.resampling != COMPLEX:
        return {path.stem: [path] for path in paths}
    found: dict[str, list[Path]] = {}
    polarisations = [name.removesuffix("_re") for name in sensor.band_names[::2]]
    for path in paths:
        stem, _, end = path.stem.rpartition("_")
        found.setdefault(stem if stem and end.upper() in polarisations else path.stem, []).append(path)
    for stem, several in found.items():
        if len(several) > 1:
            by_name = {path.stem.rpartition("_")[2].upper(): path for path in several}
            if sorted(by_name) != sorted(polarisations):
                raise DataError(f"{folder}/{stem}: got {sorted(by_name)}, wanted one file of each of {polarisations}")
            found[stem] = [by_name[p] for p in polarisations]
    return found


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


def _same_ground(stem: str, images: dict[str, Scene], factors: dict[str, float]) -> None:
    """Raises unless all images have the pixels that `factors` says, and the same corners where they are known."""
    first_name, first = next(iter(images.items()))
    height, width = first.pixels.shape[:2]
    for name, scene in images.items():
        wanted = (round(height * factors[name]), round(width * factors[name]))
        if scene.pixels.shape[:2] != wanted:
            raise DataError(
                f'"{stem}": {name} has {scene.pixels.shape[:2]} px, wanted {wanted} as {first_name} has '
                f"{(height, width)}"
            )
        if not (first.crs and scene.crs):
            continue
        for row, column in ((0, 0), (1, 1)):
            ours = geo.latitude_longitude(first.crs, first.transform, row * height, column * width)
            theirs = geo.latitude_longitude(scene.crs, scene.transform, row * wanted[0], column * wanted[1])
            metres = 111_320 * np.hypot(ours[0] - theirs[0], (ours[1] - theirs[1]) * np.cos(np.radians(ours[0])))
            pixel = max(np.sqrt(abs(s.transform.determinant)) for s in (first, scene)) if first.crs.is_projected else 50
            if metres > pixel:
                raise DataError(
                    f'"{stem}": a corner of {name} is {metres:.0f} m away from the one of {first_name}: '
                    "sensors of one place must cover the same ground; crop them to it (gdalwarp -te)"
                )


def _cut(scene: Scene, top: int, left: int, tile: int, factor: float) -> Image:
    top, left, size = round(top * factor), round(left * factor), round(tile * factor)
    window = slice(top, top + size), slice(left, left + size)
    return Image(scene.pixels[window][None], scene.valid[window][None], np.array([scene.day]))


def _gsd(scene: Scene, sensor: Sensor) -> float:
    """Metres a pixel of a projected image; the sensor table's where the file does not say."""
    if scene.crs and getattr(scene.crs, "is_projected", False):
        return float(np.sqrt(abs(scene.transform.determinant)))
    return sensor.gsd


def _labels(path: Path, ids: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    if not path.exists():
        return (), {}
    with open(path, newline="") as file:
        rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    for row in rows:
        if len(row) != 2 or row[0] not in ids:
            raise DataError(
                f"{path}: row {','.join(row)!r}: wanted ID,label with one of the IDs {', '.join(ids[:3])}, ..."
            )
    classes = tuple(sorted({label for _, label in rows}))
    return classes, {stem: classes.index(label) for stem, label in rows}


def _splits(source: Path, ids: Sequence[str], tile: int, stride: int, shape: tuple[int, ...]):
    """IDs by split, and a function (split, shape) -> (top, left) of the tiles."""

    def grid(split: str, shape: tuple[int, ...], start: int = 0, end: int | None = None):
        rows, columns = geo.offsets(shape[0], tile, stride), geo.offsets(end or shape[1], tile, stride, start)
        return [(top, left) for top in rows for left in columns]

    def side(split: str, shape: tuple[int, ...]):
        border = 3 * shape[1] // 4
        return grid(split, shape, 0, border - tile) if split == "train" else grid(split, shape, border)

    lists = {split: source / file for split, file in (("train", "train.txt"), ("validation", "val.txt"))}
    lists = {split: path for split, path in lists.items() if path.exists()}
    if lists:
        chosen = {split: path.read_text().split() for split, path in lists.items()}
        for split, stems in chosen.items():
            if unknown := [stem for stem in stems if stem not in ids]:
                raise DataError(f'{lists[split]}: "{unknown[0]}" has no file: {nearest(unknown[0], ids)}')
        if both := set(chosen.get("train", ())) & set(chosen.get("validation", ())):
            raise DataError(f'{source}: "{min(both)}" is in train.txt and in val.txt: a sample has one split')
        return chosen, grid
    if len(ids) >= 5:
        return geo.split_places(ids), grid
    if not (side("train", shape) and side("validation", shape)):
        _log.warning("%s: too few and too small images for a validation split: all tiles go to training", source)
        return {"train": list(ids)}, grid
    return {"train": list(ids), "validation": list(ids)}, side
