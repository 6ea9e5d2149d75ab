import numpy as np
import pytest
from sklearn import metrics as sklearn

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.metrics import ClassificationMetric, MultiLabelMetric, Score, score
from ringmoe_jax.evaluate.metrics.classification import average_precision


def classified(names, scores, labels):
    metric = ClassificationMetric(names)
    metric.add(np.asarray(scores), np.asarray(labels))
    return metric


def labelled(scores, labels, **options):
    metric = MultiLabelMetric([str(i) for i in range(scores.shape[1])], **options)
    metric.add(scores, labels)
    return metric


def test_macro_is_the_mean_recall_of_the_classes_that_the_images_hold():
    labels = np.array([0, 0, 0, 1, 1])  # recalls 1 and 1/2; class 2 is absent
    metric = classified("abc", np.eye(3)[[0, 0, 0, 1, 0]], labels)
    values = metric.values(np.array([[1.0, 1, 1, 1, 1], [1, 1, 1, 0, 2]]))
    assert list(values) == ["accuracy", "macro"]
    assert values["accuracy"] == pytest.approx([0.8, 0.6])
    assert values["macro"] == pytest.approx([0.75, 0.5])
    assert values["macro"][0] == pytest.approx(sklearn.balanced_accuracy_score(labels, [0, 0, 0, 1, 0]))
    assert metric.confusion().tolist() == [[3, 0, 0], [1, 1, 0], [0, 0, 0]]
    table = metric.table()
    assert table["images"].tolist() == [3, 2, 0]
    np.testing.assert_allclose(table["F1"], [6 / 7, 2 / 3, np.nan])


def test_top_five_and_weighted_accuracy_agree_with_scikit_learn():
    generator = np.random.default_rng(0)
    scores, labels = generator.normal(size=(90, 8)), generator.integers(8, size=90)
    weights = generator.integers(4, size=(6, 90)).astype(float)
    values = classified("abcdefgh", scores, labels).values(weights)
    expected = [sklearn.top_k_accuracy_score(labels, scores, k=5, sample_weight=w) for w in weights]
    np.testing.assert_allclose(values["top-5"], expected)
    expected = [sklearn.balanced_accuracy_score(labels, scores.argmax(axis=1), sample_weight=w) for w in weights]
    np.testing.assert_allclose(values["macro"], expected)


def test_of_equal_scores_the_first_class_wins_for_every_metric():
    values = classified("abcdefgh", np.zeros((2, 8)), [0, 5]).values(np.eye(2))
    assert values["accuracy"].tolist() == [1, 0]
    assert values["top-5"].tolist() == [1, 0]


def test_unknown_labels_and_resamples_without_labels():
    metric = classified("ab", np.eye(2), [-1, 1])
    metric.add(np.array([1.0, 0.0]), 0)  # one image alone
    values = metric.values(np.array([[1.0, 1, 1], [1, 0, 0]]))
    np.testing.assert_array_equal(values["accuracy"], [1, np.nan])
    assert len(metric) == 3
    assert metric.confusion().sum() == 2


def test_average_precision_by_hand_and_by_scikit_learn():
    # Thresholds 0.9 | 0.5 0.5 | 0.1: precisions 1, 2/3, 1/2 at recalls 1/2, 1, 1.
    truth, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.5, 0.5, 0.1])
    assert average_precision(truth, scores, np.ones((1, 4))) == pytest.approx([0.5 * 1 + 0.5 * 2 / 3])
    generator = np.random.default_rng(0)
    truth, scores = generator.integers(2, size=80), generator.integers(10, size=80) / 10
    weights = generator.integers(4, size=(6, 80)).astype(float)
    reference = [sklearn.average_precision_score(truth, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(average_precision(truth, scores, weights), reference, rtol=1e-12)
    assert np.isnan(average_precision(np.zeros(4), np.ones(4), np.ones((1, 4)))).all()


def test_several_labels_agree_with_scikit_learn():
    generator = np.random.default_rng(1)
    scores, labels = generator.random((70, 4)), generator.integers(2, size=(70, 4))
    weights = generator.integers(1, 4, size=(5, 70)).astype(float)
    metric = labelled(scores, labels)
    values = metric.values(weights)
    assert list(values) == ["mAP micro", "mAP macro", "F1 macro"]
    for average in ("micro", "macro"):
        expected = [sklearn.average_precision_score(labels, scores, average=average, sample_weight=w) for w in weights]
        np.testing.assert_allclose(values[f"mAP {average}"], expected, rtol=1e-12)
    expected = [sklearn.f1_score(labels, scores >= 0.5, average="macro", sample_weight=w) for w in weights]
    np.testing.assert_allclose(values["F1 macro"], expected, rtol=1e-12)
    np.testing.assert_allclose(metric.table()["AP"], sklearn.average_precision_score(labels, scores, average=None))


def test_threshold_is_of_f1_alone_and_classes_that_nobody_holds_are_left_out():
    logits, labels = np.array([[1.0, -1], [0.2, -2]]), np.array([[1, 0], [1, 0]])
    halves, zero = (labelled(logits, labels, threshold=t).values(np.ones((1, 2))) for t in (0.5, 0.0))
    assert zero == {"mAP micro": [1], "mAP macro": [1], "F1 macro": [1]}
    assert halves["F1 macro"] == pytest.approx([2 / 3])


def test_scores_of_one_class_and_intervals():
    assert score(classified("a", [[3.0], [1.0]], [0, 0]), resamples=20)["accuracy"] == Score(1.0, 1.0, 1.0)
    generator = np.random.default_rng(0)
    found = score(classified("ab", generator.normal(size=(400, 2)), generator.integers(2, size=400)))["accuracy"]
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 400**0.5, rel=0.15)  # binomial


def test_groups_are_drawn_together():
    metric = classified("ab", np.eye(2)[[0] * 10 + [1] * 10], [0] * 20)
    alone, grouped = score(metric)["accuracy"], score(metric, np.repeat([0, 1], 10))["accuracy"]
    assert alone.low > 0.2
    assert grouped == Score(0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([[np.nan, 1.0]], [0], "a score is nan"),
        ([[np.inf, 1.0]], [0], "a score is inf"),
        ([[0.0, 1.0]], [2], "a label is 2, wanted -1 to 1"),
        ([[0.0, 1.0]], [0.5], "a label is float64"),
        ([[0.0, 1.0, 2.0]], [0], r"shape \(1, 3\), wanted \(1, 2\)"),
    ],
)
def test_what_cannot_be_scored_is_an_error(scores, labels, message):
    with pytest.raises(DataError, match=message):
        classified("ab", scores, labels)


def test_no_images_no_labels_and_wrong_groups_are_errors():
    with pytest.raises(DataError, match="holds no images"):
        score(ClassificationMetric("ab"))
    with pytest.raises(DataError, match="holds no images"):
        score(MultiLabelMetric("ab"))
    with pytest.raises(DataError, match='"accuracy" of 1 images is undefined'):
        score(classified("ab", [[1.0, 0.0]], [-1]))
    with pytest.raises(DataError, match=r"groups have shape \(3,\)"):
        score(classified("ab", [[1.0, 0.0]], [0]), np.arange(3))
    with pytest.raises(DataError, match="labels hold 2"):
        MultiLabelMetric("ab").add(np.zeros(2), np.array([2, 0]))
