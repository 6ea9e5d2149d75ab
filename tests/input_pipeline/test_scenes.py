"""What samples were cut from is stored beside them, and read back in the order of the records."""

import dataclasses
import shutil

import numpy as np
import pytest

from input_pipeline import scenes
from input_pipeline.builder import write_dataset
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from input_pipeline.layouts import tiles
from input_pipeline.layouts.tiles import Scene
from input_pipeline.schema import TRACKS, Image, LabelInfo, Metadata, SensorInfo
from ringmoe_jax import files, sensors
from ringmoe_jax.errors import DataError

TRACK = [[0, 3, 2, 6, 2, 0, 7, 0], [0, 3, 2, 6, 2, 0, 7, 1]]  # as wide as the image, so cut by the border of every tile


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """Two windows of two dates of one series, 4 x 6 px in tiles of 4 px every 2, in three shards."""
    folder = tmp_path_factory.mktemp("cut") / "cut"
    infos = {"rgb": SensorInfo.of(sensors.get("rgb"), (2, 4, 4), 1.0)}
    labels = {"tracks": LabelInfo(TRACKS, ("a",), "made up", "rgb", 2)}
    metadata = Metadata("cut", infos, "made up", "none", "tests", labels)
    image = Image(np.zeros((2, 4, 6, 3), np.uint8))
    windows = [Scene(f"v/{t}", {"rgb": image}, {"tracks": TRACK}, series="v", date=t) for t in (0, 2)]
    train = [sample for scene in windows for sample in tiles.cut(scene, infos, labels, stride=2)]
    alone = [dataclasses.replace(sample, id=f"a{i}", origin=None) for i, sample in enumerate(train[:2])]
    write_dataset(folder, {"train": train, "test": alone}, metadata, shards=3)
    return folder


def test_origins_follow_the_order_of_the_records(cut):
    found = open_dataset(str(cut), ["rgb"]).scenes("train")
    assert found.names.tolist() == ["v"]
    # written in turn to three shards, which are read one after the other: the first and the last tile, then the others
    assert found.origins.tolist() == [[0, 0, 0, 0], [0, 2, 0, 2], [0, 0, 0, 2], [0, 2, 0, 0]]
    assert found.joinable


def test_objects_are_whole_and_count_once(cut):
    """Of both windows, each seen by two tiles."""
    found = open_dataset(str(cut), ["rgb"]).scenes("train")
    assert found.rows("tracks", 0).tolist() == [[0, 3, 2, 6, 2, 0, 7, date] for date in range(4)]
    assert found.rows("map", 0) is None


def test_samples_of_their_own_are_not_joined(cut):
    found = open_dataset(str(cut), ["rgb"]).scenes("test")
    assert found.origins.tolist() == [[-1] * 4] * 2
    assert not found.joinable


def test_an_older_data_set_says_nothing_and_a_damaged_one_is_refused(cut, tmp_path):
    copy = shutil.copytree(cut, tmp_path / "copy")
    (copy / files.MANIFEST).unlink()
    assert open_dataset(str(copy), ["rgb"]).scenes("train") is None
    broken = shutil.copytree(cut, tmp_path / "broken")
    content = bytearray((broken / scenes.SCENES).read_bytes())
    content[len(content) // 2] ^= 1
    (broken / scenes.SCENES).write_bytes(content)
    with pytest.raises(DataError, match=r"scenes.npz is not what was written"):
        open_dataset(str(broken), ["rgb"]).scenes("train")


def test_corners_and_zoom_in_pixels_as_they_are_shown(cut):
    origins = np.array([[0, 0, 0, 2], [0, 0, 6, 4]])
    whole = EvalBatches(str(cut), ["rgb"], split="train", image_size=4, batch_size=2)
    np.testing.assert_allclose(whole.corners(origins, "rgb"), [[0, 2], [6, 4]])
    half = EvalBatches(str(cut), ["rgb"], split="train", image_size=2, batch_size=2)
    np.testing.assert_allclose(half.corners(origins, "rgb"), [[0, 1], [3, 2]])
    np.testing.assert_allclose(half.zoom("rgb"), [0.5, 0.5])
    middle = EvalBatches(str(cut), ["rgb"], split="train", image_size=2, batch_size=2, grid="rgb")
    np.testing.assert_allclose(middle.corners(origins, "rgb"), [[1, 3], [7, 5]])  # the 2 x 2 px in the middle of 4 x 4
    np.testing.assert_allclose(middle.zoom("rgb"), [1, 1])
