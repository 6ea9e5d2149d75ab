"""A user's own files: tiles, grids, bands, splits, and errors that say what to change."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from input_pipeline import folder, folder_images
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax import geo, sensors
from ringmoe_jax.errors import DataError
from tests.helpers.rasters import tif

SHARED = Path(__file__).parents[3] / "shared" / "data"


def numbers(height, width, channels, dtype):
    return np.arange(1, height * width * channels + 1).reshape(height, width, channels).astype(dtype)


def test_tiles_of_two_grids_cover_the_same_ground(tmp_path):
    coarse, fine = numbers(8, 16, 1, np.float32), numbers(16, 32, 1, np.float32) / 16
    for i in range(5):
        tif(tmp_path / "in" / "dem" / f"p{i}.tif", coarse + 1000 * i)
        tif(tmp_path / "in" / "ndsm" / f"p{i}.tif", fine + 100 * i, pixel=5.0)
    meta = folder.prepare(tmp_path / "in", tmp_path / "out", sensors=["dem", "ndsm"], tile=4, stride=4)
    assert meta.sensors["dem"].shape == (1, 4, 4)
    assert meta.sensors["ndsm"].shape == (1, 8, 8)
    assert (meta.sensors["dem"].gsd, meta.sensors["ndsm"].gsd) == (10, 5)
    dataset = open_dataset(tmp_path / "out", ["dem"])
    assert (dataset.size("train"), dataset.size("validation")) == (4 * 8, 8)

    (batch,) = EvalBatches(tmp_path / "out", ["dem"], image_size=4, batch_size=8)
    first = batch["sensors"]["dem"]["pixels"][:, 0, 0, 0, 0]
    assert sorted(np.round(first) % 1000) == sorted(coarse[top, left, 0] for top in (0, 4) for left in (0, 4, 8, 12))
    wanted = geo.latitude_longitude("EPSG:32633", Affine(10, 0, 500_000, 0, -10, 5_000_000), 2, 2)
    places = batch["sensors"]["dem"]["location"]
    np.testing.assert_allclose(places[np.argmin(first)], wanted, atol=1e-5)
    assert wanted == pytest.approx((45.153, 15.0002), abs=1e-3)  # UTM 33N: central meridian 15 E


def test_tiles_cover_all_of_an_image(tmp_path):
    """Tiles that reach over the border are moved inward, and where the image is smaller, the rest is not valid."""
    for i in range(5):
        tif(tmp_path / "in" / "dem" / f"p{i}.tif", numbers(3, 10, 1, np.float32))
    folder.prepare(tmp_path / "in", tmp_path / "out", tile=4)
    (batch,) = EvalBatches(tmp_path / "out", ["dem"], image_size=4, batch_size=3)
    entry = batch["sensors"]["dem"]
    assert entry["pixels"][:, 0, 0, 0, 0].tolist() == [1, 5, 7]
    assert entry["valid"][:, 0, :3].all()
    assert not entry["valid"][:, 0, 3].any()


def test_bands_go_by_their_descriptions(tmp_path):
    names = ["nir", "blue", "green", "red"]
    pixels = np.broadcast_to(np.array([4, 1, 2, 3], np.uint16), (4, 4, 4))
    tif(tmp_path / "a.tif", pixels, names=names)
    scene = folder_images.read([tmp_path / "a.tif"], sensors.get("ms4"))
    assert scene.pixels[0, 0].tolist() == [1, 2, 3, 4]  # blue, green, red, nir
    tif(tmp_path / "b.tif", pixels, names=["nir", "blue", "gren", "red"])
    with pytest.raises(DataError, match='no band "green" of "ms4": did you mean "gren"'):
        folder_images.read([tmp_path / "b.tif"], sensors.get("ms4"))


def test_no_data_of_the_file_is_not_valid(tmp_path):
    pixels = numbers(2, 2, 1, np.float32)
    pixels[0, 0] = -1
    tif(tmp_path / "a.tif", pixels, nodata=-1)
    assert folder_images.read([tmp_path / "a.tif"], sensors.get("dem")).valid.tolist() == [[False, True], [True, True]]


def test_complex_files_in_three_ways(tmp_path):
    z = (numbers(3, 3, 2, np.float32) + 1j * numbers(3, 3, 2, np.float32) / 2).astype(np.complex64)
    tif(tmp_path / "one" / "p.tif", z)
    for i, name in enumerate(("VV", "vh")):
        tif(tmp_path / "two" / f"p_{name}.tif", z[..., i : i + 1])
    (tmp_path / "three").mkdir()
    np.save(tmp_path / "three" / "p.npy", z.transpose(2, 0, 1))
    wanted = np.stack([z[..., 0].real, z[..., 0].imag, z[..., 1].real, z[..., 1].imag], -1)
    table = sensors.get("slc_dual")
    for way in ("one", "two", "three"):
        files = folder_images.files(tmp_path / way, table)
        assert list(files) == ["p"]
        np.testing.assert_array_equal(folder_images.read(files["p"], table).pixels, wanted)


def test_labels_and_split_lists(tmp_path):
    for stem in "abc":
        tif(tmp_path / "in" / "rgb" / f"{stem}.tif", numbers(4, 4, 3, np.uint8))
    (tmp_path / "in" / "train.txt").write_text("a\nb\n")
    (tmp_path / "in" / "val.txt").write_text("c\n")
    (tmp_path / "in" / "labels.csv").write_text("a,water\nc,forest\n")
    meta = folder.prepare(tmp_path / "in", tmp_path / "out", tile=4)
    assert meta.labels["label"].names == ("forest", "water")
    (train,) = EvalBatches(tmp_path / "out", ["rgb"], split="train", image_size=4, batch_size=2)
    (held,) = EvalBatches(tmp_path / "out", ["rgb"], image_size=4, batch_size=1)
    assert train["labels"]["label"].tolist() == [1, -1]
    assert held["labels"]["label"].tolist() == [0]


def test_a_single_image_is_split_by_its_columns(tmp_path):
    pixels = np.broadcast_to(np.arange(64, dtype=np.float32)[None, :, None], (8, 64, 1))
    tif(tmp_path / "in" / "dem" / "p.tif", pixels)
    folder.prepare(tmp_path / "in", tmp_path / "out", tile=8)
    columns = {}
    for split in ("train", "validation"):
        batches = EvalBatches(tmp_path / "out", ["dem"], split=split, image_size=8, batch_size=1)
        columns[split] = np.concatenate([np.unique(b["sensors"]["dem"]["pixels"]) for b in batches])
    assert columns["validation"].min() == 48
    assert columns["train"].max() < 48 - 8


def test_errors_say_what_to_change(tmp_path):
    root = tmp_path / "in"
    root.mkdir()

    def refused(**options):
        with pytest.raises(DataError) as error:
            folder.prepare(root, tmp_path / "out", **({"tile": 4} | options))
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "holds no folder named like a sensor, got []" in refused()
    (root / "s1grd").mkdir()
    assert 'did you mean "s1_grd"' in refused()
    (root / "rgb").mkdir()
    assert "holds no image" in refused()
    tif(root / "rgb" / "a.tif", numbers(4, 4, 2, np.uint8))
    assert 'gives 2 channels without names, "rgb" has 3: red, green, blue' in refused()
    tif(root / "rgb" / "a.tif", numbers(4, 4, 3, np.uint16))
    assert 'holds uint16, "rgb" is stored as uint8' in refused()
    (root / "rgb" / "a.tif").write_text("no image")
    assert "a.tif cannot be read" in refused()
    tif(root / "rgb" / "a.tif", numbers(4, 4, 3, np.uint8))
    tif(root / "dem" / "b.tif", numbers(4, 4, 1, np.float32))
    assert 'no place has an image of every sensor (rgb has "a", dem has "b")' in refused(sensors=["rgb", "dem"])
    tif(root / "dem" / "a.tif", numbers(6, 6, 1, np.float32))
    (root / "dem" / "b.tif").unlink()
    assert "tile 3 and stride 3 of rgb are no whole pixels of dem" in refused(sensors=["rgb", "dem"], tile=3)
    tif(root / "dem" / "a.tif", numbers(4, 4, 1, np.float32), corner=(500_000, 5_000_500))
    assert "corner of dem is 500 m away from the one of rgb" in refused(sensors=["rgb", "dem"])


@pytest.mark.skipif(not SHARED.exists(), reason="the shared folder of real test data is not on this machine")
def test_real_quad_pol_scene_and_its_rgb(tmp_path):
    slc, rgb = SHARED / "slc/spacenet6_rotterdam_quadpol", SHARED / "multimodal/spacenet6_rotterdam"
    for kind in ("slc_quad", "rgb"):
        (tmp_path / "in" / kind).mkdir(parents=True)
    for p in ("hh", "hv", "vh", "vv"):
        (tmp_path / "in/slc_quad" / f"rotterdam_{p}.tif").symlink_to(slc / f"sar_{p}.tif")
    (tmp_path / "in/rgb/rotterdam.tif").symlink_to(rgb / "rgb_unmasked.tif")

    with pytest.raises(DataError, match=r"wanted complex amplitude, .* --any-unit"):  # nobody calibrated it
        folder.prepare(tmp_path / "in", tmp_path / "slc", sensors=["slc_quad"], tile=32)
    meta = folder.prepare(
        tmp_path / "in", tmp_path / "slc", sensors=["slc_quad"], tile=32, stride=32, check_units=False
    )
    assert meta.sensors["slc_quad"].gsd == pytest.approx(2.5, abs=0.01)
    (batch,) = EvalBatches(tmp_path / "slc", ["slc_quad"], image_size=32, batch_size=6)
    pixels = batch["sensors"]["slc_quad"]["pixels"]
    with rasterio.open(slc / "sar_vv.tif") as file:
        vv = file.read(1)
    tiles = {vv[top : top + 32, left : left + 32].tobytes() for top in range(0, 169, 32) for left in range(150, 169)}
    assert (pixels[0, 0, ..., 6] + 1j * pixels[0, 0, ..., 7]).astype(np.complex64).tobytes() in tiles
    np.testing.assert_allclose(batch["sensors"]["slc_quad"]["location"][0], [51.89, 4.35], atol=0.02)

    folder.prepare(tmp_path / "in", tmp_path / "rgb", sensors=["rgb"], tile=32, stride=32)
    assert open_dataset(tmp_path / "rgb", ["rgb"]).size("train") > 0
    with pytest.raises(DataError, match=r"corner of rgb is .* m away from the one of slc_quad"):
        folder.prepare(tmp_path / "in", tmp_path / "both", sensors=["slc_quad", "rgb"], tile=32, check_units=False)
