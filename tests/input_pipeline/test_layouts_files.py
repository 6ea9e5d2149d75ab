"""Paths with fields, splits, bands and masks of files."""

import warnings

import numpy as np
import pytest
import rasterio
from affine import Affine

from input_pipeline.layouts import Request, templates
from input_pipeline.layouts.rasters import Colours, Layers, Mask, Raster, Values
from input_pipeline.layouts.splits import Folders, Fractions, Lists, Named
from input_pipeline.schema import UNLABELLED
from ringmoe_jax import sensors
from ringmoe_jax.errors import DataError


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def tif(path, values, **options):
    profile = dict(driver="GTiff", count=len(values), height=values.shape[1], width=values.shape[2])
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", dtype=values.dtype.name, **profile | options) as file:
            file.write(values)


def message(function, *arguments, **options):
    with pytest.raises(DataError) as error:
        function(*arguments, **options)
    return str(error.value)


# Paths ----------------------------------------------------------------------------------------------------------------


def test_templates_find_name_and_fill(tmp_path):
    touch(tmp_path, "train/a b/x_1.png", "train/a b/x_2.png", "train/c/y_z_1.png", "val/c/1.png", "train/c/notes.txt")
    assert templates.names("{split}/{class}/{split}_{id}.png") == ("split", "class", "id")
    found = templates.find(tmp_path, "{split}/{class}/{name}_{id}.png", split="train")
    assert [tuple(f.values()) for f in found] == [
        ("train", "a b", "x", "1"),
        ("train", "a b", "x", "2"),
        ("train", "c", "y_z", "1"),
    ]
    assert templates.fill("{class}/{id}.txt", found[2]) == "c/1.txt"
    assert templates.parse("{class}/{class}_{id}.tif", "River/Forest_1.tif") is None
    assert templates.parse("{class}/{class}_{id}.tif", "River/River_1.tif") == {"class": "River", "id": "1"}


def test_paths_with_brackets_are_no_patterns(tmp_path):
    touch(tmp_path, "a[1]/x.png", "a1/y.png")
    assert templates.find(tmp_path, "{folder}/{id}.png", folder="a[1]") == [{"folder": "a[1]", "id": "x"}]


# Splits ---------------------------------------------------------------------------------------------------------------


def asked(source, **options):
    return Request(source, (), (), 1, 1, **options)


def ids(places):
    return {split: sorted(fields["id"] for fields in found) for split, found in places.items()}


def test_fractions_divide_every_class_and_never_change(tmp_path):
    touch(tmp_path, *(f"{kind}/{i}.png" for kind in "ab" for i in range(10)))
    places, rule = Fractions(0.2, 0.1, within="class").divide(asked(tmp_path), "{class}/{id}.png")
    assert rule == "70% / 20% / 10% of each class by CRC-32: our choice"
    for kind in "ab":
        counts = {split: sum(f["class"] == kind for f in found) for split, found in places.items()}
        assert counts == {"train": 7, "validation": 2, "test": 1}
    assert places == Fractions(0.2, 0.1, within="class").divide(asked(tmp_path), "{class}/{id}.png")[0]
    names = [f["class"] + f["id"] for found in places.values() for f in found]
    assert len(set(names)) == 20
    assert set(Fractions(0.1).divide(asked(tmp_path), "{class}/{id}.png")[0]) == {"train", "validation"}


def test_folders_may_come_in_parts(tmp_path):
    touch(tmp_path, "train/one/1.png", "train/two/2.png", "val/3.png")
    splits = Folders({"train": ("train/one", "train/two"), "validation": "val"})
    places, rule = splits.divide(asked(tmp_path), "{split}/{id}.png")
    assert ids(places) == {"train": ["1", "2"], "validation": ["3"]}
    assert "train/one, train/two, val" in rule
    assert "holds no file test/{id}.png" in message(
        Folders({"test": "test"}).divide, asked(tmp_path), "{split}/{id}.png"
    )


def test_a_share_of_the_training_folder_may_be_for_validation(tmp_path):
    touch(tmp_path, *(f"{split}/{i}.png" for split in ("train", "test") for i in range(20)))
    splits = Folders({"train": "train", "test": "test"}, validation=0.15)
    places, rule = splits.divide(asked(tmp_path), "{split}/{id}.png")
    assert {split: len(found) for split, found in places.items()} == {"train": 17, "test": 20, "validation": 3}
    assert {fields["split"] for fields in places["validation"] + places["train"]} == {"train"}
    assert len({fields["id"] for fields in places["validation"] + places["train"]}) == 20
    assert splits.divide(asked(tmp_path), "{split}/{id}.png")[0] == places
    assert rule == "as published, folders train, test; 15% of train for validation by CRC-32: our choice"


