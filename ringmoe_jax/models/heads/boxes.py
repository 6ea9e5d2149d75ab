"""Geometry of boxes for detectors: their parameterisation, and how far two boxes are apart.

A box is x, y, width, height, angle in pixels and radians, as in a data set's labels: x and y of the centre, `width`
along `angle`, which turns from the x axis towards the y axis. A point is x, y, stride: a cell of a feature map, and
its side in pixels. All functions are element-wise over leading axes, which broadcast, and compute in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

LARGEST = 8.0  # |log(side / stride)| of a decoded box: exp(8) strides are beyond every image
UPRIGHT, ROTATED = 4, 6  # numbers of an encoded box without and with an angle


def encode(boxes: jax.Array, points: jax.Array) -> jax.Array:
    """What a detector says at a point to mean a box: the inverse of `decode`.

    Args:
        boxes: [..., 5], width and height > 0.
        points: [..., 3].

    Returns:
        [..., 6]: offset of the centre from the point and logarithms of width and height, in strides; cosine and
        sine of twice the angle, so that nothing jumps where a turn by pi maps the box to itself (our choice; the
        phase-shifting coder of Yu and Da 2023 has the same period).
    """
    stride, angle = points[..., 2:], boxes[..., 4:]
    offset = (boxes[..., :2] - points[..., :2]) / stride
    turn = jnp.concatenate([jnp.cos(2 * angle), jnp.sin(2 * angle)], axis=-1)
    return jnp.concatenate([offset, jnp.log(boxes[..., 2:4] / stride), turn], axis=-1)


def decode(raw: jax.Array, points: jax.Array) -> jax.Array:
    """The box that a detector means at a point.

    FCOS predicts the distances from the point to the four sides instead. They say the same of boxes around their
    point, but cannot state an object beside it, as many are that are smaller than a cell (our choice).

    Args:
        raw: [..., 6] as `encode` gives, the last two of any length; or [..., 4] without them: upright boxes.
        points: [..., 3].

    Returns:
        [..., 5], angle from -pi/2 to pi/2.
    """
    stride = points[..., 2:]
    centre = points[..., :2] + raw[..., :2] * stride
    sides = stride * jnp.exp(jnp.clip(raw[..., 2:4], -LARGEST, LARGEST))
    if raw.shape[-1] == UPRIGHT:
        return jnp.concatenate([centre, sides, jnp.zeros_like(centre[..., :1])], axis=-1)
    turn = raw[..., 4:]
    # The gradient of an angle at 0, 0 would be NaN.
    turn = jnp.where(jnp.sum(jnp.square(turn), axis=-1, keepdims=True) > 1e-12, turn, jnp.array([1.0, 0.0]))
    return jnp.concatenate([centre, sides, jnp.arctan2(turn[..., 1:], turn[..., :1]) / 2], axis=-1)


def longest_first(boxes: jax.Array) -> jax.Array:
    """The same rectangles [..., 5] with width >= height and an angle from -pi/2 to pi/2."""
    x, y, width, height, angle = jnp.moveaxis(boxes, -1, 0)
    angle = jnp.where(width >= height, angle, angle + jnp.pi / 2)
    angle = (angle + jnp.pi / 2) % jnp.pi - jnp.pi / 2
    return jnp.stack([x, y, jnp.maximum(width, height), jnp.minimum(width, height), angle], axis=-1)


def upright(boxes: jax.Array) -> jax.Array:
    """The smallest boxes [..., 5] of angle 0 around boxes [..., 5]."""
    x, y, width, height, angle = jnp.moveaxis(boxes, -1, 0)
    cos, sin = jnp.abs(jnp.cos(angle)), jnp.abs(jnp.sin(angle))
    return jnp.stack([x, y, width * cos + height * sin, width * sin + height * cos, jnp.zeros_like(x)], axis=-1)


def local(boxes: jax.Array, points: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where points [..., 2 or more] lie in boxes [..., 5]: pixels from the centre, along `width` and along `height`."""
    dx, dy = points[..., 0] - boxes[..., 0], points[..., 1] - boxes[..., 1]
    cos, sin = jnp.cos(boxes[..., 4]), jnp.sin(boxes[..., 4])
    return cos * dx + sin * dy, cos * dy - sin * dx


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
    """Generalised intersection over union of upright boxes (Rezatofighi et al. 2019), [...] from -1 to 1.

    Args:
        a: [..., 5] or [..., 4]; the angle is not looked at.
        b: likewise; not both empty.
    """
    low_a, high_a, low_b, high_b = (box[..., :2] + sign * box[..., 2:4] / 2 for box in (a, b) for sign in (-1, 1))
    area = lambda low, high: jnp.prod(jnp.maximum(high - low, 0), axis=-1)  # noqa: E731
    shared = area(jnp.maximum(low_a, low_b), jnp.minimum(high_a, high_b))
    union = area(low_a, high_a) + area(low_b, high_b) - shared
    around = area(jnp.minimum(low_a, low_b), jnp.maximum(high_a, high_b))
    return shared / union - (around - union) / around


def hellinger(a: jax.Array, b: jax.Array) -> jax.Array:
    """Hellinger distance of two boxes as Gaussians: 1 - ProbIoU (Llerena et al. 2021), [...] from 0 to 1.

    A box counts as the Gaussian of its centre and of the covariance S of a uniform density on it, width^2 / 12 and
    height^2 / 12 along its axes. With the Bhattacharyya distance

        B = d^T (S_a + S_b)^-1 d / 4 + ln(det(S_a + S_b) / (4 sqrt(det S_a det S_b))) / 2

    of Gaussians whose centres are d apart, it is sqrt(1 - exp(-B)). Squares have no angle for it, as they are for
    small turns. Written without differences of products, det(S_a + S_b) is exact for thin boxes as well.

    Args:
        a: [..., 5]; sides below a thousandth of a pixel count as that.
        b: [..., 5], likewise.
    """
    sides = (jnp.maximum(box[..., i], 1e-3) for box in (a, b) for i in (2, 3))
    width_a, height_a, width_b, height_b = sides
    cos, sin = jnp.cos(a[..., 4] - b[..., 4]), jnp.sin(a[..., 4] - b[..., 4])
    area_a, area_b = width_a * height_a, width_b * height_b
    along = jnp.square(height_a * width_b * cos) + jnp.square(height_a * height_b * sin)
    across = jnp.square(width_a * width_b * sin) + jnp.square(width_a * height_b * cos)
    determinant = jnp.square(area_a) + jnp.square(area_b) + along + across  # 144 times that of S_a + S_b
    (u_a, v_a), (u_b, v_b) = local(a, b), local(b, a)
    apart = sum(jnp.square(x) for x in (height_a * u_a, width_a * v_a, height_b * u_b, width_b * v_b))
    distance = 3 * apart / determinant + jnp.log(determinant / (4 * area_a * area_b)) / 2
    # A small number under the root keeps the gradient of equal boxes finite.
    return jnp.sqrt(-jnp.expm1(-jnp.maximum(distance, 0)) + 1e-6) - 1e-3
