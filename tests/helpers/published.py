"""A tiny tree of files for every data set of the table, in exactly the layout that it is published in.

Band b of every image holds one number, `planted(sensor, band)`, whatever its place in the file: so a band that is read
from the wrong place shows. Rows of masks go through the classes, and a void pixel is at the lower right.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet
import rasterio

from input_pipeline.catalog import get
from ringmoe_jax import sensors

SIDE = 16  # pixels of most images
TREES: dict[str, Callable[[Path], Expected]] = {}
EUROSAT_BANDS = tuple("B01 B02 B03 B04 B05 B06 B07 B08 B09 B10 B11 B12 B8A".split())
ISPRS = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)]
ISAID = [
    *((0, 0, 0), (0, 0, 63), (0, 63, 63), (0, 63, 0), (0, 63, 127), (0, 63, 191), (0, 63, 255), (0, 127, 63)),
    *((0, 127, 127), (0, 0, 127), (0, 0, 191), (0, 0, 255), (0, 191, 127), (0, 127, 191), (0, 127, 255)),
    (0, 100, 155),
]
DRIVERS = {".tif": "GTiff", ".png": "PNG", ".jpg": "JPEG", ".bmp": "BMP"}


@dataclasses.dataclass(frozen=True)
class Expected:
    """What `prepare` should make of a tree.

    Attributes:
        counts: samples by split.
        label: name of the label, None without one.
        value: the label of the first training sample.
        tile: side of a tile to ask for.
        frames: dates of the first training sample, by sensor.
    """

    counts: dict[str, int]
    label: str | None
    value: object
    tile: int = SIDE
    frames: dict[str, int] = dataclasses.field(default_factory=dict)


def tree(*names):
    """Registers a function that writes the tree of one or several data sets."""

    def add(function):
        for name in names:
            TREES[name] = lambda root, name=name: function(root, name)
        return function

    return add


def planted(sensor: str, band: str) -> float:
    """Stored value of a band: far apart, and as far from no-data."""
    table = sensors.get(sensor)
    i = table.band_names.index(band)
    return {"uint8": 60.0 + 40 * i, "uint16": 1000.0 + 100 * i, "float32": -10.0 - i}[table.dtype]


def write(path: Path, values: np.ndarray, **options) -> None:
    """An image of [C, H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    profile = dict(driver=DRIVERS[path.suffix], count=count, height=height, width=width, dtype=values.dtype.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile | options) as file:
            file.write(values)


def image(path: Path, sensor: str, bands=None, side=SIDE, dtype=None) -> None:
    """An image whose bands hold their planted values, in the order of the file."""
    table = sensors.get(sensor)
    values = [np.full((side, side), planted(sensor, band)) for band in bands or table.band_names]
    write(path, np.stack(values).astype(dtype or table.dtype))


def codes(numbers, void=None, dtype=np.uint8, side=SIDE) -> np.ndarray:
    """[1 or 3, side, side]: row r has the code of class r modulo their number, the last pixel `void`."""
    table = np.array(numbers).reshape(len(numbers), -1)
    mask = np.broadcast_to(table[np.arange(side) % len(numbers), None], (side, side, table.shape[1])).copy()
    if void is not None:
        mask[-1, -1] = void
    return mask.transpose(2, 0, 1).astype(dtype)


def classes_by_row(count, void=True, side=SIDE) -> np.ndarray:
    """What `codes` means."""
    mask = np.broadcast_to(np.arange(side)[:, None] % count, (side, side)).copy()
    if void:
        mask[-1, -1] = -1
    return mask


# Labels of images -----------------------------------------------------------------------------------------------------


@tree("eurosat_rgb", "eurosat", "resisc45", "aid", "uc_merced")
def class_folders(root, name):
    bands = EUROSAT_BANDS if name == "eurosat" else None
    sensor = get(name).layout.sensors[0]
    ending = {"eurosat": "tif", "uc_merced": "tif"}.get(name, "jpg")
    chosen = get(name).classes[-2:]
    for kind in chosen:
        for i in range(10):
            image(root / kind / f"{kind}_{i}.{ending}", sensor, bands)
    if name == "aid":  # no lists: 10 % and 50 % of each class
        return Expected({"train": 8, "validation": 2, "test": 10}, "label", None)
    listed = {"train": [0, 1, 2], "val": [3], "test": [4, 5]}
    for part, numbers in listed.items():
        lines = [f"{kind}_{i}.{'jpg' if 'eurosat' in name else ending}" for i in numbers for kind in chosen]
        (root / f"{'eurosat' if 'eurosat' in name else name}-{part}.txt").write_text("\n".join(lines) + "\n")
    return Expected({"train": 6, "validation": 2, "test": 4}, "label", len(get(name).classes) - 2)


@tree("so2sat")
def so2sat(root, _):
    for name, count in (("training", 3), ("validation", 1), ("testing", 2)):
        with h5py.File(root / f"{name}.h5", "w") as file:
            file["sen1"], file["sen2"] = so2sat_cubes(count)
            file["label"] = np.eye(17)[np.arange(count) + 4]
    return Expected({"train": 3, "validation": 1, "test": 2}, "label", 4)


def so2sat_cubes(count, side=SIDE):
    """Sentinel-1 whose filtered VH and VV are channels 4 and 5, Sentinel-2 as reflectance."""
    sen1 = np.full((count, side, side, 8), 77.0)
    sen1[..., 4], sen1[..., 5] = (10 ** (planted("s1_grd", band) / 10) for band in ("VH", "VV"))
    sen2 = [np.full((count, side, side), planted("s2_10", band) * 1e-4) for band in sensors.get("s2_10").band_names]
    return sen1, np.stack(sen2, -1)


@tree("bigearthnet")
def bigearthnet(root, _):
    tile, product = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP", "S1A_IW_GRDH_1SDV_20170613T165043"
    rows = []
    for i, split in enumerate(("train", "train", "validation", "test")):
        s2, s1 = f"{tile}_26_{i}", f"{product}_33UUP_26_{i}"
        for band in sensors.get("s2_12").bands:
            side = round(120 / band.gsd)
            values = np.full((1, side, side), planted("s2_12", band.name), np.uint16)
            write(root / "BigEarthNet-S2" / tile / s2 / f"{s2}_{band.name}.tif", values)
        for band in ("VV", "VH"):
            values = np.full((1, 12, 12), planted("s1_grd", band), np.float32)
            write(root / "BigEarthNet-S1" / product / s1 / f"{s1}_{band}.tif", values)
        labels = ["Marine waters", "Urban fabric"] if i == 0 else ["Mixed forest"]
        rows.append(dict(patch_id=s2, labels=labels, split=split, country="Austria", s1_name=s1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "metadata.parquet")
    present = np.zeros(19)
    present[[0, 18]] = 1
    return Expected({"train": 2, "validation": 1, "test": 1}, "labels", present, tile=12)


@tree("treesatai_ts", "ssl4eo_s12")
def own_reader(root, name):
    from tests.helpers import ssl4eo, treesatai

    if name == "ssl4eo_s12":
        for place in range(5):
            ssl4eo.write_s1(root / "s1" / f"{place:07d}", "20200607", -10)
        return Expected({"train": 4, "validation": 1}, None, None, tile=264)
    for i in range(10):
        treesatai.write_aerial(root / f"Pinus_nigra_1_{i}_BI_NLF.tif")
        treesatai.write_series(root / f"Pinus_nigra_1_{i}_BI_NLF.h5")
    return Expected({"train": 8, "validation": 2}, None, None, tile=None)


@tree("tfds_eurosat_rgb", "tfds_eurosat", "tfds_resisc45", "tfds_uc_merced", "tfds_so2sat", "tfds_bigearthnet")
def tfds_prepared(root, name):
    """TFDS's own builder, which prepares examples of ours instead of downloading."""
    import tensorflow_datasets as tfds

    layout = get(name).layout
    builder = tfds.builder(layout.builder, data_dir=str(root))
    features = builder.info.features
    count = 12 if layout.parts is None else 3

    def examples():
        for i in range(count):
            values = {key: blank(feature) for key, feature in features.items()}
            for sensor in layout.sensors:
                values |= tfds_pixels(name, sensor, features)
            values[layout.label] = [0, 42] if layout.label == "labels" else 5
            values[layout.key] = i if layout.key == "sample_id" else f"River_{i}.jpg"
            yield i, values

    builder._split_generators = lambda *_: {part: examples() for part in (layout.parts or {"train": ""})}
    builder._make_download_manager = lambda *_, **__: mock.Mock(downloaded_size=0)
    builder.download_and_prepare(file_format="tfrecord")
    side = 120 if name == "tfds_bigearthnet" else 32
    if layout.parts:
        return Expected({"train": 3, "validation": 3}, "label", 5, tile=side)
    present = np.isin(np.arange(43), (0, 42)).astype(np.float32)
    counts = {"train": 9, "validation": 1, "test": 2}  # by CRC-32 of the names modulo 10
    return Expected(counts, layout.label, present if layout.label == "labels" else 5, tile=side)


def blank(feature):
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        return {key: blank(inner) for key, inner in feature.items()}
    if isinstance(feature, tfds.features.Text):
        return ""
    shape = [SIDE if side is None else side for side in feature.shape]
    return np.zeros(shape, feature.np_dtype)


def tfds_pixels(name, sensor, features):
    table = sensors.get(sensor)
    if name == "tfds_so2sat":
        sen1, sen2 = so2sat_cubes(1, 32)
        return {"sentinel1": sen1[0].astype(np.float32), "sentinel2": sen2[0].astype(np.float32)}
    if name == "tfds_bigearthnet":
        return {b: np.full(features[b].shape, planted(sensor, b), np.float32) for b in table.band_names}
    bands = EUROSAT_BANDS if name == "tfds_eurosat" else table.band_names
    side = 64 if "eurosat" in name else 256
    cube = np.stack([np.full((side, side), planted(sensor, band)) for band in bands], -1)
    return {"sentinel2": cube.astype(np.float32)} if name == "tfds_eurosat" else {"image": cube.astype(np.uint8)}


# Labels of pixels -----------------------------------------------------------------------------------------------------


@tree("isaid")
def isaid(root, _):
    for split, names in (("train", ("P0000", "P0001")), ("val", ("P0003",))):
        for stem in names:
            image(root / split / "images" / f"{stem}.png", "rgb")
            mask = codes(ISAID)
            write(root / split / "images" / f"{stem}_instance_color_RGB.png", mask)
            write(root / split / "images" / f"{stem}_instance_id_RGB.png", np.zeros((3, SIDE, SIDE), np.uint8))
    return Expected({"train": 2, "validation": 1}, "map", classes_by_row(16, void=False))


@tree("potsdam", "vaihingen")
def isprs(root, name):
    layout = get(name).layout
    for stem in (stem for stems in layout.splits.ids.values() for stem in stems):
        image(root / layout.rasters[0].paths[0].format(id=stem), layout.sensors[0])
        write(root / layout.mask.path.format(id=stem), codes(ISPRS))
    counts = {"potsdam": {"train": 24, "test": 14}, "vaihingen": {"train": 16, "test": 17}}[name]
    return Expected(counts, "map", classes_by_row(6, void=False))


@tree("loveda")
def loveda(root, _):
    for split, area, number in (("Train", "Rural", 0), ("Train", "Urban", 1366), ("Val", "Rural", 2522)):
        image(root / split / area / "images_png" / f"{number}.png", "rgb")
        write(root / split / area / "masks_png" / f"{number}.png", codes(range(1, 8), void=0))
    return Expected({"train": 2, "validation": 1}, "map", classes_by_row(7))


@tree("dynamicearthnet")
def dynamicearthnet(root, _):
    for part, months in (("train", ("2018-01", "2018-02")), ("val", ("2018-01",)), ("test", ("2019-03",))):
        lines = []
        for month in months:
            cube = f"10N/{part}_1311_3077_13/PF-SR"
            label = f"labels/{part}_1311_3077_13_10N/Labels/Raster/10N-122W-40N-{month.replace('-', '_')}_01.tif"
            image(root / "planet" / cube / f"{month}-01.tif", "ms4")
            layers = (classes_by_row(6, void=False)[None] == np.arange(7)[:, None, None]) * np.uint8(255)
            layers[:, -1, -1] = 0, 0, 0, 0, 0, 0, 255  # snow and ice
            write(root / label, layers)
            lines.append(f"/reprocess-cropped/UTM-24000/{cube} /{label} {month}")
        (root / "dynnet_training_splits").mkdir(exist_ok=True)
        (root / f"dynnet_training_splits/{part}.txt").write_text("\n".join(lines) + "\n")
    return Expected({"train": 2, "validation": 1, "test": 1}, "map", classes_by_row(6))


@tree("whu_opt_sar")
def whu_opt_sar(root, _):
    names = {"train": ("NH49E004021", "NH49E005014"), "test": ("NH49E001014",)}
    for stem in (stem for stems in names.values() for stem in stems):
        image(root / "optical" / f"{stem}.tif", "rgbn")
        image(root / "sar" / f"{stem}.tif", "sar_8bit")
        write(root / "lbl" / f"{stem}.tif", codes(range(10, 80, 10), void=0))
    sections = [f"{split}:\n" + "".join(f"{stem}.tif\n" for stem in stems) for split, stems in names.items()]
    (root / "The division of the dataset.txt").write_text("\n".join(sections))
    return Expected({"train": 2, "test": 1}, "map", classes_by_row(7))


@tree("sen1floods11")
def sen1floods11(root, _):
    hand = root / "data/flood_events/HandLabeled"
    lists = {"train": ("Ghana_1", "India_2"), "valid": ("Ghana_3",), "test": ("USA_4",), "bolivia": ("Bolivia_5",)}
    (root / "splits/flood_handlabeled").mkdir(parents=True)
    for part, stems in lists.items():
        for stem in stems:
            image(hand / "S2Hand" / f"{stem}_S2Hand.tif", "s2_13")
            image(hand / "S1Hand" / f"{stem}_S1Hand.tif", "s1_grd")
            write(hand / "LabelHand" / f"{stem}_LabelHand.tif", codes((0, 1), void=-1, dtype=np.int16))
        lines = [f"{stem}_S1Hand.tif,{stem}_LabelHand.tif" for stem in stems]
        (root / f"splits/flood_handlabeled/flood_{part}_data.csv").write_text("\n".join(lines))
    return Expected({"train": 2, "validation": 1, "test": 1, "bolivia": 1}, "map", classes_by_row(2))


@tree("pastis")
def pastis(root, _):
    features = []
    for fold in range(1, 6):
        number = 10000 + fold
        for name, sensor, times, more in (("S2", "s2_10", 3, 0), ("S1A", "s1_grd", 2, 1)):
            bands = [np.full((SIDE, SIDE), planted(sensor, band)) for band in sensors.get(sensor).band_names]
            cube = np.stack([*bands, *[np.zeros((SIDE, SIDE))] * more])
            dtype = np.int16 if name == "S2" else np.float16
            (root / f"DATA_{name}").mkdir(exist_ok=True)
            np.save(root / f"DATA_{name}/{name}_{number}.npy", np.stack([cube] * times).astype(dtype))
        (root / "ANNOTATIONS").mkdir(exist_ok=True)
        target = codes(range(19), void=19)
        np.save(root / f"ANNOTATIONS/TARGET_{number}.npy", np.concatenate([target, target, target]))
        properties = {"ID_PATCH": number, "Fold": fold, "TILE": "t31tfm"}
        properties["dates-S2"] = {"0": 20180924, "1": 20180929, "2": 20181004}
        properties["dates-S1A"] = {"0": 20180902, "1": 20180908}
        square = [[[[880000.0, 6600000.0], [881280.0, 6600000.0], [881280.0, 6601280.0], [880000.0, 6601280.0]]]]
        outline = {"type": "MultiPolygon", "coordinates": square}
        features.append({"type": "Feature", "properties": properties, "geometry": outline})
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::2154"}}
    (root / "metadata.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    frames = {"s2_10": 3, "s1_grd": 2}
    return Expected({"train": 3, "validation": 1, "test": 1}, "map", classes_by_row(19), frames=frames)


@tree("levir_cd", "cdd")
def pairs(root, name):
    for split, numbers in (("train", (1, 2)), ("val", (1,)), ("test", (1,))):
        for number in numbers:
            folder, stem = ("", f"{split}_{number}.png") if name == "levir_cd" else (split, f"0000{number}.jpg")
            for date in "AB":
                image(root / folder / date / stem, "rgb")
            mask = np.kron(codes((0, 255), side=2), np.ones((8, 8), np.uint8))  # JPEG keeps blocks of 8
            write(root / folder / {"levir_cd": "label", "cdd": "OUT"}[name] / stem, mask)
    value = np.repeat(np.arange(2), 8)[:, None] * np.ones(16, int)
    return Expected({"train": 2, "validation": 1, "test": 1}, "change", value, frames={"rgb": 2})


@tree("ombria")
def ombria(root, _):
    for split, count in (("train", 20), ("test", 2)):
        for i in range(count):
            for sensor, folder in (("s2_8bit", "S2"), ("s1_8bit", "S1")):
                for date in ("before", "after"):
                    image(root / split / f"{folder}_{date}" / f"{i:04}.png", sensor)
            write(root / split / "mask" / f"{i:04}.png", codes((0, 255)))
    frames = {"s2_8bit": 2, "s1_8bit": 2}
    return Expected({"train": 17, "validation": 3, "test": 2}, "flood", classes_by_row(2, void=False), frames=frames)


@tree("oscd")
def oscd(root, _):
    start = "Onera Satellite Change Detection dataset - "
    for split, places in (("Train", ("abudhabi", "rennes")), ("Test", ("brasilia",))):
        for place in places:
            folder = root / f"{start}Images" / place
            for date in (1, 2):
                for band in sensors.get("s2_13").band_names:
                    values = np.full((1, SIDE, SIDE), planted("s2_13", band), np.uint16)
                    write(folder / f"imgs_{date}_rect" / f"{band}.tif", values)
            (folder / "dates.txt").write_text("date_1: 20160120\ndate_2: 20180328\n")
            write(root / f"{start}{split} Labels" / place / "cm" / "cm.png", codes((0, 255)))
    return Expected({"train": 2, "test": 1}, "change", classes_by_row(2, void=False), frames={"s2_13": 2})


# Objects --------------------------------------------------------------------------------------------------------------


def voc_xml(name):
    corners = "<xmin>3</xmin><ymin>5</ymin><xmax>7</xmax><ymax>11</ymax>"
    return f"<annotation><object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>"


def robndbox_xml(name):
    points = dict(left_top=(2, 4), right_top=(10, 4), right_bottom=(10, 8), left_bottom=(2, 8))
    corners = "".join(f"<x_{k}>{x}</x_{k}><y_{k}>{y}</y_{k}>" for k, (x, y) in points.items())
    return f"<annotation><object><name>{name}</name><robndbox>{corners}</robndbox></object></annotation>"


@tree("dior", "dior_r")
def dior(root, name):
    folder, xml = ("Horizontal", voc_xml) if name == "dior" else ("Oriented", robndbox_xml)
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / f"Annotations/{folder} Bounding Boxes").mkdir(parents=True)
    for part, stems in (("train", ("00001", "00002")), ("val", ("00003",)), ("test", ("11726",))):
        for stem in stems:
            image(root / f"JPEGImages-{'test' if part == 'test' else 'trainval'}" / f"{stem}.jpg", "rgb")
            (root / f"Annotations/{folder} Bounding Boxes/{stem}.xml").write_text(xml("vehicle"))
        (root / f"ImageSets/Main/{part}.txt").write_text("\n".join(stems) + "\n")
    box = (18, 4.5, 7.5, 5, 7, 0) if name == "dior" else (18, 6, 6, 8, 4, 0)
    return Expected({"train": 2, "validation": 1, "test": 1}, "boxes", [box])


@tree("hrsc2016")
def hrsc2016(root, _):
    for folder in ("FullDataSet/Annotations", "ImageSets"):
        (root / folder).mkdir(parents=True)
    values = dict(mbox_cx=6, mbox_cy=8, mbox_w=6, mbox_h=2, mbox_ang=0.5)
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in values.items())
    for part, stem in (("train", "100000001"), ("val", "100000002"), ("test", "100000003")):
        image(root / f"FullDataSet/AllImages/{stem}.bmp", "rgb")
        text = f"<HRSC_Image><HRSC_Objects><HRSC_Object>{inner}</HRSC_Object></HRSC_Objects></HRSC_Image>"
        (root / f"FullDataSet/Annotations/{stem}.xml").write_text(text)
        (root / f"ImageSets/{part}.txt").write_text(f"{stem}\n")
    return Expected({"train": 1, "validation": 1, "test": 1}, "boxes", [(0, 6, 8, 6, 2, 0.5)])


@tree("hrsid")
def hrsid(root, _):
    (root / "annotations").mkdir()
    for part, count in (("train", 2), ("test", 1)):
        names = [f"P0001_{part}_{i}.jpg" for i in range(count)]
        for name in names:
            image(root / "JPEGImages" / name, "sar_8bit", ["amplitude"] * 3)  # grey pictures with three channels
        content = dict(
            images=[dict(id=i, file_name=name, width=SIDE, height=SIDE) for i, name in enumerate(names)],
            categories=[dict(id=1, name="ship")],
            annotations=[dict(id=0, image_id=0, category_id=1, bbox=[2, 4, 6, 3], iscrowd=0)],
        )
        (root / f"annotations/{part}2017.json").write_text(json.dumps(content))
    return Expected({"train": 2, "test": 1}, "boxes", [(0, 5, 5.5, 6, 3, 0)])


@tree("fair1m")
def fair1m(root, _):
    points = "".join(f"<point>{x},{y}</point>" for x, y in ((2, 4), (10, 4), (10, 8), (2, 8), (2, 4)))
    inner = f"<possibleresult><name>Bridge</name></possibleresult><points>{points}</points>"
    text = f"<annotation><objects><object>{inner}</object></objects></annotation>"
    for folder, stem in (("train/part1", "0"), ("train/part2", "8287"), ("validation", "0")):
        image(root / folder / "images" / f"{stem}.tif", "rgb")
        (root / folder / "labelXml").mkdir(parents=True)
        (root / folder / "labelXml" / f"{stem}.xml").write_text(text)
    return Expected({"train": 2, "validation": 1}, "boxes", [(36, 6, 6, 8, 4, 0)])


@tree("air_mot")
def air_mot(root, _):
    for split, frames in (("train", 10), ("test", 8)):
        folder = root / split / "1"
        for frame in range(1, frames + 1):
            image(folder / "img1" / f"{frame:06d}.jpg", "rgb")
        (folder / "gt").mkdir()
        (folder / "gt/gt.txt").write_text("1,7,3,5,4,6,1,2,1\n10,7,4,5,4,6,1,2,1\n"[: None if frames == 10 else 18])
    return Expected({"train": 2, "test": 1}, "tracks", [(1, 4, 7, 4, 6, 0, 7, 0)], frames={"rgb": 8})
