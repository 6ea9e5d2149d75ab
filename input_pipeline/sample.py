"""The default sample data: small, real, and reachable wherever PyPI is.

Two packages on PyPI carry example images. Their wheels are downloaded as files, checked and read;
nothing of them is installed or run.

    bigearthnet-common 2.8.0    six places in Europe: Sentinel-1 and Sentinel-2, CORINE land cover
    deepforest 2.1.0            aerial RGB at 0.1 m of the USA with hand-drawn tree crowns (NEON)

They become the data sets `aerial` (sensor rgb) and `sentinel` (s1_grd, s2_12 and slc_dual). `slc_dual`
is SIMULATED from the real backscatter, for no open single-look sample of this size exists on PyPI.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from input_pipeline.builder import write_dataset
from input_pipeline.schema import (
    CLASSES,
    MAP,
    MULTILABEL,
    VALUE,
    Image,
    LabelInfo,
    Metadata,
    Origin,
    Sample,
    SensorInfo,
)
from ringmoe_jax import geo
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import DataError

BIGEARTHNET, DEEPFOREST = "bigearthnet-common==2.8.0", "deepforest==2.1.0"
WHEELS = {
    BIGEARTHNET: (
        "bigearthnet_common-2.8.0-py3-none-any.whl",
        "6c2bcf2b1d39a3f48925b0d941557152f9e523576fbb9d2b881a842ed92fd6af",
    ),
    DEEPFOREST: (
        "deepforest-2.1.0-py3-none-any.whl",
        "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
    ),
}

AERIAL_TILE = 128  # pixels of 0.1 m
AERIAL_STRIDE = {"train": 96, "validation": 64}
TRAIN_COLUMNS = 0.75  # share of an aerial image's columns that training tiles come from
# SOAP_031 of the same package has no boxes and is left out: every tile here is labelled.
AERIAL_IMAGES = (
    "2019_YELL_2_528000_4978000_image_crop2",
    "2019_YELL_2_541000_4977000_image_crop",
    "OSBS_029",
    "SOAP_061",
)
CROWN_LIMITS = (0.15, 0.35)  # crown cover below which a tile is sparse, below which it is medium
CROWN_CLASSES = ("sparse", "medium", "dense")

PLACE = 120  # pixels of 10 m: side of a BigEarthNet patch
SENTINEL_TILE = 48  # pixels of 10 m
SENTINEL_TILES = {  # columns and rows of the tiles' upper left pixels; an 8 px gap lies between the splits
    "train": ((0, 8, 16), tuple(range(0, 73, 8))),
    "validation": ((72,), (0, 24, 48, 72)),
}


def prepare(
    out: str | os.PathLike,
    cache: str | os.PathLike = "data/cache",
    *,
    pip: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> dict[str, Path]:
    """Downloads what is missing and writes the data sets that are missing.

    Args:
        out: gets the folders `aerial` and `sentinel`.
        cache: where the wheels (27 MB) are kept.
        pip: command to download with, for example "python3 -m pip"; found by itself if None.
        overwrite: write data sets again that are there.
        progress: called with the split and the number of samples written so far.

    Returns:
        The folders by data set.

    Raises:
        DataError: no pip, no network, or a wheel is not the one that we know.
    """
    folders = {name: Path(out) / name for name in ("aerial", "sentinel")}
    for name, (requirement, make) in {
        "aerial": (DEEPFOREST, aerial),
        "sentinel": (BIGEARTHNET, sentinel),
    }.items():
        if overwrite or not (folders[name] / "dataset_info.json").exists():
            metadata, samples = make(download(requirement, cache, pip))
            write_dataset(folders[name], samples, metadata, overwrite=overwrite, progress=progress)
    return folders


def download(requirement: str, cache: str | os.PathLike, pip: str | None = None) -> Path:
    """The wheel of a requirement of `WHEELS`, from the cache or through pip, with its SHA-256 checked."""
    name, wanted = WHEELS[requirement]
    path = Path(cache) / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [*(shlex.split(pip) if pip else _find_pip()), "download", "--no-deps", "--only-binary=:all:"]
        command += ["--ignore-requires-python", "--quiet", "--dest", str(path.parent), requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode or not path.exists():
            reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise DataError(f"cannot download {requirement} ({reason}): check the network, or put {name} in {cache}")
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != wanted:
        aside = path.with_suffix(".rejected")
        path.rename(aside)
        raise DataError(f"{path} has SHA-256 {got}, wanted {wanted}: kept as {aside}; run again to download it anew")
    return path


def _find_pip() -> list[str]:
    """The first interpreter that has pip: this one, else those on PATH (uv's environments come without)."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    for python in dict.fromkeys([sys.executable, *filter(None, (shutil.which("python3", path=f) for f in folders))]):
        command = [python, "-m", "pip"]
        if not subprocess.run([*command, "--version"], capture_output=True, check=False).returncode:
            return command
    raise DataError('no Python with pip on PATH: install pip, or name one with --pip "python3 -m pip"')


def aerial(wheel: Path) -> tuple[Metadata, dict[str, Iterator[Sample]]]:
    """Metadata and samples of `aerial`: rgb tiles with crown cover, its class and the crowns' map."""
    sensor = SensorInfo.of(sensor_table.get("rgb"), (1, AERIAL_TILE, AERIAL_TILE), gsd=0.1)
    metadata = Metadata(
        name="aerial",
        sensors={"rgb": sensor},
        description=(
            "Aerial RGB images of the NEON sites YELL, OSBS and SOAP (USA) at 0.1 m, as shipped with deepforest 2.1.0, "
            f"cut into tiles of {AERIAL_TILE} px every {AERIAL_STRIDE['train']} px (training) and "
            f"{AERIAL_STRIDE['validation']} px (validation). Training tiles lie in the left "
            f"{TRAIN_COLUMNS:.0%} of an image, validation tiles to the right of them after a gap of {AERIAL_TILE} px. "
            "Dates and exact coordinates are not published with the images."
        ),
        licence="NEON data: CC0-1.0; deepforest package: MIT",
        source="https://pypi.org/project/deepforest/2.1.0/",
        citation="Weinstein et al. 2020, DeepForest: A Python package for RGB deep learning tree crown delineation",
        labels={
            "crown_cover": LabelInfo(VALUE, ("cover",), "share of the tile inside a crown's bounding box, 0 to 1"),
            "crown_class": LabelInfo(
                CLASSES,
                CROWN_CLASSES,
                f"crown cover below {CROWN_LIMITS[0]}, below {CROWN_LIMITS[1]}, or more (our choice)",
            ),
            "crown_map": LabelInfo(MAP, ("ground", "crown"), "inside a crown's bounding box or not", "rgb"),
        },
    )
    return metadata, {split: _aerial_tiles(wheel, split) for split in ("train", "validation")}


def _aerial_tiles(wheel: Path, split: str) -> Iterator[Sample]:
    with zipfile.ZipFile(wheel) as archive:
        for name in AERIAL_IMAGES:
            pixels = geo.read_bytes(archive.read(f"deepforest/data/{name}.png"))[0].transpose(1, 2, 0)
            height, width, _ = pixels.shape
            crowns = geo.squares(boxes(archive.read(f"deepforest/data/{name}.xml")), height, width)
            border = int(TRAIN_COLUMNS * width)
            stride = AERIAL_STRIDE[split]
            start, end = (0, border) if split == "train" else (border + AERIAL_TILE, width)
            for top in geo.offsets(height, AERIAL_TILE, stride):
                for left in geo.offsets(end, AERIAL_TILE, stride, start):
                    tile = slice(top, top + AERIAL_TILE), slice(left, left + AERIAL_TILE)
                    cover = crowns[tile].mean()
                    yield Sample(
                        f"{name}/{left}/{top}",
                        {"rgb": Image(pixels[tile][None])},
                        labels={
                            "crown_cover": [cover],
                            "crown_class": int(np.searchsorted(CROWN_LIMITS, cover, side="right")),
                            "crown_map": crowns[tile],
                        },
                        origin=Origin(name, 0, top, left),
                    )


def boxes(annotation: bytes) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom, in pixels) of a Pascal VOC file."""
    root = xml.etree.ElementTree.fromstring(annotation)
    return [
        tuple(int(float(box.findtext(key))) for key in ("xmin", "ymin", "xmax", "ymax")) for box in root.iter("bndbox")
    ]


def sentinel(wheel: Path) -> tuple[Metadata, dict[str, Iterator[Sample]]]:
    """Metadata and samples of `sentinel`: s1_grd, s2_12 and simulated slc_dual of the same ground."""
    places = bigearthnet_pairs(wheel)
    classes = tuple(sorted({label for s1, _ in places for label in s1["metadata"]["labels"]}))
    size = SENTINEL_TILE

    def info(name, scale, simulated=False):
        return SensorInfo.of(sensor_table.get(name), (1, scale * size, scale * size), 10 / scale, simulated)

    metadata = Metadata(
        name="sentinel",
        sensors={"s1_grd": info("s1_grd", 1), "s2_12": info("s2_12", 1), "slc_dual": info("slc_dual", 2, True)},
        description=(
            "Six BigEarthNet places (Austria, Ireland, Portugal, Finland; 2017-06 to 2018-02) with Sentinel-2 L2A and "
            "the Sentinel-1 GRD image closest in time, as shipped with bigearthnet-common 2.8.0; s2_12 bands of 20 m "
            f"and 60 m repeat their pixels to 10 m. Tiles of {size} px: training columns 0, 8, 16 every 8 rows, "
            "validation column 72 every 24 rows, so 8 px lie between the splits. Labels hold for the whole 120 px "
            "place. slc_dual is SIMULATED: see `input_pipeline.sample.simulate_slc`."
        ),
        licence="BigEarthNet: CDLA-Permissive-1.0; bigearthnet-common package: Apache-2.0",
        source="https://pypi.org/project/bigearthnet-common/2.8.0/",
        citation="Sumbul et al. 2021, BigEarthNet-MM: A Large-Scale, Multimodal, Multilabel Benchmark Archive",
        labels={"corine": LabelInfo(MULTILABEL, classes, "CORINE Land Cover 2018, level 3, present in the place")},
    )
    return metadata, {split: _sentinel_tiles(places, classes, split) for split in SENTINEL_TILES}


def bigearthnet_pairs(wheel: Path) -> list[tuple[dict, dict]]:
    """The places as (Sentinel-1, Sentinel-2): dicts of `name`, `metadata`, `bands` by name, `crs`, `transform`.

    A Sentinel-1 patch names its Sentinel-2 patch in `corresponding_s2_patch`, in the same spelling as
    that patch's folder (both drop a leading zero of the time).
    """
    with zipfile.ZipFile(wheel) as archive:
        s1, s2 = (_patches(archive.read(f"bigearthnet_common/BigEarthNet-S{i}-Example.tar.bz2")) for i in (1, 2))
    found = []
    for patch in s1.values():
        name = patch["metadata"]["corresponding_s2_patch"]
        if name not in s2:
            raise DataError(f"{wheel}: {patch['name']} belongs to {name}, which is not there")
        if patch["crs"] != s2[name]["crs"] or patch["transform"] != s2[name]["transform"]:
            raise DataError(f"{wheel}: {patch['name']} and {name} are not on the same grid")
        found.append((patch, s2[name]))
    return found


def _patches(archive: bytes) -> dict[str, dict]:
    patches: dict[str, dict] = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:bz2") as tar:
        for member in sorted((m for m in tar if m.isfile()), key=lambda m: m.name):
            folder, file = member.name.split("/")[-2:]
            patch = patches.setdefault(folder, {"name": folder, "bands": {}})
            content = tar.extractfile(member).read()
            if file.endswith(".json"):
                patch["metadata"] = json.loads(content)
            else:
                values, crs, transform = geo.read_bytes(content)
                patch["bands"][Path(file).stem.removeprefix(f"{folder}_")] = values[0]
                if values.shape[-1] == PLACE:
                    patch |= {"crs": crs, "transform": transform}
    return patches


def _sentinel_tiles(places, classes, split: str) -> Iterator[Sample]:
    columns, rows = SENTINEL_TILES[split]
    for s1, s2 in places:
        backscatter = np.stack([s1["bands"][b] for b in sensor_table.get("s1_grd").band_names], -1)
        images = {
            "s1_grd": (backscatter, 1, geo.days(s1["metadata"]["acquisition_time"])),
            "s2_12": (
                geo.to_finest(s2["bands"], sensor_table.get("s2_12").band_names),
                1,
                geo.days(s2["metadata"]["acquisition_date"]),
            ),
            "slc_dual": (
                simulate_slc(backscatter, zlib.crc32(s2["name"].encode())),
                2,
                geo.days(s1["metadata"]["acquisition_time"]),
            ),
        }
        labels = {"corine": [name in s1["metadata"]["labels"] for name in classes]}
        half = SENTINEL_TILE / 2
        for left in columns:
            for top in rows:
                where = geo.latitude_longitude(s1["crs"], s1["transform"], top + half, left + half)
                tiles = {
                    name: Image(_cut(pixels, top * k, left * k, SENTINEL_TILE * k), time=np.array([day]))
                    for name, (pixels, k, day) in images.items()
                }
                yield Sample(f"{s2['name']}/{left}/{top}", tiles, *where, labels, Origin(s2["name"], 0, top, left))


def _cut(pixels: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    return pixels[None, top : top + size, left : left + size]


def simulate_slc(backscatter: np.ndarray, seed: int) -> np.ndarray:
    """SIMULATED single-look complex samples with the power of a real multi-looked image.

    sigma0 is brought to twice the sampling (bilinear, in power), because single-look data is sampled
    finer than the product made from it; then S = sqrt(sigma0 / 2) (n1 + i n2) with independent normal
    n1 and n2: fully developed speckle, E|S|^2 = sigma0 (Goodman). Polarisations are independent of each
    other, as under reflection symmetry (our choice). There is no interferometric or texture phase in it.

    Args:
        backscatter: [H, W, P] sigma0 in dB.
        seed: of the speckle.

    Returns:
        [2 H, 2 W, 2 P] float32, re and im of each polarisation.
    """
    sigma0 = _twice(_twice(10.0 ** (backscatter.astype(np.float64) / 10), 0), 1)
    normal = np.random.default_rng(seed).standard_normal((2, *sigma0.shape))
    return geo.pairs(np.sqrt(sigma0 / 2) * (normal[0] + 1j * normal[1]))


def _twice(values: np.ndarray, axis: int) -> np.ndarray:
    """Doubles one axis by bilinear interpolation at pixel centres; borders repeat."""
    values = np.moveaxis(values, axis, 0)
    before, after = np.concatenate([values[:1], values[:-1]]), np.concatenate([values[1:], values[-1:]])
    doubled = np.stack([0.75 * values + 0.25 * before, 0.75 * values + 0.25 * after], 1)
    return np.moveaxis(doubled.reshape(-1, *values.shape[1:]), 0, axis)
