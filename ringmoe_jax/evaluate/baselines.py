"""Features that cost nothing to learn. A pre-trained encoder is worth its name where it beats them."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.contracts import standardise
from ringmoe_jax.evaluate.features import Encoder
from ringmoe_jax.models import Model, Params
from ringmoe_jax.sensors import COMPLEX, Sensor, Statistics

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
FLOOR = 1e-10  # smallest power that counts: keeps decibels finite, calibrated or not


def decibels(pixels: np.ndarray) -> np.ndarray:
    """Power of re, im pairs: [..., 2 P] complex amplitudes to [..., P] dB (sigma0)."""
    power = np.square(pixels).reshape(*pixels.shape[:-1], -1, 2).sum(axis=-1)
    return 10 * np.log10(np.maximum(power, FLOOR))


def image_statistics(sensors: Mapping[str, Sensor]) -> Encoder:
    """Mean, standard deviation and five quantiles of every band over a tile's valid pixels.

    As the `imagestats` baseline of torchgeo-bench; which statistics is our choice. Complex bands are
    turned into power in dB first, for their mean is zero by nature. A tile without valid pixels is 0.

    Returns:
        {sensor: [B, 7 C]} (7 P for complex sensors of P polarisations), in the sensor's unit.
    """

    def encode(batch: Mapping) -> dict[str, np.ndarray]:
        return {name: np.stack([row(sensors[name], *t) for t in tiles(e)]) for name, e in batch["sensors"].items()}

    def tiles(entry):
        return zip(np.asarray(entry["pixels"]), np.asarray(entry["valid"]), strict=True)

    def row(sensor: Sensor, pixels: np.ndarray, valid: np.ndarray) -> np.ndarray:
        values = decibels(pixels) if sensor.resampling == COMPLEX else pixels
        values = values[valid] if valid.any() else np.zeros((1, values.shape[-1]), np.float32)
        return np.concatenate([values.mean(0), values.std(0), *np.quantile(values, QUANTILES, axis=0)])

    return encode


def random_convolutions(
    statistics: Mapping[str, Statistics], count: int = 256, size: int = 3, seed: int = 0
) -> Encoder:
    """Random convolutional features (MOSAIKS, Rolf et al. 2021): mean of relu(w*x - 1) and of relu(1 - w*x).

    Args:
        statistics: normalisation of every sensor; pixels are standardised first.
        count: D, features a sensor, even.
        size: side of the Gaussian kernels in pixels.
        seed: of the kernels.
    """

    def of_image(image: jax.Array, kernel: jax.Array) -> jax.Array:
        """[H, W, C] and [size * size * C, D / 2] to [D]. One image at a time stays in a CPU's cache."""
        height, width = (side - size + 1 for side in image.shape[:2])
        corners = [(row, column) for row in range(size) for column in range(size)]
        patches = [image[row : row + height, column : column + width] for row, column in corners]
        response = jnp.concatenate(patches, axis=-1).reshape(-1, len(kernel)) @ kernel
        above = jax.nn.relu(response - 1).mean(axis=0)
        return jnp.concatenate([above, above + 1 - response.mean(axis=0)])  # relu(-x) = relu(x) - x

    @jax.jit
    def encode(batch: Mapping) -> dict[str, jax.Array]:
        features = {}
        for name, entry in batch["sensors"].items():
            x = standardise(entry["pixels"], entry["valid"], statistics[name])
            kernel = jax.random.normal(jax.random.key(seed), (size, size, x.shape[-1], count // 2))
            flat = kernel.reshape(-1, count // 2)
            of_frames = jax.lax.map(lambda image, flat=flat: of_image(image, flat), x.reshape(-1, *x.shape[2:]))
            features[name] = of_frames.reshape(*x.shape[:2], -1).mean(axis=1)
        return features

    return encode


def random_params(model: Model, seed: int = 0) -> Params:
    """Fresh parameters of the same model: what the architecture gives without any training."""
    return model.init(jax.random.key(seed))
