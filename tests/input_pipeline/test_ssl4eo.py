"""SSL4EO-S12: grids, bands, dates, offset, tiles and splits of files in the distributed layout."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from experiments import prepare as command
from input_pipeline import ssl4eo
from input_pipeline.dataset import open_dataset
from ringmoe_jax import sensors
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError
from tests.helpers.ssl4eo import S1, tif, write_s1, write_s2

REAL = Path(__file__).resolve().parents[3] / "shared/data/multimodal/ssl4eo_s12_0000200"


def day(text):
    return int(np.datetime64(text).astype(int))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two places: 0000200 with all, 0000201 without Sentinel-1 and with one L2A date."""
    root = tmp_path_factory.mktemp("ssl4eo")
    write_s1(root / "s1" / "0000200", "20201203", -5)
    write_s1(root / "s1" / "0000200", "20200607", -10)
    write_s2(root / "s2a" / "0000200", "20220813", "s2_12", 3000, "04.00")
    write_s2(root / "s2a" / "0000200", "20200604", "s2_12", 2000)
    write_s2(root / "s2c" / "0000200", "20200823", "s2_13", 4000)
    write_s2(root / "s2a" / "0000201", "20210101", "s2_12", 5000, baseline=None)
    return root


def stored(folder, split="train"):
    import tensorflow_datasets as tfds

    examples = tfds.builder_from_directory(str(folder)).as_dataset(split=split).as_numpy_iterator()
    return {example["id"].decode(): example for example in examples}


def test_tiles_series_and_bands(tree, tmp_path):
    meta = ssl4eo.prepare(tree, tmp_path / "out", sensors=["s1_grd", "s2_12", "s2_13"], tile=120, stride=144)
    assert {n: i.shape for n, i in meta.sensors.items()} == {
        "s1_grd": (2, 120, 120),
        "s2_12": (2, 120, 120),
        "s2_13": (1, 120, 120),
    }
    examples = stored(tmp_path / "out")
    assert sorted(examples) == [f"000020{p}/{left}/{top}" for p in (0, 1) for left in (0, 144) for top in (0, 144)]
    example = examples["0000200/0/144"]  # left 0, top 144
    s1, s2, l1c = (example["sensors"][n] for n in ("s1_grd", "s2_12", "s2_13"))
    assert s1["time"].tolist() == [day("2020-06-07"), day("2020-12-03")]  # sorted, unlike the folders' names
    np.testing.assert_allclose(
        s1["pixels"][:, 0, 5], [[-10 + 0.005, -17 + 0.005], [-5 + 0.005, -12 + 0.005]], rtol=1e-6
    )
    assert s1["valid"].all()
    assert np.argwhere(~examples["0000200/0/0"]["sensors"]["s1_grd"]["valid"]).tolist() == [[0, 0, 0], [1, 0, 0]]

    assert s2["time"].tolist() == [day("2020-06-04"), day("2022-08-13")]
    for i, band in enumerate(sensors.get("s2_12").bands):
        rows = (144 + np.arange(120)) // round(band.gsd / 10)
        assert s2["pixels"][0, :, 7, i].tolist() == (2000 + 100 * i + rows).tolist()
        assert s2["pixels"][1, :, 7, i].tolist() == (2000 + 100 * i + rows).tolist()  # 3000 less the offset
    assert l1c["pixels"][0, 0, 0].tolist() == [
        4000 + 100 * i + 144 // round(band.gsd / 10) for i, band in enumerate(sensors.get("s2_13").bands)
    ]
    np.testing.assert_allclose(example["latitude"], 30.5 - 0.0001 * (144 + 60), atol=1e-5)
    np.testing.assert_allclose(example["longitude"], 73.0 + 0.0001 * 60, atol=1e-5)


def test_short_series_and_absent_sensors(tree, tmp_path):
    ssl4eo.prepare(tree, tmp_path / "out", tile=264)
    example = stored(tmp_path / "out")["0000201/0/0"]
    assert not example["sensors"]["s1_grd"]["valid"].any()
    assert example["sensors"]["s2_12"]["time"].tolist() == [day("2021-01-01"), NO_TIME]


