"""Scenes by strips and windows: the values that `prepare` stores, no-data, bands, grids, and errors in one line."""

import numpy as np
import pytest
import rasterio
from affine import Affine

from input_pipeline import folder
from ringmoe_jax import geo, sensors
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.deploy.scenes import Scene, Stack, mirrored
from ringmoe_jax.errors import DataError
from tests.helpers.rasters import tif

S2 = sensors.get("s2_12")


def digital_numbers(height=16, width=16, channels=12, seed=0):
    return np.random.default_rng(seed).integers(1, 9000, (height, width, channels), dtype=np.uint16)


def test_borders_are_mirrored():
    assert mirrored(-3, 9, 3).tolist() == [2, 1, 0, 0, 1, 2, 2, 1, 0]
    assert mirrored(-2, 4, 1).tolist() == [0, 0, 0, 0]


def test_values_and_no_data_are_those_of_a_prepared_data_set(tmp_path):
    """Bit for bit, by the whole way through records and tf.data: scale, no-data value, file's no-data, mask, place."""
    from input_pipeline.evaluation import EvalBatches

    numbers = digital_numbers()
    numbers[2, 3, 5] = 0  # the sensor's
    numbers[7] = 65535  # the file's
    decibels = np.random.default_rng(1).normal(-12, 5, (16, 16, 2)).astype(np.float32)
    decibels[4, 4, 1] = np.nan
    names = [band.name for band in S2.bands][::-1]
    for i in range(2):
        tif(tmp_path / "in" / "s2_12" / f"p{i}.tif", numbers[..., ::-1], names=names, nodata=65535)
        tif(tmp_path / "in" / "s1_grd" / f"p{i}.tif", decibels)
    folder.prepare(tmp_path / "in", tmp_path / "out", sensors=["s2_12", "s1_grd"], tile=16)
    known = ("s2_12", "s1_grd")
    batches = EvalBatches(tmp_path / "out", known, split="train", image_size=16, batch_size=1)
    prepared = next(iter(batches))["sensors"]
    with Stack({n: [tmp_path / "in" / n / "p0.tif"] for n in known}, {n: sensors.get(n) for n in known}) as stack:
        read = stack.strip(0, 16).batch([(0, 0)], 16, 1)["sensors"]
    for name in known:
        assert not read[name]["valid"].all()
        for key in ("pixels", "valid", "time"):
            np.testing.assert_array_equal(read[name][key], prepared[name][key], err_msg=f"{name} {key}")
        for key in ("location", "gsd"):
            np.testing.assert_allclose(read[name][key], prepared[name][key], rtol=1e-6, atol=1e-5)


def test_windows_are_parts_of_the_scene(tmp_path):
    numbers = digital_numbers(20, 30)
    numbers[:6, :9] = 0
    tif(tmp_path / "s.tif", numbers, pixel=20.0)
    with Stack({"s2_12": [tmp_path / "s.tif"]}, {"s2_12": S2}) as stack:
        strip = stack.strip(-2, 8)
        batch = strip.batch([(-2, -3), (-2, 10), (-2, 25)], 8, 4)["sensors"]["s2_12"]
        rows = mirrored(-2, 8, 20)
        for i, first in enumerate((-3, 10, 25)):
            want = numbers[rows][:, mirrored(first, 8, 30)]
            np.testing.assert_allclose(batch["pixels"][i, 0], want * np.float32(1e-4), rtol=1e-6)
        assert not batch["valid"][0, 0, :, :8].all()
        assert not batch["valid"][3].any()
        assert not batch["pixels"][3].any()
        assert [strip.seen(-2, first, 8) for first in (-3, 0, 2)] == [False, False, True]
        place = geo.latitude_longitude("EPSG:32633", Affine(20, 0, 500_000, 0, -20, 5_000_000), 2, 14)
        np.testing.assert_allclose(batch["location"][1], place, atol=1e-5)
        np.testing.assert_allclose(batch["gsd"], [20] * 4)


