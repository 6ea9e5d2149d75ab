"""Given the same box, turn and dates, the reader "device" shows the pixels that the reader "tf" shows."""

import functools

import jax
import numpy as np
import pytest

from input_pipeline import augment, pipeline
from input_pipeline.cpu_tf import tf
from input_pipeline.dataset import open_dataset
from input_pipeline.device import boxes, resampling, samples, storage
from input_pipeline.device.looks import Look
from input_pipeline.device.samples import Shows
from input_pipeline.evaluation import EvalBatches
from input_pipeline.views import View
from tests.helpers import scenes_of_all_kinds
from tests.helpers.scenes_of_all_kinds import GRIDS

SIZES = {"rgb": 16, "ndsm": 16, "s1_grd": 8, "sar_amplitude": 16, "slc_dual": 16}
SAMPLE = 16 / 48  # of a tile: what 16 complex samples show
BOXES = {
    "smaller": (0.31, 0.127, SAMPLE, SAMPLE),  # enlarged, between pixels
    "whole": (0.0, 0.0, 1.0, 1.0),
    "oblong": (0.05, 0.2, 0.9, 0.55),
    "corner": (1 - SAMPLE, 1 - SAMPLE, SAMPLE, SAMPLE),
}
# Of values in the sensor's unit: float32 sums in another order; powers of ten and logarithms for dB.
TOLERANCE = {"rgb": 1e-5, "ndsm": 2e-5, "s1_grd": 1e-3, "sar_amplitude": 1e-5, "slc_dual": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return scenes_of_all_kinds.write(tmp_path_factory.mktemp("all") / "kinds")


@pytest.fixture(scope="module")
def opened(folder):
    """The data set, the serialised samples, the same as arrays, and a program for every number of dates."""
    dataset = open_dataset(str(folder), tuple(GRIDS))
    payloads = dataset.records("train", 0).read(range(4))
    arrays = storage.blank(dataset, 4)
    storage.fill(dataset, arrays, payloads)

    @functools.cache
    def program(dates, stretched):
        shows = Shows(dataset, SIZES, 16, dict(dates), grounded=True, stretched=stretched)

        @jax.jit
        def show(sample, box, mirrored, quarters):
            look = Look(box, mirrored, quarters, None)
            return samples.place(shows, sample, look), samples.place_labels(shows, sample, look)

        return show

    return dataset, payloads, arrays, program


def both(opened, row, box, mirrored, quarters, *dates, stretched=False):
    """Entries and labels of one look, of both readers; `dates` are pairs of a sensor and how many of its are shown."""
    dataset, payloads, arrays, program = opened
    turned = (tf.constant(mirrored), tf.constant(quarters))
    view = View(tf.constant(box, tf.float32), SIZES, 16, dict(dates), turned, grounded=True, stretched=stretched)
    parsed = pipeline.parse(dataset)(payloads[row])
    theirs = pipeline.place(dataset, parsed, view), pipeline.place_labels(dataset, parsed, view)
    sample = jax.tree.map(lambda array: array[row], arrays)
    look = np.array(box, np.float32), np.array(mirrored), np.array(quarters, np.int32)
    return program(dates, stretched)(sample, *look), theirs


def compare(ours, theirs):
    (ours, own_labels), (theirs, labels) = jax.device_get(ours), theirs
    assert ours.keys() == theirs.keys()
    for name, entry in theirs.items():
        assert ours[name].keys() == entry.keys()
        for key, wanted in entry.items():
            got, wanted = ours[name][key], wanted.numpy()
            assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), (name, key)
            tolerance = TOLERANCE[name] if key == "pixels" else 1e-6
            np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=tolerance, err_msg=f"{name} {key}")
    assert own_labels.keys() == labels.keys()
    for name, wanted in labels.items():
        assert own_labels[name].dtype == wanted.dtype.as_numpy_dtype, name
        np.testing.assert_allclose(own_labels[name], wanted, rtol=1e-5, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize(("mirrored", "quarters"), [(False, 0), (True, 1), (False, 2), (True, 3)])
def test_images_and_labels_of_a_box(opened, box, mirrored, quarters):
    for row in range(2):
        compare(*both(opened, row, BOXES[box], mirrored, quarters))


@pytest.mark.parametrize(("mirrored", "quarters"), [(True, 0), (False, 1), (True, 2), (False, 3)])
def test_the_other_turns(opened, mirrored, quarters):
    compare(*both(opened, 1, BOXES["smaller"], mirrored, quarters))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("row", [0, 1, 3])
def test_dates_that_show_nothing_in_the_box_are_not_chosen(opened, count, row):
    """Of 2, 3 and 5 dates the second is never seen, and the first not in the left of the tile."""
    left = (0.1, 0.0, SAMPLE, 0.3)
    ours, theirs = both(opened, row, left, True, 1, ("s1_grd", count))
    compare(ours, theirs)
    assert "tracks" not in ours[1]
    assert ours[0]["s1_grd"]["valid"].any((1, 2)).sum() == min(count, row % 4)


def test_a_box_that_stretches_shows_no_boxes(opened):
    ours, theirs = both(opened, 0, BOXES["oblong"], False, 0, stretched=True)
    compare(ours, theirs)
    assert not {"boxes", "tracks"} & set(ours[1])


def test_gaps_and_all_kinds_are_there(opened):
    """What the comparisons above would not see if the data did not hold it."""
    ours, _ = both(opened, 3, BOXES["whole"], False, 0)
    shown, labels = jax.device_get(ours)
    for name in ("ndsm", "s1_grd"):
        assert 0 < shown[name]["valid"].mean() < 1
        assert not shown[name]["pixels"][~shown[name]["valid"]].any()
    assert (labels["boxes"][:, 0] >= 0).any()
    assert (labels["boxes"][:, 5] != 0).any()
    assert len(np.unique(labels["map"])) > 3


@pytest.mark.parametrize("rule", ["linear", "decibel", "amplitude"])
def test_blur(rule):
    rng = np.random.default_rng(0)
    valid = rng.random((2, 9, 9)) > 0.05
    pixels = np.where(valid[..., None], rng.uniform(0.1, 2, (2, 9, 9, 3)), 0).astype(np.float32)
    wanted = augment.blur(tf.constant(pixels), tf.constant(valid), 0.7, rule)
    got = resampling.blur(pixels, valid, 0.7, rule)
    np.testing.assert_array_equal(got[1], wanted[1])
    assert 0 < got[1].mean() < valid.mean()
    np.testing.assert_allclose(got[0], wanted[0], atol=2e-5)
    same = resampling.blur(pixels, None, 0.0, "linear")
    np.testing.assert_array_equal(same[0], pixels)
    assert same[1] is None


def test_the_grid_of_native_windows_is_kept(opened):
    """Turned complex samples are those of the tile, every bit of them; in a mirror the sign of VH flips."""
    ours, _ = both(opened, 0, BOXES["smaller"], True, 3)
    stored = opened[2]["sensors"]["slc_dual"]["stored"][0, 0]
    top, left = (round(x * 48) for x in BOXES["smaller"][:2])
    window = stored[top : top + 16, left : left + 16]
    np.testing.assert_array_equal(ours[0]["slc_dual"]["pixels"][0], np.rot90(window[:, ::-1], 3) * [1, 1, -1, -1])


def test_boxes_of_whole_pixels():
    drawn = np.array([boxes.random_sample_box(d, 9, 12, 4) for d in np.random.default_rng(0).random((200, 4))])
    corner = drawn[:, :2] * (9, 12)
    np.testing.assert_allclose(corner, np.round(corner), atol=1e-5)
    assert corner.min(0).tolist() == [0, 0]
    np.testing.assert_allclose(corner.max(0), [5, 8], atol=1e-5)
    np.testing.assert_allclose(drawn[:, 2:], np.tile([4 / 9, 4 / 12], (200, 1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("sensors", "changes"),
    [
        (tuple(GRIDS), {"sizes": SIZES}),
        (("rgb", "slc_dual"), {"sizes": {"slc_dual": 48}, "frames": {"rgb": 1}}),
        (("rgb", "sar_amplitude"), {"image_size": 24, "mask_unit": 8}),
        (("rgb", "s1_grd"), {"sizes": {"rgb": 6, "s1_grd": 4}, "grid": "s1_grd"}),
    ],
)
def test_evaluation_shows_what_the_other_reader_shows(folder, sensors, changes):
    options = {"image_size": 16, "batch_size": 3, "seed": 1} | changes
    ours, theirs = (EvalBatches(str(folder), sensors, **options, reader=reader) for reader in ("device", "tf"))
    assert (len(ours), ours.ground) == (len(theirs), theirs.ground)
    pairs = list(zip(ours, theirs, strict=True))
    assert pairs[-1][0]["index"].tolist() == [3, -1, -1]
    for got, wanted in pairs:
        assert jax.tree.structure(got) == jax.tree.structure(wanted)
        for name, entry in wanted["sensors"].items():
            own = got["sensors"][name]
            if "mask" in entry:  # drawn: the same number of cells
                np.testing.assert_array_equal(own.pop("mask").sum((1, 2)), entry.pop("mask").sum((1, 2)))
            np.testing.assert_allclose(own.pop("pixels"), entry.pop("pixels"), atol=TOLERANCE[name])
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            assert (a.dtype, a.shape, isinstance(a, np.ndarray)) == (b.dtype, b.shape, True)
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
