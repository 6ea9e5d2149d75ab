"""TreeSatAI-Time-Series as a data set: an aerial image and a year of Sentinel-1 and Sentinel-2 of 60 m of forest.

    source/**/NAME.tif                             aerial image, (4, 304, 304) uint8 at 0.2 m
    source/**/NAME.h5 or NAME_YEAR.h5              `sen-2-*`, `sen-1-asc-*` and `sen-1-des-*` series on 6 x 6 px of 10 m
    source/**/TreeSatBA_v9_60m_multi_labels.json   optional: NAME.tif to [genus, share of the area] pairs
    source/**/train_filenames.lst, val_..., test_...   optional: the splits, one NAME.tif a line

Folders may be nested as distributed (aerial/, sentinel-ts/, labels/, split/) or be one. TIFF files in folders named
`s1`, `s2` or `200m`, of the older single-date archive, are left out. What is in a file, and where it is known from:

    aerial bands     near infrared, green, blue, red: archive description (Zenodo 6780578), as read by torchgeo. Not
                     NIR, R, G, B as some loaders have it: the third band is the brightest of the three in shadow
    aerial file      tagged red, green, blue, alpha, so that a reader of masks takes red for transparency
    sen-2-data       digital numbers of L2A (reflectance x 10,000), B02 B03 B04 B05 B06 B07 B08 B8A B11 B12: data set
                     card. Pixels repeat in 2 x 2 in the 4th to 6th and 8th to 10th channel alone: the 20 m bands
    sen-2-masks      probability of snow and of cloud in percent: data set card. The card says 2 channels; files
                     have 10, of which the last 8 are zero
    sen-1-*-data     VV and VH backscattering coefficient (card), in linear power: positive, median 0.1; taken as
                     sigma0 and stored in dB
    sen-*-products   names of the products, with the time of sensing (ESA naming convention)

The aerial images' dates are not in these files. Their centre 300 px are kept, so that a Sentinel pixel is 50 of theirs;
the grids agree to about 3 m, because Sentinel pixels lie on multiples of 10 m and aerial patches do not.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from input_pipeline.builder import write_dataset
from input_pipeline.parts import Workers
from input_pipeline.places import Places
from input_pipeline.schema import CLASSES, MULTILABEL, VALUE, Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import files, geo, rasters
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import DataError, nearest

SENSORS = ("rgbn", "s2_10", "s1_grd")
ORBITS = {"both": ("asc", "des"), "asc": ("asc",), "des": ("des",)}
AERIAL_BANDS = ("nir", "green", "blue", "red")  # order in the files
AERIAL, GRID = 300, 6  # pixels of 0.2 m and of 10 m: side of a place
LABELS = "TreeSatBA_v9_60m_multi_labels.json"
LISTS = {"train": "train_filenames.lst", "validation": "val_filenames.lst", "test": "test_filenames.lst"}
SHARE = 0.07  # a genus counts as present above this share of the area (Ahlswede et al. 2023)
SPECIES = (
    *("Abies_alba", "Acer_pseudoplatanus", "Alnus_spec.", "Betula_spec.", "Cleared", "Fagus_sylvatica"),
    *("Fraxinus_excelsior", "Larix_decidua", "Larix_kaempferi", "Picea_abies", "Pinus_nigra", "Pinus_strobus"),
    *("Pinus_sylvestris", "Populus_spec.", "Prunus_spec.", "Pseudotsuga_menziesii", "Quercus_petraea"),
    *("Quercus_robur", "Quercus_rubra", "Tilia_spec."),
)
GENERA = tuple(dict.fromkeys(name.split("_")[0] for name in SPECIES))
_log = logging.getLogger(__name__)


def prepare(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    sensors: Sequence[str] | None = None,
    orbit: str = "both",
    max_frames: int | None = None,
    max_cloud: float = 10.0,
    shards: int = 8,
    overwrite: bool = False,
    progress: Callable[[str, int], None] | None = None,
    workers: Workers | None = None,
) -> Metadata:
    """Writes the places of a folder as a data set with `rgbn` [1, 300, 300], `s2_10` and `s1_grd` [T, 6, 6].

    Splits are those of the lists; names without files are left out. Without lists, every fifth place goes to
    validation, or none where there are fewer than five.

    Args:
        source: see the module's text.
        out: the data set's folder.
        sensors: some of `SENSORS`; all by default.
        orbit: Sentinel-1 passes to keep, "asc" or "des"; "both" merges them into one series, sorted by time.
        max_frames: longest series T; longer ones are thinned evenly, first and last date kept. By default the
            longest one of the data set, which takes one more reading of all files.
        max_cloud: pixels above this probability of cloud or of snow, in percent, are not valid, and dates without
            a valid pixel are left out. Our choice: at 50, a real place keeps bright clouds that were taken for
            snow, at 10 none.
        shards: files a split.
        overwrite: replace a data set that is there.
        progress: called with the split and the number of samples written so far.
        workers: see `builder.write_dataset`.

    Returns:
        The metadata with statistics.

    Raises:
        DataError: a file is missing or not as described, or an argument is out of range.
    """
    for name in sensors or ():
        if name not in SENSORS:
            raise DataError(f'sensor "{name}" is not in TreeSatAI-Time-Series: {nearest(name, SENSORS)}')
    if orbit not in ORBITS:
        raise DataError(f'orbit "{orbit}", wanted one of {", ".join(ORBITS)}')
    if max_frames is not None and max_frames < 1:
        raise DataError(f"max_frames = {max_frames}, wanted 1 or more")
    archive = _Archive(Path(source), tuple(sensors or SENSORS), orbit, max_frames, max_cloud)
    samples = {split: Places(ids, archive.samples) for split, ids in archive.splits.items()}
    options = dict(shards=shards, overwrite=overwrite, progress=progress, workers=workers)
    return write_dataset(out, samples, archive.metadata(), **options)


class _Archive:
    """The files of a source folder, by the name of their place."""

    def __init__(self, source: Path, sensors: tuple[str, ...], orbit: str, max_frames: int | None, max_cloud: float):
        self.source, self.sensors, self.orbit = source, sensors, orbit
        self.max_frames, self.max_cloud = max_frames, max_cloud
        self.files = _files(source)
        self.splits = _splits(source, self.files)
        self.shares = _shares(source, self.files)

    def metadata(self) -> Metadata:
        """What the data set will say of itself. Reads series until their longest is known."""
        frames = self._frames()
        shapes = {"rgbn": (1, AERIAL, AERIAL)} | {name: (count, GRID, GRID) for name, count in frames.items()}
        labels = {
            "species": LabelInfo(CLASSES, SPECIES, "main species, from the file's name"),
            "genus": LabelInfo(CLASSES, GENERA, "genus of the main species, from the file's name"),
        }
        if self.shares:
            labels |= {
                "genera": LabelInfo(MULTILABEL, GENERA, f"genera on more than {SHARE} of the area"),
                "genus_share": LabelInfo(VALUE, GENERA, "share of the area by genus, 0 to 1"),
            }
        return Metadata(
            name="treesatai_ts",
            sensors={
                name: SensorInfo.of(sensor_table.get(name), shapes[name], 0.2 if name == "rgbn" else 10.0)
                for name in self.sensors
                if name in shapes
            },
            description=(
                f"TreeSatAI-Time-Series: {len(self.files)} places of 60 m in Lower Saxony. Sentinel-1 in dB, passes: "
                f"{self.orbit}. Pixels with more than {self.max_cloud:g} % probability of cloud or snow are not valid, "
                "and dates without a valid pixel are left out."
            ),
            licence="CC-BY-4.0",
            source="https://huggingface.co/datasets/IGNF/TreeSatAI-Time-Series",
            citation="Astruc et al. 2024, OmniSat; Ahlswede et al. 2023, TreeSatAI Benchmark Archive",
            labels=labels,
        )

    def _frames(self) -> dict[str, int]:
        """Dates of the longest series of every sensor, at most `max_frames`; without sensors that never occur."""
        longest = {name: 0 for name in self.sensors if name != "rgbn"}
        for stem in self.files:
            if all(count == self.max_frames for count in longest.values()):
                break
            for name, image in self.series(stem).items():
                longest[name] = max(longest[name], len(image.pixels))
        return {name: count for name, count in longest.items() if count}

    def samples(self, ids: Sequence[str]) -> Iterator[Sample]:
        """Places of one split, one in memory at a time."""
        for stem in ids:
            pixels, place = aerial(self.files[stem][0])
            images = {"rgbn": Image(pixels)} if "rgbn" in self.sensors else {}
            species = _species(stem)
            labels = {"species": species, "genus": GENERA.index(SPECIES[species].split("_")[0])}
            if self.shares:
                share = self.shares[stem]
                labels |= {"genus_share": share, "genera": share > SHARE}
            yield Sample(stem, images | self.series(stem), *place, labels)

    def series(self, stem: str) -> dict[str, Image]:
        """The Sentinel series of a place, without sensors of which no date is left."""
        path = self.files[stem][1]
        images = {}
        try:
            with h5py.File(path) as file:
                if "s2_10" in self.sensors:
                    images["s2_10"] = _thinned(*sentinel2(file, self.max_cloud), self.max_frames)
                if "s1_grd" in self.sensors:
                    passes = [sentinel1(file, name) for name in ORBITS[self.orbit]]
                    images["s1_grd"] = _thinned(*map(np.concatenate, zip(*passes, strict=True)), self.max_frames)
        except (OSError, KeyError) as error:
            raise DataError(f"{path} cannot be read ({error}): wanted the HDF5 file as distributed") from error
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        return {name: image for name, image in images.items() if len(image.pixels)}


def aerial(path: Path) -> tuple[np.ndarray, tuple[float, float]]:
    """[1, 300, 300, 4] uint8 of a file's centre, red, green, blue and near infrared, and its latitude and longitude."""
    wanted = "an aerial GeoTIFF"
    with rasters.open_raster(path, wanted, whole=True) as file, rasters.reading(path, f"wanted {wanted}"):
        pixels, crs, transform = file.read(), file.crs, file.transform
    channels, height, width = pixels.shape
    if pixels.dtype != np.uint8 or channels != len(AERIAL_BANDS) or min(height, width) < AERIAL:
        raise DataError(
            f"{path} holds {pixels.dtype}{list(pixels.shape)}, wanted uint8[4, 304, 304]: {', '.join(AERIAL_BANDS)}"
        )
    order = [AERIAL_BANDS.index(name) for name in sensor_table.get("rgbn").band_names]
    top, left = (height - AERIAL) // 2, (width - AERIAL) // 2
    centre = pixels[order, top : top + AERIAL, left : left + AERIAL].transpose(1, 2, 0)
    place = geo.latitude_longitude(crs, transform, top + AERIAL / 2, left + AERIAL / 2)
    return np.ascontiguousarray(centre)[None], place


