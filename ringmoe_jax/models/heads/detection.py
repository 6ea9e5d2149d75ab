"""Anchor-free detection of upright or rotated boxes: a feature pyramid and the head of FCOS.

Sources: Lin et al. 2017, "Feature Pyramid Networks"; Tian et al. 2019, "FCOS"; Lin et al. 2017, "Focal Loss" (prior).
Rotated boxes and levels finer than the encoder's are our choice. `ringmoe_jax.objectives.fcos` trains it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ringmoe_jax.contracts import BOX_UNITS, Meaning
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.heads import boxes
from ringmoe_jax.models.heads.base import HEADS, HeadConfig
from ringmoe_jax.models.layers import PixelDecoder, linear

SIDE = 4.0  # strides: side of the boxes that a new head predicts


@HEADS.register("fcos")
@dataclasses.dataclass(frozen=True)
class DetectionConfig(HeadConfig):
    """Geometry of `DetectionHead`; sizes and prior are FCOS's.

    Attributes:
        channels: of the pyramid and the towers.
        depth: convolutions of each of the two towers.
        groups: of the group norms; divides `channels`.
        finer: levels before the encoder's finest, each of twice the resolution of the next, for objects that are
            hardly wider than a cell: of stride 4, one makes it 2 pixels and two make it 1.
        coarser: levels behind the encoder's coarsest, each of half the resolution of the one before, for large objects;
            FCOS has two.
        rotated: whether boxes have an angle.
        prior: probability that a new head gives every class everywhere, above 0 and below 1.
    """

    gives: ClassVar = {
        "class": Meaning(("point", "class"), "logits of the classes of an object around every point", of_classes=True),
        "box": Meaning(("point", "parameter"), f"its box: {BOX_UNITS}"),
        "centreness": Meaning(("point",), "logit of how central the point is in it"),
        "points": Meaning(("point", "coordinate"), "x, y and stride of every point in pixels, the same for all images"),
    }
    channels: int = 256
    depth: int = 4
    groups: int = 32
    finer: int = 0
    coarser: int = 0
    rotated: bool = False
    prior: float = 0.01

    def __post_init__(self):
        for name, least in {"channels": 1, "depth": 1, "groups": 1, "finer": 0, "coarser": 0}.items():
            if getattr(self, name) < least:
                raise ConfigError(f"head.{name} = {getattr(self, name)}: wanted {least} or more")
        if self.channels % self.groups:
            raise ConfigError(f"head.channels = {self.channels} is not a multiple of head.groups = {self.groups}")
        if not 0 < self.prior < 1:
            raise ConfigError(f"head.prior = {self.prior}: wanted more than 0 and less than 1")

    def build(self, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype) -> DetectionHead:
        """See `HeadConfig`."""
        return DetectionHead(self, widths, outputs, rngs, dtype=dtype)


class DetectionHead(nnx.Module):
    """Class, box and centreness at every point of all levels; the towers are shared by the levels.

    Args:
        config: geometry.
        widths: D_i of the encoder's levels, finest first.
        outputs: C classes.
    """

    def __init__(self, config: DetectionConfig, widths: tuple[int, ...], outputs: int, rngs: nnx.Rngs, *, dtype):
        channels, numbers = config.channels, boxes.ROTATED if config.rotated else boxes.UPRIGHT
        self.pyramid = FeaturePyramid(config, widths, rngs, dtype=dtype)
        self.class_tower = Tower(config, rngs, dtype=dtype)
        self.box_tower = Tower(config, rngs, dtype=dtype)
        self.classes = _predictor(channels, outputs, -np.log(1 / config.prior - 1), rngs)
        self.box = _predictor(channels, numbers, (0, 0, *2 * [np.log(SIDE)], 1, 0)[:numbers], rngs)
        self.centreness = _predictor(channels, 1, 0.0, rngs)
        self.scale = nnx.Param(jnp.ones(config.finer + len(widths) + config.coarser))

    def __call__(
        self, levels: Sequence[jax.Array], size: tuple[int, int], *, key: jax.Array | None = None, train: bool = False
    ) -> dict[str, jax.Array]:
        """Predictions at the A points of all levels.

        Args:
            levels: [N, h_i, w_i, D_i], finest first.
            size: H and W of the image in pixels.

        Returns:
            class: [N, A, C] float32 logits.
            box: [N, A, 5] float32 x, y, width, height, angle in pixels and radians; angle 0 unless `rotated`.
            centreness: [N, A] float32 logits.
            points: [A, 3] float32 x, y and stride in pixels; the same for all images of a size.
            raw: [N, A, 4 or 6] float32, the boxes as they were predicted, see `boxes.encode`.
        """
        levels = self.pyramid(levels)
        points = [_points(level.shape[1:3], size) for level in levels]
        found = [self._level(i, level) for i, level in enumerate(levels)]
        classes, raw, centreness = (jnp.concatenate(of, axis=1) for of in zip(*found, strict=True))
        points = jnp.concatenate(points)
        return {
            "class": classes,
            "box": boxes.decode(raw, points),
            "centreness": centreness[..., 0],
            "points": points,
            "raw": raw,
        }

    def _level(self, i: int, x: jax.Array) -> tuple[jax.Array, ...]:
        """[N, h, w, channels] -> class logits, raw boxes and centreness, [N, h w, any] each, float32."""
        kind, place = self.class_tower(x), self.box_tower(x)
        found = self.classes(kind), self.scale[...][i] * self.box(place), self.centreness(place)
        return tuple(y.reshape(len(x), -1, y.shape[-1]) for y in found)


class FeaturePyramid(nnx.Module):
    """Levels of one width, each of which also knows what the coarser ones saw.

    1 x 1 convolutions, sums from the coarsest level down to the finest, finer ones by up-projection (our choice), a
    3 x 3 convolution at each, and coarser ones by convolutions of stride 2 (as in FCOS).
    Call: levels [N, h_i, w_i, D_i], finest first, to the `finer`, the same and the `coarser` ones, each of `channels`.
    """

    def __init__(self, config: DetectionConfig, widths: tuple[int, ...], rngs: nnx.Rngs, *, dtype):
        channels = config.channels
        convolutions = lambda count, **more: nnx.List(  # noqa: E731
            [_convolution(channels, channels, rngs, dtype=dtype, **more) for _ in range(count)]
        )
        self.lateral = nnx.List([linear(width, channels, rngs, dtype=dtype) for width in widths])
        self.smooth = convolutions(config.finer + len(widths))
        self.up = nnx.List([PixelDecoder(channels, 2, channels, rngs, dtype=dtype) for _ in range(config.finer)])
        self.down = convolutions(config.coarser, strides=2)

    def __call__(self, levels: Sequence[jax.Array]) -> list[jax.Array]:
        levels = [lateral(x) for lateral, x in zip(self.lateral, levels, strict=True)]
        for i in reversed(range(len(levels) - 1)):
            levels[i] += jax.image.resize(levels[i + 1], levels[i].shape, "nearest")
        for up in self.up:
            levels.insert(0, up(levels[0]))
        levels = [smooth(x) for smooth, x in zip(self.smooth, levels, strict=True)]
        for down in self.down:
            levels.append(down(jax.nn.relu(levels[-1])))
        return levels


class Tower(nnx.Module):
    """`depth` times 3 x 3 convolution, group norm, ReLU. Call: [N, h, w, channels] -> the same shape."""

    def __init__(self, config: DetectionConfig, rngs: nnx.Rngs, *, dtype):
        channels = config.channels
        self.convolutions = nnx.List(
            [_convolution(channels, channels, rngs, dtype=dtype, bias=False) for _ in range(config.depth)]
        )
        self.norms = nnx.List(
            [nnx.GroupNorm(channels, config.groups, dtype=dtype, rngs=rngs) for _ in range(config.depth)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = jax.nn.relu(norm(convolution(x)))
        return x


def decode(predictions: Mapping, top: int, threshold: float = 0.05) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best boxes of every image, before non-maximum suppression (`ringmoe_jax.evaluate.metrics.boxes.nms`).

    A score is the geometric mean of the class's probability and the centreness (Tian et al. 2022).

    Args:
        predictions: of `DetectionHead`.
        top: rows of the result, at most points times classes; several points find each object.
        threshold: least score of a box.

    Returns:
        boxes: [N, top, 5] float32, see `DetectionHead`.
        scores: [N, top] float32 in 0..1, in descending order; 0 where below the threshold.
        classes: [N, top] int32; -1 where the score is below the threshold: rows not to use.
    """
    centreness = jax.nn.sigmoid(predictions["centreness"])[..., None]
    scores = jnp.sqrt(jax.nn.sigmoid(predictions["class"]) * centreness)
    points, classes = scores.shape[1:]
    scores, chosen = jax.lax.top_k(scores.reshape(len(scores), -1), min(top, points * classes))
    found = jnp.take_along_axis(predictions["box"], chosen[..., None] // classes, axis=1)
    good = scores >= threshold
    return found, jnp.where(good, scores, 0.0), jnp.where(good, chosen % classes, -1)


def _points(grid: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """[h w, 3] float32: centres of the cells of a level in pixels of the image, and the cells' side."""
    (rows, columns), (height, width) = grid, size
    y, x = np.meshgrid(
        (np.arange(rows) + 0.5) * height / rows, (np.arange(columns) + 0.5) * width / columns, indexing="ij"
    )
    return jnp.asarray(np.stack([x, y, np.full_like(x, height / rows)], axis=-1).reshape(-1, 3), jnp.float32)


def _convolution(inputs: int, outputs: int, rngs: nnx.Rngs, *, dtype, strides: int = 1, bias: bool = True) -> nnx.Conv:
    """3 x 3, float32 parameters, He-normal kernel, computed in `dtype`."""
    return nnx.Conv(
        inputs,
        outputs,
        (3, 3),
        strides=strides,
        use_bias=bias,
        kernel_init=nnx.initializers.he_normal(),
        dtype=dtype,
        param_dtype=jnp.float32,
        rngs=rngs,
    )


def _predictor(inputs: int, outputs: int, bias, rngs: nnx.Rngs) -> nnx.Conv:
    """3 x 3 in float32 with a small kernel, so that a new head predicts its bias (FCOS)."""
    return nnx.Conv(
        inputs,
        outputs,
        (3, 3),
        kernel_init=nnx.initializers.normal(0.01),
        bias_init=lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(bias, dtype), shape),
        rngs=rngs,
    )