def test_lists_say_who_and_files_say_where(tmp_path):
    touch(tmp_path, "a/1.tif", "b/2.tif", "b/3.tif")
    (tmp_path / "train.txt").write_text("1.jpg\n\n3.jpg\n")
    (tmp_path / "val.txt").write_text("2.jpg\n")
    lists = Lists({"train": "train.txt", "validation": "val.txt"}, "{id}.jpg", "theirs", Fractions(0.5))
    places, rule = lists.divide(asked(tmp_path), "{class}/{id}.tif")
    assert places["train"] == [{"class": "a", "id": "1"}, {"class": "b", "id": "3"}]
    assert places["validation"] == [{"class": "b", "id": "2"}]
    assert rule == "theirs, lists train.txt, val.txt"
    (tmp_path / "val.txt").write_text("4.jpg\n2.jpg\n5.jpg\n")
    lacking = "lacks 2 of the 3 files listed for validation: 4, 5 "
    assert lacking in message(lists.divide, asked(tmp_path), "{class}/{id}.tif")
    (tmp_path / "val.txt").write_text("2\n")
    assert "line '2': wanted {id}.jpg" in message(lists.divide, asked(tmp_path), "{class}/{id}.tif")
    (tmp_path / "val.txt").unlink()
    assert "wanted the list of the split validation" in message(lists.divide, asked(tmp_path), "{class}/{id}.tif")
    (tmp_path / "train.txt").unlink()
    assert lists.divide(asked(tmp_path), "{class}/{id}.tif")[1] == "50% / 50% of all by CRC-32: our choice"


def test_files_in_no_list_are_noted_and_lists_may_lie_elsewhere(tmp_path):
    touch(tmp_path / "in", *(f"a/{i}.tif" for i in range(6)))
    (tmp_path / "train.txt").write_text("1.jpg\n")
    lists = Lists({"train": "train.txt"}, "{id}.jpg", "theirs")
    request = asked(tmp_path / "in", lists=(tmp_path,))
    assert ids(lists.divide(request, "{class}/{id}.tif")[0]) == {"train": ["1"]}
    assert request.report.notes == ["5 of 6 files are in no list: left out (0, 2, 3, ...)"]
    touch(tmp_path / "in", "train.txt")  # an empty list, but nearer
    assert "the lists say nothing" in message(lists.divide, request, "{class}/{id}.tif")


def test_sections_columns_and_names(tmp_path):
    (tmp_path / "division.txt").write_text("train:\na.tif\nb.tif\n\ntest:\nc.tif\n")
    sections = Lists(dict.fromkeys(("train", "test"), "division.txt"), "{id}.tif")
    assert ids(sections.divide(asked(tmp_path), "{id}.png")[0]) == {"train": ["a", "b"], "test": ["c"]}
    wrong = Lists(dict.fromkeys(("training", "test"), "division.txt"), "{id}.tif")
    assert 'no section "training:": did you mean "train"' in message(wrong.divide, asked(tmp_path), "{id}.png")
    (tmp_path / "rows.csv").write_text("a_S1.tif,a_Label.tif\n")
    rows = Lists({"train": "rows.csv"}, "{id}_{layer}.tif,{id}_Label.tif")
    assert ids(rows.divide(asked(tmp_path), "{id}.png")[0]) == {"train": ["a"]}
    named = Named({"train": ("x", "y"), "test": ("z",)}, "theirs")
    assert ids(named.divide(asked(tmp_path), "{id}.png")[0]) == {"train": ["x", "y"], "test": ["z"]}
    assert "the lists say id, the files are {name}.png" in message(named.divide, asked(tmp_path), "{name}.png")


# Images ---------------------------------------------------------------------------------------------------------------


