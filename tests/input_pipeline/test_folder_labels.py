"""Labels beside a user's own images: masks, changes, boxes, several classes and dates, and what is wrong with them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from input_pipeline import folder
from input_pipeline.evaluation import EvalBatches
from input_pipeline.places import Report
from ringmoe_jax import geo
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")  # pictures have no place
SHARED = Path(__file__).parents[3] / "shared" / "data"


def save(path, values, **options):
    """Writes [H, W] or [H, W, C] as PNG or GeoTIFF, by the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = values[..., None] if values.ndim == 2 else values
    height, width, count = values.shape
    driver = "PNG" if path.suffix == ".png" else "GTiff"
    profile = {"height": height, "width": width, "count": count, "dtype": values.dtype}
    with rasterio.open(path, "w", driver=driver, **profile, **options) as file:
        file.write(values.transpose(2, 0, 1))


def picture(seed, height=8, width=8):
    return np.random.default_rng(seed).integers(1, 255, (height, width, 3)).astype(np.uint8)


def lists(root, train="a", validation="b"):
    (root / "train.txt").write_text("\n".join(train))
    (root / "val.txt").write_text("\n".join(validation))
    return root


@pytest.fixture
def root(tmp_path):
    """Two pictures of 8 px, one for training and one for validation."""
    for stem in "ab":
        save(tmp_path / "in" / "rgb" / f"{stem}.png", picture(ord(stem)))
    return lists(tmp_path / "in")


def prepared(root, tile=8, **options):
    out = root.parent / "out"
    meta = folder.prepare(root, out, tile=tile, overwrite=True, **options)
    return meta, out


def batches(out, names, split="train", size=8, count=16):
    return next(iter(EvalBatches(out, names, split=split, image_size=size, batch_size=count)))


def real(batch, label):
    return batch["labels"][label][batch["real"]]


def test_several_classes_of_a_place(root):
    (root / "labels.csv").write_text("a,water|forest\nb,\n")
    meta, out = prepared(root)
    assert (meta.labels["labels"].kind, meta.labels["labels"].names) == ("multilabel", ("forest", "water"))
    np.testing.assert_array_equal(real(batches(out, ["rgb"]), "labels"), [[1, 1]])
    np.testing.assert_array_equal(real(batches(out, ["rgb"], "validation"), "labels"), [[0, 0]])


@pytest.mark.parametrize(("ending", "dtype", "options"), [("png", "uint8", {}), ("tif", "int16", {"nodata": 7})])
def test_masks_are_cut_with_their_images(root, ending, dtype, options):
    """Six columns and ten rows in tiles of 4: every pixel of the mask says where it lay."""
    mask = np.add.outer(10 * np.arange(10), np.arange(6)) % 5
    values = mask.astype(dtype)
    values[0, 0], values[9, 5] = 255, options.get("nodata", 255)
    for stem in "ab":
        save(root / "rgb" / f"{stem}.png", np.repeat(mask[..., None], 3, -1).astype(np.uint8) + 1)
        save(root / "mask" / f"{stem}.{ending}", values, **options)
    (root / "classes.txt").write_text("a\nb\nc\nd\ne\n")
    meta, out = prepared(root, tile=4)
    assert (meta.labels["mask"].names, meta.labels["mask"].sensor) == (("a", "b", "c", "d", "e"), "rgb")
    batch = batches(out, ["rgb"], size=4)
    shown, red = real(batch, "mask"), batch["sensors"]["rgb"]["pixels"][batch["real"]][:, 0, ..., 0]
    wanted = np.rint(red * 255) - 1
    assert len(shown) == 6  # rows from 0, 4 and 6, columns from 0 and 2
    assert (shown == -1).sum() == 2
    np.testing.assert_array_equal(shown[shown >= 0], wanted[shown >= 0])


