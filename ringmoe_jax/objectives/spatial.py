"""What a masked pixel loss does not see of structure: gradients, frequencies, and the sensor's own resolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.objectives.base import NOTHING, PIXELS, Objective, Reconstruction, Result, find, register
from ringmoe_jax.sensors import Sensor


@register("gradient_l1")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientL1(Reconstruction):
    """Mean absolute difference of the images' gradients on hidden pixels: edges instead of levels.

    Forward differences to the right and below of standardised pixels. Blind to a constant offset, so it goes
    beside a pixel loss. Assumes nothing about noise, and doubles its variance: for optical images rather than
    for single-look SAR. Without unit. Pixels whose right or lower neighbour is visible, missing or no data add
    nothing. Source: gradient difference loss of Mathieu, Couprie and LeCun 2016.
    """

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        return differences(outputs["standardised"][self.sensor])

    def prediction(self, outputs: Mapping) -> jax.Array:
        return differences(super().prediction(outputs))

    @property
    def footprint(self) -> int:
        return 2

    def grid(self, mask: jax.Array) -> jax.Array:
        right = jnp.zeros_like(mask).at[..., :, :-1].set(mask[..., :, 1:])
        below = jnp.zeros_like(mask).at[..., :-1, :].set(mask[..., 1:, :])
        return mask & right & below

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.abs(prediction - target)


def differences(x: jax.Array) -> jax.Array:
    """[..., H, W, C] -> [..., H, W, 2 C]: the right neighbour minus the pixel, the lower one minus it; 0 at the end."""
    right = jnp.diff(x, axis=-2, append=x[..., :, -1:, :])
    below = jnp.diff(x, axis=-3, append=x[..., -1:, :, :])
    return jnp.concatenate([right, below], axis=-1)


@register("fourier_l1")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FourierL1(Objective):
    """Mean magnitude of the Fourier transform of the error, weighted towards fine detail.

    The error is that of hidden, valid pixels and 0 elsewhere, as if visible pixels were pasted in; no-data
    pixels add nothing. By Parseval's theorem a squared error does not change in the frequency domain, but this
    absolute one does: it asks for every frequency alike, and not for those with the most power. Weights are
    |f|^exponent, scaled to a mean of 1. White errors of standard deviation s give about 0.89 s.
    Without unit. Source: masked frequency modelling (Xie et al. 2023) and focal frequency loss (Jiang et al.
    2021) in idea; this form is our choice.

    Attributes:
        sensor: name in `ringmoe_jax.sensors`.
        exponent: of the frequency's magnitude, >= 0; 0 treats all alike.
    """

    sensor: str
    exponent: float = 1.0

    def __post_init__(self):
        if self.exponent < 0:
            raise ConfigError(f"FourierL1: exponent = {self.exponent}, wanted at least 0")

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        return {self.sensor: {PIXELS: find(self, sensors).channels}}

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        if self.sensor not in outputs["heads"]:
            return NOTHING
        target = outputs["standardised"][self.sensor]
        mask = outputs["pixel_mask"][self.sensor] & jnp.isfinite(target).all(axis=-1)
        error = outputs["heads"][self.sensor][PIXELS] - target
        spectrum = jnp.fft.fft2(jnp.where(mask[..., None], error, 0), axes=(-3, -2), norm="ortho")
        magnitude = jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + 1e-12)  # smooth at 0
        hidden = jnp.sum(mask, axis=(-2, -1), dtype=jnp.float32)
        pixels = mask.shape[-2] * mask.shape[-1]
        # An image with m of its N pixels hidden spreads m s^2 of error power over N frequencies.
        value = jnp.sum(jnp.mean(magnitude * self.weights(*mask.shape[-2:]), axis=-1), axis=(-2, -1))
        return jnp.sum(jnp.where(hidden > 0, value, 0)), jnp.sum(jnp.sqrt(pixels * hidden)), {}

    def weights(self, height: int, width: int) -> np.ndarray:
        """[H, W, 1] float32 with mean 1."""
        radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None, :])
        weights = radius**self.exponent
        return (weights / weights.mean()).astype(np.float32)[..., None]


@register("native_resolution")
@dataclasses.dataclass(frozen=True, kw_only=True)
class NativeResolution(Reconstruction):
    """Masked L1 at each band's native ground sampling distance, not finer.

    A band that was measured at 60 m and stored at 10 m holds 36 copies or interpolations of one number. Both
    prediction and truth are averaged over blocks of the band's native pixel before they are compared, so that
    detail which the sensor cannot see is neither asked for nor punished. The factor by band is its native GSD
    over the finest of the sensor's (sensor table), or over `gsd` where a data set's grid is finer still. Blocks
    start at the image's corner (our choice). Means are over the hidden, valid pixels of a block. Without unit;
    no-data pixels add nothing. Source: our choice.

    Attributes:
        gsd: ground sampling distance of the image's grid in metres; 0 is the sensor's finest.
    """

    gsd: float = 0.0

    def __post_init__(self):
        if self.gsd < 0:
            raise ConfigError(f"NativeResolution: gsd = {self.gsd} m, wanted > 0, or 0 for the sensor's finest")

    def factors(self, sensor: Sensor) -> tuple[int, ...]:
        """Pixels of the grid along one side of a native pixel, by band."""
        return tuple(max(1, round(band.gsd / (self.gsd or sensor.gsd))) for band in sensor.bands)

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        return self._coarse(outputs["standardised"][self.sensor], outputs)

    def prediction(self, outputs: Mapping) -> jax.Array:
        return self._coarse(super().prediction(outputs), outputs)

    def _coarse(self, x: jax.Array, outputs: Mapping) -> jax.Array:
        """Hidden, valid pixels become the mean of those in their band's block; others stay as they are."""
        finite = jnp.isfinite(outputs["standardised"][self.sensor]).all(axis=-1)
        mask = outputs["pixel_mask"][self.sensor] & finite
        factors = self.factors(outputs["sensors"][self.sensor])
        levels = {k: block_mean(x, mask, k) for k in sorted(set(factors))}
        coarse = jnp.stack([levels[k][..., band] for band, k in enumerate(factors)], axis=-1)
        return jnp.where(mask[..., None], coarse, x)

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.abs(prediction - target)


def block_mean(x: jax.Array, mask: jax.Array, side: int) -> jax.Array:
    """Every pixel becomes the mean over the pixels of `mask` in its block of side x side; 0 where there is none.

    Args:
        x: [..., H, W, C].
        mask: [..., H, W] bool.
        side: of a block; the last row and column of blocks may be cut off by the image's border.
    """
    height, width = mask.shape[-2:]
    spare = [(0, 0)] * (mask.ndim - 2) + [(0, -height % side), (0, -width % side)]
    weight = jnp.pad(mask, spare).astype(x.dtype)[..., None]
    values = jnp.pad(jnp.where(mask[..., None], x, 0), [*spare, (0, 0)])

    def total(v):
        *lead, rows, columns, channels = v.shape
        v = v.reshape(*lead, rows // side, side, columns // side, side, channels).sum(axis=(-4, -2))
        return jnp.repeat(jnp.repeat(v, side, axis=-3), side, axis=-2)[..., :height, :width, :]

    return total(values) / jnp.maximum(total(weight), 1)
