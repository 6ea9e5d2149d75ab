"""TreeSatAI-Time-Series: band order, units, dates, splits and labels of files in the distributed layout."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from experiments import prepare as command
from input_pipeline import treesatai
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax import sensors
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.errors import DataError
from tests.helpers.treesatai import ASC, DES, S2, s2_name, write_aerial, write_series

REAL = Path(__file__).resolve().parents[3] / "shared/data/multimodal/treesatai_ts"
NAMES = ("Abies_alba_1_1005_WEFL_NLF", "Tilia_spec._9_99911_WEFL_NLF", "Cleared_0_112_WEFL_NLF")
CARD = "B02,B03,B04,B05,B06,B07,B08,B8A,B11,B12".split(",")  # order of sen-2-data that the data set card gives


def day(text):
    return int(np.datetime64(f"{text[:4]}-{text[4:6]}-{text[6:]}").astype(int))


@pytest.fixture
def tree(tmp_path):
    """The distributed tree with three places, one of each split."""
    root = tmp_path / "TreeSatAI"
    for name, split in zip(NAMES, ("train", "val", "test"), strict=True):
        write_aerial(root / "aerial" / f"{name}.tif")
        write_aerial(root / "sentinel" / "s2" / "60m" / f"{name}.tif", channels=1)
        write_series(root / "sentinel-ts" / f"{name}_2020.h5")
        (root / "split").mkdir(exist_ok=True)
        (root / "split" / f"{split}_filenames.lst").write_text(f"{name}.tif\nFagus_sylvatica_6_2_BI_NLF.tif\n")
    shares = {f"{NAMES[0]}.tif": [["Abies", 0.9], ["Quercus", 0.05]], f"{NAMES[1]}.tif": [["Tilia", 1.0]]}
    (root / "labels").mkdir()
    (root / "labels" / treesatai.LABELS).write_text(json.dumps(shares | {f"{NAMES[2]}.tif": [["Cleared", 1.0]]}))
    return root


def first(folder, split="train", names=("rgbn", "s2_10", "s1_grd")):
    (batch,) = EvalBatches(folder, list(names), split=split, image_size=6, batch_size=1)
    return batch


def stored(folder, split="train"):
    import tensorflow_datasets as tfds

    (example,) = tfds.builder_from_directory(str(folder)).as_dataset(split=split).as_numpy_iterator()
    return example


def test_aerial_bands_centre_and_place(tree):
    pixels, place = treesatai.aerial(tree / "aerial" / f"{NAMES[0]}.tif")
    assert pixels.shape == (1, 300, 300, 4)
    assert np.unique(pixels.reshape(-1, 4), axis=0).tolist() == [[1, 2, 3, 4]]  # red, green, blue, nir; no border
    assert sensors.get("rgbn").band_names == ("red", "green", "blue", "nir")
    assert place == pytest.approx((52.085, 9.959), abs=1e-3)


def test_series_of_a_distributed_tree(tree, tmp_path):
    meta = treesatai.prepare(tree, tmp_path / "out")
    assert {n: i.shape for n, i in meta.sensors.items()} == {
        "rgbn": (1, 300, 300),
        "s2_10": (3, 6, 6),
        "s1_grd": (5, 6, 6),
    }
    assert meta.sensors["rgbn"].gsd == 0.2
    example = stored(tmp_path / "out")
    s2, s1 = example["sensors"]["s2_10"], example["sensors"]["s1_grd"]

    # one date is all cloud and left out; the last one has the offset of baseline 04.00
    assert s2["time"].tolist() == [day(S2[0]), day(S2[1]), day(S2[3])]
    for i, name in enumerate(CARD):
        band = sensors.get("s2_10").band_index(name)
        assert s2["pixels"][0, :, 0, band].tolist() == [1000 * (i + 1) + row for row in range(6)]
        assert s2["pixels"][2, 1, 0, band] == max(1, 1000 * (i + 1) + 1 - 1000)
    assert s2["valid"][0].all()
    assert np.argwhere(~s2["valid"][1]).tolist() == [[0, 0], [0, 1]]

    # passes are merged by date, and powers of ten become dB
    assert s1["time"].tolist() == sorted(map(day, ASC + DES))
    np.testing.assert_allclose(s1["pixels"][:, 3, 3, 0], [-10, -10, -20, -20, -30], atol=1e-4)
    np.testing.assert_allclose(s1["pixels"][..., 1], s1["pixels"][..., 0] - 10, atol=1e-4)
    assert example["sensors"]["rgbn"]["time"].tolist() == [NO_TIME]
    np.testing.assert_allclose([example["latitude"], example["longitude"]], [52.085, 9.959], atol=1e-3)


def test_splits_and_labels_of_a_distributed_tree(tree, tmp_path):
    meta = treesatai.prepare(tree, tmp_path / "out", sensors=["s2_10"])
    assert len(meta.labels["species"].names) == 20
    assert len(meta.labels["genus"].names) == 15
    for split, name, species, genus in zip(
        ("train", "validation", "test"),
        NAMES,
        ("Abies_alba", "Tilia_spec.", "Cleared"),
        ("Abies", "Tilia", "Cleared"),
        strict=True,
    ):
        example = stored(tmp_path / "out", split)
        assert example["id"].decode() == name
        assert meta.labels["species"].names[example["labels"]["species"]] == species
        assert meta.labels["genus"].names[example["labels"]["genus"]] == genus
        assert np.flatnonzero(example["labels"]["genera"]).tolist() == [treesatai.GENERA.index(genus)]
    share = stored(tmp_path / "out")["labels"]["genus_share"]
    assert share[treesatai.GENERA.index("Quercus")] == np.float32(0.05)  # too little to be present, but stored


def test_one_pass_and_thinning(tree, tmp_path):
    treesatai.prepare(tree, tmp_path / "des", orbit="des", sensors=["s1_grd"])
    assert stored(tmp_path / "des")["sensors"]["s1_grd"]["time"].tolist() == [day(d) for d in DES]
    meta = treesatai.prepare(tree, tmp_path / "thin", max_frames=3)
    assert meta.sensors["s1_grd"].shape == (3, 6, 6)
    dates = sorted(map(day, ASC + DES))
    assert stored(tmp_path / "thin")["sensors"]["s1_grd"]["time"].tolist() == dates[::2]  # 1st, 3rd and 5th
    meta = treesatai.prepare(tree, tmp_path / "long", max_frames=100, sensors=["s1_grd"])
    assert meta.sensors["s1_grd"].shape == (5, 6, 6)


def test_missing_radar_pixels_dates_and_sensors(tree, tmp_path):
    power = np.full((2, 2, 6, 6), 0.1, np.float32)
    power[0, 1, 2, 3], power[0, 0, 4, 4], power[1] = 1.6e-12, np.nan, np.nan
    write_series(tree / "sentinel-ts" / f"{NAMES[0]}_2020.h5", **{"sen-1-des-data": power})
    nothing = np.full((4, 10, 6, 6), 100, np.float32)
    write_series(tree / "sentinel-ts" / f"{NAMES[1]}_2020.h5", **{"sen-2-masks": nothing})
    treesatai.prepare(tree, tmp_path / "out", orbit="des")
    s1 = stored(tmp_path / "out")["sensors"]["s1_grd"]
    assert s1["time"].tolist() == [day(DES[0]), NO_TIME]
    assert np.argwhere(~s1["valid"][0]).tolist() == [[2, 3], [4, 4]]
    assert s1["pixels"][0, 2, 3].tolist() == [-10, 0]
    assert not stored(tmp_path / "out", "validation")["sensors"]["s2_10"]["valid"].any()


def test_a_flat_folder_is_split_by_hash(tmp_path):
    for i in range(10):
        write_aerial(tmp_path / "in" / f"Pinus_nigra_1_{i}_BI_NLF.tif")
        write_series(tmp_path / "in" / f"Pinus_nigra_1_{i}_BI_NLF.h5")
    meta = treesatai.prepare(tmp_path / "in", tmp_path / "out", max_frames=2)
    dataset = open_dataset(tmp_path / "out", ["s2_10"])
    assert (dataset.size("train"), dataset.size("validation")) == (8, 2)
    assert set(meta.labels) == {"species", "genus"}


def test_the_command_reads_the_layout(tree, tmp_path, capsys):
    arguments = [
        "--source",
        str(tree),
        "--dataset",
        "treesatai_ts",
        "--max-frames",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    assert command.main.__wrapped__(arguments) == 0
    assert "s1_grd (2 x 6 x 6)" in capsys.readouterr().out
    s2 = first(tmp_path / "out")["sensors"]["s2_10"]
    assert s2["pixels"][0, 0, 0, 0, 0] == np.float32(1000) * np.float32(1e-4)
    for wrong in (["--simulate", "1", "--dataset", "treesatai_ts"], ["--source", "a", "--max-frames", "2"]):
        with pytest.raises(SystemExit):
            command.main([*wrong, "--out", "b"])
        assert "needs --" in capsys.readouterr().err


def test_errors_say_what_to_change(tree, tmp_path):
    def refused(**options):
        with pytest.raises(DataError) as error:
            treesatai.prepare(tree, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    series = tree / "sentinel-ts" / f"{NAMES[0]}_2020.h5"
    assert 'orbit "up", wanted one of both, asc, des' in refused(orbit="up")
    assert "max_frames = 0" in refused(max_frames=0)
    assert 'sensor "rgb" is not in TreeSatAI-Time-Series: did you mean "rgbn"' in refused(sensors=["rgb"])
    write_series(series, **{"sen-1-asc-data": np.full((3, 2, 6, 6), -10.0)})
    assert "median -10, wanted linear power: is it in dB?" in refused()
    write_series(series, **{"sen-2-products": [s2_name(date) for date in S2[:2]]})
    assert "sen-2-data [4, 10, 6, 6], wanted [2, 10, 6, 6]" in refused()
    write_series(series, **{"sen-2-products": ["S2A_undated"] * 4})
    assert f'{series}: "S2A_undated" holds no date' in refused()
    series.write_text("no series")
    assert "wanted the HDF5 file as distributed" in refused()
    write_series(series)
    write_aerial(tree / "aerial" / f"{NAMES[0]}.tif", channels=3)
    assert "uint8[3, 304, 304], wanted uint8[4, 304, 304]: nir, green, blue, red" in refused()
    write_aerial(tree / "aerial" / "Abis_alba_1_2_BI_NLF.tif")
    assert '"Abis_alba_1_2_BI_NLF" has no HDF5 file' in refused()
    (tree / "aerial" / "Abis_alba_1_2_BI_NLF.tif").unlink()
    (tree / "labels" / treesatai.LABELS).write_text("{}")
    assert f'has no entry "{NAMES[0]}.tif": add it' in refused()
    with pytest.raises(DataError, match="is not a folder"):
        treesatai.prepare(tree / "x", tmp_path / "out")
    with pytest.raises(DataError, match='unknown species "Abis_alba": did you mean "Abies_alba"'):
        treesatai._species("Abis_alba_1_2_BI_NLF")


@pytest.mark.skipif(not REAL.exists(), reason="the shared folder of real test data is not on this machine")
def test_the_real_place(tmp_path):
    meta = treesatai.prepare(REAL, tmp_path / "out")
    (path,) = REAL.glob("*.h5")
    with h5py.File(path) as file:
        products = {k: [n.decode() for n in file[f"{k}-products"]] for k in ("sen-2", "sen-1-asc", "sen-1-des")}
        data = {k: file[f"{k}-data"][:] for k in products}
        masks = file["sen-2-masks"][:]
    example = stored(tmp_path / "out")
    s1, s2, rgbn = (example["sensors"][n] for n in ("s1_grd", "s2_10", "rgbn"))
    np.testing.assert_allclose([example["latitude"], example["longitude"]], [52.085, 9.959], atol=1e-3)
    assert meta.labels["species"].names[example["labels"]["species"]] == "Abies_alba"

    radar = products["sen-1-asc"] + products["sen-1-des"]
    assert s1["time"].tolist() == sorted(day(n.split("_")[4][:8]) for n in radar)
    date = day(products["sen-1-asc"][7].split("_")[4][:8])
    (row,) = np.flatnonzero(s1["time"] == date)
    np.testing.assert_allclose(s1["pixels"][row, 2, 3], 10 * np.log10(data["sen-1-asc"][7, :, 2, 3]), atol=1e-4)
    assert -12 < np.median(s1["pixels"][..., 0]) < -7  # forest, VV

    kept = [i for i, mask in enumerate(masks[:, :2]) if (mask.max(0) <= 10).any()]
    assert len(kept) == meta.sensors["s2_10"].shape[0] == 70
    assert s2["time"].tolist() == [day(products["sen-2"][i].split("_")[2][:8]) for i in kept]
    np.testing.assert_array_equal(s2["pixels"][5], data["sen-2"][kept[5]].transpose(1, 2, 0))
    clear = s2["pixels"][s2["valid"].all((1, 2))].astype(float)
    assert not (clear[..., 0].mean((1, 2)) > 2500).any()  # no bright cloud is left among clear dates

    # Pixels of 20 m bands, and of them alone, repeat in 2 x 2: so this is the order of bands.
    repeats = [(clear[:, :, 0, c] == clear[:, :, 1, c]).mean() for c in range(10)]
    gsd = [band.gsd for band in sensors.get("s2_10").bands]
    assert [value > 0.99 for value in repeats] == [g == 20 for g in gsd]

    # Shadow is blue: the share of blue in the visible bands grows there, and the one of red shrinks.
    visible = rgbn["pixels"][0, ..., :3].reshape(-1, 3).astype(float)
    brightness = visible.sum(1)
    dark, bright = (
        visible[m].mean(0) for m in (brightness < np.quantile(brightness, 0.05), brightness > np.median(brightness))
    )
    change = dark / dark.sum() - bright / bright.sum()
    assert change[2] > 0.02 > 0 > change[0]
    assert rgbn["pixels"][..., 3].mean() > rgbn["pixels"][..., :3].mean() + 40  # vegetation in near infrared
