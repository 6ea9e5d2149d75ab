"""Which cells of an image the encoder does not see (SimMIM; RingMoE: cells of 32 px, ratio 0.6)."""

from __future__ import annotations

from input_pipeline.cpu_tf import tf
from input_pipeline.rules import hidden_cells


def random_mask(seed, height: int, width: int, ratio: float):
    """Hides cells of one image, every set of cells with the same probability.

    Args:
        seed: [2] integers; the mask is a pure function of it.
        height: rows of cells, h.
        width: columns of cells, w.
        ratio: fraction of hidden cells, 0..1.

    Returns:
        [h, w] bool, True where hidden.
    """
    noise = tf.random.stateless_uniform([height * width], seed)
    hidden = tf.argsort(tf.argsort(noise)) < hidden_cells(height, width, ratio)
    return tf.reshape(hidden, [height, width])
