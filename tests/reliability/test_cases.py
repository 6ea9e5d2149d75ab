"""Inputs that people meet in practice, as the scripts of ../shared/cases write them: each with the value that is right.

The scripts make the inputs; where they are absent, every test says so and is skipped.
"""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from input_pipeline import example, folder
from input_pipeline.dataset import open_dataset
from input_pipeline.places import Report
from ringmoe_jax import sensors
from ringmoe_jax.deploy.scenes import Scene, Stack
from ringmoe_jax.errors import DataError

CASES = Path(__file__).parents[3] / "shared" / "cases"
pytestmark = [
    pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not there: it holds the scripts"),
    pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning"),
]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Returns a function that runs a case's script and gives the folder that it wrote."""

    def make(name: str, *arguments: str) -> Path:
        (script,) = CASES.glob(f"{name}_*.py")
        monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "in"), *arguments])
        runpy.run_path(str(script), run_name="__main__")
        return tmp_path / "in"

    return make


def prepared(source: Path, **options):
    """Samples of all splits by id, and the lines of the report."""
    report = Report()
    metadata = folder.prepare(source, source.parent / "out", report=report, **options)
    dataset = open_dataset(str(source.parent / "out"), tuple(metadata.sensors))
    samples = {}
    for split in dataset.counts:
        for payload in dataset.records(split, 0).read(range(dataset.size(split))):
            sample = decoded(payload, metadata)
            samples[sample["id"]] = sample
    return metadata, samples, "\n".join(report.lines(metadata.labels))


def decoded(payload, metadata):
    """Arrays of a record, by the keys of TFDS."""
    features = example.parse(payload)
    sample = {"id": features["id"][0].decode().split("/")[0]}
    for name, info in metadata.sensors.items():
        for key, dtype, shape in (("pixels", info.dtype, (*info.shape, len(info.bands))), ("valid", bool, info.shape)):
            sample[name, key] = np.frombuffer(features[f"sensors/{name}/{key}"][0], dtype).reshape(shape)
        sample[name, "time"] = list(features[f"sensors/{name}/time"])
    for name, info in metadata.labels.items():
        value, shape = features[f"labels/{name}"], info.shape(metadata.sensors)
        packed = isinstance(value[0], bytes)
        sample[name] = (np.frombuffer(value[0], np.int16) if packed else np.array(value)).reshape(shape)
    return sample


