"""Every published data set of the table is read from a tiny tree in its layout; real files; the command."""

import dataclasses
import itertools
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments import prepare as command
from input_pipeline import catalog
from input_pipeline.catalog import CATALOG, CustomReader, Entry
from input_pipeline.dataset import open_dataset
from input_pipeline.layouts import annotations
from input_pipeline.layouts.files import Files
from input_pipeline.layouts.objects import Boxes
from input_pipeline.layouts.rasters import Raster
from input_pipeline.layouts.splits import Folders, Fractions
from input_pipeline.places import Report
from input_pipeline.schema import UNLABELLED
from ringmoe_jax import sensors
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import ConfigError, DataError
from tests.helpers.published import TREES, image, planted, write

REAL = Path(__file__).resolve().parents[3] / "shared/data"


def stored(folder, split="train"):
    import tensorflow_datasets as tfds

    examples = tfds.builder_from_directory(str(folder)).as_dataset(split=split).as_numpy_iterator()
    return {example["id"].decode(): example for example in examples}


def day(text):
    return int(np.datetime64(text).astype(int))


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_every_entry_reads_its_layout(name, tmp_path):
    assert name in TREES, f"write a tree of {name} in tests/input_pipeline/published.py"
    root = tmp_path / "in"
    root.mkdir()
    expected = TREES[name](root)
    entry, options = CATALOG[name], {} if expected.tile is None else dict(tile=expected.tile)
    meta = catalog.prepare(name, root, tmp_path / "out", **options)
    dataset = open_dataset(tmp_path / "out", list(meta.sensors))
    assert {split: dataset.size(split) for split in expected.counts} == expected.counts
    info = json.loads((tmp_path / "out/dataset_info.json").read_text())
    assert {split["name"] for split in info["splits"]} == set(expected.counts)
    if isinstance(entry.layout, CustomReader):
        return
    assert (meta.licence, meta.source, tuple(meta.sensors)) == (entry.licence, entry.source, entry.layout.sensors)
    _, example = min(stored(tmp_path / "out").items())
    for sensor, values in example["sensors"].items():
        times = expected.frames.get(sensor, 1)
        assert values["pixels"].shape[:3] == (times, expected.tile, expected.tile)
        assert values["valid"].all()
        wanted = [planted(sensor, band) for band in sensors.get(sensor).band_names]
        tolerance = 3 if values["pixels"].dtype == np.uint8 else 1e-3  # JPEG
        np.testing.assert_allclose(values["pixels"], np.broadcast_to(wanted, values["pixels"].shape), atol=tolerance)
    label = example["labels"][expected.label]
    assert meta.labels[expected.label].names == entry.classes
    if expected.value is not None:
        np.testing.assert_allclose(label, expected.value, atol=1e-6)


def test_trees_are_only_of_entries():
    assert set(TREES) == set(CATALOG)


def test_entries_are_complete():
    for name, entry in CATALOG.items():
        assert entry.name == name
        assert all((entry.title, entry.task, entry.licence, entry.source.startswith("http"), entry.citation))
        assert entry.evidence
        assert entry.layout.rule
        assert not entry.note.endswith(".")
        for sensor in entry.layout.sensors:
            sensors.get(sensor)
        assert len(set(entry.classes)) == len(entry.classes)


def test_dates_and_places(tmp_path):
    for name in ("oscd", "pastis", "dynamicearthnet", "bigearthnet"):
        (tmp_path / name).mkdir()
        catalog.prepare(name, tmp_path / name, tmp_path / f"{name}_out", tile=TREES[name](tmp_path / name).tile)
    times = {
        name: {s: v["time"].tolist() for s, v in min(stored(tmp_path / f"{name}_out").items())[1]["sensors"].items()}
        for name in ("oscd", "pastis", "dynamicearthnet", "bigearthnet")
    }
    assert times["oscd"]["s2_13"] == [day("2016-01-20"), day("2018-03-28")]
    assert times["pastis"]["s2_10"] == [day("2018-09-24"), day("2018-09-29"), day("2018-10-04")]
    assert times["pastis"]["s1_grd"] == [day("2018-09-02"), day("2018-09-08")]
    assert times["dynamicearthnet"]["ms4"] == [day("2018-01-01")]
    assert times["bigearthnet"] == {"s2_12": [day("2017-06-13")], "s1_grd": [day("2017-06-13")]}
    example = stored(tmp_path / "pastis_out")["10001/0/0"]
    # The centre of Lambert-93 is 46.5 N, 3 E at (700 km, 6,600 km); 180 km further east are 2.35 degrees.
    np.testing.assert_allclose((example["latitude"], example["longitude"]), (46.47, 5.36), atol=0.02)


