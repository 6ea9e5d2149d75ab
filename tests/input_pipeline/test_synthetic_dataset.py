"""A simulated data set: it says that it is simulated, and its truth survives writing, reading and crops."""

import dataclasses
import subprocess
import sys
import zlib

import numpy as np
import pytest

from experiments import prepare as command
from input_pipeline import synthetic
from input_pipeline.builder import write_dataset
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from input_pipeline.reader import train_batches
from input_pipeline.schema import BOX, BOXES, UNLABELLED, Image, LabelInfo, Metadata, Sample, SensorInfo
from input_pipeline.synthetic.dataset import SENSORS, SHIPS, VEHICLES
from input_pipeline.synthetic.scene import BUILDING, SETTINGS, WATER
from ringmoe_jax import sensors
from ringmoe_jax.data_config import DataConfig, StreamConfig
from ringmoe_jax.errors import DataError

SIZE, SCENES, DATES = 48, 5, 2


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """5 + 1 scenes of 48 px with every default sensor and two dates; read only."""
    out = tmp_path_factory.mktemp("simulated") / "d"
    return synthetic.prepare(out, scenes=SCENES, size=SIZE, dates=DATES, seed=4)


@pytest.fixture(scope="module")
def scenes():
    options = {"size": SIZE, "dates": DATES, "vehicles": VEHICLES, "ships": SHIPS}
    return [synthetic.draw([4, 0, i], **options) for i in range(SCENES)]


def whole(directory, names, size=SIZE):
    (batch,) = EvalBatches(directory, names, split="train", image_size=size, batch_size=SCENES)
    return batch


def used(rows):
    return rows[rows[:, 0] != UNLABELLED]


def test_the_data_set_says_that_it_is_simulated(simulated):
    dataset = open_dataset(simulated, SENSORS)
    assert all(info.simulated for info in dataset.metadata.sensors.values())
    assert "SIMULATED" in dataset.metadata.description
    assert (dataset.size("train"), dataset.size("validation")) == (SCENES, 1)
    shapes = {name: dataset.shape(name)[1] for name in SENSORS}
    gsd = {name: info.gsd for name, info in dataset.metadata.sensors.items()}
    assert (shapes["rgb"], shapes["s2_12"], shapes["s1_grd"], shapes["slc_quad"]) == (48, 12, 12, 24)
    assert {shapes[name] * gsd[name] for name in SENSORS} == {SIZE * 2.5}  # all over the same ground


def order(batch, scenes):
    """Row of the batch by scene, for shards are written in turn."""
    found = [int(np.argmin(abs(batch["sensors"]["rgb"]["location"][:, 0] - scene.latitude))) for scene in scenes]
    assert sorted(found) == list(range(SCENES))
    return found


def test_labels_are_the_truth(simulated, scenes):
    batch = whole(simulated, ["rgb", "ndsm"])
    labels = batch["labels"]
    for row, scene in zip(order(batch, scenes), scenes, strict=True):
        np.testing.assert_array_equal(labels["land_cover"][row], scene.classes[0])
        np.testing.assert_array_equal(labels["change"][row], scene.classes[0] != scene.classes[-1])
        np.testing.assert_array_equal(batch["sensors"]["ndsm"]["pixels"][row, ..., 0], scene.heights)
        np.testing.assert_allclose(labels["height"][row], [scene.heights[0].mean(), scene.heights[0].max()], rtol=1e-6)
        counts = np.bincount(labels["land_cover"][row].ravel(), minlength=8)
        assert labels["dominant"][row] == counts.argmax()
        np.testing.assert_array_equal(labels["present"][row], counts > 0)
        building, water = counts[BUILDING] >= 0.005 * counts.sum(), counts[WATER] >= 0.005 * counts.sum()
        assert (
            SETTINGS[labels["setting"][row]]
            == {
                (False, False): "open country",
                (True, False): "town",
                (False, True): "coast",
                (True, True): "coastal town",
            }[building, water]
        )
        np.testing.assert_array_equal(batch["sensors"]["rgb"]["time"][row], scene.time)
        np.testing.assert_allclose(used(labels["boxes"][row]), scene.boxes(0))
        np.testing.assert_allclose(used(labels["oriented"][row]), scene.boxes(0, oriented=True))
    assert any(len(scene.tracks) for scene in scenes)


