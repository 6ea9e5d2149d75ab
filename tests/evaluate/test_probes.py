from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from input_pipeline import schema
from input_pipeline import subset as subsets
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.evaluate import probes
from ringmoe_jax.evaluate.metrics import ClassificationMetric, Metric, Quantity, Score, score
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
    for k, ours in zip((5, 3), probes.neighbours(train, features, [5, 3], 2), strict=True):
        reference = KNeighborsClassifier(k).fit(train.features, train.labels).predict(features)
        assert (ours.argmax(axis=1) == reference).all()


def test_ties_between_neighbours_go_to_the_nearer_tile():
    train = split([[0.0], [3.0]], [1, 0])
    (scores,) = probes.neighbours(train, np.array([[1.0], [2.0]]), [20], 2)
    assert scores.argmax(axis=1).tolist() == [1, 0]


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


def chosen(train, validation=None):
    """The C that the linear probe chooses."""
    return probes.probe(train, train, "ab", ("linear",), validation=validation, resamples=2)[0].penalty


def test_penalty_is_strong_for_noise_and_weak_for_signal():
    generator = np.random.default_rng(0)
    signal = generator.normal(size=(400, 30))
    direction = generator.normal(size=30)
    clean = split(signal, (signal @ direction > 0).astype(int))
    assert chosen(clean) >= 1
    noisy = split(signal, (signal @ direction + 12 * generator.normal(size=400) > 0).astype(int))
    assert chosen(noisy) < 1


def test_probes_side_by_side_are_those_alone():
    calls = [partial(probes.probe, clouds(i), clouds(i + 1, tiles=30), "abc", resamples=20) for i in range(3)]
    single = partial(probes.probe, split(np.zeros((5, 2)), np.zeros(5, int)), clouds(0), "abc")
    *several, refused = probes.side_by_side([*calls, single])
    assert several == [call() for call in calls]
    assert isinstance(refused, DataError)
    assert "a single class" in str(refused)
    with pytest.raises(ConfigError, match="fraction"):
        probes.side_by_side([partial(probes.probe, clouds(0), clouds(1), "abc", fraction=2)])


def test_penalty_never_splits_a_block():
    """With copies of every tile in its block, held-out blocks are unseen: a label that is pure noise stays noise."""
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(40, 60)), generator.integers(2, size=40)
    tripled = split(np.repeat(features, 3, 0), np.repeat(labels, 3), np.repeat(np.arange(40), 3))
    seen = []
    original = probes.logistic
    try:
        probes.logistic = lambda inner, x, c, n: (seen.append((inner, x)), original(inner, x, c, n))[1]
        chosen(tripled)
    finally:
        probes.logistic = original
    inner, outer = seen[0]
    assert len(outer) == 24
    assert not {tuple(row) for row in inner.features} & {tuple(row) for row in outer}


def test_penalty_is_the_one_that_validation_tiles_like_best():
    generator = np.random.default_rng(0)
    features = generator.normal(size=(200, 100))
    noisy = split(features, (features[:, 0] + 3 * generator.normal(size=200) > 0).astype(int))
    fresh = generator.normal(size=(400, 100))
    honest = split(fresh, (fresh[:, 0] > 0).astype(int))
    assert chosen(noisy, noisy) >= 1  # learning by heart pays
    assert chosen(noisy, honest) <= 0.1
    assert chosen(noisy, split(np.zeros((4, 100)), [0, 0, 0, 0])) == 1  # cannot tell


def test_what_features_are_chosen_by_is_the_metric_on_validation_tiles_of_a_fit_without_them():
    """A split that is scored plays no part, and neither does the refitting: every tenth label is wrong there."""
    train, validation, test = clouds(0), clouds(1, tiles=50), clouds(2)
    validation.labels[:] = np.where(np.arange(50) % 10 == 0, (validation.labels + 1) % 3, validation.labels)
    test.labels[:] = (test.labels + 1) % 3
    for result in probes.probe(train, test, "abc", ("knn5", "knn7", "linear"), validation=validation, resamples=5):
        assert result.validation == pytest.approx(0.9)
        assert result.scores["accuracy"].value == 0
    for result in probes.probe(train, test, "abc", resamples=5):  # no validation tiles: a fifth of the training tiles
        assert result.validation == 1


