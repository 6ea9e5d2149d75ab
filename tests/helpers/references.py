"""References in float64 that several tests compare with."""

import jax
import numpy as np


def sinkhorn_knopp(scores, weight, temperature, iterations=3):
    """[N, K] and [N] -> [N, K] float64: a softmax, then columns and rows are normalised in turn."""
    p = np.asarray(scores, np.float64) / temperature
    p = np.exp(p - p.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    for _ in range(iterations):
        p /= (np.asarray(weight, np.float64)[:, None] * p).sum(axis=0)
        p /= p.sum(axis=-1, keepdims=True)
    return p


SIGMA = np.array([[0.05, 0.02 - 0.01j], [0.02 + 0.01j, 0.03]])


QUAD_SIGMA = np.array(
    [
        [0.05, 0.004j, 0.004j, 0.02],
        [-0.004j, 0.01, 0.009, 0.001],
        [-0.004j, 0.009, 0.01, 0.001],
        [0.02, 0.001, 0.001, 0.04],
    ]
)


def nats_in_unit(term, shown, noise):
    """-ln p by pixel, [N, terms], float64."""

    @jax.jit
    def run(outputs, batch, noise):
        target, _ = term.usable(outputs, batch)
        return term.nats(term.prediction(outputs), target, noise) + term.change_of_unit(outputs, target)

    return np.asarray(run(*shown, noise), np.float64)[0, 0, 0]


def says(function, *arguments):
    """The same compiled as a whole, for the first pixel or window, float64 or complex128."""
    value = np.asarray(jax.jit(function)(*arguments))[0, 0, 0, 0]
    return value.astype(np.result_type(value, np.float64))


def real_covariance(sigma):
    """Of re, im, re, im ... of a circular vector with a complex covariance."""
    p = len(sigma)
    blocks = np.block([[sigma.real, -sigma.imag], [sigma.imag, sigma.real]]) / 2
    order = np.arange(2 * p).reshape(2, p).T.ravel()
    return blocks[np.ix_(order, order)]
