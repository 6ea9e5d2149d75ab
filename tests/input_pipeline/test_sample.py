"""The default sample: the right files, pairs, places and splits, and speckle with the right power."""

import json
import sys
import zipfile

import numpy as np
import pytest

from experiments import prepare
from input_pipeline import sample
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax import geo
from ringmoe_jax.errors import DataError
from tests.helpers.verbs import run


@pytest.fixture(scope="module")
def places(wheels):
    return sample.bigearthnet_pairs(wheels / sample.WHEELS[sample.BIGEARTHNET][0])


def test_places_are_paired_by_ground_and_label(places):
    assert len(places) == 6
    for s1, s2 in places:
        assert s1["metadata"]["corresponding_s2_patch"] == s2["name"]
        assert s1["metadata"]["labels"] == s2["metadata"]["labels"]
        assert s1["name"].split("_")[-2:] == s2["name"].split("_")[-2:]  # row and column of the patch
        days = geo.days(s1["metadata"]["acquisition_time"]) - geo.days(s2["metadata"]["acquisition_date"])
        assert abs(days) <= 1


def test_place_and_time_of_a_sample(real):
    (batch,) = EvalBatches(real / "sentinel", ["s1_grd", "s2_12"], image_size=48, batch_size=24)
    s1, s2 = (batch["sensors"][n] for n in ("s1_grd", "s2_12"))
    np.testing.assert_array_equal(s1["location"], s2["location"])
    latitude, longitude = s1["location"].T
    regions = {(round(float(a)), round(float(b))) for a, b in zip(latitude, longitude, strict=True)}
    assert regions == {(48, 14), (52, -7), (53, -7), (63, 31), (63, 30), (39, -8)}
    dates = {str(np.datetime64(int(day), "D")) for day in s2["time"].ravel()}
    assert dates == {"2017-06-13", "2017-06-17", "2017-12-21", "2017-09-24", "2018-02-04"}


def test_pixels_are_the_files_pixels(real, places):
    s1, s2 = places[0]
    (batch,) = EvalBatches(real / "sentinel", ["s1_grd", "s2_12"], image_size=48, batch_size=24)
    rows = {float(v): i for i, v in enumerate(batch["sensors"]["s1_grd"]["location"][:, 0])}
    where = geo.latitude_longitude(s1["crs"], s1["transform"], 24 + 24, 72 + 24)
    row = rows[float(np.float32(where[0]))]
    tile = (slice(24, 72), slice(72, 120))
    np.testing.assert_array_equal(batch["sensors"]["s1_grd"]["pixels"][row, 0, ..., 1], s1["bands"]["VH"][tile])
    blue = s2["bands"]["B02"][tile].astype(np.float32) * np.float32(1e-4)
    np.testing.assert_array_equal(batch["sensors"]["s2_12"]["pixels"][row, 0, ..., 1], blue)
    coastal = np.kron(s2["bands"]["B01"], np.ones((6, 6)))[tile] * 1e-4  # 60 m
    np.testing.assert_allclose(batch["sensors"]["s2_12"]["pixels"][row, 0, ..., 0], coastal, rtol=1e-6)


def test_splits_do_not_share_ground():
    columns = {split: columns for split, (columns, _) in sample.SENTINEL_TILES.items()}
    assert max(columns["train"]) + sample.SENTINEL_TILE + 8 <= min(columns["validation"])
    for _, rows in sample.SENTINEL_TILES.values():
        assert max(rows) + sample.SENTINEL_TILE <= sample.PLACE


def test_sizes_and_honesty_of_the_metadata(real):
    sentinel = open_dataset(real / "sentinel", ["s1_grd", "s2_12", "slc_dual"])
    assert (sentinel.size("train"), sentinel.size("validation")) == (180, 24)
    assert {n: i.simulated for n, i in sentinel.metadata.sensors.items()} == {
        "s1_grd": False,
        "s2_12": False,
        "slc_dual": True,
    }
    assert "slc_dual is SIMULATED" in sentinel.metadata.description
    assert sentinel.shape("slc_dual") == (1, 96, 96)
    assert sentinel.metadata.sensors["slc_dual"].gsd == 5
    aerial = open_dataset(real / "aerial", ["rgb"])
    assert (aerial.size("train"), aerial.size("validation")) == (527, 200)


def test_crown_labels_agree_with_each_other_and_occur_in_both_splits(real):
    for split in ("train", "validation"):
        counts = np.zeros(3, int)
        for batch in EvalBatches(real / "aerial", ["rgb"], split=split, image_size=128, batch_size=50):
            kept, labels = batch["real"], batch["labels"]
            cover = labels["crown_map"][kept].mean((1, 2))
            np.testing.assert_allclose(labels["crown_cover"][kept, 0], cover, atol=1e-6)
            low, high = sample.CROWN_LIMITS
            np.testing.assert_array_equal(labels["crown_class"][kept], np.digitize(cover, [low, high]))
            counts += np.bincount(labels["crown_class"][kept], minlength=3)
        assert counts.min() > 0.15 * counts.sum()


