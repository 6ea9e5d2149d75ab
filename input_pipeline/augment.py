"""Crops, flips, rotations, resizing and disturbances that respect what the pixels are.

A crop is a box in relative coordinates (top, left, height, width as fractions of the tile), so that
co-registered sensors on different grids show the same ground. Resampling follows the sensor:

    linear    antialiased bilinear
    decibel   the same on linear power, then back to dB: speckle averages in power, not in dB
    amplitude the same on the square, then its root
    complex   none: interpolating single-look data changes its power; samples are only moved
"""

from __future__ import annotations

import math

from input_pipeline import rules
from input_pipeline.cpu_tf import tf
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.data_config import PhotometricConfig
from ringmoe_jax.sensors import Statistics


def random_box(seed, scale: tuple[float, float], ratio: tuple[float, float], height: int, width: int):
    """A box of random area, aspect ratio and place.

    Args:
        seed: [2] integers.
        scale: smallest and largest area, as a fraction of the tile.
        ratio: smallest and largest width / height on the ground, where the tile is large enough for it.
        height: tile rows, for the aspect ratio of the box on the ground.
        width: tile columns.

    Returns:
        [4] float32: top, left, height, width as fractions of the tile, inside 0..1.
    """
    draw = tf.random.stateless_uniform([4], seed)
    area = (scale[0] + draw[0] * (scale[1] - scale[0])) * (height * width)
    low, high = (tf.math.log(float(limit)) for limit in ratio)
    aspect = tf.exp(low + draw[1] * (high - low))
    tall = tf.minimum(tf.sqrt(area / aspect) / height, 1.0)
    wide = tf.minimum(tf.sqrt(area * aspect) / width, 1.0)
    return tf.stack([draw[2] * (1 - tall), draw[3] * (1 - wide), tall, wide])


def random_sample_box(seed, height: int, width: int, size: int):
    """A box of `size` x `size` whole pixels of a [height, width] grid, as fractions of the tile."""
    seeds = tf.random.experimental.stateless_split(seed, 2)
    top = tf.random.stateless_uniform([], seeds[0], maxval=height - size + 1, dtype=tf.int32)
    left = tf.random.stateless_uniform([], seeds[1], maxval=width - size + 1, dtype=tf.int32)
    return tf.stack([tf.cast(top, tf.float32) / height, tf.cast(left, tf.float32) / width, size / height, size / width])


def window(stored, valid, box, size: int, resampling: str):
    """Cuts out the whole pixels that a box needs, before anything is computed on them.

    Args:
        stored: [T, H, W, C], any dtype.
        valid: [T, H, W] bool.
        box: [4] float32 of this module.
        size: rows and columns that `resample` will make of it.
        resampling: of the sensor table.

    Returns:
        stored and valid of the window, and the box in its pixels ([4] float32).
    """
    height, width = stored.shape[1:3]
    limits = tf.constant([height, width], tf.float32)
    corner, extent = box[:2] * limits, box[2:] * limits
    if resampling == sensor_table.COMPLEX:
        begin = tf.round(corner)
        end, inner = begin + size, tf.zeros([2])
    else:
        reach = tf.maximum(extent / size, 1.0)  # half width of the antialiasing kernel
        begin = tf.maximum(tf.floor(corner - reach), 0)
        end = tf.minimum(tf.math.ceil(corner + extent + reach), limits)
        inner = corner - begin
    begin, end = tf.cast(begin, tf.int32), tf.cast(end, tf.int32)
    rows, columns = slice(begin[0], end[0]), slice(begin[1], end[1])
    return stored[:, rows, columns], valid[:, rows, columns], tf.concat([inner, extent], 0)


def resample(pixels, valid, box, size: int, resampling: str):
    """Brings a window to `size` x `size` pixels.

    A pixel of the result is valid only if every pixel that it is made of is, and is 0 otherwise; the
    value of an invalid pixel reaches no other one.

    Args:
        pixels: [T, H, W, C] float32, in the sensor's unit, 0 where not valid.
        valid: [T, H, W] bool.
        box: [4] float32: top, left, height, width in pixels of the window; may lie between them.
        size: rows and columns of the result, in pixels.
        resampling: of the sensor table.

    Returns:
        [T, size, size, C] float32 and [T, size, size] bool.
    """
    if resampling == sensor_table.COMPLEX:
        shape = [pixels.shape[0], size, size]
        return tf.ensure_shape(pixels, [*shape, pixels.shape[-1]]), tf.ensure_shape(valid, shape)
    pixels = _resize(_to_power(pixels, valid, resampling), box, size)
    valid = tf.cond(
        tf.reduce_all(valid),  # nearly always, and then there is nothing to resample
        lambda: tf.ones([pixels.shape[0], size, size], tf.bool),
        lambda: _resize(tf.cast(valid, tf.float32)[..., None], box, size)[..., 0] > rules.WHOLE,
    )
    return tf.where(valid[..., None], _from_power(pixels, resampling), 0.0), valid


