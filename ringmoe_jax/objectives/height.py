"""Heights above ground: regression, and where the adaptive bins of the height head should lie."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.objectives.base import Objective, Result, register
from ringmoe_jax.objectives.supervised import predicted

KINDS = ("l1", "smooth_l1", "silog")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heights(Objective):
    """Base of objectives whose truth is a sensor of heights.

    Attributes:
        sensor: name in `batch["sensors"]`; its first band at the last date is the truth, in metres.
    """

    sensor: str = "ndsm"

    def truth(self, batch: Mapping) -> tuple[jax.Array, jax.Array]:
        """Heights [N, H, W] float32 metres, 0 where not valid, and where they are, bool.

        Raises:
            DataError: the batch does not hold the sensor.
        """
        sensors = batch["sensors"]
        if self.sensor not in sensors:
            raise DataError(
                f'{type(self).__name__}: the batch holds no sensor "{self.sensor}": {nearest(self.sensor, sensors)}'
            )
        entry = sensors[self.sensor]
        height, valid = entry["pixels"][:, -1, ..., 0], entry["valid"][:, -1]
        valid &= jnp.isfinite(height)
        return jnp.where(valid, height, 0), valid


@register("height_regression")
@dataclasses.dataclass(frozen=True, kw_only=True)
class HeightRegression(Heights):
    """Error of predicted heights, of one kind:

        l1          |d|, d = predicted - true height, the mean over valid pixels; metres
        smooth_l1   d^2 / (2 beta) where |d| < beta, else |d| - beta / 2 (Girshick 2015), likewise; metres
        silog       sqrt(mean g^2 - focus (mean g)^2) over the valid pixels of an image, the mean over images

    with g = s(predicted) - s(true), s(h) = sign(h) ln(1 + |h| / offset). The last is the scale-invariant loss (Eigen et
    al. 2014; root and `focus` as in AdaBins, Bhat et al. 2021, Eq. 2, there times 10) with two changes of ours. Ground
    has the height 0, so the logarithm has an `offset`: far below it errors count by metres, far above it by ratios. And
    the mean is by image, which adds up under accumulation. No-data pixels add nothing.

    Metrics: "mae", mean |d| over the valid pixels, metres; "valid", their share.

    Attributes:
        kind: "l1", "smooth_l1" or "silog".
        beta: metres, > 0.
        offset: metres, > 0.
        focus: lambda, 0 to 1: how far a common factor of all heights is forgiven.
    """

    kind: str = "smooth_l1"
    beta: float = 1.0
    offset: float = 1.0
    focus: float = 0.85

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ConfigError(f'HeightRegression: kind = "{self.kind}" does not exist: {nearest(self.kind, KINDS)}')
        if not (self.beta > 0 and self.offset > 0 and 0 <= self.focus <= 1):
            raise ConfigError(
                f"HeightRegression: beta = {self.beta}, offset = {self.offset}, focus = {self.focus}: wanted more than "
                "0 m, more than 0 m, 0 to 1"
            )

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        height = predicted(outputs, "height", type(self).__name__)
        truth, valid = self.truth(batch)
        if height.shape != truth.shape:
            raise DataError(
                f'HeightRegression: "{self.sensor}" is {list(truth.shape)}, predictions are {list(height.shape)}: '
                "they must lie on one grid"
            )
        height = jnp.where(valid, height, 0)  # an error of 0 where nothing is known
        error, pixels = jnp.abs(height - truth), jnp.sum(valid, dtype=jnp.float32)
        metrics = {"mae": jnp.sum(error) / jnp.maximum(pixels, 1), "valid": jnp.mean(valid)}
        if self.kind == "silog":
            return *self._silog(height, truth, valid), metrics
        if self.kind == "smooth_l1":
            error = jnp.where(error < self.beta, error**2 / (2 * self.beta), error - self.beta / 2)
        return jnp.sum(error), pixels, metrics

    def _silog(self, height: jax.Array, truth: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sum over images, and their number."""
        g = self._logarithm(height) - self._logarithm(truth)
        pixels = jnp.sum(valid, axis=(1, 2))
        mean, square = (jnp.sum(x, axis=(1, 2)) / jnp.maximum(pixels, 1) for x in (g, g**2))
        spread = square - self.focus * mean**2
        some = spread > 1e-12  # the root has no gradient at 0
        each = jnp.where(some, jnp.sqrt(jnp.where(some, spread, 1)), 0)
        return jnp.sum(each), jnp.sum(pixels > 0, dtype=jnp.float32)

    def _logarithm(self, height: jax.Array) -> jax.Array:
        return jnp.sign(height) * jnp.log1p(jnp.abs(height) / self.offset)


@register("bin_chamfer")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BinChamfer(Heights):
    """Draws the centres of the bins to the heights of the image: Chamfer distance between both sets; square metres.

    L = mean_x min_k (x - c_k)^2 + mean_k min_x (x - c_k)^2 over the valid heights x of an image and its centres c, the
    mean over images that have any. Source: AdaBins (Bhat et al. 2021, Eq. 3; means and not sums, as its authors'
    code); weight there 0.1 beside 10 times silog. Of large images a regular grid of pixels is taken (our choice).

    Attributes:
        points: about how many pixels of an image are compared at most; all of smaller ones.
    """

    points: int = 1024
    scale: float = 0.1

    def __post_init__(self):
        if self.points < 1:
            raise ConfigError(f"BinChamfer: points = {self.points}, wanted at least 1")

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        centres = predicted(outputs, "bins", type(self).__name__)
        truth, valid = (self._grid(x) for x in self.truth(batch))
        apart = jnp.square(truth[:, :, None] - centres[:, None, :])  # [N, P, K]
        # Chosen by index: the gradient of a minimum that is split over devices can be NaN (XLA on CPU, jax 0.10.2).
        bins = jnp.take_along_axis(centres, apart.argmin(axis=2), axis=1)
        heights = jnp.take_along_axis(truth, jnp.where(valid[..., None], apart, jnp.inf).argmin(axis=1), axis=1)
        pixels = jnp.sum(valid, axis=1)
        to_bins = jnp.sum(jnp.where(valid, jnp.square(truth - bins), 0), axis=1) / jnp.maximum(pixels, 1)
        to_heights = jnp.square(heights - centres).mean(axis=1)
        value = jnp.sum(jnp.where(pixels > 0, to_bins + to_heights, 0))
        return value, jnp.sum(pixels > 0, dtype=jnp.float32), {}

    def _grid(self, x: jax.Array) -> jax.Array:
        """[N, H, W] -> [N, about `points` at most], evenly spaced in rows and columns."""
        step = math.ceil(math.sqrt(x.shape[1] * x.shape[2] / self.points))
        return x[:, ::step, ::step].reshape(x.shape[0], -1)
