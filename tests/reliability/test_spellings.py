"""Inputs that say one thing and are easily read as another: each is read right, or one line says what is wanted."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image as Picture

from input_pipeline import example, folder
from input_pipeline.dataset import open_dataset
from input_pipeline.layouts.tiles import Report
from ringmoe_jax import sensors
from ringmoe_jax.deploy.scenes import Scene
from ringmoe_jax.errors import DataError
from tests.helpers.rasters import tif

SIZE, PLACES = 64, [f"p{i}" for i in range(6)]
BOX = [3, 4, 10, 12]
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def picture(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(pixels).save(path)


@pytest.fixture
def source(tmp_path):
    """Six RGB images."""
    for i, name in enumerate(PLACES):
        picture(tmp_path / "in" / "rgb" / f"{name}.png", np.full((SIZE, SIZE, 3), 40 * i, np.uint8))
    return tmp_path / "in"


def prepared(source):
    """The metadata, records by place, and the lines of the report."""
    report = Report()
    metadata = folder.prepare(source, source.parent / "out", report=report)
    dataset = open_dataset(str(source.parent / "out"), ("rgb",))
    records = [
        example.parse(payload)
        for split in dataset.counts
        for payload in dataset.records(split, 0).read(range(dataset.size(split)))
    ]
    return metadata, {r["id"][0].decode().split("/")[0]: r for r in records}, "\n".join(report.lines(metadata.labels))


def refused(source, message):
    with pytest.raises(DataError, match=message) as error:
        prepared(source)
    assert "\n" not in str(error.value)


def coco(source, *boxes, name="{}.png", categories=((1, "hut"), (2, "boat"))):
    content = {
        "images": [{"id": i, "file_name": name.format(p), "width": SIZE, "height": SIZE} for i, p in enumerate(PLACES)],
        "annotations": [{"image_id": i % 6, "category_id": 1, "bbox": list(box)} for i, box in enumerate(boxes)],
        "categories": [{"id": i, "name": name} for i, name in categories],
    }
    (source / "boxes.json").write_text(json.dumps(content))


def test_corners_in_place_of_extents_are_refused(source):
    coco(source, (30, 30, 50, 50), (10, 12, 30, 40))
    refused(source, r"1 of 2 boxes leave their images, and none does as \[left, top, right, bottom\]")


def test_a_box_that_leaves_its_image_beside_boxes_that_are_no_corners_is_cut_off(source):
    coco(source, (30, 30, 50, 50), (40, 40, 10, 10))
    _, records, _ = prepared(source)
    assert list(records["p0"]["labels/boxes"])[:6] == [0, 47, 47, 34, 34, 0]


@pytest.mark.parametrize("form", ["COCO", "DOTA", "VOC"])
def test_shares_of_the_image_are_no_pixels(source, form):
    if form == "COCO":
        coco(source, (0.1, 0.1, 0.4, 0.4))
    for name in PLACES if form != "COCO" else ():
        (source / "boxes").mkdir(exist_ok=True)
        corners = "".join(f"<{k}>{v}</{k}>" for k, v in dict(xmin=0.1, ymin=0.1, xmax=0.5, ymax=0.5).items())
        xml = f"<annotation><object><name>hut</name><bndbox>{corners}</bndbox></object></annotation>"
        text = "0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5 hut 0\n"
        (source / "boxes" / f"{name}.{'txt' if form == 'DOTA' else 'xml'}").write_text(text if form == "DOTA" else xml)
    refused(source, "all boxes lie within the first pixel, so they are shares of the image")


def test_ids_of_categories_are_theirs_alone(source):
    coco(source, BOX, categories=((1, "hut"), (1, "boat"), (2, "ship")))
    refused(source, "lists 3 categories with 2 ids: wanted each id once")


def test_paths_of_windows_name_images(source):
    coco(source, BOX, name="images\\{}.png")
    _, records, _ = prepared(source)
    assert list(records["p0"]["labels/boxes"])[:6] == [0, 8, 10, 10, 12, 0]


def test_accents_of_two_kinds_are_one_name(tmp_path):
    """macOS stores "e" and an accent where most programs write one letter."""
    source = tmp_path / "in"
    for i in range(6):
        apart, one = unicodedata.normalize("NFD", f"é{i}"), unicodedata.normalize("NFC", f"é{i}")
        picture(source / "rgb" / f"{apart}.png", np.zeros((SIZE, SIZE, 3), np.uint8))
        picture(source / "mask" / f"{one}.png", np.full((SIZE, SIZE), i % 2, np.uint8))
    (source / "classes.txt").write_text("land\nwater\n")
    (source / "labels.csv").write_text("".join(f"é{i},{'ab'[i % 2]}\n" for i in range(6)))
    _, records, _ = prepared(source)
    for i in range(6):
        record = records[unicodedata.normalize("NFC", f"é{i}")]
        assert list(record["labels/label"]) == [i % 2]
        assert (np.frombuffer(record["labels/mask"][0], np.int16) == i % 2).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("Forest forest water water forest water", 'classes "Forest" and "forest": wanted one spelling'),
        ("1 1.0 2 2 1 2", 'classes "1" and "1.0": wanted one spelling'),
        ("nan a b a b a", 'class "nan", as programs write what is missing'),
        ("a N/A b a b a", 'class "N/A", as programs write what is missing'),
        ("a|Lake lake b a b a", 'classes "Lake" and "lake": wanted one spelling'),
    ],
)
def test_classes_have_one_spelling(source, labels, message):
    rows = zip(PLACES, labels.split(), strict=True)
    (source / "labels.csv").write_text("".join(f"{name},{label}\n" for name, label in rows))
    refused(source, message)


def test_folders_of_classes_have_one_spelling(tmp_path):
    for i in range(6):
        picture(tmp_path / "in" / "rgb" / "Ab"[i % 2] / f"{i}.png", np.zeros((SIZE, SIZE, 3), np.uint8))
        picture(tmp_path / "in" / "rgb" / "a" / f"more{i}.png", np.zeros((SIZE, SIZE, 3), np.uint8))
    refused(tmp_path / "in", 'classes "A" and "a": wanted one spelling')


@pytest.mark.parametrize("apart", [" ", "\t", ";", ":", " = "])
def test_values_of_classes_stand_before_a_comma(source, apart):
    """Else they would be parts of names, and values would count from 0 in the order of the lines."""
    for name in PLACES:
        picture(source / "mask" / f"{name}.png", np.eye(SIZE, dtype=np.uint8))
    (source / "classes.txt").write_text(f"1{apart}water\n0{apart}land\n")
    refused(source, r"classes.txt, line 1: .* begins with a number: wanted VALUE,NAME with a comma")
    (source / "classes.txt").write_text("1,water\n0,land\n")
    metadata, records, _ = prepared(source)
    mask = np.frombuffer(records["p0"]["labels/mask"][0], np.int16).reshape(SIZE, SIZE)
    assert metadata.labels["mask"].names[mask[0, 0]] == "water"


def test_names_that_begin_with_numbers_are_names_where_values_stand_before_them(source):
    for name in PLACES:
        picture(source / "mask" / f"{name}.png", np.eye(SIZE, dtype=np.uint8))
    (source / "classes.txt").write_text("0,1 lane\n1,2 lanes\n")
    assert prepared(source)[0].labels["mask"].names == ("1 lane", "2 lanes")


def test_a_sample_is_listed_once(source):
    (source / "train.txt").write_text("p0\np1\np1.png\n")
    (source / "val.txt").write_text("p2\n")
    refused(source, r'train.txt: "p1" is listed more than once')


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32633"])
def test_a_crs_without_a_transform_is_no_place(tmp_path, crs):
    """Pixels would else be taken for degrees or metres from the equator."""
    for name in PLACES:
        (tmp_path / "in" / "rgb").mkdir(parents=True, exist_ok=True)
        tif(tmp_path / "in" / "rgb" / f"{name}.tif", np.zeros((SIZE, SIZE, 3), np.uint8), crs=crs, transform=None)
    _, records, notes = prepared(tmp_path / "in")
    assert np.isnan([records["p0"][key][0] for key in ("latitude", "longitude")]).all()
    assert "6 files" in notes
    assert "name a CRS, but not where their pixels lie in it: they have no place" in notes
    with Scene(tmp_path / "in" / "rgb" / "p0.tif", sensors.get("rgb")) as scene:
        assert scene.grid.crs is None
        assert any("they have no place" in note for note in scene.notes)