def _to_power(pixels, valid, resampling: str):
    """Values that may be averaged; 0 where not valid."""
    if resampling == sensor_table.DECIBEL:
        return tf.where(valid[..., None], tf.pow(10.0, pixels / 10.0), 0.0)
    return tf.square(pixels) if resampling == sensor_table.AMPLITUDE else pixels


def _from_power(pixels, resampling: str):
    """Inverse of `_to_power`."""
    if resampling == sensor_table.DECIBEL:
        return 10.0 * tf.math.log(tf.maximum(pixels, rules.TINY)) / tf.math.log(10.0)
    return tf.sqrt(tf.maximum(pixels, 0.0)) if resampling == sensor_table.AMPLITUDE else pixels


def crop_map(classes, box, size: int):
    """Cuts a box out of a [H, W] int32 class map; each pixel takes the class at its centre."""
    height, width = classes.shape
    centre = (tf.range(size, dtype=tf.float32) + 0.5) / size
    rows = tf.cast((box[0] + centre * box[2]) * height, tf.int32)
    columns = tf.cast((box[1] + centre * box[3]) * width, tf.int32)
    classes = tf.gather(classes, tf.clip_by_value(rows, 0, height - 1), axis=0)
    return tf.gather(classes, tf.clip_by_value(columns, 0, width - 1), axis=1)


def _resize(images, box, size: int):
    """[T, H, W, C] to [T, size, size, C]; `box` in pixels, may lie between them; antialiased bilinear."""
    scale = size / box[2:]
    return tf.raw_ops.ScaleAndTranslate(
        images=images, size=[size, size], scale=scale, translation=-box[:2] * scale, kernel_type="triangle"
    )


def turn(image, mirrored, quarters):
    """Mirrors left to right, then rotates by `quarters` * 90 degrees; pixels only move.

    Args:
        image: [..., H, W, C] with H = W, of rank 3 or 4.
        mirrored: scalar bool tensor.
        quarters: scalar int32 tensor, 0..3, counter-clockwise.
    """
    swap = tf.cast(quarters % 2, tf.bool)
    upside_down = tf.stack([False, ~mirrored, True, mirrored])[quarters]
    left_right = tf.stack([mirrored, False, ~mirrored, True])[quarters]
    axes = list(range(image.shape.rank))
    swapped = [*axes[:-3], axes[-2], axes[-3], axes[-1]]
    image = tf.cond(swap, lambda: tf.transpose(image, swapped), lambda: image)
    return tf.raw_ops.Reverse(tensor=image, dims=[*[False] * (len(axes) - 3), upside_down, left_right, False])


def turn_boxes(rows, mirrored, quarters, size: int):
    """Moves boxes or tracks as `turn` moves their image.

    A box of angle 0 keeps it: a quarter turn swaps its extents. So horizontal boxes stay horizontal.

    Args:
        rows: [N, 6 or 8] float32 of `schema.BOX` or `schema.TRACK`, in pixels.
        mirrored: as `turn`.
        quarters: as `turn`.
        size: rows and columns of the image.

    Returns:
        [N, 6 or 8] float32, angles from -pi/2 to pi/2; rows that are not used stay as they are.
    """
    x, y, width, height, angle = tf.unstack(rows[:, 1:6], axis=1)
    upright, aside = angle == 0, quarters % 2 == 1
    x, angle = tf.where(mirrored, size - x, x), tf.where(mirrored, -angle, angle)
    angle -= tf.where(aside, math.pi / 2, 0.0)
    angle -= math.pi * tf.floor(angle / math.pi + 0.5)
    moved = [
        tf.stack([x, y, size - x, size - y])[quarters],
        tf.stack([y, size - x, size - y, x])[quarters],
        tf.where(upright & aside, height, width),
        tf.where(upright & aside, width, height),
        tf.where(upright, 0.0, angle),
    ]
    moved = tf.concat([rows[:, :1], tf.stack(moved, 1), rows[:, 6:]], 1)
    return tf.where(rows[:, :1] >= 0, moved, rows)


def shown(box, height: int, width: int, size: int, resampling: str):
    """The box that `window` and `resample` really show of a [height, width] tile: complex samples are taken whole."""
    if resampling != sensor_table.COMPLEX:
        return box
    limits = tf.constant([height, width], tf.float32)
    return tf.concat([tf.round(box[:2] * limits) / limits, size / limits], 0)


def ground(box, mirrored, quarters):
    """Where the pixels of a crop that `turn` moved lie in the tile.

    Args:
        box: [4] float32: top, left, height, width as fractions of the tile.
        mirrored: as `turn`.
        quarters: as `turn`.

    Returns:
        [2, 3] float32 A: a point of the image at (row, column), 0 to 1 between the outer edges of its pixels, lies at
        A[:, :2] @ (row, column) + A[:, 2] of the tile, 0 to 1 likewise.
    """
    unturned = tf.constant(rules.UNTURN, tf.float32)[tf.cast(mirrored, tf.int32), quarters]
    return unturned * box[2:, None] + tf.pad(box[:2, None], [[0, 0], [2, 0]])