def test_masks_lie_on_the_sensor_of_their_size(root):
    for stem in "ab":
        save(root / "ndsm" / f"{stem}.tif", np.full((16, 16), 2.5, np.float32))
        save(root / "mask" / f"{stem}.png", np.ones((16, 16), np.uint8))
    (root / "classes.txt").write_text("low\nhigh\n")
    meta, out = prepared(root)
    assert list(meta.sensors) == ["rgb", "ndsm"]  # heights come last, so that images set the grid
    assert meta.labels["mask"].sensor == "ndsm"
    batch = batches(out, ["rgb", "ndsm"])
    np.testing.assert_allclose(batch["sensors"]["ndsm"]["pixels"][batch["real"]], 2.5, rtol=1e-6)
    assert (real(batch, "mask") == 1).all()


def test_changes_between_dates(root):
    shutil.rmtree(root / "rgb")
    for stem in "ab":
        for day, value in (("2021-07-02", 9), ("2019-05-01", 3)):
            save(root / f"rgb@{day}" / f"{stem}.png", np.full((8, 8, 3), value, np.uint8))
        change = np.zeros((8, 8), np.uint8)
        change[0, :3] = 0, 1, 255
        save(root / "change" / f"{stem}.png", change)
    meta, out = prepared(root)
    assert meta.sensors["rgb"].shape == (2, 8, 8)
    assert meta.labels["change"].names == ("unchanged", "changed")
    batch = batches(out, ["rgb"])
    entry = batch["sensors"]["rgb"]
    assert entry["time"][0].tolist() == [geo.days("2019-05-01"), geo.days("2021-07-02")]
    assert entry["pixels"][0, 0].max() < entry["pixels"][0, 1].min()
    assert real(batch, "change")[0, 0, :4].tolist() == [0, 1, 1, 0]
    assert real(batch, "change").sum() == 2


def test_numbered_dates_have_no_time(root):
    save(root / "rgb@10" / "a.png", picture(1))
    save(root / "rgb@10" / "b.png", picture(1))
    (root / "rgb").rename(root / "rgb@9")
    _, out = prepared(root)
    entry = batches(out, ["rgb"])["sensors"]["rgb"]
    assert (entry["time"][0] == NO_TIME).all()
    np.testing.assert_allclose(entry["pixels"][0, 1] * 255, picture(1), atol=1e-3)  # 9 comes before 10


def crops(*boxes, names=("a.png", "b.png")):
    """A COCO file with (image, class, left, top, width, height) and the classes 3 = barn, 7 = tree."""
    return {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "categories": [{"id": 7, "name": "tree"}, {"id": 3, "name": "barn"}],
        "annotations": [{"image_id": b[0], "category_id": b[1], "bbox": list(b[2:])} for b in boxes],
    }


def test_boxes_are_cut_and_counted(root):
    """Tiles of 4 px: boxes go where their centre is, are clipped there, and what is none is reported."""
    found = crops((0, 7, 1, 1, 2, 2), (0, 3, 2, 5, 4, 2), (0, 7, 5, 5, 1, 1), (0, 7, 4, 4, 0, 2), (0, 7, 20, 1, 2, 2))
    (root / "boxes.json").write_text(json.dumps(found))
    report = Report()
    meta, out = prepared(root, tile=4, report=report)
    assert meta.labels["boxes"].names == ("barn", "tree")
    assert meta.labels["boxes"].count == 2  # both in the lower right tile
    rows = real(batches(out, ["rgb"], size=4), "boxes")
    used = rows[rows[..., 0] >= 0]
    np.testing.assert_allclose(sorted(used.tolist()), [[0, 1, 2, 2, 2, 0], [1, 1.5, 1.5, 1, 1, 0], [1, 2, 2, 2, 2, 0]])
    assert report.lines(meta.labels) == [
        "1 boxes of 1 images had no area: left out",
        "1 boxes of 1 images lay outside the image: left out",
    ]
    assert (real(batches(out, ["rgb"], "validation", size=4), "boxes") == -1).all()


def test_a_class_without_an_example_is_noted(root):
    (root / "boxes.json").write_text(json.dumps(crops((0, 7, 1, 1, 2, 2), (1, 3, 1, 1, 2, 2))))
    report = Report()
    meta, _ = prepared(root, report=report)
    assert report.lines(meta.labels) == ["boxes: no sample of the training split holds barn"]


