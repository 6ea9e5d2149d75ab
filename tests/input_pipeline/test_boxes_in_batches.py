"""Boxes and tracks go where the pixels go: cropped, mirrored and turned with the image."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import augment
from input_pipeline.builder import write_dataset
from input_pipeline.cpu_tf import tf
from input_pipeline.pipeline import crop_boxes
from input_pipeline.reader import train_batches
from input_pipeline.schema import BOXES, MAP, TRACKS, Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors
from ringmoe_jax.data_config import DataConfig, StreamConfig, ViewsConfig

TILE, SAMPLES = 32, 8
WHOLE = np.array([0, 0, 1, 1], np.float32)
KINDS = ("horizontal", "oriented")


def inside(box, x, y):
    """How far points lie inside a box of `schema.BOX`, in pixels; negative outside."""
    along = (x - box[1]) * np.cos(box[5]) + (y - box[2]) * np.sin(box[5])
    across = -(x - box[1]) * np.sin(box[5]) + (y - box[2]) * np.cos(box[5])
    return np.minimum(box[3] / 2 - np.abs(along), box[4] / 2 - np.abs(across))


def depth(box, size):
    """`inside` at the centres of all pixels of an image."""
    centres = np.arange(size) + 0.5
    return inside(np.asarray(box, np.float64), centres[None], centres[:, None])


def sample(i, height, width):
    """One box of whole pixels and one turned one, each with its mask, on two dates; a second row is not used."""
    rng = np.random.default_rng(i)
    top, left, tall, wide = rng.integers(0, 20), rng.integers(0, 20), rng.integers(3, 12), rng.integers(3, 12)
    boxes = {
        "horizontal": [i, left + wide / 2, top + tall / 2, wide, tall, 0],
        "oriented": [i, *rng.uniform(8, 24, 2), rng.uniform(6, 12), rng.uniform(3, 6), rng.uniform(-1.5, 1.5)],
    }
    labels = {name: np.array([box, np.full(6, -1)]) for name, box in boxes.items()}
    labels |= {f"{name} mask": (depth(box, TILE) > 0)[:height, :width] for name, box in boxes.items()}
    labels["tracks"] = np.array([[*boxes["oriented"], 70 + i, 1], np.full(8, -1)])
    return Sample(f"{i}", {"rgb": Image(np.full((2, height, width, 3), i, np.uint8))}, labels=labels)


def write(out, height=TILE, width=TILE):
    info = SensorInfo.of(sensors.get("rgb"), (2, height, width), 1.0)
    classes = tuple(map(str, range(SAMPLES)))
    labels = {name: LabelInfo(BOXES, classes, "made up", "rgb", 2) for name in KINDS}
    labels |= {f"{name} mask": LabelInfo(MAP, ("no", "yes"), "made up", "rgb") for name in KINDS}
    labels["tracks"] = LabelInfo(TRACKS, classes, "made up", "rgb", 2)
    meta = Metadata("boxed", {"rgb": info}, "made up", "none", "tests", labels=labels)
    write_dataset(out, {"train": [sample(i, height, width) for i in range(SAMPLES)]}, meta)
    return out


@pytest.fixture(scope="module")
def boxed(tmp_path_factory):
    return write(tmp_path_factory.mktemp("boxed") / "d")


def batches(directory, number=1, image_size=TILE, frames=None, views=None, **stream):
    config = DataConfig(
        {"a": StreamConfig(str(directory), ("rgb",), **stream)},
        image_size=image_size,
        batch_size=SAMPLES,
        mask_unit=0,
        frames=frames or {},
        views=views,
    )
    found = train_batches(config)
    taken = [next(found) for _ in range(number)]
    found.close()
    return taken


def test_whole_tiles_mirrored_and_turned(boxed):
    """Rendering the moved box is exactly the moved mask; where nothing is cropped every box stays."""
    seen = set()
    for batch in batches(boxed, 4, crop_scale=(1, 1), crop_ratio=(1, 1)):
        labels = batch["labels"]
        for i, box in enumerate(labels["horizontal"][:, 0]):
            assert box[5] == 0
            np.testing.assert_array_equal(depth(box, TILE) > 0, labels["horizontal mask"][i])
            before = sample(int(box[0]), TILE, TILE).labels["horizontal"][0]
            seen.add((box[3] == before[3], box[4] == before[4]))
        for i, box in enumerate(labels["oriented"][:, 0]):
            far = np.abs(depth(box, TILE)) > 1e-4
            np.testing.assert_array_equal((depth(box, TILE) > 0)[far], (labels["oriented mask"][i] > 0)[far])
            assert -math.pi / 2 <= box[5] <= math.pi / 2
        assert (labels["horizontal"][:, 1] == -1).all()
        np.testing.assert_array_equal(labels["tracks"][:, 0, :6], labels["oriented"][:, 0])
        np.testing.assert_array_equal(labels["tracks"][:, 0, 6:], [[70 + i, 1] for i in labels["oriented"][:, 0, 0]])
    assert len(seen) == 2  # some were turned aside and some were not


def test_crops_show_what_the_masks_show(boxed):
    """A mask's pixels are those of the tile, so it may differ from the moved box within one of them of its border."""
    size, lost = 48, 0
    for batch in batches(boxed, 6, image_size=size, crop_scale=(0.3, 0.7), crop_ratio=(1, 1)):
        for kind in KINDS:
            for box, mask in zip(batch["labels"][kind][:, 0], batch["labels"][f"{kind} mask"], strict=True):
                if box[0] < 0:
                    lost += 1
                    assert (box == -1).all()
                    continue
                tile_pixel = size / (math.sqrt(0.3) * TILE)  # at most
                clear = np.abs(depth(box, size)) > tile_pixel
                np.testing.assert_array_equal((depth(box, size) > 0)[clear], (mask > 0)[clear])
                if kind == "horizontal":
                    assert (box[1:3] - box[3:5] / 2 >= -1e-4).all()
                    assert (box[1:3] + box[3:5] / 2 <= size + 1e-4).all()
    assert 0 < lost < 6 * 2 * SAMPLES / 2