def test_series_are_thinned_and_videos_cut(tmp_path):
    for name, frames in (("pastis", {"s2_10": 2, "s1_grd": 2}), ("air_mot", {"rgb": 4})):
        (tmp_path / name).mkdir()
        TREES[name](tmp_path / name)
        limit = max(frames.values())
        meta = catalog.prepare(name, tmp_path / name, tmp_path / f"{name}_out", tile=16, max_frames=limit)
        assert {sensor: info.shape[0] for sensor, info in meta.sensors.items()} == frames
    s2 = stored(tmp_path / "pastis_out")["10001/0/0"]["sensors"]["s2_10"]
    assert s2["time"].tolist() == [day("2018-09-24"), day("2018-10-04")]
    videos = stored(tmp_path / "air_mot_out")
    assert sorted(videos) == ["train/1/0/0/0", "train/1/4/0/0", "train/1/8/0/0"]
    last = videos["train/1/8/0/0"]  # frames 9 and 10, the object in the second of them
    assert last["sensors"]["rgb"]["valid"].any((1, 2)).tolist() == [True, True, False, False]
    np.testing.assert_allclose(last["labels"]["tracks"], [(1, 5, 7, 4, 6, 0, 7, 1)])
    assert (videos["train/1/4/0/0"]["labels"]["tracks"] == UNLABELLED).all()


def test_bolivia_is_a_split_and_lists_may_be_absent(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    TREES["uc_merced"](root)
    for path in root.glob("*.txt"):
        path.unlink()
    meta = catalog.prepare("uc_merced", root, tmp_path / "out", tile=16)
    dataset = open_dataset(tmp_path / "out", ["rgb"])
    assert [dataset.size(split) for split in ("train", "validation", "test")] == [16, 2, 2]
    assert "by CRC-32: our choice" in meta.description


def zipped(root, archive, folder=""):
    """A zip of a folder's images, and what a Mac puts into one."""
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.glob("*/*")):
            file.write(path, Path(folder) / path.relative_to(root))
            file.writestr(f"__MACOSX/{path.parent.name}/._{path.name}", b"no image")
    return archive


@pytest.mark.parametrize("folder", ["", "2750", "data/EuroSAT_RGB"])
def test_eurosat_from_its_zip_by_the_spatial_split(folder, tmp_path, capsys):
    root = tmp_path / "in"
    root.mkdir()
    TREES["eurosat_rgb"](root)
    for path, level in ((root / "River/River_3.jpg", 0), (root / "SeaLake/SeaLake_1.jpg", 200)):  # others are 60 to 140
        write(path, np.full((3, 64, 64), level, np.uint8))
    archive = zipped(root, tmp_path / "EuroSAT.zip", folder)
    arguments = ["--source", str(archive), "--dataset", "eurosat_rgb", "--split", "spatial"]
    arguments += ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="1"):
        command.main(arguments)
    assert "eurosat-spatial-train.txt cannot be read" in capsys.readouterr().err
    parts = {"train": ("River_3", "SeaLake_1"), "val": ("River_1",), "test": ("SeaLake_2", "River_0", "River_9")}
    for part, names in parts.items():
        lines = "".join(f"{name}.jpg\n" for name in names)
        (tmp_path / f"eurosat-spatial-{part}.txt").write_text(lines)  # beside the archive
    assert command.main.__wrapped__(arguments) == 0
    assert "note: 14 of 20 files are in no list: left out (River_2, River_4, River_5, ...)" in capsys.readouterr().out
    found = {split: stored(tmp_path / "out", split) for split in ("train", "validation", "test")}
    assert sorted(found["train"]) == ["River/River_3/0/0", "SeaLake/SeaLake_1/0/0"]
    assert sorted(found["test"]) == ["River/River_0/0/0", "River/River_9/0/0", "SeaLake/SeaLake_2/0/0"]
    assert sorted(found["validation"]) == ["River/River_1/0/0"]
    labels = {name: example["labels"]["label"] for name, example in found["test"].items()}
    assert labels == {"River/River_0/0/0": 8, "River/River_9/0/0": 8, "SeaLake/SeaLake_2/0/0": 9}
    info = open_dataset(tmp_path / "out", ["rgb"]).metadata.sensors["rgb"]
    np.testing.assert_allclose(info.mean, [100 / 255] * 3, atol=1e-6)  # of the split "train" alone
    np.testing.assert_allclose(info.std, [100 / 255] * 3, atol=1e-6)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("in", "out", "EuroSAT.zip"),
        *(f"eurosat-spatial-{part}.txt" for part in parts),
    }


