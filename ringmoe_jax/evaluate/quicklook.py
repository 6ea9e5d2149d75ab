"""From physical pixels to something to look at. Which bands to show follows from the sensor table."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from ringmoe_jax.contracts import cells_to_pixels, restore
from ringmoe_jax.objectives.base import Reconstruction
from ringmoe_jax.sensors import COMPLEX, Sensor, Statistics

STRETCH = (2, 98)  # percentiles that become black and white
USUAL = 2  # standard deviations around a band's mean in the sensor table: what is neither black nor white
GAMMA = 1.8  # of reflectance, for the eye; images of 8 bits have theirs already (all three: our choice)
HIDDEN = (0.55, 0.60, 0.68)  # slate: no grey of a SAR image
NOT_VALID = (1.0, 1.0, 1.0)
FLOOR = 1e-10  # smallest power that is shown: keeps decibels finite, calibrated or not

Image = np.ndarray  # [H, W, 3] float in 0..1


def view(sensor: Sensor, pixels: np.ndarray) -> tuple[np.ndarray, str]:
    """What to show of a sensor: true colour where it has red, green and blue, power of complex bands, else band 1.

    Args:
        sensor: names the bands.
        pixels: [..., C] in the sensor's unit.

    Returns:
        [..., 3] or [..., 1] in the sensor's unit (complex: dB), and a caption with bands and unit.
    """
    if sensor.resampling == COMPLEX:
        power = np.square(pixels).sum(axis=-1, keepdims=True)
        return 10 * np.log10(np.maximum(power, FLOOR)), "total power, dB (sigma0)"
    if colours := _true_colour(sensor):
        named = ", ".join(sensor.bands[i].name for i in colours)
        return pixels[..., colours], f"true colour ({named}), {sensor.unit}"
    return pixels[..., :1], f"{sensor.bands[0].name}, {sensor.unit}"


def _true_colour(sensor: Sensor) -> list[int]:
    """Positions of red, green and blue; [] of a sensor that lacks one."""
    aliases = [band.alias for band in sensor.bands]
    colours = ("red", "green", "blue")
    return [aliases.index(colour) for colour in colours] if set(colours) <= set(aliases) else []


def caption(sensor: Sensor) -> str:
    """Bands and unit of what `view` shows."""
    return view(sensor, np.zeros((1, 1, sensor.channels)))[1]


class Stretch(NamedTuple):
    """How values become brightness.

    Attributes:
        low: what becomes black, one value or one of each band that is shown.
        high: what becomes white, likewise.
        gamma: brightness is the share between them, to the power of 1 / gamma.
    """

    low: np.ndarray | float
    high: np.ndarray | float
    gamma: float = 1.0

    @property
    def limits(self) -> tuple[float, float]:
        """The darkest black and the brightest white."""
        return float(np.min(self.low)), float(np.max(self.high))


def stretch(values: np.ndarray, valid: np.ndarray, sensor: Sensor | None = None) -> Stretch:
    """Percentiles of the valid pixels over all shown bands become black and white.

    True colour looks as the eye sees it: all bands have one scale, on which white is at least as bright as is usual
    for the sensor, and black what is unusually dark, which takes the blue of the air away from values at the top of
    the atmosphere. Stretching a dark field to its own range would turn it neon.

    Args:
        values: [H, W, 1 or 3] of `view`.
        valid: [H, W] bool.
        sensor: whose `view` they are; None of any other values.
    """
    shown = values[valid]
    if colours := _true_colour(sensor) if sensor else []:
        mean, std = (np.array([getattr(sensor.bands[i], name) for i in colours]) for name in ("mean", "std"))
        low = np.maximum(mean - USUAL * std, 0)
        brightest = np.percentile(shown - low, STRETCH[1]) if shown.size else 0.0
        high = low + max(brightest, (mean + USUAL * std - low).max())
        return Stretch(low, high, GAMMA if np.dtype(sensor.dtype).itemsize > 1 else 1.0)
    low, high = np.percentile(shown, STRETCH) if shown.size else (0.0, 1.0)
    return Stretch(float(low), float(max(high, low + 1e-6)))


def paint(values: np.ndarray, scale: Stretch, valid: np.ndarray, hidden: np.ndarray | None = None) -> Image:
    """Colours [H, W, 1 or 3] values; hidden pixels are slate, pixels that were never observed white."""
    share = np.clip((values - scale.low) / (np.asarray(scale.high) - scale.low), 0, 1) ** (1 / scale.gamma)
    image = np.broadcast_to(share, (*values.shape[:2], 3)).copy()
    if hidden is not None:
        image[hidden] = HIDDEN
    image[~valid] = NOT_VALID
    return image


@dataclasses.dataclass(frozen=True)
class Tile:
    """One validation tile and what the model made of it.

    Attributes:
        index: position in the split.
        pixels: [H, W, C] in the sensor's unit.
        valid: [H, W] bool.
        hidden: [h, w] bool, cells that the encoder did not see.
        target: [H, W, channels] of the objective.
        prediction: [H, W, channels] of the decoder.
    """

    index: int
    pixels: np.ndarray
    valid: np.ndarray
    hidden: np.ndarray
    target: np.ndarray
    prediction: np.ndarray


@dataclasses.dataclass(frozen=True)
class Strip:
    """Four images of one tile under one stretch.

    Attributes:
        index: position in the split.
        images: input, visible input, reconstruction, and visible input with the reconstruction in the gaps.
        limits: values shown black and white, in the unit of the caption.
    """

    index: int
    images: tuple[Image, Image, Image, Image]
    limits: tuple[float, float]


def strip(sensor: Sensor, statistics: Statistics, objective: Reconstruction, tile: Tile) -> Strip:
    """Paints a tile.

    A decoder of the sensor's own bands is shown in the sensor's unit; the first channel of any other target (a
    power) on its own scale, stretched by the same percentiles. Coarser targets are enlarged.
    """
    hidden = np.asarray(cells_to_pixels(tile.hidden, *tile.valid.shape))
    pixels, _ = view(sensor, tile.pixels)
    seen = stretch(pixels, tile.valid, sensor)
    target, prediction = tile.target, tile.prediction
    if objective.head == Reconstruction.head:
        target, prediction = (view(sensor, np.asarray(restore(x, statistics)))[0] for x in (target, prediction))
        scale = seen
    else:
        target, prediction = (_enlarge(x[..., :1], tile.valid.shape) for x in (target, prediction))
        known = np.isfinite(target[..., 0])
        scale = stretch(target, tile.valid & known)
        target = np.where(known[..., None], target, scale.low)
    composite = np.where(hidden[..., None], prediction, target)
    images = (
        paint(pixels, seen, tile.valid),
        paint(pixels, seen, tile.valid, hidden),
        paint(prediction, scale, np.ones_like(tile.valid)),
        paint(composite, scale, tile.valid | hidden),
    )
    return Strip(tile.index, images, seen.limits)


def _enlarge(x: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[h, w, K] -> [H, W, K] by repeating; what no cell covers repeats the last one."""
    rows, columns = (np.minimum(np.arange(n) // (n // m), m - 1) for n, m in zip(shape, x.shape[:2], strict=True))
    return x[rows][:, columns]
