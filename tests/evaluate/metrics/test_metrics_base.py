import numpy as np
import pytest

from ringmoe_jax.evaluate.metrics import (
    METRICS,
    ChangeMetric,
    ClassificationMetric,
    DetectionMetric,
    HeightMetric,
    MultiLabelMetric,
    SegmentationMetric,
    SemanticChangeMetric,
    TrackingMetric,
    base,
    score,
)


def test_ratios_and_means_without_what_is_undefined():
    np.testing.assert_array_equal(base.ratio([1, 0, 3], np.array([2, 0, 0])), [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(base.mean_known(np.array([[1, np.nan, 0], [np.nan] * 3])), [0.5, np.nan])


def test_confusion_counts_known_pairs():
    pairs = base.confusion(np.array([[0, 0, 1, -1]], np.int16), np.array([[0, 2, 1, 0]], np.uint8), 3)
    assert pairs.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_portions_change_nothing(monkeypatch):
    assert [part.shape for part in base.portions(np.ones((7, 3)), 10)] == [(7, 3)]
    generator = np.random.default_rng(0)
    metric = MultiLabelMetric("abc")
    metric.add(generator.random((9, 3)), generator.integers(2, size=(9, 3)))
    weights = generator.integers(3, size=(7, 9)).astype(float)
    whole = metric.values(weights)
    monkeypatch.setattr(base, "ELEMENTS", 60)
    assert [len(part) for part in base.portions(weights, 27)] == [2, 2, 2, 1]
    for name, value in metric.values(weights).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-12)


@pytest.mark.parametrize("groups", [None, np.repeat(np.arange(50), 4)])
def test_intervals_hold_the_value_and_widen_with_groups(groups):
    """Images of a group are copies: only a quarter of them says something of its own."""
    generator = np.random.default_rng(0)
    hits = np.repeat(generator.random(50) < 0.7, 4)
    metric = SegmentationMetric("ab")
    for hit in hits:
        metric.add(np.zeros((1, 1), int), np.full((1, 1), 1 - int(hit)))
    found = score(metric, groups)["OA"]
    assert found.value == hits.mean()
    deviation = np.sqrt(hits.mean() * (1 - hits.mean()) / (200 if groups is None else 50))
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


BOX = np.array([[1, 10, 10, 4, 4, 0]], np.float32)
TRACK = np.array([[0, 10.0 + t, 10, 6, 4, 0, 7, t] for t in range(2)], np.float32)
MAPS = np.array([[0, 1], [1, 1]]), np.array([[0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("metric", "added"),
    [
        (ClassificationMetric("abc"), (np.eye(3), np.arange(3))),
        (ClassificationMetric("abcdef"), (np.eye(6), np.arange(6))),
        (MultiLabelMetric("ab"), (np.array([[0.2, 0.9]]), np.array([[1, 0]]))),
        (SegmentationMetric("ab"), MAPS),
        (ChangeMetric(), MAPS),
        (SemanticChangeMetric("ab"), tuple(np.stack([x, 1 - x]) for x in MAPS)),
        (HeightMetric(), (np.full((2, 2), 30.0), np.full((2, 2), 10.0), np.ones((2, 2), bool))),
        (DetectionMetric("ab"), (BOX[:, 1:], np.ones(1), np.ones(1, int), BOX)),
        (TrackingMetric(), (TRACK, TRACK)),
        (TrackingMetric(distance=9.0), (TRACK, TRACK + np.array([0, 9, 0, 0, 0, 0, 1, 0]))),
    ],
)
def test_every_value_has_a_direction_a_unit_and_a_range(metric, added):
    assert type(metric) in METRICS.values()
    metric.add(*added)
    values, stated = metric.values(np.ones((1, len(metric)))), metric.quantities
    assert list(stated) == list(values)
    for name, quantity in stated.items():
        assert quantity.meaning
        assert quantity.low <= values[name][0] <= quantity.high or np.isnan(values[name][0])


def test_less_is_better_of_errors_counts_and_distances():
    less = lambda metric: {name for name, q in metric.quantities.items() if not q.higher_is_better}  # noqa: E731
    assert less(HeightMetric()) == {"RMSE", "MAE", "REL", "NRMSE"}
    assert less(TrackingMetric()) == {"ID switches", "FP", "FN"}
    assert less(TrackingMetric(distance=3.0)) == {"ID switches", "FP", "FN", "MOTP"}
    assert not less(SegmentationMetric("ab"))
    units = {name: q.unit for name, q in TrackingMetric(distance=3.0).quantities.items()}
    assert (units["MOTP"], units["FP"], units["HOTA"], HeightMetric().quantities["MAE"].unit) == (
        "px",
        "count",
        "",
        "m",
    )