def sentinel2(file: h5py.File, max_cloud: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A file's Sentinel-2 series: pixels [T, 6, 6, 10] uint16, valid [T, 6, 6], time of sensing [T]."""
    values, names = _read(file, "sen-2", 10)
    cover = file["sen-2-masks"][:, :2]
    if cover.shape != (len(values), 2, GRID, GRID) or (
        cover.size and not 0 <= np.nanmin(cover) <= np.nanmax(cover) <= 100
    ):
        raise DataError(
            f"sen-2-masks {list(cover.shape)}: wanted probabilities of snow and cloud in percent, [T, 2, 6, 6]"
        )
    pixels = np.clip(np.nan_to_num(np.round(values)), 0, np.iinfo(np.uint16).max).astype(np.uint16)
    for frame, name in enumerate(names):
        baseline = re.search(r"_N(\d\d)(\d\d)_", name)
        if baseline:
            pixels[frame] = geo.without_offset(pixels[frame], float(".".join(baseline.groups())))
    valid = (pixels > 0).all(-1) & (cover <= max_cloud).all(1)
    return pixels, valid, _times(names)


def sentinel1(file: h5py.File, orbit: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A file's Sentinel-1 series of one pass: pixels [T, 6, 6, 2] float32 in dB, valid [T, 6, 6], time of sensing [T].

    Pixels that are NaN, or too weak to be more than the rest of a noise correction, are not valid, and 0 dB.
    """
    power, names = _read(file, f"sen-1-{orbit}", 2)
    known = power[np.isfinite(power)]
    if known.size and np.median(known) < 0:
        raise DataError(f"sen-1-{orbit}-data has median {np.median(known):.3g}, wanted linear power: is it in dB?")
    floor = 10 ** (sensor_table.get("s1_grd").valid_range[0] / 10)
    good = np.isfinite(power) & (power >= floor)
    pixels = np.where(good, 10 * np.log10(np.where(good, power, 1)), 0).astype(np.float32)
    return pixels, good.all(-1), _times(names)


def _read(file: h5py.File, prefix: str, channels: int) -> tuple[np.ndarray, list[str]]:
    """Values [T, 6, 6, C] float64 and product names [T]."""
    values, names = file[f"{prefix}-data"][:], [name.decode() for name in file[f"{prefix}-products"][:]]
    if values.shape != (len(names), channels, GRID, GRID):
        raise DataError(
            f"{prefix}-data {list(values.shape)}, wanted [{len(names)}, {channels}, {GRID}, {GRID}]: one a product name"
        )
    return values.transpose(0, 2, 3, 1).astype(np.float64), names


def _times(names: Sequence[str]) -> np.ndarray:
    return np.array([geo.acquisition(name) for name in names], "datetime64[s]")


def _thinned(pixels: np.ndarray, valid: np.ndarray, times: np.ndarray, max_frames: int | None) -> Image:
    """A series by time of sensing, without dates that show nothing, and at most `max_frames` long."""
    order = np.argsort(times, kind="stable")
    order = order[valid[order].any((1, 2))]
    order = order[geo.evenly(len(order), max_frames)]
    return Image(pixels[order], valid[order], times[order].astype("datetime64[D]").astype(np.int64))


def _files(source: Path) -> dict[str, tuple[Path, Path]]:
    """Aerial image and series of every place, by name."""
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: give the one that TreeSatAI-Time-Series was unpacked to")
    found: tuple[dict[str, Path], dict[str, Path]] = {}, {}
    for kind, (end, places) in enumerate(zip((".tif", ".h5"), found, strict=True)):
        for path in sorted(source.rglob(f"*{end}")):
            if kind == 0 and {"s1", "s2", "200m"} & set(path.relative_to(source).parts[:-1]):
                continue
            stem = re.sub(r"_\d{4}$", "", path.stem) if kind else path.stem
            if stem in places:
                raise DataError(f'"{stem}" has two {end} files, {places[stem]} and {path}: remove one')
            places[stem] = path
    images, series = found
    if odd := sorted(set(images) ^ set(series)):
        lacking = "HDF5 file with the Sentinel series" if odd[0] in images else "aerial GeoTIFF"
        raise DataError(f'{source}: "{odd[0]}" has no {lacking} ({len(odd)} such names): add or remove files')
    if not images:
        raise DataError(f"{source} holds no NAME.tif with its NAME.h5: unpack aerial.zip and sentinel-ts.zip into it")
    return {stem: (images[stem], series[stem]) for stem in sorted(images)}


def _find(source: Path, name: str) -> Path | None:
    return next(iter(sorted(source.rglob(name))), None)


def _splits(source: Path, ids: dict[str, tuple[Path, Path]]) -> dict[str, list[str]]:
    lists = {split: path for split, name in LISTS.items() if (path := _find(source, name))}
    if not lists:
        return geo.split_places(ids)
    chosen: dict[str, list[str]] = {}
    for split, path in lists.items():
        named = [
            line.strip().removesuffix(".tif")
            for line in files.read_text(path, "a list of a split").splitlines()
            if line.strip()
        ]
        here = [stem for stem in named if stem in ids]
        for earlier, stems in chosen.items():
            if both := set(stems) & set(here):
                raise DataError(f'{path}: "{min(both)}" is in {LISTS[earlier]} too: a sample has one split')
        if len(here) < len(named):
            _log.warning("%s: %d of %d names have no files and are left out", path, len(named) - len(here), len(named))
        if here:
            chosen[split] = here
    if not chosen:
        raise DataError(
            f'{next(iter(lists.values()))} names no file of {source}, which has "{next(iter(ids))}.tif", ...'
        )
    return chosen


def _shares(source: Path, ids: dict[str, tuple[Path, Path]]) -> dict[str, np.ndarray]:
    """Share of the area by genus, [15] float32, of every place; empty without the file."""
    path = _find(source, LABELS)
    if path is None:
        return {}
    given, shares = files.read_json(path, "shares of genera"), {}
    for stem in ids:
        if f"{stem}.tif" not in given:
            raise DataError(f'{path} has no entry "{stem}.tif": add it, or remove the file to do without these labels')
        shares[stem] = np.zeros(len(GENERA), np.float32)
        for genus, share in given[f"{stem}.tif"]:
            if genus not in GENERA:
                raise DataError(f'{path}: "{stem}.tif" has the unknown genus "{genus}": {nearest(genus, GENERA)}')
            shares[stem][GENERA.index(genus)] = share
    return shares


def _species(stem: str) -> int:
    """Index of the main species: a name is genus_species_age class_number_source."""
    name = re.split(r"_\d", stem)[0]
    for i, species in enumerate(SPECIES):
        if name.rstrip(".").lower() == species.rstrip(".").lower():
            return i
    raise DataError(f'"{stem}" is of the unknown species "{name}": {nearest(name, SPECIES)}')