def test_bands_find_their_place_and_no_data_is_not_valid(tmp_path):
    values = np.stack([np.full((2, 3), 10 + i) for i in range(5)]).astype(np.uint16)
    values[1, 0, 0] = 0
    transform = Affine(0.5, 0, 10.0, 0, -0.5, 50.0)
    tif(tmp_path / "1.tif", values, crs="EPSG:4326", transform=transform)
    raster = Raster("ms4", ("{id}.tif",), 4.0, bands=("nir", "red", "green", "blue", "haze"))
    image, place = raster.read(tmp_path, {"id": "1"})
    assert sensors.get("ms4").band_names == ("blue", "green", "red", "nir")
    assert image.pixels[0, 1, 1].tolist() == [13, 12, 11, 10]
    assert image.valid.tolist() == [[[False, True, True], [True, True, True]]]
    assert place(2, 1) == pytest.approx((49.0, 10.5))
    assert raster.size(tmp_path, {"id": "1"}) == (2, 3)


def test_values_are_stored_as_the_sensor_table_says(tmp_path):
    def stored(sensor, values, **options):
        tif(tmp_path / "1.tif", values)
        image = Raster(sensor, ("1.tif",), 1.0, **options).read(tmp_path, {})[0]
        return image.pixels[0, 0].tolist(), image.valid[0, 0].tolist()

    reflectance = np.broadcast_to(np.array([0.12344, np.nan, -0.1], np.float32), (4, 1, 3))
    pixels, valid = stored("ms4", reflectance, gain=1e4)
    assert [row[0] for row in pixels] == [1234, 0, 0]
    assert valid == [True, False, False]
    signed = np.broadcast_to(np.array([-10000, 0, 4], np.int16), (4, 1, 3))
    assert stored("ms4", signed) == ([[0] * 4, [0] * 4, [4] * 4], [False, False, True])
    assert "from 0 to 300" in message(stored, "rgb", np.broadcast_to(np.array([0, 300], np.uint16), (3, 1, 2)))
    assert "has 2 bands, wanted 3: red, green, blue" in message(stored, "rgb", np.zeros((2, 1, 1), np.uint8))


def test_one_file_a_band_at_its_own_resolution(tmp_path):
    for i, (band, side) in enumerate((("blue", 4), ("green", 4), ("red", 2), ("nir", 1))):
        tif(tmp_path / f"x/{band}.tif", np.full((1, side, side), i + 1, np.uint16))
    image, _ = Raster("ms4", ("{id}/{band}.tif",), 1.0).read(tmp_path, {"id": "x"})
    assert image.pixels.shape == (1, 4, 4, 4)
    assert (image.pixels == [1, 2, 3, 4]).all()
    (tmp_path / "x/nir.tif").unlink()
    assert "nir.tif cannot be read" in message(Raster("ms4", ("{id}/{band}.tif",), 1.0).read, tmp_path, {"id": "x"})


def test_dates_of_one_place_have_one_size(tmp_path):
    for name, side in (("a", 2), ("b", 3)):
        tif(tmp_path / f"{name}.tif", np.zeros((3, side, side), np.uint8))
    pair = Raster("rgb", ("a.tif", "b.tif"), 1.0)
    assert "dates have 2 x 2 px and 3 x 3 px: wanted one size" in message(pair.read, tmp_path, {})


# Masks ----------------------------------------------------------------------------------------------------------------


def test_masks_by_number_colour_and_layer(tmp_path):
    def read(code, values, classes=2):
        tif(tmp_path / "mask.tif", values)
        return Mask("mask.tif", code).read(tmp_path, {}, classes).tolist()

    numbers = np.array([[[10, 20, 0]]], np.uint8)
    assert read(Values((10, 20), void=(0,)), numbers) == [[0, 1, UNLABELLED]]
    assert "mask.tif holds 0 at row 0, column 2: wanted one of the classes 10, 20" in message(
        read, Values((10, 20)), numbers
    )
    assert read(Values((0, 255), lossy=True), np.array([[[3, 120, 130, 250]]], np.uint8)) == [[0, 0, 1, 1]]
    red_and_black = np.array([[[255, 0, 0]], [[0, 0, 0]], [[0, 0, 1]]], np.uint8)
    code = Colours(((255, 0, 0), (0, 0, 1)), void=((0, 0, 0),))
    assert read(code, red_and_black) == [[0, UNLABELLED, 1]]
    assert "holds (0, 0, 1) at row 0, column 2" in message(read, Colours(((255, 0, 0), (0, 0, 0))), red_and_black)
    assert "wanted uint8[H, W, 3] colours" in message(read, code, numbers)
    layers = np.eye(4, dtype=np.uint8)[:3, None] * np.uint8(255)  # pixels of the first, second, third and no layer
    assert read(Layers(3), layers) == [[0, 1, UNLABELLED, UNLABELLED]]
    assert "has 3 layers, wanted 7" in message(read, Layers(7), layers)
