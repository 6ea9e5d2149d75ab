"""Scores of cut data sets are those of their scenes: a model that reads its answer off the pixels, by hand."""

import types

import jax
import numpy as np
import pytest

from experiments.run import score
from input_pipeline.builder import write_dataset
from input_pipeline.dataset import open_dataset
from input_pipeline.layouts import tiles
from input_pipeline.layouts.tiles import Scene
from input_pipeline.schema import BOXES, MAP, Image, LabelInfo, Metadata, SensorInfo
from ringmoe_jax import files, sensors, tasks
from ringmoe_jax.data_config import DataConfig, StreamConfig
from ringmoe_jax.tasks import Target

NAMES = ("land", "water")
LABELS = {"map": LabelInfo(MAP, NAMES, "made up", "rgb"), "boxes": LabelInfo(BOXES, NAMES, "made up", "rgb", 2)}
SHIP = [0, 5, 3, 2, 2, 0]  # its centre lies in both tiles of its scene


def scene(name, right):
    """4 x 8 px: water in the columns from `right` on. Green is 255 where the model of these tests says water, blue is
    the column."""
    truth = np.tile(np.arange(8) >= right, (4, 1)).astype(np.int16)
    pixels = np.zeros((1, 4, 8, 3), np.uint8)
    pixels[..., 1] = 255 * truth
    pixels[..., 2] = np.arange(8)
    pixels[0, 0, 4, 1] ^= 255  # one mistake, where both tiles look
    return Scene(name, {"rgb": Image(pixels)}, {"map": truth, "boxes": [SHIP]})


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score") / "cut"
    infos = {"rgb": SensorInfo.of(sensors.get("rgb"), (1, 4, 4), 1.0)}
    metadata = Metadata("cut", infos, "made up", "none", "tests", LABELS)
    split = {
        name: [tile for i in range(2) for tile in tiles.cut(scene(f"{name}{i}", 3 + i), infos, LABELS, stride=2)]
        for name in ("train", "validation")
    }
    write_dataset(folder, split, metadata, shards=4)
    return folder


def answers(folder, task, apply):
    label = LABELS[task.target]
    parts = types.SimpleNamespace(
        task=task,
        target=Target(task.target, label.kind, NAMES, "rgb"),
        model=types.SimpleNamespace(apply=apply),
        sensors={"rgb": sensors.get("rgb")},
    )
    data = DataConfig(streams={"s": StreamConfig(str(folder), ("rgb",))}, image_size=4, batch_size=2, mask_unit=0)
    dataset = open_dataset(str(folder), ["rgb"])
    return score._Answers(types.SimpleNamespace(parts=parts, params={}, data=data), dataset, ())


def says(params, batch):
    """Water where green is bright, as logits."""
    green = batch["sensors"]["rgb"]["pixels"][:, 0, ..., 1]
    return {"predictions": {"logits": jax.numpy.stack([1 - green, green], -1)}}


def column(batch):
    """[B] where a tile begins."""
    return jax.numpy.round(255 * batch["sensors"]["rgb"]["pixels"][:, 0, 0, 0, 2])


def test_pixels_of_overlapping_tiles_count_once(cut):
    """2 scenes of 32 pixels with a mistake each; 6 tiles have 96 pixels, and the mistake is in two of them."""
    scorer = answers(cut, tasks.Segmentation(target="map"), says)
    scorer("validation")
    metric = scorer.metrics[score.MODEL]
    confusion = metric.confusion()
    assert confusion.sum() == 64
    assert confusion.sum() - confusion.trace() == 2
    assert (scorer.samples, scorer.scenes, len(metric), len(set(scorer.groups))) == (6, 2, 2, 2)
    assert [example.index for example in scorer.examples] == sorted(example.index for example in scorer.examples)
    assert scorer.notes[-1].startswith("6 tiles are joined to 2 scenes: a pixel counts once")


def test_boxes_of_overlapping_tiles_count_once(cut, monkeypatch):
    """The model finds the ship in both tiles that show it, and nothing in the first: the columns 0 to 3."""
    task = tasks.Detection(target="boxes")

    def found(predictions, target):
        left = predictions["column"]
        box = jax.numpy.stack([5 - left, *[jax.numpy.full_like(left, x) for x in (3, 2, 2, 0)]], -1)
        return {"boxes": box[:, None], "scores": 0.5 + 0 * left[:, None], "classes": jax.numpy.sign(left)[:, None] - 1}

    monkeypatch.setattr(tasks.Detection, "answer", lambda self, predictions, target: found(predictions, target))
    scorer = answers(cut, task, lambda params, batch: {"predictions": {"column": column(batch)}})
    scorer("validation")
    metric = scorer.metrics[score.MODEL]
    table = metric.table()
    assert (table["boxes"].tolist(), table["detections"].tolist()) == ([2, 0], [2, 0])
    assert metric.values(np.ones((1, 2)))["AP"][0] == pytest.approx(1.0)


def test_a_data_set_that_does_not_say_is_scored_tile_by_tile_with_a_note(cut, monkeypatch):
    monkeypatch.setattr(files, "read_manifest", lambda folder: None)
    scorer = answers(cut, tasks.Segmentation(target="map"), says)
    scorer("validation")
    assert (scorer.scenes, scorer.metrics[score.MODEL].confusion().sum()) == (0, 96)
    assert "what two of them show counts twice" in scorer.notes[0]


@pytest.mark.parametrize(
    ("ignore", "notes"),
    [
        ((), ["the data set's own scores leave clutter out of their means: set task.ignore to it", "others erode"]),
        (("clutter",), ["the means leave out clutter (task.ignore)", "others erode"]),
    ],
)
def test_what_the_literature_counts_otherwise_is_said_beside_the_number(ignore, notes):
    label = LabelInfo(MAP, ("a", "b", "clutter"), "", "rgb", unscored=("clutter",), scoring="others erode")
    parts = types.SimpleNamespace(task=tasks.Segmentation(target="map", ignore=ignore), target=Target("map", MAP, ()))
    run, dataset = types.SimpleNamespace(parts=parts), types.SimpleNamespace(labels={"map": label})
    assert list(score._differences(run, dataset)) == notes
