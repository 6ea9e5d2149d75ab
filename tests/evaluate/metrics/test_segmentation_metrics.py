import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics import ChangeMetric, SegmentationMetric, SemanticChangeMetric, score

ONE = np.ones((1, 1))


def segmented(names, *pairs):
    metric = SegmentationMetric(names)
    for truth, predicted in pairs:
        metric.add(np.asarray(truth), np.asarray(predicted))
    return metric


def test_mean_iou_by_hand():
    # a: 2 hits of 3 true, 2 claimed; b: 1 hit of 1 true, 2 claimed; the void pixel counts for nothing.
    metric = segmented("abc", ([[0, 0, 0], [1, -1, -1]], [[0, 0, 1], [1, 2, 0]]))
    values = {name: value[0] for name, value in metric.values(ONE).items()}
    assert list(values) == ["mIoU", "mF1", "OA"]
    assert values == pytest.approx({"mIoU": (2 / 3 + 1 / 2) / 2, "mF1": (4 / 5 + 2 / 3) / 2, "OA": 3 / 4})
    assert metric.left_out() == ("c",)
    assert metric.confusion().tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(metric.table()["IoU"], [2 / 3, 1 / 2, np.nan])
    assert metric.table()["pixels"].tolist() == [3, 1, 0]


def test_a_class_that_is_only_predicted_counts_zero_and_one_that_a_resample_lacks_is_left_out():
    metric = segmented("abc", ([[0, 0]], [[0, 2]]), ([[0, 1]], [[0, 1]]))
    assert metric.values(np.eye(2))["mIoU"].tolist() == [(1 / 2 + 0) / 2, (1 + 1) / 2]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
def test_weights_are_repetitions_and_scikit_learn_agrees(seed, classes, images):
    generator = np.random.default_rng(seed)
    truth, predicted = generator.integers(-1, classes, (images, 5, 4)), generator.integers(classes, size=(images, 5, 4))
    truth[0, 0, 0] = 0
    metric = segmented("abcde"[:classes], *zip(truth, predicted, strict=True))
    weights = generator.integers(3, size=images)
    weights[0] += 1
    values = metric.values(weights[None].astype(float))
    y, p = np.repeat(truth, weights, axis=0), np.repeat(predicted, weights, axis=0)
    y, p = y[y >= 0], p[y >= 0]
    held = np.union1d(y, p)
    assert values["mIoU"] == pytest.approx([sklearn.jaccard_score(y, p, labels=held, average="macro", zero_division=0)])
    assert values["mF1"] == pytest.approx([sklearn.f1_score(y, p, labels=held, average="macro", zero_division=0)])
    assert values["OA"] == pytest.approx([sklearn.accuracy_score(y, p)])


def test_void_no_images_and_values_that_are_no_class():
    assert all(np.isnan(v).all() for v in segmented("ab", ([[-1]], [[1]])).values(ONE).values())
    with pytest.raises(DataError, match='"mIoU" of 1 images is undefined'):
        score(segmented("ab", ([[-1]], [[1]])))
    with pytest.raises(DataError, match="holds no images"):
        score(SegmentationMetric("ab"))
    with pytest.raises(DataError, match="a prediction is -1, wanted 0 to 1"):
        segmented("ab", ([[0]], [[-1]]))
    with pytest.raises(DataError, match="a label is 255, wanted -1 to 1"):
        segmented("ab", ([[255]], [[0]]))
    with pytest.raises(DataError, match="a prediction is float64"):
        segmented("ab", ([[0]], [[np.nan]]))
    with pytest.raises(DataError, match=r"shape \(1, 2\), wanted the shape of the truth, \(1, 1\)"):
        segmented("ab", ([[0]], [[0, 1]]))
    assert score(segmented("a", ([[0, 0]], [[0, 0]])), resamples=5)["mIoU"].value == 1


def test_binary_change_by_hand():
    metric = ChangeMetric()
    metric.add(np.array([[1, 1, 1, 0, 0, -1]]), np.array([[1, 0, 0, 1, 0, 1]]))
    metric.add(np.array([[0, 0]]), np.array([[0, 0]]))
    values = metric.values(np.array([[1.0, 1], [0, 1]]))
    first = {name: value[0] for name, value in values.items()}
    assert first == pytest.approx({"F1": 2 / 5, "IoU": 1 / 4, "precision": 1 / 2, "recall": 1 / 3, "OA": 4 / 7})
    assert next(iter(values)) == "F1"
    assert np.isnan(values["F1"][1])  # nothing changed and nothing was claimed
    assert values["OA"][1] == 1


def test_semantic_change_by_hand():
    before, after = [0, 0, 1, 1, -1, 2], [0, 1, 1, 2, 0, 2]  # two pixels change, into 1 and into 2
    seen, then = [0, 0, 1, 0, 0, 2], [0, 1, 0, 2, 1, 2]  # three change: both of these, and the third
    metric = SemanticChangeMetric("abc")
    metric.add(np.array([[before], [after]]), np.array([[seen], [then]]))
    values = metric.values(ONE)
    assert {k: v[0] for k, v in values.items()} == pytest.approx({"SCS": (2 / 3 + 1) / 2, "BC": 2 / 3, "SC": 1})
    wrong = [0, 0, 1, 0, 0, 2]  # of the two, one becomes 0 and one stays 0: a class that the truth lacks is left out
    metric = SemanticChangeMetric("abc")
    metric.add(np.array([[before], [after]]), np.array([[[1, 1, 1, 1, 1, 1]], [wrong]]))
    values = metric.values(ONE)
    # Seen to change: pixels 0, 1, 3, 5 of 0, 1, 2, 3, 5; truly 1 and 3.
    assert {k: v[0] for k, v in values.items()} == pytest.approx({"SCS": 1 / 4, "BC": 1 / 2, "SC": 0})
    np.testing.assert_array_equal(metric.table()["pixels"], [0, 1, 1])
    np.testing.assert_array_equal(metric.table()["IoU"], [np.nan, 0, 0])


def test_semantic_change_needs_two_dates_and_some_change():
    with pytest.raises(DataError, match="two dates"):
        SemanticChangeMetric("ab").add(np.zeros((1, 2, 2), int), np.zeros((1, 2, 2), int))
    metric = SemanticChangeMetric("ab")
    metric.add(np.zeros((3, 2, 2), int), np.zeros((3, 2, 2), int))
    with pytest.raises(DataError, match='"SCS" of 1 images is undefined'):
        score(metric)


def test_ignored_classes_are_left_out_of_the_means_alone():
    """By hand: F1 of a is 4/5, of b 2/3; clutter's 2/3 does not count; OA counts its pixels."""
    metric = SegmentationMetric(("a", "b", "clutter"), ignore=("clutter",))
    metric.add(np.array([[0, 0, 1, 1, 2, 2]]), np.array([[0, 0, 1, 2, 2, 0]]))
    values = metric.values(np.ones((1, 1)))
    assert values["mF1"][0] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert values["mIoU"][0] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert values["OA"][0] == pytest.approx(4 / 6)
    assert "without clutter" in metric.quantities["mF1"].meaning