def test_classes_that_lie_in_order_are_mixed(tmp_path):
    import tensorflow_datasets as tfds

    root = tmp_path / "in"
    root.mkdir()
    TREES["aid"](root)
    catalog.prepare("aid", root, tmp_path / "out", tile=16, shards=1)
    examples = tfds.builder_from_directory(str(tmp_path / "out")).as_dataset(split="test").as_numpy_iterator()
    labels = [int(example["labels"]["label"]) for example in examples]
    assert sorted(labels) == [28] * 5 + [29] * 5
    assert sum(a != b for a, b in itertools.pairwise(labels)) > 1


def test_sources_that_are_not_one_data_set(tmp_path):
    def refused(source, **options):
        with pytest.raises(DataError) as caught:
            catalog.prepare("eurosat_rgb", source, tmp_path / "out", **options)
        return str(caught.value)

    TREES["eurosat_rgb"](tmp_path / "in/one")
    TREES["eurosat_rgb"](tmp_path / "in/two")
    assert "holds folders of classes in one and two: give one of them" in refused(tmp_path / "in")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    assert "broken.zip cannot be unpacked (File is not a zip file)" in refused(tmp_path / "broken.zip")
    assert 'splits "spacial" are not published for eurosat_rgb: did you mean "spatial"' in refused(
        tmp_path / "in/one", splits="spacial"
    )
    with pytest.raises(DataError, match="not published for aid: it has one way alone"):
        catalog.prepare("aid", tmp_path / "in/one", tmp_path / "out", splits="spatial")
    assert not (tmp_path / "out").exists()