def test_max_frames_and_the_command(tree, tmp_path, capsys):
    arguments = ["--source", str(tree), "--dataset", "ssl4eo_s12", "--tile", "88", "--max-frames", "1"]
    assert command.main.__wrapped__([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "s2_12 (1 x 88 x 88)" in capsys.readouterr().out
    assert open_dataset(tmp_path / "out", ["s1_grd"]).size("train") == 18


def test_places_are_split_as_wholes(tmp_path):
    for place in range(5):
        write_s1(tmp_path / "in" / "s1" / f"{place:07d}", "20200607", -10)
    ssl4eo.prepare(tmp_path / "in", tmp_path / "out", tile=132)
    places = {
        split: {name.split("/")[0] for name in stored(tmp_path / "out", split)} for split in ("train", "validation")
    }
    assert {split: len(names) for split, names in places.items()} == {"train": 4, "validation": 1}
    assert not places["train"] & places["validation"]


def test_errors_say_what_to_change(tmp_path):
    root = tmp_path / "in"
    root.mkdir()

    def refused(**options):
        with pytest.raises(DataError) as error:
            ssl4eo.prepare(root, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "neither a folder s1 nor s2a" in refused()
    assert "tile = 265" in refused(tile=265)
    assert 'sensor "s2_10" is not in SSL4EO-S12' in refused(sensors=["s2_10"])
    write_s1(root / "s1" / "1", "20200607", -10)
    assert "no folder s2a or s2_l2a: wanted the products of s2_12" in refused(sensors=["s2_12"])
    product = root / "s1" / "1" / S1.format("20200607")
    tif(product / "VH.tif", np.ones((132, 132), np.float32))
    assert "VH.tif holds float32[132, 132], wanted float32[264, 264]" in refused()
    (product / "VH.tif").unlink()
    assert "wanted band VH of s1_grd" in refused()
    write_s1(root / "s1" / "1", "20200607", -10)
    (root / "s1" / "1" / "backup").mkdir()
    assert '"backup" holds no date' in refused()
    (root / "s1" / "1" / "backup").rmdir()
    write_s2(root / "s2a" / "1", "20220813", "s2_12", 3000, baseline=None)
    assert "has no metadata.json: wanted its PROCESSING_BASELINE" in refused()
    write_s2(root / "s2a" / "1", "20220813", "s2_12", 3000, baseline="new")
    assert "PROCESSING_BASELINE is missing or no number" in refused()


@pytest.mark.skipif(not REAL.exists(), reason="the shared folder of real test data is not on this machine")
def test_the_real_place(tmp_path):
    meta = ssl4eo.prepare(REAL, tmp_path / "out", sensors=list(ssl4eo.FOLDERS), tile=132)
    examples = stored(tmp_path / "out")
    assert len(examples) == 4
    example = examples["0000200/132/0"]
    dates = {"s1_grd": "2020-06-07 2020-09-03", "s2_12": "2020-06-04 2020-08-13", "s2_13": "2020-06-04 2020-08-23"}
    for name, wanted in dates.items():
        assert example["sensors"][name]["time"].tolist() == [day(date) for date in wanted.split()]
    np.testing.assert_allclose([example["latitude"], example["longitude"]], [30.46, 73.31], atol=0.015)

    def band(path):
        with rasterio.open(REAL / path) as file:
            return file.read(1)

    (second,) = (REAL / "s1/0000200").glob("*_20200903T*")
    vh = band(second.relative_to(REAL) / "VH.tif")
    np.testing.assert_array_equal(example["sensors"]["s1_grd"]["pixels"][1, ..., 1], vh[:132, 132:])
    assert -25 < meta.sensors["s1_grd"].mean[1] < meta.sensors["s1_grd"].mean[0] < -5  # dB
    product = "s2a/0000200/20200813T054639_20200813T054952_T43RCP"
    for name, factor in (("B8", 1), ("B8A", 2), ("B9", 6)):
        wanted = np.kron(band(f"{product}/{name}.tif"), np.ones((factor, factor), int))[:132, 132:]
        index = sensors.get("s2_12").band_index({"B8": "B08", "B9": "B09"}.get(name, name))
        np.testing.assert_array_equal(example["sensors"]["s2_12"]["pixels"][1, ..., index], wanted)
    assert all(e["sensors"][n]["valid"].all() for e in examples.values() for n in dates)