@pytest.mark.parametrize("name", ["knn", "knn0", "nearest", "knn5x"])
def test_a_probe_that_there_is_not(name):
    with pytest.raises(ConfigError, match=f'no probe "{name}": wanted linear, or knn5'):
        probes.probe(clouds(0), clouds(1), "abc", (name,))


@pytest.fixture
def fitted(monkeypatch):
    """Every fit so far: features and labels of its tiles, and C."""
    fits = []

    def record(name):
        original = getattr(probes, name)

        def run(train, features, *rest):
            fits.append((name, train.features.tolist(), train.labels.tolist(), *rest))
            return original(train, features, *rest)

        monkeypatch.setattr(probes, name, run)

    record("logistic")
    record("neighbours")
    return fits


def test_nothing_of_the_test_tiles_is_used_for_fitting_or_choosing(fitted):
    train, validation, test = clouds(0), clouds(1, tiles=30), clouds(2, tiles=50)
    generator = np.random.default_rng(0)
    other = split(generator.normal(size=(50, 4)), generator.permutation(test.labels))
    results = []
    for scored in (test, other):
        results.append(probes.probe(train, scored, "abc", validation=validation, resamples=5))
        once = list(fitted)
        fitted.clear()
        if scored is test:
            first = once
    assert first == once
    assert [r.penalty for r in results[0]] == [r.penalty for r in results[1]]
    assert results[0][2].scores["accuracy"].value == 1 > results[1][2].scores["accuracy"].value


def test_neighbours_are_training_tiles_and_the_linear_probe_is_refitted_on_validation_tiles_too(fitted):
    train, validation = clouds(0), clouds(1, tiles=30)
    results = probes.probe(train, clouds(2), "abc", validation=validation, resamples=5)
    assert [r.train for r in results] == [60, 60, 90]
    assert [(name, len(labels)) for name, _, labels, *_ in fitted] == [
        *[("neighbours", 60)] * 2,  # for test and for validation tiles, whatever k
        ("logistic", 60),
        ("logistic", 90),
    ]
    assert fitted[2][3] == probes.PENALTIES
    assert fitted[3][3] == [results[2].penalty]
    assert fitted[-1][2] == [*train.labels, *validation.labels]
    np.testing.assert_allclose(np.mean(fitted[-1][1], axis=0), 0, atol=1e-9)  # z-scored on what is fitted


def test_a_class_that_only_test_tiles_hold_is_not_learnt():
    train, validation, test = (s.where(s.labels < 2) for s in (clouds(0), clouds(1), clouds(2)))
    test.labels[:10] = 2
    for result in probes.probe(train, test, "abc", validation=validation, resamples=5):
        assert result.scores["accuracy"].value == pytest.approx(1 - 10 / len(test.labels))


CLASSES = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(np.array)


@given(CLASSES, st.floats(0.001, 1), st.floats(0.001, 1), st.integers(0, 9))
def test_shares_are_stratified_and_nested_and_lose_no_class(labels, some, more, seed):
    some, more = sorted((some, more))
    small, large = (probes.draw(labels, fraction, seed) for fraction in (some, more))
    assert (np.diff(small) > 0).all()
    assert set(small) <= set(large)
    for c in np.unique(labels):
        assert np.sum(labels[small] == c) == max(1, round(some * np.sum(labels == c)))


def test_shares_of_several_labels_are_plain_draws():
    labels = np.eye(40, 2)
    drawn = [probes.draw(labels, fraction, 3).tolist() for fraction in (0.01, 0.25, 1)]
    assert [len(d) for d in drawn] == [1, 10, 40]
    assert set(drawn[0]) < set(drawn[1]) < set(drawn[2])
    assert drawn[1] != probes.draw(labels, 0.25, 4).tolist()


