import numpy as np
import pytest

from ringmoe_jax.evaluate.metrics import (
    Change,
    Classification,
    Detection,
    Height,
    MultiLabel,
    Segmentation,
    SemanticChange,
    Tracking,
    base,
    score,
)

MAP = np.array([[0, 1]])
BOX = np.array([[0.0, 5, 5, 4, 4, 0]])
TRACK = np.array([[0.0, 5, 5, 4, 4, 0, 1, 0]])
ONE_IMAGE = {  # of every metric, what `add` takes
    Change(): (MAP, MAP),
    Classification("abcdef"): (np.arange(6.0), 5),
    Detection("a"): (BOX[:, 1:], np.ones(1), np.zeros(1, int), BOX),
    Height(): (np.ones((1, 2)), np.ones((1, 2)), np.ones((1, 2), bool)),
    MultiLabel("ab"): (np.ones(2), np.array([0, 1])),
    Segmentation("ab"): (MAP, MAP),
    SemanticChange("ab"): (np.stack([MAP, 1 - MAP]), np.stack([MAP, 1 - MAP])),
    Tracking(): (TRACK, TRACK),
    Tracking(distance=5.0): (TRACK, TRACK),
}


@pytest.mark.parametrize(("metric", "image"), ONE_IMAGE.items(), ids=lambda x: type(x).__name__)
def test_every_number_says_what_it_is(metric, image):
    metric.add(*image)
    values = metric.values(np.ones((1, 1)))
    assert set(metric.quantities) == set(values)
    assert all(quantity.meaning for quantity in metric.quantities.values())
    for name, quantity in metric.quantities.items():  # the truth itself: nothing could be better
        assert values[name][0] == pytest.approx(0 if quantity.less else 1, nan_ok=True), name


def test_ratios_and_means_without_what_is_undefined():
    np.testing.assert_array_equal(base.ratio([1, 0, 3], np.array([2, 0, 0])), [0.5, np.nan, np.nan])
    np.testing.assert_array_equal(base.mean_known(np.array([[1, np.nan, 0], [np.nan] * 3])), [0.5, np.nan])


def test_confusion_counts_known_pairs():
    pairs = base.confusion(np.array([[0, 0, 1, -1]], np.int16), np.array([[0, 2, 1, 0]], np.uint8), 3)
    assert pairs.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_portions_change_nothing(monkeypatch):
    assert [part.shape for part in base.portions(np.ones((7, 3)), 10)] == [(7, 3)]
    generator = np.random.default_rng(0)
    metric = MultiLabel("abc")
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
    metric = Segmentation("ab")
    for hit in hits:
        metric.add(np.zeros((1, 1), int), np.full((1, 1), 1 - int(hit)))
    found = score(metric, groups)["OA"]
    assert found.value == hits.mean()
    deviation = np.sqrt(hits.mean() * (1 - hits.mean()) / (200 if groups is None else 50))
    assert found.high - found.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