def disturb(pixels, valid, seed, config: PhotometricConfig, resampling: str, statistics: Statistics):
    """Random gain, offset, blur, solarisation and loss of bands, in this order.

    Args:
        pixels: [T, H, W, C] float32, in the sensor's unit, 0 where not valid; re, im pairs where complex.
        valid: [T, H, W] bool.
        seed: [2] integers.
        config: which ones, and how much; `rules.check_photometric` says which ones a sensor allows.
        resampling: of the sensor table.
        statistics: of the C channels: what an offset is measured in, and what a dropped band becomes.

    Returns:
        pixels and valid; invalid pixels stay 0 and reach no other one. A blur takes the pixels next to invalid ones,
        as `resample` does.
    """
    gain_seed, draw_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    offset_seed, drop_seed = (tf.random.experimental.stateless_fold_in(seed, i) for i in (0, 1))
    draw = tf.random.stateless_uniform([3], draw_seed)
    if config.gain or config.illumination:
        common = config.illumination * tf.random.stateless_normal([], tf.random.experimental.stateless_fold_in(seed, 2))
        gained = _gain(pixels, gain_seed, config.gain, common, resampling)
        pixels = tf.where(valid[..., None], gained, 0.0)
    if config.offset:
        shift = tf.random.stateless_normal([pixels.shape[-1]], offset_seed) * tf.constant(statistics.std, tf.float32)
        pixels = tf.where(valid[..., None], pixels + config.offset * shift, 0.0)
    if config.blur:
        sigma = rules.BLUR[0] + draw[1] * (rules.BLUR[1] - rules.BLUR[0])
        blurred = lambda: blur(pixels, valid, sigma, resampling)  # noqa: E731
        pixels, valid = tf.cond(draw[0] < config.blur, blurred, lambda: (pixels, valid))
    if config.solarise:
        solarised = tf.where(pixels > 0.5, tf.maximum(1.0 - pixels, 0.0), pixels)
        pixels = tf.where(draw[2] < config.solarise, solarised, pixels)
    if config.drop_band:
        dropped = _dropped(drop_seed, config.drop_band, pixels.shape[-1], resampling)
        mean = tf.constant(statistics.mean, tf.float32)
        pixels = tf.where(valid[..., None] & dropped, mean, pixels)
    return pixels, valid


def _gain(pixels, seed, std: float, common, resampling: str):
    """Multiplies power or reflectance by exp(common) and a log-normal factor a band (a re, im pair where complex)."""
    pair = rules.channels_a_band(resampling)
    log = common + tf.repeat(std * tf.random.stateless_normal([pixels.shape[-1] // pair], seed), pair)
    if resampling == sensor_table.DECIBEL:
        return pixels + 10.0 * log / tf.math.log(10.0)
    return pixels * tf.exp(log if resampling == sensor_table.LINEAR else 0.5 * log)


def _dropped(seed, probability: float, channels: int, resampling: str):
    """Which of C channels are dropped, each band by itself: [C] bool; never all of them."""
    pair = rules.channels_a_band(resampling)
    draw = tf.random.stateless_uniform([channels // pair], seed)
    return tf.repeat((draw < probability) & (draw < tf.reduce_max(draw)), pair)


def blur(pixels, valid, sigma, resampling: str):
    """Gaussian blur, of linear power where the unit is dB or amplitude; at the borders of what is there.

    Args:
        pixels: [T, H, W, C] float32, in the sensor's unit, 0 where not valid.
        valid: [T, H, W] bool.
        sigma: standard deviation of the kernel in pixels.
        resampling: of the sensor table, not complex.

    Returns:
        pixels; and valid, where every pixel that a pixel is made of is.
    """
    kernels = [_gaussian(size, sigma) for size in pixels.shape[1:3]]
    pixels = _blur(_to_power(pixels, valid, resampling), *kernels)
    valid = tf.cond(
        tf.reduce_all(valid),
        lambda: valid,
        lambda: _blur(tf.cast(valid, tf.float32)[..., None], *kernels)[..., 0] > rules.WHOLE,
    )
    return tf.where(valid[..., None], _from_power(pixels, resampling), 0.0), valid


def _gaussian(size: int, sigma):
    """[size, size] weights of the pixels (columns) that every pixel of a line (rows) is made of; rows sum to 1."""
    place = tf.range(size, dtype=tf.float32)
    weights = tf.exp(-0.5 * tf.square((place[:, None] - place) / sigma))
    return weights / tf.reduce_sum(weights, 1, keepdims=True)


def _blur(images, along_rows, along_columns):
    """Mixes [T, H, W, C] by [H, H] and [W, W] weights; as matrices, faster on a CPU than TensorFlow's convolutions."""
    return tf.einsum("ij,kl,tjlc->tikc", along_rows, along_columns, images)