@pytest.mark.parametrize("fraction", [0.01, 0.3, 1])
def test_shares_are_those_that_training_on_few_labels_uses(monkeypatch, fraction):
    classes = np.random.default_rng(0).integers(3, size=50)
    label = schema.LabelInfo(schema.CLASSES, ("a", "b", "c"), "made up")
    dataset = SimpleNamespace(size=lambda _: 50, labels={"kind": label}, directory="made up")
    monkeypatch.setattr(subsets, "read_classes", lambda *_: classes)
    for seed in range(3):
        theirs = subsets.subset(dataset, "train", fraction, "kind", seed)
        assert probes.draw(classes, fraction, seed).tolist() == theirs.tolist()
        plain = subsets.subset(dataset, "train", fraction, "", seed)
        assert probes.draw(np.zeros((50, 2)), fraction, seed).tolist() == plain.tolist()


def test_a_share_is_one_of_training_and_of_validation_tiles_in_every_draw(fitted):
    train, validation, test = clouds(0), clouds(1, tiles=30), clouds(2)
    results = probes.probe(train, test, "abc", validation=validation, fraction=0.1, draws=4, resamples=20)
    of = [sum(max(1, round(0.1 * n)) for n in np.bincount(s.labels)) for s in (train, validation)]
    assert [(r.fraction, r.draws, r.train) for r in results] == [
        (0.1, 4, of[0]),
        (0.1, 4, of[0]),
        (0.1, 4, sum(of)),
    ]
    drawn = [labels for name, _, labels, *_ in fitted if name == "neighbours"]
    assert len(drawn) == 8
    assert all(set(labels) == {0, 1, 2} for labels in drawn)
    features = {str(x) for name, x, *_ in fitted if name == "neighbours"}
    assert len(features) == 4  # other tiles in every draw, the same for both numbers of neighbours


def test_the_score_of_several_draws_is_their_mean():
    generator = np.random.default_rng(0)
    train, test = (split(generator.normal(size=(n, 3)), generator.integers(2, size=n)) for n in (80, 60))
    (joined,) = probes.probe(train, test, "ab", ("knn5",), fraction=0.2, draws=3, resamples=50)
    single = [probes.probe(train, test, "ab", ("knn5",), fraction=0.2, seed=s, resamples=50)[0] for s in range(3)]
    values = [r.scores["accuracy"].value for r in single]
    assert len(set(values)) > 1
    assert joined.scores["accuracy"].value == pytest.approx(np.mean(values))
    assert (joined.draws, single[0].draws) == (3, 1)


class Constant(Metric):
    """The same value whatever is drawn."""

    def __init__(self, value):
        self.value = value

    @property
    def quantities(self):
        return {"m": Quantity("a constant")}

    def __len__(self):
        return 4

    def values(self, weights):
        return {"m": np.full(len(weights), self.value)}


def test_intervals_cover_draws_and_tiles():
    groups = np.arange(4)
    assert probes._pooled([Constant(0.2), Constant(0.6)], groups, 0, 100) == {"m": Score(0.4, 0.2, 0.6)}
    metric = ClassificationMetric(["a", "b"])
    metric.add(np.eye(2)[[0, 1, 0, 1]], np.array([0, 1, 1, 0]))
    assert probes._pooled([metric], groups, 3, 100) == score(metric, groups, 3, 100)  # one draw: as everywhere


def test_all_labels_are_drawn_once():
    results = [probes.probe(clouds(0), clouds(1), "abc", draws=draws, resamples=5) for draws in (1, 5)]
    assert results[0] == results[1]
    assert results[0][0].draws == 1


@pytest.mark.parametrize(("fraction", "draws"), [(0, 1), (1.5, 1), (0.5, 0)])
def test_shares_and_draws_have_ranges(fraction, draws):
    with pytest.raises(ConfigError, match=f"fraction = {fraction}, draws = {draws}"):
        probes.probe(clouds(0), clouds(1), "abc", fraction=fraction, draws=draws)


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