ANGLE = st.floats(-1.57, 1.57).filter(lambda angle: abs(angle) > 1e-30 or angle == 0)  # below, float32 turns to 0
BOX = st.tuples(st.floats(2, 30), st.floats(2, 30), st.floats(1, 20), st.floats(1, 20), ANGLE)


@given(
    box=BOX,
    upright=st.booleans(),
    side=st.floats(0.3, 1),
    mirrored=st.booleans(),
    quarters=st.integers(0, 3),
    data=st.data(),
)
@settings(deadline=None, max_examples=25)
def test_every_point_stays_inside_or_outside(box, upright, side, mirrored, quarters, data):
    """A point of the image is in the moved box exactly if the place it shows was in the box."""
    row = np.array([[0, *box[:4], 0 if upright else box[4]]], np.float32)
    corner = [data.draw(st.floats(0, 1 - side)) for _ in range(2)]
    crop, size = tf.constant([*corner, side, side], tf.float32), 20
    turned = tf.constant(mirrored), tf.constant(quarters)
    moved = augment.turn_boxes(crop_boxes(row, crop, (TILE, TILE), size), *turned, size).numpy()
    if moved[0, 0] < 0:
        shown = (row[0, 2:0:-1] / TILE - corner) / side
        assert not ((shown > 1e-5) & (shown < 1 - 1e-5)).all()
        return
    assert (moved[0, 5] == 0) == (row[0, 5] == 0)
    ground = augment.ground(crop, *turned).numpy()
    points = np.random.default_rng(0).uniform(0, 1, (200, 2))
    places = (points @ ground[:, :2].T + ground[:, 2]) * TILE
    before, after = inside(row[0], places[:, 1], places[:, 0]), inside(moved[0], *points[:, ::-1].T * size)
    clear = np.abs(before) > 1e-3
    np.testing.assert_array_equal(before[clear] > 0, after[clear] > 0)


def test_turned_boxes_by_hand():
    rows = np.array([[2, 1, 2, 6, 4, 0], [1, 3, 1, 5, 2, 0.25], [-1] * 6], np.float32)

    def turned(mirrored, quarters):
        return augment.turn_boxes(rows, tf.constant(mirrored), tf.constant(quarters), 10).numpy()

    np.testing.assert_allclose(turned(True, 0), [[2, 9, 2, 6, 4, 0], [1, 7, 1, 5, 2, -0.25], [-1] * 6])
    # counter-clockwise: what was right is up; 0.25 clockwise from the x axis becomes 0.25 - pi/2
    quarter = [[2, 2, 9, 4, 6, 0], [1, 1, 7, 5, 2, 0.25 - math.pi / 2], [-1] * 6]
    np.testing.assert_allclose(turned(False, 1), quarter, rtol=1e-6)
    np.testing.assert_allclose(turned(False, 2), [[2, 9, 8, 6, 4, 0], [1, 7, 9, 5, 2, 0.25], [-1] * 6], rtol=1e-6)
    three = [[2, 8, 1, 4, 6, 0], [1, 9, 3, 5, 2, 0.25 - math.pi / 2], [-1] * 6]
    np.testing.assert_allclose(turned(False, 3), three, rtol=1e-6)


def test_boxes_at_the_border():
    """Angle 0 is clipped, another angle is kept whole, and a box whose centre is not shown is not used."""
    rows = np.array(
        [[0, 1, 5, 6, 4, 0], [0, 9, 8, 4, 6, 0], [0, 1, 5, 6, 4, 0.1], [0, 10, 5, 4, 4, 0], [-1] * 6], np.float32
    )
    cropped = crop_boxes(rows, WHOLE, (10, 10), 20).numpy()
    np.testing.assert_allclose(
        cropped, [[0, 4, 10, 8, 8, 0], [0, 17, 15, 6, 10, 0], [0, 2, 10, 12, 8, 0.1], [-1] * 6, [-1] * 6], rtol=1e-6
    )


ALL, FIXED = {"horizontal", "oriented", "tracks"}, {"horizontal mask", "oriented mask"}


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, set()),
        ({"crop_ratio": (1, 1.1)}, set()),
        ({"crop_ratio": (1, 1)}, ALL),
        ({"crop_ratio": (1, 1), "frames": {"rgb": 1}}, ALL - {"tracks"}),
        ({"image_size": 16, "views": ViewsConfig(grid="rgb")}, ALL),
    ],
)
def test_boxes_are_shown_where_nothing_is_stretched(boxed, options, shown):
    (batch,) = batches(boxed, **options)
    assert set(batch["labels"]) == shown | FIXED


@pytest.mark.parametrize(("largest", "shown"), [(0.5, ALL), (0.51, set())])
def test_squares_must_fit_into_the_tile(tmp_path, largest, shown):
    """In a tile twice as wide as high, a square of more than half its area would be cut off, and stretched."""
    directory = write(tmp_path / "d", height=16)
    (batch,) = batches(directory, crop_scale=(0.3, largest), crop_ratio=(1, 1))
    assert set(batch["labels"]) == shown | FIXED