def refused(source: Path, message: str, **options) -> str:
    with pytest.raises(DataError, match=message) as error:
        prepared(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_c01_a_scene_placed_by_control_points_says_that_its_map_has_no_place(made):
    source = made("c01")
    with Scene(source / "grd.tif", sensors.get("s1_grd")) as scene:
        assert any("placed by control points or RPCs alone, so they have no place here" in note for note in scene.notes)


def test_c02_reflectance_of_two_baselines_agrees_on_the_same_ground(made):
    metadata, samples, notes = prepared(made("c02"))
    pixels = np.stack([sample["s2_12", "pixels"] for sample in samples.values()])
    assert (pixels == pixels[0]).all()
    truth = np.random.default_rng(0).integers(200, 3000, (12, 128, 128)).astype("uint16").transpose(1, 2, 0)
    np.testing.assert_array_equal(pixels[0, 0], truth)
    assert metadata.sensors["s2_12"].mean[0] == pytest.approx(truth[..., 0].mean() * 1e-4, rel=1e-6)
    assert "5 files" in notes
    assert "say unit = 0.0001 stored + -0.1: converted to 0.0001 stored + 0" in notes


def test_c02_predict_reads_the_same_reflectance(made):
    source = made("c02") / "s2_12"
    with Scene(source / "p0.tif", sensors.get("s2_12")) as old, Scene(source / "p1.tif", sensors.get("s2_12")) as new:
        np.testing.assert_array_equal(old.read(0, 128)[0], new.read(0, 128)[0])
        assert "converted to" in new.notes[0]


def test_c03_a_pixel_without_one_band_is_not_valid(made):
    source = made("c03")
    metadata, samples, _ = prepared(source)
    valid = next(iter(samples.values()))["s1_grd", "valid"][0]
    assert not valid[:, 40:56].any()
    assert not valid[:16].any()
    assert valid.mean() == pytest.approx((112 / 128) ** 2)
    assert metadata.sensors["s1_grd"].mean[1] == pytest.approx(-19, abs=0.2)
    with Scene(source / "s1_grd" / "p1.tif", sensors.get("s1_grd")) as scene:
        np.testing.assert_array_equal(scene.read(0, 128)[1], valid)


def test_c05_raw_complex_numbers_are_refused_by_their_range(made):
    source = made("c05")
    refused(source, r"runs from .* wanted complex amplitude, .*sigma0, -100 to 100")
    with (
        Scene(source / "slc_dual" / "p0.tif", sensors.get("slc_dual")) as scene,
        pytest.raises(DataError, match="wanted complex amplitude"),
    ):
        scene.read(0, 128)


def test_c05_complex_integers_with_a_stated_scale_are_read(made):
    import rasterio

    source = made("c05")
    for path in (source / "slc_dual").glob("*.tif"):
        with rasterio.open(path, "r+") as file:
            file.scales = (1e-3, 1e-3)
    metadata, _, _ = prepared(source)
    assert metadata.sensors["slc_dual"].std[0] == pytest.approx(0.2, rel=0.01)


def test_c06_a_mask_of_another_ground_is_refused_with_the_distance(made):
    refused(made("c06", "shifted"), "a corner is 64 m away from the one of its image")


def test_c06_a_mask_stored_from_the_south_is_turned(made):
    _, samples, _ = prepared(made("c06", "southup"))
    truth = np.zeros((128, 128), np.int16)
    truth[:32] = 1
    for sample in samples.values():
        np.testing.assert_array_equal(sample["mask"], truth)
        np.testing.assert_array_equal(sample["rgb", "pixels"][0, ..., 0] < 100, truth == 1)


def test_c08_boxes_drawn_on_a_larger_image_are_scaled(made):
    source = made("c08")
    _, samples, notes = prepared(source, tile=256)
    for sample in samples.values():
        np.testing.assert_allclose(sample["boxes"][0], [0, 45, 30, 30, 20, 0])
    assert "6 files" in notes
    assert "0.5 times as large: scaled" in notes


def test_c08_boxes_of_another_shape_of_image_are_refused(made):
    source = made("c08")
    text = (source / "boxes.json").read_text().replace('"height": 512', '"height": 400')
    (source / "boxes.json").write_text(text)
    refused(source, "its objects were drawn on 400 x 512: wanted the same image", tile=256)


@pytest.mark.parametrize("kind", ["csv_bom", "classes_bom", "train_bom"])
def test_c10_text_with_a_byte_order_mark_is_read(made, kind):
    metadata, samples, _ = prepared(made("c10", kind))
    assert len(samples) == 6
    if kind != "train_bom":
        (info,) = metadata.labels.values()
        assert sorted(info.names) == ["Grünland", "Wald"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("csv_latin1", r"labels\.csv is not UTF-8 .*Latin-1 or Windows-1252"),
        ("train_utf16", r"train\.txt is UTF-16: wanted .* in UTF-8"),
        ("csv_semicolon", r"labels\.csv, line 1: row 'p0;Wald': wanted ID,label .*in place of semicolons"),
    ],
)
def test_c10_other_text_is_one_line_that_names_it(made, kind, message):
    refused(made("c10", kind), message)


@pytest.mark.parametrize("crs", ["4326", "32633"])
def test_c13_sensors_apart_are_refused_in_degrees_as_in_metres(made, crs):
    refused(made("c13", crs), r'"p1": a corner of ndsm is 3[67] m away from the one of rgb')


@pytest.mark.parametrize("text", ["0000:00:00 00:00:00", "yesterday", "2023:13:45 00:00:00", "1900:01:01", " "])
def test_c15_a_date_that_is_none_is_unknown_and_counted(made, text):
    source = made("c15", text)
    _, samples, notes = prepared(source)
    assert all(sample["rgb", "time"] == [-(2**31)] for sample in samples.values())
    assert ("6 files" in notes and "no date of an image: their time is unknown" in notes) == bool(text.strip())
    with Scene(source / "rgb" / "p0.tif", sensors.get("rgb")) as scene:
        assert scene.day == -(2**31)


@pytest.mark.parametrize(
    "kind", ["255", "palette", "palette_trns", "gray_trns", "tif_nodata0", "tif_nodata255", "gray16", "bilevel"]
)
def test_c17_masks_of_two_values_have_two_classes(made, kind):
    _, samples, notes = prepared(made("c17", kind))
    truth = np.zeros((64, 64), np.int16)
    truth[10:30, 10:40] = 1
    for sample in samples.values():
        np.testing.assert_array_equal(sample["mask"], truth)
    understood = {"255": "255 is taken for", "palette_trns": "files declare 0 as no data, but it is taken for"}
    assert understood.get(kind, "") in notes


