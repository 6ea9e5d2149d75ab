"""What is written is what was given: round trip, statistics, and no half-written data set."""

import dataclasses

import numpy as np
import pytest
import tensorflow_datasets as tfds

from input_pipeline.builder import write_dataset
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from input_pipeline.schema import Image, Metadata, Sample, SensorInfo, to_example
from ringmoe_jax import sensors
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError
from tests.helpers.tiny_data import metadata, names, samples, write


def test_tfds_and_our_reader_return_the_stored_bits(pair):
    meta = metadata("s2_12", "s1_grd", "slc_dual")
    given = {s.id: s for s in samples(12, meta)}
    builder = tfds.builder_from_directory(str(pair))
    assert builder.info.splits["train"].num_examples == 12
    for example in builder.as_dataset(split="train").as_numpy_iterator():
        for name, image in given[example["id"].decode()].images.items():
            np.testing.assert_array_equal(example["sensors"][name]["pixels"], image.pixels)

    (batch,) = EvalBatches(pair, ["s2_12", "s1_grd"], split="train", image_size=8, batch_size=12)
    for row in range(12):
        number = int(batch["sensors"]["s2_12"]["location"][row, 0])
        images = given[f"s{number}"].images
        reflectance = images["s2_12"].pixels.astype(np.float32) * np.float32(1e-4)
        np.testing.assert_array_equal(batch["sensors"]["s2_12"]["pixels"][row], reflectance)
        np.testing.assert_array_equal(batch["sensors"]["s1_grd"]["pixels"][row], images["s1_grd"].pixels)
        assert batch["sensors"]["s1_grd"]["time"][row, 0] == 17000 + number
        assert batch["labels"]["kind"][row] == number % 2
        assert batch["sensors"]["s2_12"]["location"][row, 1] == -number


def test_order_of_samples_and_metadata_survive(tiny):
    dataset = open_dataset(tiny, ["rgb"])
    assert dataset.size("train") == 12
    assert dataset.counts["train"] == (3, 3, 3, 3)
    stored = dataclasses.replace(dataset.metadata.sensors["rgb"], mean=None, std=None, pixels=0)
    assert stored == metadata("rgb").sensors["rgb"]
    assert tfds.builder_from_directory(str(tiny)).info.metadata["licence"] == "none"


def ramp_dataset(directory, values, valid, name="dem", **changes):
    """One training sample of one pixel row."""
    info = SensorInfo.of(sensors.get(name), (1, 1, len(values)), 1.0)
    pixels = np.asarray(values, info.dtype).reshape(1, 1, len(values), len(info.bands))
    meta = Metadata("ramp", {name: dataclasses.replace(info, **changes)}, "", "", "")
    image = Image(pixels, np.asarray(valid, bool).reshape(1, 1, -1))
    return write_dataset(directory, {"train": [Sample("a", {name: image})]}, meta).sensors[name]


def test_statistics_by_hand(tmp_path):
    # valid: 1, 3, 8 -> mean 4, variance (9 + 1 + 16) / 3; no-data, NaN, infinity and invalid pixels do not count
    info = ramp_dataset(tmp_path / "d", [1, 3, 8, -9999, np.nan, np.inf, 1e6], [1, 1, 1, 1, 1, 1, 0])
    assert info.pixels == 3
    np.testing.assert_allclose(info.mean, [4.0])
    np.testing.assert_allclose(info.std, [np.sqrt(26 / 3)])


def test_statistics_are_in_the_physical_unit_and_of_training_only(tmp_path):
    meta = metadata("s2_12", size=2, labels=False)
    ones = {"s2_12": Image(np.full((1, 2, 2, 12), 1000, np.uint16))}
    threes = {"s2_12": Image(np.full((1, 2, 2, 12), 3000, np.uint16))}
    far = {"s2_12": Image(np.full((1, 2, 2, 12), 60000, np.uint16))}
    splits = {"train": [Sample("a", ones), Sample("b", threes)], "validation": [Sample("c", far)]}
    info = write_dataset(tmp_path / "d", splits, meta).sensors["s2_12"]
    np.testing.assert_allclose(info.mean, [0.2] * 12)
    np.testing.assert_allclose(info.std, [0.1] * 12)