def test_tracks_tie_the_dates_together(simulated, scenes):
    batch = whole(simulated, ["rgb"])
    for row, scene in zip(order(batch, scenes), scenes, strict=True):
        tracks = used(batch["labels"]["tracks"][row])
        assert len(tracks) == DATES * len(scene.tracks)
        for track in scene.tracks:
            first, last = (tracks[(tracks[:, 6] == track.number) & (tracks[:, 7] == t)][0] for t in range(DATES))
            np.testing.assert_allclose(np.hypot(*(last - first)[1:3]) * scene.gsd, track.speed, rtol=1e-4)
            np.testing.assert_array_equal(first[3:6], last[3:6])


def test_pixels_are_those_of_simulate(simulated, scenes):
    batch = whole(simulated, ["rgb"])
    for i, (row, scene) in enumerate(zip(order(batch, scenes), scenes, strict=True)):
        rgb = synthetic.simulate(scene, ["rgb"], zlib.crc32(f"[4, 0]/{i}".encode()))["rgb"].pixels
        np.testing.assert_allclose(batch["sensors"]["rgb"]["pixels"][row], rgb / 255, atol=1e-6)


def test_labels_hold_for_every_sensor_and_follow_its_size(simulated):
    fine, coarse = whole(simulated, ["rgb"])["labels"], whole(simulated, ["s2_12"], 24)["labels"]
    np.testing.assert_array_equal(coarse["land_cover"], fine["land_cover"][:, 1::2, 1::2])
    for name in ("boxes", "oriented", "tracks"):
        kept = fine[name][..., 0] != UNLABELLED
        np.testing.assert_array_equal(coarse[name][..., 0] != UNLABELLED, kept)
        np.testing.assert_allclose(coarse[name][kept][:, 1:5], fine[name][kept][:, 1:5] / 2, rtol=1e-6)
        np.testing.assert_array_equal(coarse[name][kept][:, 5:], fine[name][kept][:, 5:])


def test_boxes_follow_the_crop_of_complex_data(simulated):
    fine = whole(simulated, ["rgb"])["labels"]["oriented"]
    cropped = whole(simulated, ["slc_quad"], 16)["labels"]["oriented"]
    shown = fine[..., 1:3] / 2 - 4  # the centred 16 of 24 samples of 5 m; boxes count 2.5 m
    inside = (fine[..., 0] != UNLABELLED) & (shown >= 0).all(-1) & (shown < 16).all(-1)
    assert inside.any()
    assert (~inside & (fine[..., 0] != UNLABELLED)).any()
    np.testing.assert_array_equal(cropped[..., 0] != UNLABELLED, inside)
    np.testing.assert_allclose(cropped[inside][:, 1:3], shown[inside], atol=1e-5)
    np.testing.assert_allclose(cropped[inside][:, 3:5], fine[inside][:, 3:5] / 2, rtol=1e-6)
    assert (cropped[~inside] == UNLABELLED).all()


def test_training_crops_keep_maps_and_leave_boxes_out(simulated):
    stream = StreamConfig(str(simulated), ("rgb", "s1_grd"))
    batches = train_batches(DataConfig({"a": stream}, image_size=24, batch_size=2, mask_unit=0))
    batch = next(batches)
    batches.close()
    assert batch["labels"]["land_cover"].shape == (2, 24, 24)
    assert set(batch["labels"]) == {"land_cover", "change", "dominant", "setting", "present", "height"}


def test_filled_up_samples_have_no_boxes(simulated):
    (batch,) = EvalBatches(simulated, ["rgb"], image_size=SIZE, batch_size=2)
    assert batch["real"].tolist() == [True, False]
    assert (batch["labels"]["boxes"][1] == UNLABELLED).all()
    assert (batch["labels"]["land_cover"][1] == UNLABELLED).all()
    assert not batch["labels"]["present"][1].any()


def test_a_seed_is_a_data_set(tmp_path):
    written = [
        synthetic.prepare(tmp_path / str(i), scenes=SCENES, size=SIZE, sensors=["slc_quad"], seed=seed)
        for i, seed in enumerate((4, 4, 5))
    ]
    first, second, third = (whole(d, ["slc_quad"], 24)["sensors"]["slc_quad"]["pixels"] for d in written)
    np.testing.assert_array_equal(first, second)
    assert (first != third).mean() > 0.9


