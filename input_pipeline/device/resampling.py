"""Images of a look as products of two small matrices, which crop, antialias, mirror and cut native windows at once.

A separable filter at [size] places of an axis of n pixels is a [size, n] matrix, and so is a window of whole pixels (a
one at every pixel that is taken); mirroring reverses its rows. So an image is rows @ stored @ columns^T, and a quarter
turn transposes it. That is a batched matrix product, which every device is fast at.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from input_pipeline import rules
from ringmoe_jax import sensors as sensor_table


class Window(NamedTuple):
    """What makes an image of a tile.

    Attributes:
        rows: [size, H] float32 weights of the tile's rows.
        columns: [size, W] float32 weights of the tile's columns.
        swap: [] bool: rows become columns afterwards.
    """

    rows: Any
    columns: Any
    swap: Any

    def __call__(self, images):
        """[..., H, W, C] float32 to [..., size, size, C]; finite values only, for a weight of 0 is a factor."""
        # Full precision, for accelerators multiply in fewer bits otherwise.
        image = jnp.einsum("ih,...hwc->...iwc", self.rows, images, precision="highest")
        image = jnp.einsum("jw,...iwc->...ijc", self.columns, image, precision="highest")
        return jnp.where(self.swap, jnp.swapaxes(image, -3, -2), image)


def window(box, mirrored, quarters, height: int, width: int, size: int, resampling: str) -> Window:
    """The window of a box, turned.

    Args:
        box: [4] float32 of `boxes`.
        mirrored: as `boxes.ground`.
        quarters: as `boxes.ground`.
        height: rows of the tile, H.
        width: columns of the tile, W.
        size: rows and columns of the image.
        resampling: of the sensor table.
    """
    backward = _backward(mirrored, quarters)
    if resampling == sensor_table.COMPLEX:
        lines = [_native(box[i] * n, n, size, backward[i]) for i, n in enumerate((height, width))]
    else:
        lines = [_triangle(box[i] * n, box[2 + i] * n, n, size, backward[i]) for i, n in enumerate((height, width))]
    return Window(*lines, quarters % 2 == 1)


def _backward(mirrored, quarters):
    """Whether rows and columns run backward in the tile, before a quarter turn swaps them."""
    return quarters >= 2, jnp.where(quarters == 0, mirrored, jnp.where(quarters == 3, mirrored, ~mirrored))


def _places(size: int, backward):
    """[size] whole numbers: which place of an axis a line of the image shows."""
    place = jnp.arange(size)
    return jnp.where(backward, size - 1 - place, place)


def _triangle(corner, extent, pixels: int, size: int, backward):
    """[size, pixels] weights of antialiased linear interpolation; rows sum to 1.

    The kernel is a triangle as wide as a pixel of the image or of the tile, whichever is larger, and loses what lies
    outside the tile: as TensorFlow's ScaleAndTranslate.
    """
    step = extent / size
    centre = corner + (_places(size, backward) + 0.5) * step
    distance = jnp.abs(jnp.arange(pixels) + 0.5 - centre[:, None])
    weights = jnp.maximum(1.0 - distance / jnp.maximum(step, 1.0), 0.0)
    return weights / weights.sum(1, keepdims=True)


def _native(corner, pixels: int, size: int, backward):
    """[size, pixels] ones at whole pixels from the one nearest to a corner on."""
    taken = jnp.round(corner).astype(jnp.int32) + _places(size, backward)
    return (jnp.arange(pixels) == taken[:, None]).astype(jnp.float32)


def resample(pixels, valid, look: Window, resampling: str):
    """Brings a tile to the pixels of an image.

    A pixel of the result is valid only if every pixel that it is made of is, and is 0 otherwise; the value of an
    invalid pixel reaches no other one.

    Args:
        pixels: [T, H, W, C] float32, in the sensor's unit, 0 where not valid.
        valid: [T, H, W] bool, or None where all are.
        look: window to apply.
        resampling: of the sensor table; dB and amplitude are averaged in power.

    Returns:
        [T, size, size, C] float32, and [T, size, size] bool or None.
    """
    if resampling == sensor_table.COMPLEX:  # moved, not averaged
        return look(pixels), None if valid is None else look(valid[..., None].astype(jnp.float32))[..., 0] > 0.5
    pixels = _from_power(look(_to_power(pixels, valid, resampling)), resampling)
    if valid is None:
        return pixels, None
    valid = look(valid[..., None].astype(jnp.float32))[..., 0] > rules.WHOLE
    return jnp.where(valid[..., None], pixels, 0.0), valid


def blur(pixels, valid, sigma, resampling: str):
    """Gaussian blur, of linear power where the unit is dB or amplitude; at the borders of what is there.

    Args:
        pixels: [T, size, size, C] float32, in the sensor's unit, 0 where not valid.
        valid: [T, size, size] bool, or None where all are.
        sigma: [] standard deviation of the kernel in pixels; 0 leaves the image as it is.
        resampling: of the sensor table, not complex.

    Returns:
        pixels; and valid, where every pixel that a pixel is made of is, or None.
    """
    place = jnp.arange(pixels.shape[-2], dtype=jnp.float32)
    # A kernel of 0.01 px is a one and zeros to float32, and its exponents stay finite.
    weights = jnp.exp(-0.5 * jnp.square((place[:, None] - place) / jnp.maximum(sigma, 0.01)))
    weights /= weights.sum(1, keepdims=True)
    return resample(pixels, valid, Window(weights, weights, jnp.array(False)), resampling)


def _to_power(pixels, valid, resampling: str):
    """Values that may be averaged; 0 where not valid."""
    if resampling == sensor_table.DECIBEL:
        power = jnp.power(10.0, pixels / 10.0)
        return power if valid is None else jnp.where(valid[..., None], power, 0.0)
    return jnp.square(pixels) if resampling == sensor_table.AMPLITUDE else pixels


def _from_power(pixels, resampling: str):
    """Inverse of `_to_power`."""
    if resampling == sensor_table.DECIBEL:
        return 10.0 * jnp.log10(jnp.maximum(pixels, rules.TINY))
    return jnp.sqrt(jnp.maximum(pixels, 0.0)) if resampling == sensor_table.AMPLITUDE else pixels


def crop_map(classes, box, mirrored, quarters, size: int):
    """Cuts a turned box out of a [H, W] class map, as [size, size] int32; each pixel takes the class at its centre."""
    indices = []
    for i, (pixels, backward) in enumerate(zip(classes.shape, _backward(mirrored, quarters), strict=True)):
        centre = (_places(size, backward) + 0.5) / size
        indices.append(jnp.clip(((box[i] + centre * box[2 + i]) * pixels).astype(jnp.int32), 0, pixels - 1))
    image = classes[indices[0]][:, indices[1]].astype(jnp.int32)
    return jnp.where(quarters % 2 == 1, image.T, image)
