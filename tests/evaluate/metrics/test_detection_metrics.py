import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics import DetectionMetric, score

NONE = np.zeros((0, 5)), np.zeros(0), np.zeros(0, int)


def evaluated(images, classes, **options):
    metric = DetectionMetric([str(i) for i in range(classes)], **options)
    for image in images:
        metric.add(*image)
    return metric


def coco_values(images, classes):
    """AP, AP50 and AP75 of pycocotools."""

    def edges(boxes):
        return [[x - w / 2, y - h / 2, w, h] for x, y, w, h in boxes]

    truth, found = [], []
    for index, (boxes, scores, labels, true) in enumerate(images, start=1):
        for label, box in zip(true[:, 0], edges(true[:, 1:5]), strict=True):
            truth.append({"image_id": index, "category_id": int(label) + 1, "bbox": box, "area": box[2] * box[3]})
        for label, box, value in zip(labels, edges(boxes[:, :4]), scores, strict=True):
            found.append({"image_id": index, "category_id": int(label) + 1, "bbox": box, "score": value})
    reference = COCO()
    reference.dataset = {
        "images": [{"id": i + 1} for i in range(len(images))],
        "annotations": [t | {"id": i, "iscrowd": 0} for i, t in enumerate(truth, start=1)],
        "categories": [{"id": i + 1} for i in range(classes)],
    }
    reference.createIndex()
    evaluation = COCOeval(reference, reference.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return dict(zip(("AP", "AP50", "AP75"), evaluation.stats[:3], strict=True))


def random_images(generator, images, classes, most):
    """Detections near the truth and elsewhere; scores of one decimal, so that many are equal."""
    made = []
    for _ in range(images):
        true = np.zeros((generator.integers(most), 6))
        true[:, 0] = generator.integers(classes, size=len(true))
        true[:, 1:3], true[:, 3:5] = generator.uniform(0, 60, (len(true), 2)), generator.uniform(5, 25, (len(true), 2))
        near = true[generator.integers(len(true), size=2 * len(true))] if len(true) else true
        boxes = near[:, 1:].copy()
        boxes[:, :4] += generator.normal(0, 1.5, (len(boxes), 4))
        boxes[:, 2:4] = np.abs(boxes[:, 2:4])
        labels = np.where(generator.random(len(near)) < 0.8, near[:, 0], generator.integers(classes, size=len(near)))
        extra = np.column_stack([generator.uniform(5, 60, (3, 4)), np.zeros(3)])
        boxes, labels = np.concatenate([boxes, extra]), np.append(labels, generator.integers(classes, size=3))
        made.append((boxes, generator.integers(10, size=len(boxes)) / 10, labels.astype(int), true))
    return made


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6), st.integers(1, 8))
def test_equal_to_pycocotools_on_random_images_with_equal_scores(seed, classes, images, most):
    made = random_images(np.random.default_rng(seed), images, classes, most)
    if not sum(len(true) for *_, true in made):
        made.append((*NONE, np.array([[0, 1, 1, 2, 2, 0.0]])))
    values = evaluated(made, classes).values(np.ones((1, len(made))))
    for name, expected in coco_values(made, classes).items():
        assert values[name][0] == pytest.approx(expected, abs=1e-9), name


def test_equal_to_pycocotools_on_made_cases():
    a, b, c = [10, 10, 8, 8, 0.0], [14, 10, 8, 8, 0.0], [40, 40, 6, 6, 0.0]
    true = np.array([[0, *a], [0, *b], [1, *c]])
    between = [12, 10, 8, 8, 0.0]  # overlaps a and b alike
    row = np.array([[0, 10 * i, 0, 4, 4, 0.0] for i in range(20)])
    cases = {
        "as far from two truths, the first is left": (np.array([between, a]), [0.9, 0.5], [0, 0], true),
        "as far from two truths, the last is left": (np.array([between, b]), [0.9, 0.5], [0, 0], true),
        "a recall of 0.35, in the last bit below the grid": (row[:7, 1:], np.arange(7), [0] * 7, row),
        "overlap of exactly a half": (np.array([[10, 10, 8, 4, 0.0], c]), [0.5, 0.5], [0, 1], true),
        "a class without detections": (np.array([a, b]), [0.5, 0.6], [0, 0], true),
        "a class without truth": (np.array([a, c]), [0.5, 0.9], [0, 2], true),
        "no truth": (np.array([a, c]), [0.7, 0.4], [0, 1], true[:0]),
        "empty": (np.zeros((0, 5)), [], [], true[:0]),
        "120 of a class": (np.array([c] * 110 + [a] * 10), np.linspace(1, 0.1, 120), [0] * 120, true),
    }
    images = [(boxes, np.array(scores, float), np.array(labels, int), t) for boxes, scores, labels, t in cases.values()]
    some_truth = images[4]  # without any, pycocotools' mean is -1 and ours undefined
    alone = [[image] for image in images if len(image[3])]
    for made in [*alone, *([image, some_truth] for image in images), images]:
        values = evaluated(made, 3).values(np.ones((1, len(made))))
        for name, expected in coco_values(made, 3).items():
            assert values[name][0] == pytest.approx(expected, abs=1e-12), name