def test_boxes_of_the_annotations(wheels):
    with zipfile.ZipFile(wheels / sample.WHEELS[sample.DEEPFOREST][0]) as archive:
        counts = [len(sample.boxes(archive.read(f"deepforest/data/{name}.xml"))) for name in sample.AERIAL_IMAGES]
    assert counts == [574, 279, 61, 37]


def test_overlapping_crowns_count_once():
    inside = geo.squares([(0, 0, 2, 2), (1, 1, 3, 3), (-5, -5, 1, 1)], 4, 4)
    assert inside.sum() == 7


def test_simulated_speckle_has_the_power_and_no_preferred_phase():
    sigma0 = np.array([0.2, 0.01])  # VV, VH
    backscatter = np.broadcast_to(10 * np.log10(sigma0), (256, 256, 2))
    slc = sample.simulate_slc(backscatter, seed=1).astype(np.float64)
    assert slc.shape == (512, 512, 4)
    z = slc[..., 0::2] + 1j * slc[..., 1::2]
    power, count = np.abs(z) ** 2, 512 * 512
    # exponential intensity: standard error of the mean is mean / sqrt(n); six of them
    np.testing.assert_allclose(power.mean((0, 1)), sigma0, rtol=6 / np.sqrt(count))
    np.testing.assert_allclose((power**2).mean((0, 1)), 2 * sigma0**2, rtol=0.03)  # E I^2 = 2 (E I)^2
    pseudo = (z**2).mean((0, 1)) / sigma0  # 0 for circular speckle
    assert np.abs(pseudo).max() < 6 / np.sqrt(count)
    coherence = (z[..., 0] * z[..., 1].conj()).mean() / np.sqrt(sigma0.prod())
    assert abs(coherence) < 6 / np.sqrt(count)


def test_simulation_is_repeatable_and_doubles_the_grid_in_power():
    backscatter = np.zeros((4, 4, 1))
    np.testing.assert_array_equal(sample.simulate_slc(backscatter, 3), sample.simulate_slc(backscatter, 3))
    np.testing.assert_allclose(sample._twice(np.array([0.0, 4.0]), 0), [0, 1, 3, 4])


def test_simulated_power_is_that_of_the_real_image(real, places):
    (batch,) = EvalBatches(real / "sentinel", ["s1_grd", "slc_dual"], image_size=96, batch_size=24)
    slc = batch["sensors"]["slc_dual"]["pixels"][:, 0].astype(np.float64)
    power = slc[..., 0::2] ** 2 + slc[..., 1::2] ** 2
    real_power = 10 ** (batch["sensors"]["s1_grd"]["pixels"][:, 0].astype(np.float64) / 10)
    np.testing.assert_allclose(power.mean((0, 1, 2)), real_power.mean((0, 1, 2)), rtol=0.02)


def test_a_changed_download_is_put_aside(tmp_path):
    name = sample.WHEELS[sample.DEEPFOREST][0]
    (tmp_path / name).write_bytes(b"not a wheel")
    with pytest.raises(DataError, match=r"has SHA-256 .*, wanted 8c2798d8.*kept as .*\.rejected"):
        sample.download(sample.DEEPFOREST, tmp_path)
    assert [p.suffix for p in tmp_path.iterdir()] == [".rejected"]


def test_a_failing_download_says_why(tmp_path):
    command = f"{sys.executable} -c \"import sys; sys.exit(str(chr(110)) + 'o network')\""
    with pytest.raises(DataError, match=r"cannot download deepforest==2.1.0 \(no network\): check the network"):
        sample.download(sample.DEEPFOREST, tmp_path, command)


def test_command_line_reports_what_is_there(real, capsys):
    assert run(prepare, "--sample", "--out", real) == 0
    printed = capsys.readouterr().out
    assert "the sample data is there already" in printed
    assert "aerial" in printed
    assert "simulated" in printed
    assert "python -m experiments.pretrain --config configs/demo.py" in printed


def test_command_line_error_is_one_line(tmp_path, capsys):
    assert run(prepare, "--source", tmp_path / "nowhere", "--out", tmp_path / "out") == 1
    assert capsys.readouterr().err.strip().splitlines() == [
        f"error: {tmp_path / 'nowhere'} is not a folder: give one that holds a folder a sensor"
    ]


def test_metadata_file_is_plain_json(real):
    values = json.loads((real / "aerial" / "metadata.json").read_text())
    assert values["labels"]["crown_class"]["names"] == ["sparse", "medium", "dense"]
