"""Logistic regression against scikit-learn's, which minimises the same sum."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ringmoe_jax.evaluate.logistic import LogisticPath


def correlated(tiles, width=12, seed=0):
    """Standardised features whose principal axes differ by a factor of 1,000 in length."""
    generator = np.random.default_rng(seed)
    mixed = np.random.default_rng(9).normal(size=(width, width)) * np.logspace(0, -3, width)
    features = generator.normal(size=(tiles, width)) @ mixed.T
    return (features - features.mean(0)) / features.std(0)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("penalty", [1e-4, 1e-1, 1e2])
def test_probabilities_are_those_of_scikit_learn(classes, penalty):
    features, others = correlated(400), correlated(100, seed=1)
    labels = (features[:, :classes] + np.random.default_rng(2).gumbel(size=(400, classes))).argmax(1) * 2
    reference = LogisticRegression(C=penalty, tol=1e-10, max_iter=100_000, solver="newton-cg").fit(features, labels)
    ours = LogisticPath(features, labels, 9).fit(penalty).probabilities(others)
    assert ours.shape == (100, 9)
    np.testing.assert_allclose(ours[:, ::2][:, :classes], reference.predict_proba(others), atol=1e-3)
    assert (np.delete(ours, range(0, 2 * classes, 2), axis=1) == 0).all()  # classes that no tile has


def test_the_end_of_a_path_does_not_hang_on_where_it_began():
    features = correlated(300)
    labels = (features[:, :3] + np.random.default_rng(2).gumbel(size=(300, 3))).argmax(1)
    direct = LogisticPath(features, labels, 3).fit(10.0).probabilities(features)
    path = LogisticPath(features, labels, 3)
    for penalty in (1e4, 1e-6, 10.0):
        path.fit(penalty)
    np.testing.assert_allclose(path.probabilities(features), direct, atol=1e-3)


def test_several_labels_are_regressions_of_their_own_and_constant_ones_stay():
    features, others = correlated(300), correlated(50, seed=1)
    noise = np.random.default_rng(2).logistic(size=(300, 2))
    labels = np.concatenate([features[:, :2] + noise > 0, np.zeros((300, 1)), np.ones((300, 1))], axis=1).astype(int)
    ours = LogisticPath(features, labels, 4).fit(0.1).probabilities(others)
    for column in range(2):
        one = LogisticRegression(C=0.1, tol=1e-10, max_iter=100_000).fit(features, labels[:, column])
        np.testing.assert_allclose(ours[:, column], one.predict_proba(others)[:, 1], atol=1e-3)
    assert (ours[:, 2] == 0).all()
    assert (ours[:, 3] == 1).all()
    assert (LogisticPath(features, labels[:, 2:], 2).fit(1.0).probabilities(others) == [0, 1]).all()