def test_one_date_has_neither_changes_nor_tracks(tmp_path):
    synthetic.prepare(tmp_path / "d", scenes=1, size=16, sensors=["s2_13"], gsd=10)
    (batch,) = EvalBatches(tmp_path / "d", ["s2_13"], image_size=16, batch_size=1)
    assert set(batch["labels"]) == {"land_cover", "dominant", "setting", "present", "height", "boxes", "oriented"}
    assert batch["sensors"]["s2_13"]["pixels"].shape == (1, 1, 16, 16, 13)


def test_a_sensor_of_ones_own_is_rendered():
    bands = sensors.get("ms4").bands[:2]
    sensors.register(dataclasses.replace(sensors.get("ms4"), name="two_bands", bands=bands))
    scene = synthetic.draw(0, size=32)
    assert synthetic.simulate(scene, ["two_bands"])["two_bands"].pixels.shape == (1, 16, 16, 2)


def boxes(rows, count=2):
    info = SensorInfo.of(sensors.get("rgb"), (1, 8, 8), 1.0)
    labels = {"b": LabelInfo(BOXES, ("a", "b"), "made up", "rgb", count)}
    image = Image(np.zeros((1, 8, 8, 3), np.uint8))
    return Metadata("m", {"rgb": info}, "", "", "", labels), Sample("s", {"rgb": image}, labels={"b": rows})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 6)), r'label "b" has shape \(3, 6\), wanted \(2, 6\) of class, x, y, width, height, angle'),
        (np.zeros((2, 5)), r"has shape \(2, 5\), wanted \(2, 6\)"),
        (np.full((2, 6), 2.0), r'label "b" holds 2.0 to 2.0, wanted -1 to 1'),
        (np.full((2, 6), np.nan), r'label "b" holds nan to nan, wanted -1 to 1'),
    ],
)
def test_bad_boxes_are_refused(tmp_path, rows, message):
    meta, sample = boxes(rows)
    with pytest.raises(DataError, match=message):
        write_dataset(tmp_path / "d", {"train": [sample]}, meta)


def test_boxes_of_any_values_survive(tmp_path):
    rows = np.array([[1, 2.5, 3.25, 4, 2, -0.3], np.full(len(BOX), UNLABELLED)], np.float32)
    meta, sample = boxes(rows)
    write_dataset(tmp_path / "d", {"train": [sample]}, meta)
    (batch,) = EvalBatches(tmp_path / "d", ["rgb"], split="train", image_size=8, batch_size=1)
    np.testing.assert_array_equal(batch["labels"]["b"][0], rows)


def test_the_simulator_needs_no_tensorflow():
    program = (
        "import sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None\n"
        "from input_pipeline import synthetic\n"
        "synthetic.simulate(synthetic.draw(0, size=32))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["0"], "error: scenes = 0, seed = 0, sensors = "),
        (["1", "--size", "50"], 'error: scenes of 50 px of 2.5 m are no whole pixels of "s2_12" (10 m): '),
        (["1", "--gsd", "0"], "error: scenes of 96 px of 0 m: wanted numbers > 0"),
        (["1", "--dates", "0"], "error: dates = 0: wanted 1 or more"),
        (["1", "--sensors", "dem", "--gsd", "30"], 'error: band "elevation" has the wavelength None'),
        (["1", "--sensors", "s3"], 'error: unknown sensor "s3": did you mean "'),
    ],
)
def test_command_line_errors_are_one_line(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit, match="1"):
        command.main(["--simulate", *options, "--out", str(tmp_path / "d")])
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not (tmp_path / "d").exists()


def test_command_line_writes_once(tmp_path, capsys):
    arguments = ["--simulate", "2", "--size", "16", "--sensors", "rgb", "s1_grd", "--out", str(tmp_path / "d")]
    assert command.main.__wrapped__(arguments) == 0
    assert "rgb (1 x 16 x 16, simulated), s1_grd (1 x 4 x 4, simulated)" in capsys.readouterr().out
    assert command.main.__wrapped__(arguments) == 0
    assert "is there already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main([*arguments, "--sample"])