def test_interpolations_by_hand():
    # True, false, true of 4 boxes: precisions 1, 1/2, 2/3 at recalls 1/4, 1/4, 1/2.
    true = np.array([[0, 10.0 * i, 0, 4, 4, 0] for i in range(4)])
    boxes = np.array([[0, 0, 4, 4, 0], [100, 0, 4, 4, 0], [10, 0, 4, 4, 0.0]])
    metric = evaluated([(boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, int), true)], 1)
    values = {name: value[0] for name, value in metric.values(np.ones((1, 1))).items()}
    coco = (26 * 1 + 25 * 2 / 3) / 101  # recalls 0 to 0.25, 0.26 to 0.5
    voc07 = (3 * 1 + 3 * 2 / 3) / 11  # recalls 0, 0.1, 0.2 and 0.3, 0.4, 0.5
    voc12 = (1 + 2 / 3) / 4
    wanted = {"AP": coco, "AP50": coco, "AP75": coco, "AP50 (07)": voc07, "AP50 (12)": voc12}
    assert values == pytest.approx(wanted)
    assert next(iter(values)) == "AP"
    table = metric.table()
    assert (table["boxes"].tolist(), table["detections"].tolist()) == ([4], [3])
    assert table["AP50 (12)"] == pytest.approx([voc12])


def test_overlap_thresholds_by_hand():
    # Overlap 3/5: a hit at 0.50, 0.55 and 0.60, and of the ten thresholds' mean three tenths.
    made = [(np.array([[0, 0, 3, 1, 0.0]]), np.ones(1), np.zeros(1, int), np.array([[0, 0, 0, 5, 1, 0.0]]))]
    values = evaluated(made, 1).values(np.ones((1, 1)))
    assert [values[name][0] for name in ("AP", "AP50", "AP75")] == pytest.approx([0.3, 1, 0])


def test_rotated_boxes_need_the_right_angle():
    true, turned = np.array([[0, 20, 20, 30, 4, 0.5]]), np.array([[20, 20, 30, 4, -0.5]])
    same = np.array([[20, 20, 4, 30, 0.5 + np.pi / 2]])  # the same box, sides exchanged
    for boxes, rotated, expected in ((turned, True, 0), (turned, False, 1), (same, True, 1)):
        values = evaluated([(boxes, np.ones(1), np.zeros(1, int), true)], 1, rotated=rotated).values(np.ones((1, 1)))
        assert values["AP"][0] == expected


def test_rotated_equals_upright_where_nothing_is_turned():
    made = random_images(np.random.default_rng(3), 5, 3, 6)
    upright, rotated = (evaluated(made, 3, rotated=r).values(np.ones((1, 5))) for r in (False, True))
    for name in upright:
        assert rotated[name] == pytest.approx(upright[name], abs=1e-12)


def test_weights_are_repetitions_of_images():
    made = random_images(np.random.default_rng(0), 5, 3, 6)
    made = [(b, s + np.random.default_rng(i).random(len(s)) / 100, c, t) for i, (b, s, c, t) in enumerate(made)]
    weights = np.array([[1.0, 1, 1, 1, 1], [2, 0, 3, 1, 0], [0, 0, 0, 0, 1]])
    values = evaluated(made, 3).values(weights)
    for row, counts in enumerate(weights.astype(int)):
        repeated = [image for image, count in zip(made, counts, strict=True) for _ in range(count)]
        expected = evaluated(repeated, 3).values(np.ones((1, len(repeated))))
        for name, value in expected.items():
            assert values[name][row] == pytest.approx(value[0], abs=1e-12), name


def test_rows_of_class_minus_one_are_not_used_and_classes_without_truth_are_named():
    box = np.array([[5, 5, 4, 4, 0.0]] * 2)
    made = [(box, np.array([0.5, 0.9]), np.array([0, -1]), np.array([[0, 5, 5, 4, 4, 0], [-1, 5, 5, 4, 4, 0.0]]))]
    metric = evaluated(made, 2)
    assert metric.values(np.ones((1, 1)))["AP"] == [1]
    assert metric.left_out() == ("1",)
    assert metric.table()["detections"].tolist() == [1, 0]
    np.testing.assert_array_equal(metric.table()["AP"], [1, np.nan])


def test_what_cannot_be_scored_is_an_error():
    true, box, one = np.array([[0, 5, 5, 4, 4, 0.0]]), np.array([[5, 5, 4, 4, 0.0]]), np.zeros(1, int)
    with pytest.raises(DataError, match="a score is nan"):
        evaluated([(box, np.array([np.nan]), one, true)], 1)
    with pytest.raises(DataError, match="a box's number is inf"):
        evaluated([(box + np.inf, np.ones(1), one, true)], 1)
    with pytest.raises(DataError, match=r"classes are \[7\], wanted whole numbers -1 to 0"):
        evaluated([(box, np.ones(1), one + 7, true)], 1)
    with pytest.raises(DataError, match=r"wanted \[m, 6\]"):
        evaluated([(box, np.ones(1), one, true[:, 1:])], 1)
    with pytest.raises(DataError, match="holds no images"):
        score(DetectionMetric("a"))
    with pytest.raises(DataError, match='"AP" of 1 images is undefined'):
        score(evaluated([(box, np.ones(1), one, true[:0])], 1))