def test_oriented_boxes_of_text_files(root):
    for stem in "ab":
        path = root / "boxes" / f"{stem}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("imagesource:x\ngsd:1\n1 3 3 1 6 4 4 6 ship 0\n" if stem == "a" else "")
    meta, out = prepared(root)
    row = real(batches(out, ["rgb"]), "boxes")[0, 0]
    np.testing.assert_allclose(row, [0, 3.5, 3.5, np.sqrt(18), np.sqrt(8), np.pi / 4], rtol=1e-5)
    assert meta.labels["boxes"].names == ("ship",)


def test_boxes_of_one_image_in_two_splits(tmp_path):
    """The right quarter is for validation, a tile apart: each split has the boxes of its columns."""
    root = tmp_path / "in"
    save(root / "rgb" / "p.png", picture(0, 4, 32))
    boxes = [(0, 7, x, 0, 2, 2) for x in (1, 3, 21, 25)]
    (root / "boxes.json").write_text(json.dumps(crops(*boxes, names=("p.png",))))
    report = Report()
    meta, out = prepared(root, tile=4, report=report)
    assert "1 boxes of 1 images lay between tiles: left out" in report.lines(meta.labels)
    held = real(batches(out, ["rgb"], "validation", size=4), "boxes")
    np.testing.assert_array_equal(held[held[..., 0] >= 0], [[1, 2, 1, 2, 2, 0]])
    shown = real(batches(out, ["rgb"], size=4), "boxes")
    assert (shown[..., 0] >= 0).sum() == 2


def test_three_lists(root):
    save(root / "rgb" / "c.png", picture(3))
    save(root / "rgb" / "d.png", picture(4))
    (root / "test.txt").write_text("c\n")
    _, out = prepared(root)
    assert batches(out, ["rgb"], "test")["real"].sum() == 1
    (root / "test.txt").write_text("a\n")
    with pytest.raises(DataError, match=r'"a" is in train.txt and in test.txt'):
        prepared(root)


def refused(root, **options):
    with pytest.raises(DataError) as error:
        folder.prepare(root, root.parent / "out", **({"tile": 4} | options))
    assert not (root.parent / "out").exists()
    return str(error.value)


def test_wrong_tables(root):
    table = root / "labels.csv"
    table.write_text("ID,label\n")
    assert 'labels.csv: "ID" has no image: (known: a, b)' in refused(root)
    table.write_bytes("a,h\u00f6he\n".encode("latin-1"))
    assert "labels.csv is not UTF-8" in refused(root)
    table.write_text("a,water\na,water\n")
    assert "labels.csv, line 2: row 'a,water': wanted one row an ID" in refused(root)
    table.write_text("a;water\n")
    assert "line 1: row 'a;water': wanted ID,label or ID,label|label" in refused(root)
    table.write_text("a,\n")
    assert "line 1: 'a' has no label: leave the row out" in refused(root)


def test_wrong_masks(root):
    (root / "mask").mkdir()
    assert "mask holds no mask: wanted ID.png" in refused(root)
    save(root / "mask" / "a.png", np.zeros((8, 8), np.uint8))
    names = root / "classes.txt"
    assert "one class a line, such as 0,background and 1,building; a.png holds 0" in refused(root)
    names.write_text("x\nx\n")
    assert "names x, x: wanted each name once" in refused(root)
    names.write_text("x\n")
    assert "names x: wanted two classes or more" in refused(root)
    names.write_text("x,#102030\ny\n")
    assert "y has no colour: give a colour to all classes or none" in refused(root)
    names.write_text("x,1,2\ny\n")
    assert "classes.txt, line 1: wanted NAME, NAME,#rrggbb" in refused(root)
    names.write_text("x\ny\n")
    save(root / "mask" / "c.png", np.zeros((8, 8), np.uint8))
    assert 'mask: "c" has no image' in refused(root)
    (root / "mask" / "c.png").unlink()
    save(root / "mask" / "b.png", np.full((8, 8), 2, np.uint8))
    assert "b.png holds 2" in refused(root)
    assert "write VALUE,NAME in classes.txt, or leave values out by --ignore" in refused(root)
    save(root / "mask" / "b.png", np.zeros((8, 8), np.uint8))
    save(root / "mask" / "a.png", picture(0))
    assert "a.png has 3 channels, wanted one that holds class indices" in refused(root)
    save(root / "mask" / "a.png", np.zeros((8, 6), np.uint8))
    assert '"a": the rgb image has 8 x 8 px, its mask "mask" 8 x 6' in refused(root)
    shutil.rmtree(root / "mask")
    save(root / "change" / "a.png", np.zeros((8, 8), np.uint8))
    assert "change needs two dates of a sensor, for example rgb@1/ID.png and rgb@2/ID.png" in refused(root)


