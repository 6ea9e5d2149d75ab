"""Six public samples of real data as data sets of ours, one a task; no ground is in two splits.

What the samples are and where they come from is in `SOURCES.md` of their folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image as Picture
from scipy.spatial import cKDTree

from input_pipeline import folder
from input_pipeline.builder import write_dataset
from input_pipeline.layouts import tiles
from input_pipeline.layouts.tiles import Scene
from input_pipeline.schema import CLASSES, MAP, TRACKS, Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"

# A grey video as "now" and the median over all frames, which a moving vehicle is not in: what one frame cannot show.
VIDEO = sensors.register(
    sensors.Sensor(
        name="grey_video",
        modality="optical",
        unit="relative radiance, 8-bit digital number / 255",
        dtype="uint8",
        scale=1 / 255,
        valid_range=(0.0, 1.0),
        source="our choice",
        bands=(sensors.Band("now", 0.2, 0.1, 0.5), sensors.Band("background", 0.2, 0.1, 0.5)),
    )
)

CHIP = 91.0  # metres: diagonal of a chip of 128 px of 0.5 m
COVER = {2: "forest", 3: "grassland", 4: "shrubland", 8: "artificial"}  # 11 pixels of cultivated land are void
CLEAR = (4, 3, 2)  # dates of the cube without clouds, in order of time
DAYS = ("2015-07-11", "2015-08-30", "2015-09-09")
VEHICLE = 10.0  # pixels: side of the box around a vehicle that is known as a point


def harvey(out: Path) -> str:
    """Chips of Houston, damaged or not: 128 px; training chips whose ground a validation chip shows are left out.

    A third of the published validation chips overlap with a training chip.
    """
    names = ("damage", "no_damage")
    paths = {
        split: sorted((REAL / "classification/harvey_damage" / folder).glob("*/*.jpeg"))
        for split, folder in (("train", "train"), ("validation", "val"))
    }
    metres = {split: np.array([_metres(path) for path in found]) for split, found in paths.items()}
    apart = cKDTree(metres["validation"]).query(metres["train"])[0] > CHIP
    paths["train"] = [path for path, kept in zip(paths["train"], apart, strict=True) if kept]

    def samples(split: str) -> Iterable[Sample]:
        for path in paths[split]:
            longitude, latitude = _degrees(path)
            pixels = np.asarray(Picture.open(path).convert("RGB"))[None]
            yield Sample(
                f"{split}/{path.parent.name}/{path.stem}",
                {"rgb": Image(pixels)},
                latitude,
                longitude,
                {"damage": names.index(path.parent.name)},
            )

    return _written(
        out,
        {split: samples(split) for split in paths},
        {"rgb": _stored("rgb", (1, 128, 128), 0.5)},
        {"damage": LabelInfo(CLASSES, names, "folders of the published data")},
    )


def neon_trees(out: Path, test: str = "OSBS_029") -> str:
    """Tree crowns, boxes of one class, in tiles of 200 px; the image `test` apart from the two others."""
    source = REAL / "detection/neon_trees"
    images = {path.stem: path for path in source.iterdir() if path.suffix in (".png", ".tif")}
    own = _folders(out, "rgb", "boxes")
    for name, path in images.items():
        (own / "rgb" / path.name).symlink_to(path)
        text = (source / f"{name}.xml").read_text()
        (own / "boxes" / f"{name}.xml").write_text(text.replace("Alive", "Tree").replace("Dead", "Tree"))
    _lists(own, train=sorted(set(images) - {test}), test=[test])
    folder.prepare(own, out, tile=200)
    return str(out)


def levir(out: Path, test: Sequence[str] = ("test_2_0000_0512",)) -> str:
    """New buildings, six pairs in tiles of 128 px; the pairs `test` apart.

    The one that is held out by default lies 128 m from a training pair, in the same neighbourhood: five pairs are too
    few to know the houses of any other one.
    """
    source = REAL / "change/levir_cd"
    own = _folders(out, "rgb@1", "rgb@2", "change")
    for ours, theirs in (("rgb@1", "A"), ("rgb@2", "B"), ("change", "label")):
        for path in (source / theirs).iterdir():
            (own / ours / path.name).symlink_to(path)
    _lists(own, train=sorted({path.stem for path in (source / "A").iterdir()} - set(test)), test=test)
    folder.prepare(own, out, tile=128)
    return str(out)


def slovenia(out: Path, side: int = 20) -> str:
    """Land cover from three clear dates of Sentinel-2 L1C in 15 blocks of 20 x 20 pixels, and 10 others for validation.

    A block of one split touches blocks of the other one, so scores are those of ground next to known ground.
    """
    source = REAL / "multimodal/eolearn_slovenia"
    cube = np.load(source / "REFERENCE_SCENES.npy")[list(CLEAR)]
    stored = np.round(cube * 10_000).astype(np.uint16)  # the order of the bands is the sensor table's
    cover = np.load(source / "TestEOPatch/mask_timeless/LULC.npy")[..., 0]
    truth = np.full(cover.shape, -1, np.int16)
    for index, value in enumerate(COVER):
        truth[cover == value] = index
    days = np.array(DAYS, "datetime64[D]").astype(np.int64)
    scene = Scene("slovenia", {"s2_13": Image(stored, time=days)}, {"land_cover": truth})
    corners: dict[str, list] = {"train": [], "validation": []}
    for row, column in np.ndindex(5, 5):
        held = (row + 2 * column) % 5 in (0, 2)
        corners["validation" if held else "train"].append((row * side, column * side))
    infos = {"s2_13": _stored("s2_13", (3, side, side), 10.0)}
    labels = {"land_cover": LabelInfo(MAP, tuple(COVER.values()), "land cover of Slovenia", "s2_13")}
    return _cut(out, scene, corners, infos, labels)


def wpafb(out: Path, side: int = 96) -> str:
    """Vehicles in five frames, windows of 96 px: columns from 288 on for training, those before for the test.

    Vehicles are known as points; each gets an upright box of `VEHICLE` pixels.
    """
    source = REAL / "tracking/wpafb2009_aoi02"
    paths = sorted(source.glob("frame_*.png"))
    frames = np.stack([np.asarray(Picture.open(path).convert("L")) for path in paths])
    background = np.median(frames, axis=0).astype(np.uint8)
    pixels = np.stack([frames, np.broadcast_to(background, frames.shape)], -1)
    date, track, column, row = np.loadtxt(source / "tracks.csv", delimiter=",", skiprows=1).T
    none, size = np.zeros_like(row), np.full_like(row, VEHICLE)
    rows = np.stack([none, column + 0.5, row + 0.5, size, size, none, track, date - date.min()], -1)
    scene = Scene("aoi02", {"grey_video": Image(pixels)}, {"vehicles": rows})
    step = side // 2
    corners = {
        "train": [(top, left) for top in range(0, 5 * side - step, step) for left in range(3 * side, 486, step)],
        "test": [(top, left) for top in range(0, 5 * side, side) for left in (side, 2 * side)],
    }
    infos = {"grey_video": _stored("grey_video", (len(frames), side, side), 0.5)}
    count = tiles.most(rows, frames.shape[1:], (side, side), step)
    labels = {"vehicles": LabelInfo(TRACKS, ("vehicle",), "points; boxes of 10 px", "grey_video", count)}
    return _cut(out, scene, corners, infos, labels)


def zurich(out: Path, side: int = 48) -> str:
    """Heights at a lake shore, 0.5 m: strips of 48 columns for validation between strips of 96 for training."""
    source = REAL / "depth/detectree_zurich_lidar"
    with rasterio.open(source / "ref-img.tif") as file:
        pixels = np.moveaxis(file.read(), 0, -1)
    with rasterio.open(source / "ndsm_05m.tif") as file:
        height = file.read(1)
    scene = Scene(
        "zurich", {"rgb": Image(pixels[None]), "ndsm": Image(height[None, ..., None], ~np.isnan(height)[None])}
    )
    north, south, east = 208, 400, 480  # rows and columns of the land; the rest is the lake
    strips, steps = range(0, east, 3 * side), range(0, side + 1, side // 3)
    known = [first + step for first in strips for step in steps if first + step + side <= east]
    corners = {
        "train": [(row, column) for row in range(north, south - side + 1, side // 3) for column in known],
        "validation": [(row, first + 2 * side) for row in range(north, south, side) for first in strips[:-1]],
    }
    infos = {"rgb": _stored("rgb", (1, side, side), 0.5), "ndsm": _stored("ndsm", (1, side, side), 0.5)}
    return _cut(out, scene, corners, infos, {})


def _degrees(path: Path) -> tuple[float, float]:
    """Longitude and latitude in a chip's name."""
    longitude, latitude = map(float, path.stem.split("_"))
    return longitude, latitude