def test_complex_statistics_are_one_scale_around_zero(tmp_path):
    # re: 3, 1; im: 4, 2 -> mean square over all channels (9 + 1 + 16 + 4) / 4
    info = ramp_dataset(tmp_path / "d", [[3, 4], [1, 2]], [1, 1], name="slc_single")
    assert info.mean == (0.0, 0.0)
    np.testing.assert_allclose(info.std, [np.sqrt(7.5)] * 2)


def test_statistics_do_not_cancel(tmp_path):
    info = ramp_dataset(tmp_path / "d", [8_000_000, 8_000_001], [1, 1])  # exact in float32, squares are not
    np.testing.assert_allclose(info.std, [0.5])


def test_absent_sensor_and_short_series_are_filled_up(tmp_path):
    meta = Metadata(
        "m", {n: SensorInfo.of(sensors.get(n), (2, 2, 2), 1.0) for n in ("dem", "s1_grd")}, "", "", "", {}, ""
    )
    image = Image(np.ones((1, 2, 2, 1), np.float32), time=np.array([5]))
    write_dataset(tmp_path / "d", {"train": [Sample("a", {"dem": image})]}, meta)
    (batch,) = EvalBatches(tmp_path / "d", ["dem", "s1_grd"], split="train", image_size=2, batch_size=1)
    dem, s1 = batch["sensors"]["dem"], batch["sensors"]["s1_grd"]
    assert dem["valid"][0].all(axis=(1, 2)).tolist() == [True, False]
    assert dem["time"][0].tolist() == [5, NO_TIME]
    assert not s1["valid"].any()
    assert not s1["pixels"].any()
    assert np.isnan(s1["location"]).all()


def test_failed_write_leaves_nothing_and_keeps_what_was_there(tmp_path):
    meta = metadata("rgb")

    def failing():
        yield from samples(5, meta)
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="disk is full"):
        write_dataset(tmp_path / "new", {"train": failing()}, meta)
    assert names(tmp_path) == []

    write(tmp_path / "old", "rgb", train=3)
    with pytest.raises(RuntimeError, match="disk is full"):
        write_dataset(tmp_path / "old", {"train": failing()}, meta, overwrite=True)
    assert open_dataset(tmp_path / "old", ["rgb"]).size("train") == 3
    assert names(tmp_path) == ["old"]


def test_overwriting_has_to_be_asked_for(tmp_path):
    write(tmp_path / "d", "rgb", train=3)
    with pytest.raises(DataError, match=r"is not empty.*overwrite"):
        write(tmp_path / "d", "rgb")
    write(tmp_path / "d", "rgb", train=4, overwrite=True)
    assert open_dataset(tmp_path / "d", ["rgb"]).size("train") == 4
    assert names(tmp_path) == ["d"]