def test_c19_linear_power_is_refused_with_the_advice_that_helps(made):
    source = made("c19", "linear")
    said = refused(source, r"wanted dB")
    assert "10 * numpy.log10(pixels)" in said
    with (
        Scene(source / "s1_grd" / "p0.tif", sensors.get("s1_grd")) as scene,
        pytest.raises(DataError, match="log10"),
    ):
        scene.read(0, 128)


def test_c19_hundredths_of_decibel_are_refused_with_the_advice_that_helps(made):
    source = made("c19", "int16")
    assert "give pixels / 100" in refused(source, 'holds int16, "s1_grd" is stored as float32')
    with pytest.raises(DataError, match="give pixels / 100"):
        Scene(source / "s1_grd" / "p0.tif", sensors.get("s1_grd"))


@pytest.mark.parametrize("kind", ["gee", "lower"])
def test_c21_bands_are_found_by_other_spellings(made, kind):
    _, samples, _ = prepared(made("c21", kind))
    assert all(s["s2_12", "pixels"][0, 0, 0].tolist() == list(range(100, 1300, 100)) for s in samples.values())


def test_c21_some_names_and_one_missing_is_an_error_that_lists_it(made):
    source = made("c21", "partial")
    assert "none is B01" in refused(source, 'no band "B01" of "s2_12"')
    with pytest.raises(DataError, match='no band "B01"'):
        Scene(source / "s2_12" / "p0.tif", sensors.get("s2_12"))


def test_c22_companions_of_macos_are_skipped_and_counted(made):
    _, samples, notes = prepared(made("c22"))
    assert len(samples) == 6
    assert "6 files named ._*" in notes


def test_c35_saturated_and_wrapped_values_are_not_valid_and_counted(made):
    source = made("c35")
    metadata, samples, notes = prepared(source)
    assert metadata.sensors["s2_12"].mean[0] == pytest.approx(0.165, abs=0.001)
    valid = next(iter(samples.values()))["s2_12", "valid"][0]
    assert not valid[:4].any()
    assert valid[4:].all()
    assert "6 files" in notes
    assert "saturated or wrapped values: their pixels are not valid" in notes
    with Scene(source / "s2_12" / "p0.tif", sensors.get("s2_12")) as scene:
        np.testing.assert_array_equal(scene.read(0, 128)[1], valid)


@pytest.mark.parametrize("untagged", ["", "_untagged"])
def test_c37_the_order_given_counts_and_not_the_time_of_processing(made, untagged):
    out = made("c37")
    paths = [out / f"{name}{untagged}.tif" for name in ("before_2019", "after_2021")]
    with Stack({"rgb": paths}, {"rgb": sensors.get("rgb")}) as stack:
        assert [scene.path for scene in stack.scenes["rgb"]] == paths
        batch = stack.strip(0, 160).batch([(0, 0)], 160, 1)["sensors"]["rgb"]
        assert batch["time"].tolist() == [[-(2**31)] * 2]
        np.testing.assert_allclose(batch["pixels"][0, 1, 40:120, 40:120], 250 / 255, rtol=1e-6)
        assert any("of processing" in note for note in stack.scenes["rgb"][0].notes) == (not untagged)


@pytest.mark.parametrize("names", [("rgb@1", "rgb@2"), ("rgb@2019-05-01", "rgb@2021-05-01")])
def test_c37_the_order_of_folders_counts(made, tmp_path, names):
    out = made("c37")
    for name, stem in zip(names, ("before_2019", "after_2021"), strict=True):
        (tmp_path / "folders" / "in" / name).mkdir(parents=True)
        (out / f"{stem}.tif").rename(tmp_path / "folders" / "in" / name / "p.tif")
    _, samples, notes = prepared(tmp_path / "folders" / "in", tile=160)
    (sample,) = samples.values()
    assert (sample["rgb", "pixels"][1, 40:120, 40:120] == 250).all()
    assert ("of processing" in notes) == (names[0] == "rgb@1")


def test_c38_masked_ground_of_a_mask_is_void(made):
    _, samples, _ = prepared(made("c38"))
    for sample in samples.values():
        assert (sample["mask"][32:] == -1).all()
        assert sample["mask"][:32].sum() == 600
