"""SSL4EO-S12 as a data set: Sentinel-1 and Sentinel-2 of the same 2,640 m in several seasons, as series by date.

    source/s1/ID/PRODUCT/VV.tif, VH.tif               Sentinel-1 GRD, float32: `s1_grd`
    source/s2a/ID/PRODUCT/B1.tif, ..., metadata.json  Sentinel-2 L2A, 12 bands, uint16: `s2_12` (folder s2_l2a too)
    source/s2c/ID/PRODUCT/B1.tif, ..., metadata.json  Sentinel-2 L1C, 13 bands, uint16: `s2_13` (folder s2_l1c too)

PRODUCT begins with the Sentinel product's name and holds the time of sensing. What the files hold:

    Sentinel-1   sigma0 in dB, as Google Earth Engine's COPERNICUS/S1_GRD has it (`system:id` in metadata.json; -36 to
                 4 in real files). 0 in both bands is taken for "not observed" (our choice)
    Sentinel-2   digital numbers, reflectance x 10,000, of COPERNICUS/S2_SR and COPERNICUS/S2, which are not harmonised:
                 the offset of processing baseline 04.00 and newer (`PROCESSING_BASELINE`) is taken away. 0: no data
    size         264 px at 10 m, 132 at 20 m, 44 at 60 m; here all are brought to 10 m by repeating pixels

Images of a place are laid on each other pixel by pixel, not by the coordinates in the files: those describe the
requested square in degrees, are up to 40 m off, and differ between bands of one product. By correlation in a real
place, 10 m and 20 m bands fit, Sentinel-1 fits Sentinel-2 to 2 px, and 60 m bands (B01, B09, B10) lie up to 5 px of
10 m off.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from input_pipeline.builder import write_dataset
from input_pipeline.parts import Workers
from input_pipeline.places import Places
from input_pipeline.schema import Image, Metadata, Origin, Sample, SensorInfo
from ringmoe_jax import files, geo, rasters
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import DataError, nearest

FOLDERS = {"s1_grd": ("s1",), "s2_12": ("s2a", "s2_l2a"), "s2_13": ("s2c", "s2_l1c")}  # names in use, by sensor
DEFAULT = ("s1_grd", "s2_12")  # L1C shows the dates of L2A once more, without atmospheric correction
SIDE = 264  # pixels of 10 m


def prepare(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    sensors: Sequence[str] | None = None,
    tile: int = 132,
    stride: int | None = None,
    max_frames: int | None = None,
    shards: int = 8,
    overwrite: bool = False,
    progress: Callable[[str, int], None] | None = None,
    workers: Workers | None = None,
) -> Metadata:
    """Cuts every place of a folder into tiles [T, tile, tile] and writes them as a data set.

    Every fifth place goes to validation, or none where there are fewer than five. A sensor may be absent at a place.

    Args:
        source: see the module's text.
        out: the data set's folder.
        sensors: some of `s1_grd`, `s2_12` (L2A) and `s2_13` (L1C); those of the first two that are there by default.
        tile: side of a tile in pixels of 10 m.
        stride: pixels from tile to tile; `tile` by default.
        max_frames: longest series T; longer ones are thinned evenly, first and last date kept. By default the
            longest one of the data set.
        shards: files a split.
        overwrite: replace a data set that is there.
        progress: called with the split and the number of samples written so far.
        workers: see `builder.write_dataset`.

    Returns:
        The metadata with statistics.

    Raises:
        DataError: a file is missing or not as described, or an argument is out of range.
    """
    if max_frames is not None and max_frames < 1:
        raise DataError(f"max_frames = {max_frames}, wanted 1 or more")
    if not 1 <= tile <= SIDE or (stride or tile) < 1:
        raise DataError(f"tile = {tile}, stride = {stride}: wanted pixels of 10 m, tile 1 to {SIDE}, stride 1 or more")
    found = _products(Path(source), sensors, max_frames)
    longest = {name: max(map(len, places.values())) for name, places in found.items()}
    metadata = Metadata(
        name="ssl4eo_s12",
        sensors={n: SensorInfo.of(sensor_table.get(n), (count, tile, tile), 10.0) for n, count in longest.items()},
        description=(
            f"SSL4EO-S12: places of 2,640 m, cut into tiles of {tile} px every {stride or tile} px of 10 m. Bands of "
            "20 m and 60 m are repeated to 10 m; 60 m bands may lie up to 5 px off."
        ),
        licence="CC-BY-4.0",
        source="https://github.com/zhu-xlab/SSL4EO-S12",
        citation="Wang et al. 2023, SSL4EO-S12: A Large-Scale Multimodal, Multitemporal Dataset for SSL in EO",
    )
    splits = geo.split_places(set().union(*found.values()))
    read = functools.partial(_tiles, found, tile, stride or tile)
    samples = {split: Places(ids, read) for split, ids in splits.items()}
    options = dict(shards=shards, overwrite=overwrite, progress=progress, workers=workers)
    return write_dataset(out, samples, metadata, **options)


def _products(source: Path, sensors: Sequence[str] | None, max_frames: int | None) -> dict[str, dict[str, list[Path]]]:
    """By sensor and place: the products' folders by time of sensing."""
    for name in sensors or ():
        if name not in FOLDERS:
            raise DataError(f'sensor "{name}" is not in SSL4EO-S12: {nearest(name, FOLDERS)}')
    found = {}
    for name in sensors or DEFAULT:
        folder = next((source / known for known in FOLDERS[name] if (source / known).is_dir()), None)
        if folder is None:
            if sensors:
                raise DataError(f"{source} has no folder {' or '.join(FOLDERS[name])}: wanted the products of {name}")
            continue
        places = {}
        for place in sorted(path for path in folder.iterdir() if path.is_dir()):
            products = sorted((p for p in place.iterdir() if p.is_dir()), key=lambda p: geo.acquisition(p.name))
            if products:
                places[place.name] = [products[i] for i in geo.evenly(len(products), max_frames)]
        if not places:
            raise DataError(f"{folder} holds no ID/PRODUCT folder: wanted the layout of SSL4EO-S12")
        found[name] = places
    if not found:
        raise DataError(f"{source} has neither a folder s1 nor s2a: wanted the layout of SSL4EO-S12")
    return found


