"""Which features of two views belong together: the same ground for pixels, joint clusters for objects."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ringmoe_jax.models.layers import unit
from ringmoe_jax.pretext.sinkhorn import sinkhorn

EDGE = 1e-4  # share of a view's side by which rounding may move a point out of it
ROUNDS = 2  # of assignment and new centres


def positions(first: jax.Array, second: jax.Array, grid: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Where a second view shows the cells of a first one.

    Args:
        first: [B, 2, 3] float32 "ground" of the first view, see `ringmoe_jax.contracts`.
        second: [B, 2, 3] of the second.
        grid: rows and columns of cells in the first view.

    Returns:
        [B, h, w, 2] row and column of each cell's centre in the second view, 0..1 between its outer edges; and
        [B, h, w] bool, whether it lies inside.
    """
    rows, columns = ((jnp.arange(n) + 0.5) / n for n in grid)
    centre = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)
    # Coordinates need every bit: a cell is far below what a product in bfloat16 would keep.
    exact = jax.lax.Precision.HIGHEST
    ground = jnp.einsum("bij,hwj->bhwi", first[..., :2], centre, precision=exact) + first[:, None, None, :, 2]
    inverse = jnp.linalg.inv(second[..., :2])
    found = jnp.einsum("bij,bhwj->bhwi", inverse, ground - second[:, None, None, :, 2], precision=exact)
    return found, ((found >= -EDGE) & (found <= 1 + EDGE)).all(axis=-1)


def sample(maps: jax.Array, at: jax.Array) -> jax.Array:
    """Bilinear values of maps at positions; borders repeat.

    Args:
        maps: [B, T, h', w', D].
        at: [B, h, w, 2] of `positions`.

    Returns:
        [B, T, h, w, D].
    """
    b, t, height, width, depth = maps.shape
    limit = jnp.asarray([height - 1, width - 1])
    place = jnp.clip(at * jnp.asarray([height, width]) - 0.5, 0, limit)
    low = jnp.minimum(jnp.floor(place).astype(jnp.int32), limit)
    high, part = jnp.minimum(low + 1, limit), place - low
    flat = maps.reshape(b, t, height * width, depth)

    def corner(row, column):
        index = (row * width + column).reshape(b, 1, -1, 1)
        return jnp.take_along_axis(flat, index, axis=2).reshape(b, t, *at.shape[1:3], depth)

    (r0, c0), (r1, c1) = (jnp.moveaxis(x, -1, 0) for x in (low, high))
    pr, pc = (part[:, None, :, :, i, None].astype(maps.dtype) for i in (0, 1))
    upper = (1 - pc) * corner(r0, c0) + pc * corner(r0, c1)
    lower = (1 - pc) * corner(r1, c0) + pc * corner(r1, c1)
    return (1 - pr) * upper + pr * lower


def clusters(
    first: jax.Array, second: jax.Array, seen_first: jax.Array, seen_second: jax.Array, count: int, temperature: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Joint clusters of two views of one image, and each view's centre of every cluster.

    All features of both views are assigned together by Sinkhorn-Knopp on cosines (SkySense: clustering within an
    image; jointly over both views as CrOC, Stegmueller et al. 2023, is our choice), twice, from centres spread
    evenly over what the second view shows. A cluster counts where it holds half of its fair share of both views.

    Args:
        first: [N, n, D] features; gradients reach them through the centres only.
        second: [N, m, D].
        seen_first: [N, n] bool.
        seen_second: [N, m] bool.
        count: C clusters.
        temperature: of Sinkhorn-Knopp.

    Returns:
        Centres [N, C, D] of each view and [N, C] bool, whether the cluster counts.
    """
    n = first.shape[1]
    x = unit(jax.lax.stop_gradient(jnp.concatenate([first, second], axis=1)).astype(jnp.float32))
    seen = jnp.concatenate([seen_first, seen_second], axis=1).astype(jnp.float32)
    centres = jnp.take_along_axis(x, n + _spread(seen_second, count)[..., None], axis=1)
    for _ in range(ROUNDS):
        shares = sinkhorn(jnp.einsum("nid,ncd->nic", x, centres), seen, temperature=temperature) * seen[..., None]
        centres = unit(jnp.einsum("nic,nid->ncd", shares, x))

    def centre(features, shares):
        mass = shares.sum(axis=1)
        mean = jnp.einsum("nic,nid->ncd", shares, features.astype(jnp.float32)) / jnp.maximum(mass, 1e-9)[..., None]
        return mean, mass > jnp.maximum(mass.sum(axis=-1, keepdims=True) / (2 * count), 1e-6)

    (a, used_a), (b, used_b) = centre(first, shares[:, :n]), centre(second, shares[:, n:])
    return a, b, used_a & used_b


def _spread(seen: jax.Array, count: int) -> jax.Array:
    """[N, m] bool -> [N, count] int32, evenly spaced ranks of the seen ones."""
    order = jnp.argsort(~seen, axis=-1, stable=True)
    last = jnp.maximum(seen.sum(axis=-1, keepdims=True) - 1, 0)
    rank = jnp.round(jnp.linspace(0.0, 1.0, count) * last).astype(jnp.int32)
    return jnp.take_along_axis(order, rank, axis=-1)
