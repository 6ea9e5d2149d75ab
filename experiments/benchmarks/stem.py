"""What a stem costs that is made from what bands are, over a patch embedding of its own for the same bands."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax import bands, clock, sensors
from ringmoe_jax.models.layers import PatchEmbed
from ringmoe_jax.models.physics import PhysicsStem

FIXED, PHYSICS = "fixed", "physics"
SENSOR = "s2_12"  # twelve bands


@dataclasses.dataclass(frozen=True)
class Point:
    """Images through one stem.

    Attributes:
        images: B.
        side: pixels.
        patch: p.
        width: D of a token.
        norm: whether a layer norm ends the stem, as in a RingMoE; a ViT's has none.
    """

    images: int
    side: int
    patch: int
    width: int
    norm: bool

    def __str__(self) -> str:
        tokens = self.images * (self.side // self.patch) ** 2
        return f"{tokens:,} tokens of {self.width}, {self.images} images of {self.side} px, patches of {self.patch} px"


POINTS = (
    Point(32, 64, 4, 96, True),
    Point(8, 192, 4, 96, True),
    Point(4, 192, 4, 448, True),
    Point(32, 32, 4, 384, False),
    Point(16, 16, 4, 1024, False),
)


def jobs(point: Point) -> dict[str, Callable[[], Any]]:
    """Compiled forward and backward passes by stem, float32: the loss and gradients of all parameters."""
    sensor, keys = sensors.get(SENSOR), jax.random.split(jax.random.key(0), 2)
    shape = (point.images, 1, point.side, point.side, sensor.channels)
    pixels, rngs = jax.random.normal(keys[0], shape), nnx.Rngs(0)
    options = dict(dtype=jnp.float32, norm=point.norm)
    fixed = PatchEmbed(sensor.channels, point.patch, point.width, rngs, **options)
    told = PhysicsStem(point.patch, point.width, rngs, **options)
    upstream = jax.random.normal(keys[1], jax.eval_shape(fixed, pixels).shape)
    description = bands.describe(sensor)
    return {FIXED: _pass(fixed, upstream, pixels), PHYSICS: _pass(told, upstream, pixels, description)}


def _pass(stem: nnx.Module, upstream: jax.Array, pixels: jax.Array, *constants) -> Callable[[], Any]:
    graph, params = nnx.split(stem)

    def loss(params, pixels):
        return jnp.sum(nnx.merge(graph, params)(pixels, *constants) * upstream)

    return functools.partial(jax.jit(jax.value_and_grad(loss)), params, pixels)


def measure(point: Point, repeats: int, others: Mapping[str, Callable] | None = None) -> dict[str, Any]:
    """Times both stems in turns, and jobs of others beside them.

    Returns:
        {"point": ..., "seconds": medians by job, "ratio": of the generated stem to the fixed one}.
    """
    seconds = clock.interleaved(jobs(point) | (others or {}), repeats)
    return {"point": dataclasses.asdict(point), "seconds": seconds, "ratio": seconds[PHYSICS] / seconds[FIXED]}
