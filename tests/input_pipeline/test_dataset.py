"""A data set that is not what the sensor table says is refused, in one line that names both."""

import json
import shutil

import pytest

from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax.errors import ConfigError, DataError
from tests.helpers import tiny_data


@pytest.fixture
def edited(tiny, tmp_path):
    """Returns a function that copies `tiny` with changes in its metadata of rgb."""

    def edit(**changes):
        copy = shutil.copytree(tiny, tmp_path / "edited")
        path = copy / "metadata.json"
        values = json.loads(path.read_text())
        values["sensors"]["rgb"] |= changes
        path.write_text(json.dumps(values))
        (copy / "checksums.json").unlink()  # as of a version before checksums
        return copy

    return edit


def refused(directory, *arguments):
    with pytest.raises((DataError, ConfigError)) as error:
        open_dataset(directory, *arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_empty_and_foreign_folders(tmp_path):
    assert "does not exist: give the folder of a data set" in refused(tmp_path / "nowhere", ["rgb"])
    (tmp_path / "empty").mkdir()
    assert "is empty, but no dataset_info.json" in refused(tmp_path / "empty", ["rgb"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cat.png").touch()
    assert "holds cat.png, but no dataset_info.json" in refused(tmp_path / "other", ["rgb"])


def test_missing_sensor_split_and_band(tiny):
    assert 'has no sensor "s1_grd": (known: rgb)' in refused(tiny, ["s1_grd"])
    assert 'unknown sensor "rgbb": did you mean "rgb"' in refused(tiny, ["rgbb"])
    assert 'has no band "gren": did you mean "green"' in refused(tiny, ["rgb"], {"rgb": ["gren"]})
    with pytest.raises(DataError, match='no split "vlidation": did you mean "validation"'):
        open_dataset(tiny, ["rgb"]).size("vlidation")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("unit", "radiance", "unit = 'radiance', the sensor table says 'relative radiance"),
        ("scale", 1.0, "scale = 1.0, the sensor table says 0.0039"),
        ("offset", -0.1, "offset = -0.1, the sensor table says 0.0"),
        ("dtype", "uint16", "dtype = 'uint16', the sensor table says 'uint8'"),
        ("no_data", 0.0, "no_data = 0.0, the sensor table says None"),
        ("resampling", "decibel", "resampling = 'decibel', the sensor table says 'linear'"),
        ("bands", ["red", "green", "azure"], 'has no band "blue"'),
        ("std", [1e30] * 3, "std 1e+30 in red: implausible"),
        ("mean", [0.5, -7e20, 0.5], "mean -7e+20, std"),
        ("shape", [0, 8, 8], "has shape [0, 8, 8]"),
        ("band", [], 'rgb.band does not exist: did you mean "bands"'),
    ],
)
def test_metadata_that_differ_from_the_table(edited, field, value, message):
    assert message in refused(edited(**{field: value}), ["rgb"])


def test_bands_may_be_stored_in_another_order_or_by_alias(edited):
    dataset = open_dataset(edited(bands=["blue", "red", "green"]), ["rgb"])
    assert dataset.channels["rgb"] == (1, 2, 0)


def test_newer_schema(tiny, tmp_path):
    copy = shutil.copytree(tiny, tmp_path / "copy")
    path = copy / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))
    assert "metadata.json is not what was written (its checksum differs" in refused(copy, ["rgb"])
    (copy / "checksums.json").unlink()
    assert "has schema version 99, this program reads 1" in refused(copy, ["rgb"])


def test_statistics_need_a_training_split(edited):
    dataset = open_dataset(edited(mean=None, std=None), ["rgb"])
    with pytest.raises(DataError, match='statistics = "table"'):
        dataset.statistics("rgb")


def test_a_band_without_spread_is_no_statistics(edited):
    with pytest.raises(DataError, match=r'has a band of std 1e-30, .* set statistics = "table"'):
        open_dataset(edited(std=[0.2, 1e-30, 0.2]), ["rgb"]).statistics("rgb")


def test_a_map_lies_on_its_own_sensor_or_on_one_of_the_same_grid(tmp_path):
    """The tests write maps of 8 columns on the grid of the first sensor; slc_single has twice as many."""
    folder = tiny_data.write(tmp_path / "three", "rgb", "s1_grd", "slc_single")
    shown = [("rgb", "s1_grd"), ("s1_grd", "rgb"), ("s1_grd",), ("slc_single", "s1_grd"), ("slc_single",)]
    assert [open_dataset(folder, s).carrier("map") for s in shown] == ["rgb", "rgb", "s1_grd", "s1_grd", ""]
    assert open_dataset(folder, ["rgb"]).carrier("kind") == ""  # of whole images


@pytest.mark.parametrize("reader", ["tf", "device"])
def test_a_map_is_as_fine_as_the_sensor_that_carries_it(reader, tmp_path):
    folder = tiny_data.write(tmp_path / "two", "rgb", "s1_grd")

    def columns(*sensors):
        of = dict(split="validation", image_size=4, sizes={"s1_grd": 8}, batch_size=1, reader=reader)
        return next(iter(EvalBatches(folder, sensors, **of)))["labels"]["map"][0, 0].tolist()

    assert columns("s1_grd") == [*range(8)]
    assert len(columns("rgb", "s1_grd")) == 4