def test_wrong_boxes(root):
    (root / "boxes").mkdir()
    assert "boxes holds no boxes: wanted ID.xml (VOC) or ID.txt (DOTA)" in refused(root)
    (root / "boxes" / "a.txt").write_text("")
    assert "boxes holds no box at all" in refused(root)
    (root / "boxes.json").write_text("{}")
    assert "holds boxes.json and boxes: wanted one of them" in refused(root)
    shutil.rmtree(root / "boxes")
    (root / "boxes.json").write_text(json.dumps(crops((0, 7, 1, 1, 2, 2), names=("a.png",))))
    assert '"b" has no file in boxes.json, but one in rgb' in refused(root)


def test_wrong_dates(root):
    save(root / "rgb@1" / "a.png", picture(0))
    assert 'holds "rgb" and "rgb@1": wanted one kind' in refused(root)
    (root / "rgb").rename(root / "rgb@2")
    assert '"b" has no file in rgb@1, but one in rgb@2' in refused(root)
    save(root / "rgb@1" / "b.png", picture(0, 8, 4))
    save(root / "rgb@1" / "a.png", picture(0, 8, 8))
    assert '"b": the dates of rgb have 8 x 4 px and 8 x 8 px: wanted one size' in refused(root)
    (root / "rgb@1").rename(root / "rgb@may")
    assert "rgb@may: wanted rgb@1, rgb@2, ... or rgb@YYYY-MM-DD" in refused(root)


def test_folders_that_mean_nothing_are_named(root, caplog):
    (root / "masks").mkdir()
    prepared(root)
    assert 'masks is not read, it is named like no sensor and no label: did you mean "mask"?' in caplog.text


@pytest.mark.skipif(not SHARED.exists(), reason="the shared folder of real test data is not on this machine")
def test_real_change_pairs(tmp_path):
    source, root = SHARED / "change/levir_cd", tmp_path / "in"
    root.mkdir()
    for theirs, ours in (("A", "rgb@1"), ("B", "rgb@2"), ("label", "change")):
        (root / ours).symlink_to(source / theirs)
    _, out = prepared(root, tile=128)
    with rasterio.open(next((source / "label").glob("test_102*"))) as file:
        share = (file.read(1) == 255).mean()
    batch = batches(out, ["rgb"], size=128, count=20)
    shares = real(batch, "change").reshape(-1, 4, 128 * 128).mean((1, 2))
    held = real(batches(out, ["rgb"], "validation", size=128, count=20), "change").reshape(-1, 4, 128 * 128)
    assert np.isclose([*shares, *held.mean((1, 2))], share).any()
    assert (len(shares), len(held)) == (4, 2)


@pytest.mark.skipif(not SHARED.exists(), reason="the shared folder of real test data is not on this machine")
def test_real_tree_crowns(tmp_path):
    root = tmp_path / "in"
    for kind, ending in (("rgb", "png"), ("boxes", "xml")):
        (root / kind).mkdir(parents=True)
        for path in sorted((SHARED / "detection/neon_trees").glob(f"*.{ending}")):
            (root / kind / path.name).symlink_to(path)
    (root / "boxes" / "OSBS_029.xml").unlink()  # its image is a GeoTIFF with four bands
    report = Report()
    meta, out = prepared(root, tile=200, report=report)
    rows = np.concatenate([real(batches(out, ["rgb"], split, 200, 64), "boxes") for split in ("train", "validation")])
    between = sum(report.left_out.get("lay between tiles", {}).values())
    assert 0 < (rows[..., 0] >= 0).sum() <= 279 + 37 - between
    assert meta.labels["boxes"].names == ("Alive", "Dead", "Tree")