def _metres(path: Path) -> tuple[float, float]:
    """East and north of a chip, near enough within a city."""
    longitude, latitude = _degrees(path)
    return 111_320 * longitude * np.cos(np.radians(29.8)), 111_320 * latitude


def _stored(name: str, shape: tuple[int, int, int], gsd: float) -> SensorInfo:
    return SensorInfo.of(sensors.get(name), shape, gsd)


def _folders(out: Path, *names: str) -> Path:
    """A source folder beside `out` with these sub-folders."""
    own = out.with_name(f"{out.name}_source")
    for name in names:
        (own / name).mkdir(parents=True)
    return own


def _lists(own: Path, *, train: Sequence[str], test: Sequence[str]) -> None:
    (own / "train.txt").write_text("\n".join(train))
    (own / "test.txt").write_text("\n".join(test))


def _cut(out: Path, scene: Scene, corners: Mapping[str, Sequence], infos, labels) -> str:
    """Tiles of one scene at these corners."""

    samples = {split: tiles.cut(scene, infos, labels, corners=found) for split, found in corners.items()}
    return _written(out, samples, infos, labels)


def _written(out: Path, samples, infos, labels) -> str:
    metadata = Metadata(
        out.name, dict(infos), "Real data, see tests.", "see SOURCES.md", "see SOURCES.md", dict(labels)
    )
    write_dataset(out, samples, metadata, shards=2)
    return str(out)
