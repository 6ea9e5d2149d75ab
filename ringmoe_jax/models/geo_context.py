"""Geo-context prototypes (SkySense, section 4): what a region of the Earth usually looks like, as extra features.

A bank holds some unit vectors for every region. A sample's region follows from its coordinates; its fused features
attend to the prototypes of that region, and what they read is set beside them. The bank is no parameter that
gradients train: `ringmoe_jax.pretext.prototypes` moves it. A sample without coordinates, and one of a region that
was never visited, reads zeros, which is as good as skipping the module (our choice for the second).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.errors import ConfigError, nearest

BANK = "geo_context"  # the bank's place in a model's parameters
UNKNOWN = -1  # region of a sample without coordinates
MERCATOR_LIMIT = 85.0511  # degrees of latitude where the square of Web-Mercator tiles ends
DEGREE = 111.195  # km along a meridian


@dataclasses.dataclass(frozen=True)
class GeoContextConfig:
    """Regions and prototypes. Sizes are the paper's; the kind of grid is unknown, so both are our choice.

    Attributes:
        regions: rows of the bank.
        prototypes: unit vectors of a region.
        grid: "mercator": Web-Mercator tiles of `zoom`, hashed to the rows, so that tiles that carry data hardly meet
            (share of n used tiles that collide: about n / regions); or "equal_area": cells of `side_km` squared in
            rows of latitude, hashed likewise. A tile of zoom 9 is 4294 km2, the paper's region, at 33 degrees and
            shrinks towards the poles; a cell of 65.5 km is that size everywhere.
        zoom: of Web-Mercator tiles.
        side_km: of equal-area cells.
    """

    regions: int = 4096
    prototypes: int = 100
    grid: str = "mercator"
    zoom: int = 9
    side_km: float = 65.5

    def __post_init__(self):
        if self.grid not in ("mercator", "equal_area"):
            known = ("mercator", "equal_area")
            raise ConfigError(f'geo_context.grid = "{self.grid}" does not exist: {nearest(self.grid, known)}')
        if self.regions < 1 or self.prototypes < 2 or not 0 <= self.zoom <= 15 or not self.side_km > 0:
            raise ConfigError(
                f"geo_context: regions = {self.regions}, prototypes = {self.prototypes}, zoom = {self.zoom}, side_km = "
                f"{self.side_km}: wanted at least 1 region and 2 prototypes, a zoom of 0 to 15 and a side > 0"
            )


def cells(location: jax.Array, config: GeoContextConfig) -> tuple[jax.Array, jax.Array]:
    """Row and column of the grid cell that holds a place.

    Args:
        location: [..., 2] float32, latitude and longitude in degrees; any value where unknown.
        config: which grid.

    Returns:
        Two [...] int32.
    """
    latitude, longitude = location[..., 0], (location[..., 1] + 180) / 360
    if config.grid == "mercator":
        side = 2**config.zoom
        angle = jnp.deg2rad(jnp.clip(latitude, -MERCATOR_LIMIT, MERCATOR_LIMIT))
        row = (1 - jnp.arcsinh(jnp.tan(angle)) / jnp.pi) / 2 * side
        return _index(row, side), _index(longitude * side, side)
    rows = math.ceil(180 * DEGREE / config.side_km)
    row = _index((90 - latitude) * DEGREE / config.side_km, rows)
    middle = 90 - (row + 0.5) * config.side_km / DEGREE
    columns = jnp.maximum(jnp.round(360 * DEGREE * jnp.cos(jnp.deg2rad(middle)) / config.side_km), 1)
    return row, _index(longitude * columns, columns)


def _index(position: jax.Array, size) -> jax.Array:
    return jnp.clip(jnp.floor(position), 0, size - 1).astype(jnp.int32)


def regions(location: jax.Array, config: GeoContextConfig) -> jax.Array:
    """Row of the bank for each place.

    Args:
        location: [B, 2] float32, latitude and longitude in degrees, NaN where unknown.
        config: which grid.

    Returns:
        [B] int32 in 0..regions - 1, `UNKNOWN` where a coordinate is NaN or out of -90..90 and -180..180.
    """
    known = (jnp.abs(location) <= jnp.asarray([90.0, 180.0])).all(axis=-1)
    row, column = cells(jnp.where(known[:, None], location, 0.0), config)
    mixed = row.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) ^ column.astype(jnp.uint32) * jnp.uint32(0x85EBCA77)
    mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x2C1B3C6D)
    mixed = mixed ^ (mixed >> 12)
    return jnp.where(known, (mixed % jnp.uint32(config.regions)).astype(jnp.int32), UNKNOWN)


class GeoContext(nnx.Module):
    """The bank and its read-out.

    Args:
        config: regions and prototypes.
        width: D of the features that attend.
    """

    def __init__(self, config: GeoContextConfig, width: int, rngs: nnx.Rngs):
        self.config = config
        self.prototypes = nnx.Param(_directions(rngs.params(), config.regions, config.prototypes, width))
        self.visits = nnx.Param(jnp.zeros((config.regions,), jnp.float32))

    def __call__(self, features: jax.Array, location: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Softmax(F P^T / sqrt(D)) P of the region's prototypes P, without projections (the paper's formula).

        Args:
            features: [B, h, w, D].
            location: [B, 2] degrees.

        Returns:
            [B, h, w, D], zeros where the region is unknown or was never visited; regions [B] int32.
        """
        region = regions(location, self.config)
        row = jnp.maximum(region, 0)
        prototypes = jax.lax.stop_gradient(self.prototypes[...][row]).astype(features.dtype)
        known = (region != UNKNOWN) & (self.visits[...][row] > 0)
        scores = jnp.einsum("bhwd,bpd->bhwp", features, prototypes).astype(jnp.float32) * features.shape[-1] ** -0.5
        read = jnp.einsum("bhwp,bpd->bhwd", jax.nn.softmax(scores).astype(features.dtype), prototypes)
        return jnp.where(known[:, None, None, None], read, 0), region


def _directions(key: jax.Array, number: int, count: int, width: int) -> jax.Array:
    """[number, count, width] float32: the same random directions for every region, orthogonal where they fit."""
    blocks = -(-count // width)
    drawn = jax.random.orthogonal(key, max(width, 1), (blocks,)).reshape(-1, width)[:count]
    return jnp.broadcast_to(drawn, (number, count, width)).astype(jnp.float32)
