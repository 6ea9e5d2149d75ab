"""Plain encoders of one sensor, each date on its own: SwinV2 and ViT, as timm and SkySense have them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import ClassVar

import jax
from flax import nnx

from ringmoe_jax.contracts import mean_of_cells, pixel_mask, standardise, valid_cells, validate
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.api import MODELS, Model, ModelConfig, chosen_sensors, from_module
from ringmoe_jax.models.depth import prefixed
from ringmoe_jax.models.layers import FeedForward, PatchEmbed, layer_norm
from ringmoe_jax.models.swin import SwinConfig, SwinPyramid, windows
from ringmoe_jax.models.transformer import TransformerConfig
from ringmoe_jax.models.vit import RESIZES, VisionTransformer
from ringmoe_jax.sensors import Sensor, Statistics


@dataclasses.dataclass(frozen=True)
class PlainEncoder(ModelConfig):
    """What SwinV2 and ViT share: one sensor, and no decoders, fusion or experts."""

    def __post_init__(self):
        super().__post_init__()
        if len(self.sensors) != 1:
            raise ConfigError(f"model.sensors = {self.sensors}: {self.title} takes the images of one sensor")
        if self.image_size % self.token_side:
            raise ConfigError(
                f"model.image_size = {self.image_size}: wanted a multiple of a token's {self.token_side} px"
            )

    @property
    def image_sizes(self) -> dict[str, int]:
        """See `ModelConfig`."""
        return {self.sensors[0]: self.image_size}

    def _build(self, encoder: Callable, widths: tuple[int, ...], above: Mapping, sensors, statistics, heads) -> Model:
        if heads:
            raise ConfigError(f"{self.title} has no decoders, but objectives ask for some of {', '.join(heads)}")
        table, values = chosen_sensors(self.sensors, sensors, statistics)
        (name,) = table
        make = functools.partial(_Images, encoder, self.token_side, table[name], values[name])
        above = prefixed("encoder", above, 0)
        return from_module(make, {name: widths[-1]}, above, {name: widths} if len(widths) > 1 else {})


@MODELS.register("swinv2")
@dataclasses.dataclass(frozen=True)
class SwinV2Config(PlainEncoder):
    """SwinV2 (Liu et al. 2022). Defaults are timm's swinv2_tiny_window8_256.

    Attributes:
        sensors: the one that it takes.
        image_size: side of its images in pixels.
        patch: side of a patch in pixels.
        width: D of the first stage; doubles with every stage.
        depths: blocks of each stage.
        window: side of an attention window in tokens, clamped to the grid of a stage.
        head_width: D of one attention head.
        norm_every: blocks between the extra norms of long stages (SwinV2-H); 0 is none.
        norm_gain: initial gain of the norms after branches, see `swin.SwinBlock`.
        drop_path: stochastic depth of the last block.
        shift_thin: see `swin.SwinStage`.
        pad_windows: whether images are taken that windows do not tile: their grids are filled up with zeros.
        exact_gelu: GELU by the error function.
        dtype: "float32" or "bfloat16" for activations.
        remat: "none", "dots" or "full".
    """

    title: ClassVar[str] = "SwinV2"
    sensors: tuple[str, ...] = ("rgb",)
    image_size: int = 256
    patch: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    window: int = 8
    head_width: int = 32
    norm_every: int = 0
    norm_gain: float = 0.0
    drop_path: float = 0.1
    shift_thin: bool = False
    pad_windows: bool = False
    exact_gelu: bool = True
    dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        super().__post_init__()
        tiling = windows(self.image_size // self.patch, len(self.depths))
        if not self.pad_windows and self.window not in tiling:
            raise ConfigError(
                f"model.window = {self.window} does not tile every stage of {self.image_size} px images: these do: "
                f"{', '.join(map(str, tiling))}; or set model.pad_windows"
            )

    @property
    def token_side(self) -> int:
        """Pixels along a side of a token of the last stage."""
        return self.patch * 2 ** (len(self.depths) - 1)

    @property
    def token_width(self) -> int:
        """D of the last stage."""
        return self.width * 2 ** (len(self.depths) - 1)

    @property
    def pyramid(self) -> SwinConfig:
        """Geometry of the stages."""
        names = {field.name for field in dataclasses.fields(self)} & {f.name for f in dataclasses.fields(SwinConfig)}
        shared = {name: getattr(self, name) for name in names}
        return SwinConfig(**shared, grid=self.image_size // self.patch, cosine=True)

    def build(self, sensors=None, statistics=None, heads=None, mesh=None) -> Model:
        """See `ModelConfig`; outputs["stages"] are those of the pyramid, the last one with a norm after it."""
        embed = lambda channels, rngs: PatchEmbed(channels, self.patch, self.width, rngs, dtype=self.dtype)  # noqa: E731
        options = dict(constrain=lambda x: x, dtype=self.dtype)
        encoder = lambda channels, rngs: SwinV2(self, embed(channels, rngs), rngs, **options)  # noqa: E731
        above = prefixed("backbone", self.pyramid.blocks_above, 0) | {"": sum(self.depths), "norm": 0}
        widths = tuple(self.width * 2**i for i in range(len(self.depths)))
        return self._build(encoder, widths, above, sensors, statistics, heads)


@MODELS.register("vit")
@dataclasses.dataclass(frozen=True)
class ViTConfig(PlainEncoder):
    """ViT (Dosovitskiy et al. 2021). Defaults are timm's vit_base_patch16_224.

    Attributes:
        sensors: the one that it takes.
        image_size: side of its images in pixels.
        patch: side of a patch in pixels.
        grid: tokens along a side that positions are made for; 0 is that of `image_size`.
        blocks: geometry.
        final_norm: whether a norm follows the last block; SkySense's ViTs have none.
        resize: of positions, see `vit.VisionTransformer`.
        dtype: "float32" or "bfloat16" for activations.
    """

    title: ClassVar[str] = "ViT"
    sensors: tuple[str, ...] = ("rgb",)
    image_size: int = 224
    patch: int = 16
    grid: int = 0
    blocks: TransformerConfig = TransformerConfig(768, 12, 12, drop_path=0.1, exact_gelu=True, epsilon=1e-6)
    final_norm: bool = True
    resize: str = next(iter(RESIZES))
    dtype: str = "float32"

    @property
    def token_side(self) -> int:
        """Pixels along a side of a token."""
        return self.patch

    def build(self, sensors=None, statistics=None, heads=None, mesh=None) -> Model:
        """See `ModelConfig`."""
        encoder = lambda channels, rngs: _Frames(self, channels, rngs)  # noqa: E731
        above = prefixed("vit/transformer", self.blocks.blocks_above, 0) | {"": self.blocks.depth, "norm": 0}
        return self._build(encoder, (self.blocks.width,), above, sensors, statistics, heads)


class SwinV2(nnx.Module):
    """SwinV2 with cosine attention.

    Call: [B, T, H, W, C], and what `embed` is told -> the stages; the last one normed, [B, T, h, w, d].

    Args:
        config: with `token_width`, `pyramid` and `exact_gelu`.
        embed: patch embedding, of `patch` and `width`.
        constrain: see `swin.SwinPyramid`.
    """

    def __init__(self, config, embed: nnx.Module, rngs: nnx.Rngs, *, constrain: Callable, dtype):
        self.embed = embed
        options = dict(dtype=dtype, exact=config.exact_gelu)
        make_ffn = lambda width, rngs, layer: FeedForward(width, 4 * width, rngs, **options)  # noqa: E731
        self.backbone = SwinPyramid(config.pyramid, make_ffn, rngs, constrain=constrain, dtype=dtype)
        self.norm = layer_norm(config.token_width, rngs, dtype=dtype)

    def __call__(self, images: jax.Array, *told, key, train: bool, mesh) -> tuple[jax.Array, ...]:
        x = self.embed(images, *told)
        stages, _ = self.backbone(x, (0,) * images.shape[1], key=key, train=train, mesh=mesh)
        return (*stages[:-1], self.norm(stages[-1]))


class _Frames(nnx.Module):
    """A ViT for every date. Call: [B, T, H, W, C] -> one stage [B, T, h, w, D]."""

    def __init__(self, config: ViTConfig, channels: int, rngs: nnx.Rngs):
        blocks, options = config.blocks, dict(dtype=config.dtype)
        grid = config.grid or config.image_size // config.patch
        embed = PatchEmbed(channels, config.patch, blocks.width, rngs, norm=False, **options)
        self.vit = VisionTransformer(embed, grid, blocks, rngs, constrain=lambda x: x, resize=config.resize, **options)
        self.norm = layer_norm(blocks.width, rngs, epsilon=blocks.epsilon, **options) if config.final_norm else None

    def __call__(self, images: jax.Array, *, key, train: bool, mesh) -> tuple[jax.Array, ...]:
        tokens = self.vit(images, key=key, train=train, mesh=mesh)
        return (self.norm(tokens) if self.norm else tokens,)


class _Images(nnx.Module):
    """An encoder of one sensor as `ringmoe_jax.contracts` wants it."""

    def __init__(self, encoder: Callable, side: int, sensor: Sensor, statistics: Statistics, rngs: nnx.Rngs):
        self.side, self.sensors, self.statistics = side, {sensor.name: sensor}, {sensor.name: statistics}
        self.encoder = encoder(sensor.channels, rngs)

    def __call__(self, batch: Mapping, *, key: jax.Array | None, train: bool) -> dict:
        validate(batch, self.sensors)
        ((name, entry),) = batch["sensors"].items()
        if any(side % self.side for side in entry["pixels"].shape[2:4]):
            shown = " x ".join(map(str, entry["pixels"].shape[2:4]))
            raise DataError(f'sensor "{name}": images are {shown} pixels, wanted multiples of {self.side}')
        image = standardise(entry["pixels"], entry["valid"], self.statistics[name])
        stages = self.encoder(image, key=key, train=train, mesh=None)
        return described(batch["sensors"], {name: image}, {name: stages}, self.sensors, self.statistics)


def described(entries: Mapping, images: Mapping, stages: Mapping, sensors: Mapping, statistics: Mapping) -> dict:
    """Outputs of an encoder without decoders, as `ringmoe_jax.contracts` describes them.

    Args:
        entries: of the batch, by sensor.
        images: {sensor: [B, T, H, W, C]}, standardised.
        stages: {sensor: maps [B, T, h_i, w_i, D_i], finest first}.
        sensors: that the model knows.
        statistics: of their normalisation.
    """
    tokens = {name: maps[-1] for name, maps in stages.items()}
    return {
        "tokens": tokens,
        "stages": stages,
        "pooled": {
            name: mean_of_cells(x, valid_cells(entries[name]["valid"], x.shape[2:4])) for name, x in tokens.items()
        },
        "heads": {},
        "standardised": images,
        "pixel_mask": {name: pixel_mask(entry) for name, entry in entries.items()},
        "sensors": {name: sensors[name] for name in entries},
        "statistics": {name: statistics[name] for name in entries},
    }