def test_odd_sizes_of_chips_stay_one_sample(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    TREES["uc_merced"](root)
    path = next(root.glob("*/*_0.tif"))
    write(path, np.pad(np.full((3, 4, 4), 200, np.uint8), ((0, 0), (8, 8), (8, 8))))  # 20 px, bright in the middle
    catalog.prepare("uc_merced", root, tmp_path / "out", tile=4)
    dataset = open_dataset(tmp_path / "out", ["rgb"])
    assert dataset.size("train") == 6
    assert (stored(tmp_path / "out")[f"{path.parent.name}/{path.stem}/8/8"]["sensors"]["rgb"]["pixels"] == 200).all()


def test_arguments_are_checked(tmp_path):
    def refused(error, name, **options):
        with pytest.raises(error) as caught:
            catalog.prepare(name, tmp_path, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    assert 'unknown data set "levir": did you mean "levir_cd"' in refused(ConfigError, "levir")
    assert 'sensor "s2" is not in pastis' in refused(DataError, "pastis", sensors=("s2",))
    assert "max_frames = 2" in refused(DataError, "levir_cd", max_frames=2)
    assert "tile = 0" in refused(DataError, "levir_cd", tile=0)
    assert "holds no file label/train_{id}.png" in refused(DataError, "levir_cd")
    assert "tile = 8 does not apply" in refused(DataError, "treesatai_ts", tile=8)
    assert "metadata.parquet cannot be read" in refused(DataError, "bigearthnet")
    assert "`tfds build resisc45" in refused(DataError, "tfds_resisc45")
    with pytest.raises(DataError, match="is not a folder"):
        catalog.prepare("levir_cd", tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(ConfigError, match="in the table already"):
        catalog.register(dataclasses.replace(CATALOG["cdd"], tile=1))


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_lists_and_writes_with_notes(tmp_path, capsys):
    assert command.main.__wrapped__(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{name:<18}{entry.task}: " in f"\n{printed}" for name, entry in CATALOG.items())
    (tmp_path / "in").mkdir()
    TREES["dior"](tmp_path / "in")
    path = tmp_path / "in/Annotations/Horizontal Bounding Boxes/00002.xml"
    flat = path.read_text().replace("<xmax>7</xmax>", "<xmax>2</xmax>")
    outside = path.read_text().replace(">3<", ">300<").replace(">7<", ">307<")
    path.write_text(flat.replace("</annotation>", outside.removeprefix("<annotation>")))
    arguments = ["--source", str(tmp_path / "in"), "--dataset", "dior", "--tile", "16", "--out", str(tmp_path / "out")]
    assert command.main.__wrapped__(arguments) == 0
    printed = capsys.readouterr().out
    assert "note: 1 boxes of 1 images had no area: left out" in printed
    assert "note: 1 boxes of 1 images lay outside the image: left out" in printed
    assert "note: boxes: no sample of the training split holds airplane, airport," in printed
    assert "windmill" in printed
    assert "rgb (1 x 16 x 16)" in printed


def test_the_command_says_what_is_missing(capsys):
    for wrong, message in (
        (["--simulate", "1", "--dataset", "dior", "--out", "b"], "needs --source"),
        (["--source", "a", "--max-frames", "2", "--out", "b"], "needs --dataset"),
        (["--source", "a"], "--out is missing"),
    ):
        with pytest.raises(SystemExit):
            command.main(wrong)
        assert message in capsys.readouterr().err


# Real files -----------------------------------------------------------------------------------------------------------


def real(path) -> Path:
    if not (REAL / path).is_dir():
        pytest.skip(f"no {path} in {REAL}")
    return REAL / path


def with_splits(name, splits) -> Entry:
    """An entry that divides a part of its data set otherwise."""
    entry = CATALOG[name]
    return dataclasses.replace(entry, name=f"{name}_part", layout=dataclasses.replace(entry.layout, splits=splits))


def test_real_levir_pairs(tmp_path, monkeypatch):
    source = real("change/levir_cd")
    monkeypatch.setitem(
        CATALOG.parts, "levir_cd_part", with_splits("levir_cd", Folders({"train": "train", "test": "test"}))
    )
    catalog.prepare("levir_cd_part", source, tmp_path / "out", tile=128)
    dataset = open_dataset(tmp_path / "out", ["rgb"])
    assert [dataset.size(split) for split in ("train", "test")] == [4, 20]
    examples = stored(tmp_path / "out", "test").values()
    changed = [float((example["labels"]["change"] == 1).mean()) for example in examples]
    assert 0 < np.mean(changed) < 0.5
    assert all(example["sensors"]["rgb"]["valid"].all() for example in examples)
    first, second = next(iter(examples))["sensors"]["rgb"]["pixels"].astype(float)
    assert np.abs(first - second).mean() > 1  # two dates, not the same one twice


def test_real_chips_by_folder(tmp_path, monkeypatch):
    source = real("classification/harvey_damage")
    entry = Entry(
        name="harvey",
        title="Damaged buildings after hurricane Harvey",
        task="classification",
        layout=Files((Raster("rgb", ("{split}/{class}/{id}.jpeg",), 0.5),), Folders({"train": "val"})),
        classes=("damage", "no_damage"),
        tile=128,
        licence="Creative Commons 4.0",
        source="https://github.com/qcao10/DamageDetection",
        citation="Cao and Choe 2020",
        evidence="tried",
    )
    monkeypatch.setitem(CATALOG.parts, "harvey", entry)
    report = Report()
    meta = catalog.prepare("harvey", source, tmp_path / "out", report=report)
    assert open_dataset(tmp_path / "out", ["rgb"]).size("train") == 300
    assert report.seen["label"].tolist() == [150, 150]
    assert report.lines(meta.labels) == []


def test_pixels_of_floods_that_a_sensor_missed_are_not_labelled(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    TREES["ombria"](root)
    dark = np.full((3, 16, 16), 70, np.uint8)
    dark[:, 0, 0], dark[0, 1, 1] = 0, 0  # black is not observed; dark in one band is
    white = np.full((1, 16, 16), 70, np.uint8)
    white[:, 2, 2] = 255
    write(root / "test/S2_before/0001.png", dark)
    write(root / "test/S1_after/0001.png", white)
    catalog.prepare("ombria", root, tmp_path / "out", tile=16)
    example = stored(tmp_path / "out", "test")["test/0001/0/0"]
    missed = {name: np.argwhere(~entry["valid"]).tolist() for name, entry in example["sensors"].items()}
    assert missed == {"s2_8bit": [[0, 0, 0]], "s1_8bit": [[1, 2, 2]]}
    assert np.argwhere(example["labels"]["flood"] == UNLABELLED).tolist() == [[0, 0], [2, 2]]


@pytest.mark.slow
def test_real_floods(tmp_path):
    source = real("multimodal/ombria")
    meta = catalog.prepare("ombria", source, tmp_path / "out")
    dataset = open_dataset(tmp_path / "out", ["s2_8bit", "s1_8bit"])
    assert [dataset.size(split) for split in ("train", "validation", "test")] == [204, 36, 70]
    assert {name: info.shape for name, info in meta.sensors.items()} == dict.fromkeys(meta.sensors, (2, 256, 256))
    darker = unlabelled = 0
    for example in stored(tmp_path / "out", "test").values():
        flooded = example["labels"]["flood"] == 1
        before, after = example["sensors"]["s1_8bit"]["pixels"][..., 0].astype(float)
        darker += after[flooded].mean() - before[flooded].mean() < after[~flooded].mean() - before[~flooded].mean()
        unlabelled += (example["labels"]["flood"] == UNLABELLED).mean() / 70
    assert darker > 60  # water is dark to a radar
    assert 0 < unlabelled < 0.03


def test_real_tree_crowns(tmp_path, monkeypatch):
    source = real("detection/neon_trees")
    layout = Boxes(Raster("rgb", ("{id}.png",), 0.1), "{id}.xml", annotations.voc, Fractions(0.5))
    entry = dataclasses.replace(
        CATALOG["dior"], name="crowns", layout=layout, classes=("Tree", "Alive", "Dead"), tile=400, stride=None
    )
    monkeypatch.setitem(CATALOG.parts, "crowns", entry)
    report = Report()
    meta = catalog.prepare("crowns", source, tmp_path / "out", report=report)
    rows = [e["labels"]["boxes"] for split in ("train", "validation") for e in stored(tmp_path / "out", split).values()]
    used = np.concatenate([r[r[:, 0] != UNLABELLED] for r in rows])
    boxes = sum(
        path.read_text().count("<object>") for path in source.glob("*.xml") if path.with_suffix(".png").exists()
    )
    assert len(used) + sum(sum(images.values()) for images in report.left_out.values()) >= boxes
    assert (used[:, 1:3] > 0).all()
    assert (used[:, 1:3] < 400).all()
    assert max((r[:, 0] != UNLABELLED).sum() for r in rows) == meta.labels["boxes"].count


def test_real_eurosat_has_the_cirrus_band_in_its_place(tmp_path, monkeypatch):
    source = real("multimodal/eurosat_ms")
    paths = sorted(source.rglob("*.tif"))
    for path in paths:
        link = tmp_path / "in" / path.stem.split("_")[0] / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    monkeypatch.setitem(CATALOG.parts, "eurosat_part", with_splits("eurosat", Fractions(0.4)))
    catalog.prepare("eurosat_part", tmp_path / "in", tmp_path / "out")
    names = sensors.get("s2_13").band_names
    for split in ("train", "validation"):
        for example in stored(tmp_path / "out", split).values():
            means = dict(zip(names, example["sensors"]["s2_13"]["pixels"].mean((0, 1, 2)), strict=True))
            assert min(means, key=means.get) == "B10"  # no light from the ground at 1.37 um
            assert abs(means["B8A"] - means["B08"]) < abs(means["B8A"] - means["B09"])
            assert example["sensors"]["s2_13"]["time"].tolist() == [NO_TIME]


def test_grey_images_of_rgb_sets(tmp_path):
    (tmp_path / "in").mkdir()
    TREES["isaid"](tmp_path / "in")
    write(tmp_path / "in/train/images/P0000.png", np.full((1, 16, 16), 9, np.uint8))
    image(tmp_path / "in/train/images/P0001.png", "rgb", ["red", "green", "blue", "red"])  # with transparency
    catalog.prepare("isaid", tmp_path / "in", tmp_path / "out", tile=16)
    pixels = {name: example["sensors"]["rgb"]["pixels"] for name, example in stored(tmp_path / "out").items()}
    assert (pixels["train/P0000/0/0"] == 9).all()
    assert pixels["train/P0001/0/0"][0, 0, 0].tolist() == [60, 100, 140]
