"""Logistic regression with an L2 penalty for thousands of tiles, over a path of penalties, in seconds on one core."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

ITERATIONS = 200  # of L-BFGS, at most, a penalty
_CONVERGED = dict(ftol=1e-8, gtol=1e-5)  # of the mean loss; float32 products allow no more


class LogisticPath:
    """Minimises C * sum of the losses + |W|^2 / 2 by L-BFGS, each fit from where the last one ended.

    The objective is that of scikit-learn's `LogisticRegression`: softmax over three classes or more, a sigmoid for two
    classes and for each column of several labels a tile; the intercept is not penalised. Our choice is how it is
    minimised: |W| does not change with a rotation, so the features are turned to their principal axes, and each axis is
    scaled by the curvature of the objective along it. Correlated features then cost few iterations.

    Args:
        features: [N, D], near zero mean and unit variance.
        labels: [N] int class, or [N, K] of 0 and 1.
        classes: C, number of classes; those that no tile has get the probability 0. K for several labels a tile.

    Attributes:
        evaluations: how often the loss and its gradient were computed.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int):
        self.classes = classes
        if labels.ndim == 1:
            self.columns, position = np.unique(labels, return_inverse=True)
            self.softmax = len(self.columns) > 2
            self.targets = np.eye(len(self.columns))[position] if self.softmax else (position[:, None] == 1) * 1.0
        else:
            self.columns = np.flatnonzero(labels.min(axis=0) < labels.max(axis=0))
            self.softmax, self.targets = False, labels[:, self.columns] * 1.0
        self.several = labels.ndim == 2
        self.constant = labels[0].astype(np.float64) if self.several else np.zeros(classes)
        self.targets = self.targets.astype(np.float32)
        wide = features.astype(np.float64)
        power, self.axes = np.linalg.eigh(wide.T @ wide / len(wide))
        self.rotated = (wide @ self.axes).astype(np.float32)
        outcomes = self.targets.shape[1] if self.softmax else 2
        self.curvature = (outcomes - 1) / outcomes**2
        self.power = np.maximum(power, 0)
        self.weights = np.zeros((features.shape[1], self.targets.shape[1]))
        self.bias = np.zeros(self.targets.shape[1])
        self.evaluations = 0

    def fit(self, penalty: float) -> LogisticPath:
        """Moves to the minimum for one C; returns itself."""
        if not len(self.columns):
            return self
        strength = 1 / (penalty * len(self.rotated))
        scale = 1 / np.sqrt(self.curvature * self.power + strength)[:, None]
        scaled, shift = self.rotated * scale.T.astype(np.float32), 1 / np.sqrt(self.curvature)
        size = self.weights.shape

        def split(values):
            return values[: -size[1]].reshape(size), values[-size[1] :] * shift

        def objective(values):
            self.evaluations += 1
            weights, bias = split(values)
            logits = scaled @ weights.astype(np.float32) + bias.astype(np.float32)
            loss, slope = self._loss(logits)
            slope /= len(scaled)
            actual = weights * scale
            change = scaled.T @ slope + strength * actual * scale
            value = loss / len(scaled) + strength / 2 * np.sum(actual**2)
            return value, np.concatenate([change.ravel(), slope.sum(axis=0, dtype=np.float64) * shift])

        start = np.concatenate([(self.weights / scale).ravel(), self.bias / shift])
        end = minimize(objective, start, jac=True, method="L-BFGS-B", options=dict(maxiter=ITERATIONS, **_CONVERGED)).x
        weights, self.bias = split(end)
        self.weights = weights * scale
        return self

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """[M, C] float64 of features [M, D]."""
        logits = features.astype(np.float64) @ (self.axes @ self.weights) + self.bias
        found = np.exp(log_softmax(logits, axis=1)) if self.softmax else expit(logits)
        if not self.softmax and not self.several:
            found = np.concatenate([1 - found, found], axis=1)
        scores = np.tile(self.constant, (len(features), 1))
        scores[:, self.columns] = found
        return scores

    def _loss(self, logits: np.ndarray) -> tuple[float, np.ndarray]:
        """Sum of the losses, and their derivatives by the logits."""
        if self.softmax:
            logarithms = log_softmax(logits, axis=1)
            loss = -np.sum(logarithms * self.targets, dtype=np.float64)
            return float(loss), np.exp(logarithms) - self.targets
        loss = np.sum(np.logaddexp(0, logits) - self.targets * logits, dtype=np.float64)
        return float(loss), expit(logits) - self.targets