class Watched:
    """An open file that notes what is asked of it, and from which row on."""

    def __init__(self, file, asked):
        self._file, self._asked = file, asked

    def __getattr__(self, name):
        return getattr(self._file, name)

    def read(self, indexes, window):
        self._asked.append(("pixels", window.row_off))
        return self._file.read(indexes, window=window)

    def read_masks(self, index, window):
        self._asked.append(("mask", window.row_off))
        return self._file.read_masks(index, window=window)


@pytest.mark.parametrize("masked", [False, True])
def test_strips_that_follow_each_other_are_decoded_once(masked, tmp_path):
    """Blocks of 16 rows, strips of 12 rows every 5: blocks are asked for once, and strips are what they are alone."""
    numbers = digital_numbers(70, 40)
    numbers[20:33, 7:15] = 0
    tif(tmp_path / "s.tif", numbers, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    if masked:
        with rasterio.open(tmp_path / "s.tif", "r+") as file:
            file.write_mask(np.arange(70 * 40).reshape(70, 40) % 7 > 0)
    asked = []
    with Stack({"s2_12": [tmp_path / "s.tif"]}, {"s2_12": S2}) as stack:
        decoded = stack.scenes["s2_12"][0]._decoded
        decoded._file = Watched(decoded._file, asked)
        strip = None
        for first in range(-3, 70, 5):
            strip = stack.strip(first, 12, strip)
            with Stack({"s2_12": [tmp_path / "s.tif"]}, {"s2_12": S2}) as other:
                alone = other.strip(first, 12)
            np.testing.assert_array_equal(strip.pixels["s2_12"], alone.pixels["s2_12"])
            np.testing.assert_array_equal(strip.valid["s2_12"], alone.valid["s2_12"])
            if first == 52:  # further ones are mirrored, and so read from below
                inside = list(asked)
    blocks = [0, 16, 32, 48]
    assert [row for kind, row in inside if kind == "pixels"] == blocks
    assert [row for kind, row in inside if kind == "mask"] == (blocks if masked else [])


@pytest.mark.parametrize(("every", "known"), [(True, [1, 0, 0, 0]), (False, [1, 1, 1, 0])])
def test_a_place_is_known_on_one_date_or_on_all(tmp_path, every, known):
    before, after = digital_numbers(1, 4), digital_numbers(1, 4)
    before[0, [1, 3]], after[0, [2, 3]] = 0, 0
    for name, pixels in dict(before=before, after=after).items():
        tif(tmp_path / f"{name}.tif", pixels)
    with Stack({"s2_12": [tmp_path / "before.tif", tmp_path / "after.tif"]}, {"s2_12": S2}) as stack:
        assert stack.strip(0, 1).ground(every).seen.tolist() == [[bool(k) for k in known]]


def test_dates_keep_their_order_and_times_that_contradict_it_are_unknown(tmp_path):
    for date in ("2020:05:06 10:00:00", "2019:05:06 10:00:00"):
        path = tmp_path / f"{date[:4]}.tif"
        tif(path, digital_numbers(2, 2))
        with rasterio.open(path, "r+") as file:
            file.update_tags(TIFFTAG_DATETIME=date)
    for order, days in (("2019", "2020"), [18022, 18388]), (("2020", "2019"), [NO_TIME] * 2):
        with Stack({"s2_12": [tmp_path / f"{year}.tif" for year in order]}, {"s2_12": S2}) as stack:
            assert stack.strip(0, 2).batch([(0, 0)], 2, 1)["sensors"]["s2_12"]["time"].tolist() == [days]
            assert len(stack.scenes["s2_12"][0].notes) == (days[0] == NO_TIME)


def test_a_model_of_some_bands_finds_them(tmp_path):
    some = S2.select(["B8A", "B02"])
    numbers = digital_numbers(4, 4)
    tif(tmp_path / "number.tif", numbers)
    tif(tmp_path / "alias.tif", numbers[..., [1, 8]], names=["blue", "nir08"])
    tif(tmp_path / "own.tif", numbers[..., [8, 1]])
    for path in tmp_path.iterdir():
        with Scene(path, some) as scene:
            np.testing.assert_array_equal(scene.read(0, 4)[0], numbers[..., [8, 1]], err_msg=path.name)


def test_complex_scenes_become_pairs(tmp_path):
    values = (np.arange(8).reshape(2, 2, 2) + 1j).astype(np.complex64)
    tif(tmp_path / "slc.tif", values)
    with Scene(tmp_path / "slc.tif", sensors.get("slc_dual")) as scene:
        assert scene.read(0, 2)[0][1, 0].tolist() == [4, 1, 5, 1]
    with Scene(tmp_path / "slc.tif", sensors.get("slc_dual").select(["VH_re", "VH_im"])) as scene:
        assert scene.read(0, 2)[0][1, 0].tolist() == [5, 1]


def test_what_a_file_declares_otherwise_is_noted(tmp_path):
    tif(tmp_path / "s.tif", digital_numbers(2, 2), nodata=65535)
    with rasterio.open(tmp_path / "s.tif", "r+") as file:
        file.scales = [1e-3] * 12
    with Scene(tmp_path / "s.tif", S2) as scene:
        first, second = scene.notes
    assert 's.tif say unit = 0.001 stored + 0: converted to 0.0001 stored + 0, as "s2_12" has it' in first
    assert 's.tif declare the no-data value 65535, "s2_12" has 0: both are not observed' in second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(channels=4), r'gives 4 channels without names, "s2_12" has 12: B01, .*name the bands'),
        (dict(dtype=np.float32), r'holds float32, "s2_12" is stored as uint16 in units of 0.0001 reflectance: convert'),
        (dict(dtype=np.complex64), r'holds complex64, "s2_12" is stored as uint16'),
        (dict(names=[f"B{i}" for i in range(12)]), r'no band "B8A" of "s2_12": did you mean "B8".*none is B8A, B12'),
        (dict(text="no raster"), r"cannot be read .*wanted a GeoTIFF or another raster"),
    ],
)
def test_files_that_are_not_of_the_sensor(tmp_path, change, message):
    path = tmp_path / "s.tif"
    if "text" in change:
        path.write_text(change["text"])
    else:
        pixels = digital_numbers(4, 4, change.get("channels", 12)).astype(change.get("dtype", np.uint16))
        tif(path, pixels, names=change.get("names", ()))
    with pytest.raises(DataError, match=message) as error:
        Scene(path, S2)
    assert "\n" not in str(error.value)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "s.tif"
    tif(path, digital_numbers(64, 64))
    path.write_bytes(path.read_bytes()[:20_000])
    with Scene(path, S2) as scene, pytest.raises(DataError, match=r"s\.tif cannot be read .* damaged at row \d+"):
        scene.read(0, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(pixel=20.0), r"s1\.tif has the transform .*resample one to the other"),
        (dict(corner=(500_010, 5_000_000)), r"s1\.tif has the transform"),
        (dict(size=5), r"s1\.tif has 5 x 5 pixels, .*s2\.tif 4 x 4"),
        (dict(crs="EPSG:32634"), r"s1\.tif has the CRS EPSG:32634, .*s2\.tif EPSG:32633"),
    ],
)
def test_scenes_on_different_grids(tmp_path, change, message):
    tif(tmp_path / "s2.tif", digital_numbers(4, 4))
    size, crs = change.pop("size", 4), change.pop("crs", None)
    tif(tmp_path / "s1.tif", np.zeros((size, size, 2), np.float32), **change)
    if crs:
        with rasterio.open(tmp_path / "s1.tif", "r+") as file:
            file.crs = crs
    table = {name: sensors.get(name) for name in ("s2_12", "s1_grd")}
    with pytest.raises(DataError, match=message):
        Stack({"s2_12": [tmp_path / "s2.tif"], "s1_grd": [tmp_path / "s1.tif"]}, table)