def _tiles(found: dict[str, dict[str, list[Path]]], tile: int, stride: int, ids: Sequence[str]) -> Iterator[Sample]:
    """Tiles of some places, one place in memory at a time."""
    for place in ids:
        series = {name: read(places[place], name) for name, places in found.items() if place in places}
        crs, transform = next(iter(series.values()))[1]
        for top in geo.offsets(SIDE, tile, stride):
            for left in geo.offsets(SIDE, tile, stride):
                window = np.s_[:, top : top + tile, left : left + tile]
                images = {
                    name: Image(image.pixels[window], image.valid[window], image.time)
                    for name, (image, _) in series.items()
                }
                where = geo.latitude_longitude(crs, transform, top + tile / 2, left + tile / 2)
                yield Sample(f"{place}/{left}/{top}", images, *where, origin=Origin(place, 0, top, left))


def read(products: Sequence[Path], name: str) -> tuple[Image, tuple]:
    """The series of one sensor at one place, in the order given.

    Args:
        products: folders, one a date.
        name: sensor.

    Returns:
        The image [T, 264, 264, C], and CRS and transform of a 10 m band of the first product.

    Raises:
        DataError: a band is missing, or has another size or dtype.
    """
    sensor = sensor_table.get(name)
    frames, where = [], None
    for product in products:
        bands = {}
        for band in sensor.bands:
            path = product / f"{band.name.replace('B0', 'B')}.tif"
            wanted = f"wanted band {band.name} of {name}"
            with rasters.open_raster(path, f"band {band.name} of {name}") as file, rasters.reading(path, wanted):
                bands[band.name], grid = file.read(1), (file.crs, file.transform)
            side = round(SIDE * 10 / band.gsd)
            if bands[band.name].shape != (side, side) or bands[band.name].dtype != sensor.dtype:
                raise DataError(
                    f"{path} holds {bands[band.name].dtype}{list(bands[band.name].shape)}, "
                    f"wanted {sensor.dtype}[{side}, {side}]"
                )
            where = where or (grid if band.gsd == sensor.gsd else None)
        frames.append(geo.to_finest(bands, sensor.band_names))
        if name != "s1_grd":
            frames[-1] = geo.without_offset(frames[-1], _baseline(product))
    pixels = np.stack(frames)
    observed = np.isfinite(pixels).all(-1)
    valid = observed & ((pixels != 0).any(-1) if name == "s1_grd" else (pixels != 0).all(-1))
    days = [geo.acquisition(product.name).astype("datetime64[D]").astype(np.int64) for product in products]
    return Image(pixels, valid, np.array(days)), where


def _baseline(product: Path) -> float:
    """Processing baseline of a Sentinel-2 product; without metadata, of what was sensed before there was an offset."""
    path = product / "metadata.json"
    if path.exists():
        try:
            return float(files.read_json(path, "its PROCESSING_BASELINE")["PROCESSING_BASELINE"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}: PROCESSING_BASELINE is missing or no number ({error!r}): wanted e.g. 02.14"
            ) from error
    if geo.acquisition(product.name) < np.datetime64("2022-01-25"):
        return 0.0
    raise DataError(
        f"{product} has no metadata.json: wanted its PROCESSING_BASELINE, for it says whether there is an offset"
    )