def test_writing_streams(tmp_path):
    """Each sample is written before the next one is made."""
    meta, alive = metadata("rgb"), []

    def one_at_a_time():
        for sample in samples(20, meta):
            assert len(alive) <= 1
            alive.append(sample.id)
            yield sample
            alive.remove(sample.id)

    write_dataset(tmp_path / "d", {"train": one_at_a_time()}, meta, shards=3)
    assert open_dataset(tmp_path / "d", ["rgb"]).counts["train"] == (7, 7, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {"rbg": None}}, 'sensor "rbg" is not in the metadata: did you mean "rgb"'),
        (
            {"images": {"rgb": Image(np.zeros((1, 8, 8, 4), np.uint8))}},
            r"uint8\(1, 8, 8, 4\), wanted uint8.*red, green",
        ),
        ({"images": {"rgb": Image(np.zeros((1, 8, 8, 3), np.int16))}}, "int16.*wanted uint8"),
        ({"labels": {"kind": 0}}, "label map is missing"),
        ({"labels": {"kind": 2, "map": np.zeros((8, 8))}}, 'label "kind" holds 2 to 2, wanted -1 to 1'),
        ({"id": "s0"}, '"s0" appears twice'),
    ],
)
def test_wrong_samples_are_named(tmp_path, change, message):
    meta = metadata("rgb")
    first, second = samples(2, meta)
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "d", {"train": [first, dataclasses.replace(second, **change)]}, meta)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ((-90.5, 100), 'sample "a" of "m" has latitude -90.5, wanted -90 to 90: give degrees'),
        ((139.7, 35.6), r"latitude 139.7, .*are latitude and longitude \(35.6\) swapped"),
        ((10, 190.5), "longitude 190.5, wanted -180 to 180: .*subtract 360, -169.5"),
        ((10, -181), "longitude -181, wanted -180 to 180: give degrees"),
        ((np.inf, 10), "latitude inf"),
        ((5e5, 10), "latitude 500000, wanted -90 to 90: give degrees"),
    ],
)
def test_places_that_are_not_on_earth_are_named(place, message):
    with pytest.raises(DataError, match=message):
        to_example(Sample("a", {}, *place), Metadata("m", {}, "", "", ""))


@pytest.mark.parametrize("place", [(-90, 180), (90, -180), (np.nan, np.nan), (np.nan, 5)])
def test_places_on_earth_are_taken(place):
    example = to_example(Sample("a", {}, *place), Metadata("m", {}, "", "", ""))
    np.testing.assert_array_equal([example["latitude"], example["longitude"]], np.float32(place))


def series(times):
    """The stored times of a series with these times, in a data set with T = 5."""
    meta = Metadata("m", {"dem": SensorInfo.of(sensors.get("dem"), (5, 1, 1), 1.0)}, "", "", "")
    image = Image(np.ones((len(times), 1, 1, 1), np.float32), time=np.asarray(times))
    return to_example(Sample("a", {"dem": image}), meta)["sensors"]["dem"]["time"].tolist()


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (np.zeros(0, int), r'"a" of "m": sensor "dem" has no date \(T = 0\): leave the sensor out'),
        ([18000, 18300, 18262], "has 2020-02-08 at position 1 before 2020-01-01: sort its dates"),
        ([NO_TIME, 18262], "has no time at position 0, but one at 1: sort dates of unknown time last"),
        ([18262, NO_TIME, 18300], "has no time at position 1, but one at 2"),
        ([18262, 20200115], r"time 20200115 at position 1, .*looks like yyyymmdd, 2020-01-15 is day 18276"),
        ([1579046400], "time 1579046400 .*looks like seconds since 1970-01-01, 2020-01-15 is day 18276"),
        ([1579046400000], "looks like milliseconds since 1970-01-01, 2020-01-15 is day 18276"),
        ([-4473], r"-4472 \(1957-10-04\) to 47482 \(2100-01-01\): it would be 1957-10-03"),
        ([47483], "it would be 2100-01-02"),
        ([18262.5], r"times float64\[1\], wanted \[1\] whole days since 1970-01-01"),
    ],
)
def test_impossible_times_are_named(times, message):
    with pytest.raises(DataError, match=message):
        series(times)


@pytest.mark.parametrize(
    "times",
    [[-4472, 0, 47482], [18262, 18262, 18263], [18262, NO_TIME, NO_TIME], [NO_TIME] * 5, np.uint16([18262, 18300])],
)
def test_possible_times_are_stored(times):
    assert series(times) == [*map(int, times), *[NO_TIME] * (5 - len(times))]


def test_empty_split_is_named(tmp_path):
    with pytest.raises(DataError, match='split "train" has no sample'):
        write_dataset(tmp_path / "d", {"train": []}, metadata("rgb"))
