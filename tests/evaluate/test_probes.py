import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import probes
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.evaluate.probes import Split


def split(features, labels, groups=None):
    features, labels = np.asarray(features, np.float32), np.asarray(labels)
    return Split(features, labels, np.arange(len(labels)) if groups is None else np.asarray(groups))


def clouds(seed, tiles=60, classes=3):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=tiles)
    return split(10 * np.eye(classes, 4)[labels] + generator.normal(size=(tiles, 4)), labels)


def test_separable_classes_are_told_apart_and_noise_is_not():
    for result in probes.probe(clouds(0), clouds(1), "abc", resamples=50):
        assert result.scores["accuracy"] == result.scores["macro"] == Score(1.0, 1.0, 1.0)
    generator = np.random.default_rng(0)
    noise = [split(generator.normal(size=(300, 4)), generator.integers(2, size=300)) for _ in range(2)]
    for result in probes.probe(*noise, "ab", resamples=200):
        score = result.scores["accuracy"]
        assert score.low < 0.5 < score.high, result.protocol


def test_neighbours_agree_with_scikit_learn_where_there_are_no_ties():
    generator = np.random.default_rng(0)
    train = split(generator.normal(size=(50, 3)), generator.integers(2, size=50))
    features = generator.normal(size=(40, 3))
    ours = probes.neighbours(train, features, 5, 2).argmax(axis=1)
    reference = KNeighborsClassifier(5).fit(train.features, train.labels).predict(features)
    assert (ours == reference).all()


def test_ties_between_neighbours_go_to_the_nearer_tile():
    train = split([[0.0], [3.0]], [1, 0])
    assert probes.neighbours(train, np.array([[1.0], [2.0]]), 20, 2).argmax(axis=1).tolist() == [1, 0]


def test_several_labels_a_tile_and_what_is_left_out():
    generator = np.random.default_rng(0)

    def tiles(n):
        labels = generator.integers(2, size=(n, 4))
        labels[:, 2], labels[:, 3] = 0, 1  # never, always
        return split(np.concatenate([labels[:, :2] * 8, np.zeros((n, 1))], 1) + generator.normal(size=(n, 3)), labels)

    results = probes.probe(tiles(60), tiles(40), ["a", "b", "never", "always"], resamples=50)
    assert [r.protocol for r in results] == ["knn5", "knn20", "linear"]
    for result in results:
        assert result.left_out == ("never", "always")
        assert result.scores["mAP macro"].value > 0.99
        assert (result.train, result.test, result.blocks, result.near) == (60, 40, 40, 40)


def test_blocks_near_training_tiles_are_counted_where_places_are_known():
    labels = [0, 1, 0, 1]
    train, test = split(np.eye(4), labels, [5, 5, 6, -1]), split(np.eye(4), labels, [5, 7, 9, -1])
    result = probes.probe(train, test, "ab", ("knn5",), resamples=5)[0]
    assert (result.blocks, result.near) == (4, 2)


def test_tiles_without_a_label_are_not_used():
    train, test = clouds(0), clouds(1)
    train.labels[:10], test.labels[:5] = -1, -1
    result = probes.probe(train, test, "abc", ("knn5",), resamples=10)[0]
    assert (result.train, result.test) == (50, 55)


def test_a_class_that_was_never_fitted_counts_as_an_error_and_is_named():
    train, test = clouds(0), clouds(1)
    train = train.where(train.labels != 2)
    result = probes.probe(train, test, "abc", resamples=10)[2]
    assert result.left_out == ("c",)
    assert result.scores["accuracy"].value == pytest.approx(np.mean(test.labels != 2))


def test_scale_of_a_feature_does_not_matter_and_a_constant_one_does_no_harm():
    train, test = clouds(0), clouds(1)
    scale = np.array([1e-6, 1e6, 1, 1])
    turned = [Split(np.c_[s.features * scale, np.full(60, 7e4)], s.labels, s.groups) for s in (train, test)]
    assert probes.probe(*turned, "abc", ("knn5",), resamples=5) == probes.probe(
        train, test, "abc", ("knn5",), resamples=5
    )


def test_penalty_is_strong_for_noise_and_weak_for_signal():
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(400, 30))
    direction = generator.normal(size=30)
    clean = split(signal, (signal @ direction > 0).astype(int))
    assert probes.choose_penalty(clean, 2, seed=0) >= 1
    noisy = split(signal, (signal @ direction + 12 * generator.normal(size=400) > 0).astype(int))
    assert probes.choose_penalty(noisy, 2, seed=0) < 1


def test_penalty_never_splits_a_block():
    """With copies of every tile in its block, held-out blocks are unseen: a label that is pure noise stays noise."""
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(40, 60)), generator.integers(2, size=40)
    tripled = split(np.repeat(features, 3, 0), np.repeat(labels, 3), np.repeat(np.arange(40), 3))
    seen = []
    original = probes.logistic
    try:
        probes.logistic = lambda inner, x, c, n: (seen.append((inner, x)), original(inner, x, c, n))[1]
        probes.choose_penalty(tripled, 2, seed=0)
    finally:
        probes.logistic = original
    inner, outer = seen[0]
    assert len(outer) == 24
    assert not {tuple(row) for row in inner.features} & {tuple(row) for row in outer}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (split(np.ones((4, 2)), [0, 0, 0, 0]), "single class"),
        (split(np.ones((4, 2)), [-1, -1, -1, -1]), "0 labelled training"),
        (split(np.ones((4, 2)), np.ones((4, 2))), "no class"),
    ],
)
def test_labels_that_cannot_be_probed_are_an_error(train, message):
    with pytest.raises(DataError, match=message):
        probes.probe(train, train, "ab")
