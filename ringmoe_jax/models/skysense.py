"""SkySense (CVPR 2024): one encoder a modality, every frame on its own, and a fusion of all modalities and dates.

One location is one pixel of the series' sensors and `stride` x `stride` pixels of the high-resolution image. The
fusion looks at all tokens of one location, never at other locations, so space and time are factorised. Sensors
and dates may be missing: their tokens are left out of the sequence. With the stem "physics" an encoder also takes
sensors that it was not trained on, of its modality. Geometry: released code; where it is silent, "our choice".
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.bands import check_lengths, describe
from ringmoe_jax.contracts import FUSED, NO_TIME, day_of_year, validate
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.models.any_sensor import LINEAR, AnySensorConfig, shown_bands, standardise
from ringmoe_jax.models.api import MODELS, Model, from_module
from ringmoe_jax.models.depth import prefixed
from ringmoe_jax.models.geo_context import GeoContext, GeoContextConfig
from ringmoe_jax.models.layers import TRUNCATED_NORMAL, FeedForward, PatchEmbed, PixelDecoder, linear
from ringmoe_jax.models.moe_ffn import MoEConfig, MoEFeedForward, Slots
from ringmoe_jax.models.physics import PhysicsStem
from ringmoe_jax.models.swin import SwinConfig
from ringmoe_jax.models.transformer import Transformer, TransformerConfig
from ringmoe_jax.models.vision import SwinV2
from ringmoe_jax.models.vit import VisionTransformer
from ringmoe_jax.parallel.mesh import BATCH_AXES
from ringmoe_jax.sensors import Sensor, Statistics

DATES = 365  # rows of the date table; 31 December of a leap year shares the last one
DENSE = MoEConfig(specialised=0, collaborative=0, shared=True)


@MODELS.register("skysense")
@dataclasses.dataclass(frozen=True)
class SkySenseConfig(AnySensorConfig):
    """Geometry. Sizes are those of the released model by default: SwinV2-H, two ViT-L, and a fusion of 24 layers.

    Where the released code has other ways than ours, a field says both; `configs/skysense.py:released` has all of its.

    Attributes:
        sensors: names from `ringmoe_jax.sensors`, the images that the model takes.
        unseen: further ones, that were not there in training; only with the stem "physics". See `stand_ins`.
        high_resolution: which of them SwinV2 encodes; "" is none. All others are series, each with its ViT.
        image_size: side of a high-resolution image in pixels; smaller crops, tiled by windows too, may be shown.
        patch: side of its patches in pixels.
        width: D of its first stage; the last one's, width * 2^(stages - 1), is that of location tokens, d.
        depths: blocks of its stages. `patch` * 2^(stages - 1) pixels make a location, 32 in the paper; public
            imagery of 1.25 m wants 8, so two stages.
        window: side of an attention window in tokens, clamped to the grid of a stage.
        head_width: D of one attention head.
        norm_every: blocks between the extra norms of long stages.
        norm_gain: initial gain of the norms after its branches: 1 in the released code; 0 starts every block as the
            identity (SwinV2 as its authors published it, and ours).
        drop_path: stochastic depth of the last high-resolution block.
        drop_before_norm: whether a branch that it drops still gives the bias of its norm (released code), or nothing
            (ours).
        frame: geometry of the ViTs.
        frame_patch: side of a ViT's patches in pixels; the up-projection turns each into as many locations.
        frame_size: side in pixels of the frames that positions are made for; others resize them.
        stem: patch embeddings: "linear", of a sensor's own bands (released code); or "physics": of every encoder one,
            made from what bands are, see `physics`.
        fusion: geometry of the fusion.
        dated: sensors whose tokens carry their date; () is all (the formula; the released code: Sentinel-2 only).
        modality_dropout: chance that a sensor's tokens are left out of a training sample's fusion; one stays. Neither
            the paper nor the released code has it; `configs/common.py` takes 0.1 (our choice).
        band_dropout: chance that a band is hidden in a whole training image; one stays. Only with the stem "physics".
        moe: the fusion's feed-forward layers; dense by default. Beyond the paper: routers see which sensor a
            token is from. Experts have the approximate GELU.
        geo_context: prototypes of regions beside the fused features; None leaves them out.
        dtype: "float32" or "bfloat16" for activations.
        remat: "none", "dots" or "full", of the high-resolution encoder; `frame` and `fusion` have their own.
        unroll: whether its equal blocks are written out, see `stack.scan`; `frame` and `fusion` have their own.
        adapter: width of convolutional bypasses in the high-resolution encoder's blocks, see
            `ringmoe_jax.models.adapters`; 0 is none.
        exact_gelu: of the high-resolution encoder; `frame` and `fusion` have their own. True in the released code.
        shift_thin: whether windows shift in a grid that is one window high or wide. False in the released code.
        pad_windows: whether images are taken that windows do not tile: their grids are filled up with zeros. True in
            the released code.
        frame_resize: how a ViT's positions are resized, see `vit.VisionTransformer`. "sampled" in the released code.
    """

    title: ClassVar[str] = "SkySense"
    sensors: tuple[str, ...] = ("rgb", "s2_10", "s1_grd")
    unseen: tuple[str, ...] = ()
    high_resolution: str = "rgb"
    image_size: int = 512
    patch: int = 4
    width: int = 352
    depths: tuple[int, ...] = (2, 2, 18, 2)
    window: int = 8
    head_width: int = 44
    norm_every: int = 6
    norm_gain: float = 0.0
    drop_path: float = 0.2
    drop_before_norm: bool = False
    frame: TransformerConfig = TransformerConfig()
    frame_patch: int = 4
    frame_size: int = 64
    stem: str = LINEAR
    fusion: TransformerConfig = TransformerConfig()
    dated: tuple[str, ...] = ()
    modality_dropout: float = 0.0
    band_dropout: float = 0.0
    moe: MoEConfig = DENSE
    geo_context: GeoContextConfig | None = None
    dtype: str = "float32"
    remat: str = "none"
    unroll: bool = False
    adapter: int = 0
    exact_gelu: bool = False
    shift_thin: bool = True
    pad_windows: bool = False
    frame_resize: str = "antialiased"

    def __post_init__(self):
        super().__post_init__()
        for field, names in (("high_resolution", (self.high_resolution,)), ("dated", self.dated)):
            for name in names:
                if name and name not in self.sensors:
                    raise ConfigError(f'model.{field} names "{name}": {nearest(name, self.sensors)}')
        if self.moe.allowed:
            raise ConfigError("model.moe.allowed: experts of SkySense's fusion cannot be pruned, leave it empty")
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f'model.dtype = "{self.dtype}": wanted "float32" or "bfloat16"')
        if self.high_resolution and self.image_size % self.stride:
            raise ConfigError(
                f"model.image_size = {self.image_size} must be a multiple of a location's {self.stride} px"
            )
        if self.high_resolution and not self.tiled(self.image_size, self.image_size):
            raise ConfigError(
                f"model.image_size = {self.image_size} is not tiled by windows of {self.window} tokens in every stage: "
                f"a multiple of {self.window * self.stride} px is, or choose another window"
            )
        for name, part in (("frame", self.frame), ("fusion", self.fusion)):
            if part.width % part.heads:
                raise ConfigError(f"model.{name}.width = {part.width} is not a multiple of heads = {part.heads}")
        if not 0 <= self.modality_dropout < 1:
            raise ConfigError(f"model.modality_dropout = {self.modality_dropout}: wanted at least 0 and below 1")

    @property
    def stride(self) -> int:
        """High-resolution pixels along one side of a location."""
        return self.patch * 2 ** (len(self.depths) - 1)

    def tiled(self, height: int, width: int) -> bool:
        """Whether windows tile a high-resolution image of these pixels in every stage, or may be padded.

        Windows shrink to small images.
        """
        if min(height, width) < 1 or height % self.stride or width % self.stride:
            return False
        if self.pad_windows:
            return True
        steps = [self.patch * 2**i for i in range(len(self.depths))]
        grids = [(height // step, width // step) for step in steps]
        return all(side % min(self.window, *grid) == 0 for grid in grids for side in grid)

    @property
    def image_sizes(self) -> dict[str, int]:
        """See `ModelConfig`."""
        encoders = self.encoder_of().items()
        return {name: self.image_size for name, encoder in encoders if encoder == self.high_resolution}

    @property
    def token_width(self) -> int:
        """Width of location tokens, d."""
        return self.width * 2 ** (len(self.depths) - 1)

    @property
    def pyramid(self) -> SwinConfig:
        """Geometry of the high-resolution encoder."""
        grid = self.image_size // self.patch
        return SwinConfig(
            self.width,
            self.depths,
            grid,
            self.window,
            self.head_width,
            cosine=True,
            norm_every=self.norm_every,
            shift_thin=self.shift_thin,
            norm_gain=self.norm_gain,
            drop_path=self.drop_path,
            drop_before_norm=self.drop_before_norm,
            remat=self.remat,
            unroll=self.unroll,
            adapter=self.adapter,
        )

    @property
    def has_experts(self) -> bool:
        """See `ModelConfig`."""
        return self.moe.routed

    @property
    def bias_rate(self) -> float:
        """See `ModelConfig`."""
        return self.moe.bias_rate if self.moe.routed else 0.0

    @property
    def blocks_above(self) -> dict[str, int | Sequence[int]]:
        """See `Model`: all blocks of the fusion lie above those of the encoders."""
        fusion = self.fusion.depth
        above = {"": fusion, "geo_context": 0} | prefixed("fusion/transformer", self.fusion.blocks_above, 0)
        for name in self.sensors:
            high = name == self.high_resolution
            inner, blocks = ("backbone", self.pyramid) if high else ("vit/transformer", self.frame)
            own = prefixed(inner, blocks.blocks_above, 0)
            own |= {"": sum(self.depths), "norm": 0} if high else {"": self.frame.depth, "up": 0}
            above |= prefixed(f"encoders/{name}", own, fusion)
        return above

    def with_engine(self, engine: str) -> SkySenseConfig:
        """See `ModelConfig`."""
        return dataclasses.replace(self, moe=self.moe.with_engine(engine))

    def stand_ins(self, table: Mapping[str, Sensor] | None = None) -> dict[str, str]:
        """For every unseen sensor the trained one of its modality; of several, whose pixels are nearest in size.

        It takes that one's encoder, its size of images, its dates and, of routers in the fusion, its row (our choice).

        Args:
            table: see `ModelConfig`.

        Raises:
            ConfigError: no sensor has its modality; or only the high-resolution one, and its pixels are as coarse as
                those of a series.
        """
        table = table or sensor_table.resolve(self.all_sensors if self.unseen else ())
        return {name: self._stand_in(table[name], [table[trained] for trained in self.sensors]) for name in self.unseen}

    def encoder_of(self, table: Mapping[str, Sensor] | None = None) -> dict[str, str]:
        """Whose encoder each sensor takes: its own, or that of its stand-in; `table` and errors as in `stand_ins`."""
        return {name: name for name in self.sensors} | self.stand_ins(table)

    def _stand_in(self, sensor: Sensor, trained: Sequence[Sensor]) -> str:
        check_lengths(sensor)
        alike = [other for other in trained if other.modality == sensor.modality]
        if not alike:
            known = ", ".join(f"{other.name} ({other.modality})" for other in trained)
            raise ConfigError(
                f'no encoder of the model was trained on the modality of "{sensor.name}", {sensor.modality}: it has '
                f"{known}: train it with a sensor of that modality"
            )
        name = min(alike, key=lambda other: abs(math.log(other.gsd / sensor.gsd))).name
        series = [other.gsd for other in trained if other.name != self.high_resolution]
        if name == self.high_resolution and sensor.gsd >= min(series, default=math.inf):
            raise ConfigError(
                f'"{sensor.name}" has pixels of {sensor.gsd:g} m, as a series has, but the only {sensor.modality} '
                f'images that the model was trained on are its high-resolution "{name}": train it with such a series'
            )
        return name

    def what_becomes(self, name: str, table: Mapping[str, Sensor]) -> str:
        """See `ModelConfig`."""
        return f"its images take the encoder of {self.stand_ins(table)[name]}, its tokens join the fusion as those do"

    def build(
        self,
        sensors: Mapping[str, Sensor] | None = None,
        statistics: Mapping[str, Statistics] | None = None,
        heads: Mapping[str, Mapping[str, int]] | None = None,
        mesh: Mesh | None = None,
    ) -> Model:
        """SkySense's encoders and fusion as two pure functions, see `ModelConfig`; there are no pixel decoders.

        Any subset of the sensors may be in a batch: one encoder alone, a series with its fusion over dates, or all.
        Besides the usual outputs there are outputs["fused"] [B, h, w, D] and outputs["pooled"]["fused"] [B, D], D
        doubled by the geo-context. With it also outputs["regions"] [B], and outputs["context"][sensor] [B, h, w, D]:
        what one encoder's tokens, their mean over dates projected as for the fusion (our choice), read on their own.
        """
        if heads:
            raise ConfigError(f"skysense has no decoders, but objectives ask for some of {', '.join(heads)}")
        table, values = self.chosen(sensors, statistics)
        width = self.fusion.width * (2 if self.geo_context else 1)
        streams = dict.fromkeys(table, self.token_width) | {FUSED: width}
        make = functools.partial(SkySense, self, table, values, mesh)
        return from_module(make, streams, self.blocks_above, told=self.told)


class SeriesEncoder(nnx.Module):
    """A ViT for every frame and an up-projection.

    Call: [B, T, H, W, C], and what `embed` is told -> frame tokens and [B, T, H, W, d].
    """

    def __init__(self, config: SkySenseConfig, embed: nnx.Module, rngs: nnx.Rngs, *, constrain, dtype):
        frame = config.frame
        options = dict(constrain=constrain, dtype=dtype, resize=config.frame_resize)
        grid = config.frame_size // config.frame_patch
        self.vit = VisionTransformer(embed, grid, frame, rngs, **options)
        self.up = PixelDecoder(frame.width, config.frame_patch, config.token_width, rngs, dtype=dtype, alike=True)

    def __call__(self, images: jax.Array, *told, key, train: bool, mesh) -> tuple[jax.Array, ...]:
        tokens = self.vit(images, *told, key=key, train=train, mesh=mesh)
        return tokens, self.up(tokens)


class Fusion(nnx.Module):
    """All tokens of one location, with their dates and one learned token, to that token's output.

    Args:
        config: geometry.
        modalities: sensors, for routers.
    """

    def __init__(self, config: SkySenseConfig, modalities: int, rngs: nnx.Rngs, *, constrain, dtype):
        width = config.fusion.width

        def make_ffn(width, rngs):
            hidden = config.fusion.hidden_ratio * width
            if config.moe.routed:
                return MoEFeedForward(config.moe, 1 + modalities, width, hidden, rngs, dtype=dtype)
            return FeedForward(width, hidden, rngs, dtype=dtype, exact=config.fusion.exact_gelu)

        self.project = linear(config.token_width, width, rngs, dtype=dtype)
        self.token = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (width,), jnp.float32))
        self.transformer = Transformer(config.fusion, make_ffn, rngs, constrain=constrain, dtype=dtype)

    def __call__(self, tokens: jax.Array, visible: jax.Array, slots: tuple[int, ...], *, key, train: bool, mesh):
        """[B, S, h, w, d] and [B, S] bool -> [B, h, w, D] and routing statistics; `slots` [S] are modalities >= 1."""
        batch, number, h, w, depth = tokens.shape
        x = jnp.moveaxis(tokens, 1, 3).reshape(batch * h * w, number, depth)
        x = self.project(x)
        first = jnp.broadcast_to(self.token[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1)[:, :, None]
        seen = jnp.concatenate([jnp.ones((batch, 1), bool), visible], axis=1)
        seen = jnp.repeat(seen, h * w, axis=0)
        x, routing = self.transformer(x, seen, Slots((0, *slots), seen), key=key, train=train, mesh=mesh)
        return x[:, 0, 0].reshape(batch, h, w, -1), routing


class SkySense(nnx.Module):
    """See the module's text; `SkySenseConfig.build` gives the pure functions."""

    def __init__(
        self,
        config: SkySenseConfig,
        sensors: Mapping[str, Sensor],
        statistics: Mapping[str, Statistics],
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        self.config, self.mesh = config, mesh
        self.sensors, self.statistics = dict(sensors), dict(statistics)
        self.encoder_of = config.encoder_of(sensors)
        dtype = jnp.dtype(config.dtype)
        self.encoders = nnx.Dict({name: self._make_encoder(name, rngs, dtype) for name in config.sensors})
        self.dates = nnx.Param(jnp.zeros((DATES, config.token_width), jnp.float32))
        self.fusion = Fusion(config, len(config.sensors), rngs, constrain=self._constrain, dtype=dtype)
        self.geo_context = GeoContext(config.geo_context, config.fusion.width, rngs) if config.geo_context else None

    def _make_encoder(self, name: str, rngs: nnx.Rngs, dtype) -> nnx.Module:
        config, high = self.config, name == self.config.high_resolution
        patch, width = (config.patch, config.width) if high else (config.frame_patch, config.frame.width)
        make = PhysicsStem if config.told else functools.partial(PatchEmbed, self.sensors[name].channels)
        embed = make(patch, width, rngs, dtype=dtype, norm=high)  # as released: the ViTs have none
        return (SwinV2 if high else SeriesEncoder)(config, embed, rngs, constrain=self._constrain, dtype=dtype)

    def __call__(self, batch: Mapping, *, key: jax.Array | None, train: bool) -> dict:
        validate(batch, self.sensors, told=self.config.told)
        entries = {name: batch["sensors"][name] for name in self.sensors if name in batch["sensors"]}
        images = {name: standardise(entry, self.statistics[name]) for name, entry in entries.items()}
        self._check_grids(images)
        bands, key = shown_bands(entries, self.sensors, self.config.band_dropout if train else 0.0, key)
        keys = [None] * (len(entries) + 2) if key is None else jax.random.split(key, len(entries) + 2)
        stages = {
            name: self._encode(name, image, bands[name], key=k, train=train, mesh=self.mesh)
            for (name, image), k in zip(images.items(), keys[2:], strict=True)
        }
        tokens = {name: self._constrain(maps[-1]) for name, maps in stages.items()}
        visible = {name: entry["valid"].any(axis=(2, 3)) for name, entry in entries.items()}
        fused, routing = self._fuse(entries, tokens, visible, keys[:2], train)
        context = {}
        if self.geo_context:
            location = _first_known([_location(entry) for entry in entries.values()])
            read, region = self.geo_context(fused, location)
            fused = jnp.concatenate([fused, read], axis=-1)
            context = {"regions": region, "context": self._contexts(tokens, visible, location)}
        return context | {
            "tokens": tokens,
            "stages": stages,
            "fused": fused,
            "pooled": {n: _mean_of(t, visible[n]) for n, t in tokens.items()}
            | {FUSED: fused.astype(jnp.float32).mean(axis=(1, 2))},
            "heads": {},
            "standardised": images,
            "pixel_mask": {name: entry["valid"] for name, entry in entries.items()},
            "sensors": {name: self.sensors[name] for name in entries},
            "statistics": {name: self.statistics[name] for name in entries},
            "routing": routing,
        }

    def _encode(self, name: str, image: jax.Array, bands: jax.Array | None, **options) -> tuple[jax.Array, ...]:
        """Stages of the encoder that a sensor takes; `bands` [B, T, C] are those that its stem is shown."""
        told = (describe(self.sensors[name]), bands) if self.config.told else ()
        return self.encoders[self.encoder_of[name]](image, *told, **options)

    def _contexts(self, tokens, visible, location) -> dict[str, jax.Array]:
        """What single encoders read from the prototypes, {sensor: [B, h, w, D]}; see `SkySenseConfig.build`."""
        means = {name: _mean_over_dates(x, visible[name]) for name, x in tokens.items()}
        return {name: self.geo_context(self.fusion.project(x), location)[0] for name, x in means.items()}

    def _check_grids(self, images: Mapping[str, jax.Array]) -> None:
        """Raises a `DataError` unless all images are of one size in locations and windows and patches tile them."""
        config, grids = self.config, {}
        for name, image in images.items():
            sides, high = image.shape[2:4], self.encoder_of[name] == config.high_resolution
            shown = f'sensor "{name}": images are {sides[0]} x {sides[1]} pixels, wanted'
            if high and not config.tiled(*sides):
                raise DataError(
                    f"{shown} multiples of {config.stride} that windows of {config.window} tokens tile in every stage, "
                    f"such as model.image_size = {config.image_size}"
                )
            if not high and any(side % config.frame_patch for side in sides):
                raise DataError(f"{shown} multiples of {config.frame_patch}")
            grids[name] = tuple(side // config.stride if high else side for side in sides)
        if len(set(grids.values())) > 1:
            listed = ", ".join(f"{name} {h} x {w}" for name, (h, w) in grids.items())
            raise DataError(f"sensors do not show the same locations: {listed}: a location is one pixel of a series")

    def _fuse(self, entries, tokens, visible, keys, train: bool):
        trained = self.config.sensors
        dated = self.config.dated or trained
        dates = self.dates[...]
        parts, slots = [], []
        for name, x in tokens.items():
            time = entries[name].get("time")
            if self.encoder_of[name] in dated and time is not None:
                row = jnp.minimum(day_of_year(time), DATES - 1)
                code = jnp.where((time != NO_TIME)[..., None], dates[row], 0.0)
                x = x + code[:, :, None, None].astype(x.dtype)
            parts.append(x)
            slots += [1 + trained.index(self.encoder_of[name])] * x.shape[1]
        if train and self.config.modality_dropout and keys[0] is not None:
            visible = self._drop_modalities(visible, keys[0])
        seen = jnp.concatenate(list(visible.values()), axis=1)
        x = jnp.concatenate(parts, axis=1)
        return self.fusion(x, seen, tuple(slots), key=keys[1], train=train, mesh=self.mesh)

    def _drop_modalities(self, visible: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """Hides sensors at random in every sample, but never the one that a second draw protects."""
        first, second = jax.random.split(key)
        batch = next(iter(visible.values())).shape[0]
        present = jnp.stack([v.any(axis=1) for v in visible.values()], axis=1)  # [B, sensors]
        lost = jax.random.bernoulli(first, self.config.modality_dropout, present.shape)
        luck = jnp.where(present, jax.random.uniform(second, (batch, len(visible))), -1.0)
        lost &= jnp.arange(len(visible)) != jnp.argmax(luck, axis=1)[:, None]
        return {name: v & ~lost[:, i, None] for i, (name, v) in enumerate(visible.items())}

    def _constrain(self, x: jax.Array) -> jax.Array:
        """Keeps the batch split over all mesh axes."""
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(BATCH_AXES)))


def _mean_over_dates(tokens: jax.Array, visible: jax.Array) -> jax.Array:
    """[B, T, h, w, D] and [B, T] -> [B, h, w, D] mean over observed dates; 0 where there is none."""
    weight = visible.astype(tokens.dtype)[:, :, None, None, None]
    return jnp.sum(tokens * weight, axis=1) / jnp.maximum(weight.sum(axis=1), 1)


def _location(entry: Mapping) -> jax.Array:
    """[B, 2] degrees, NaN where unknown."""
    return entry["location"] if "location" in entry else jnp.full((len(entry["pixels"]), 2), jnp.nan)


def _first_known(locations: Sequence[jax.Array]) -> jax.Array:
    """[B, 2]: for each row the first location without NaN."""
    found = locations[0]
    for other in locations[1:]:
        found = jnp.where(jnp.isnan(found).any(axis=-1, keepdims=True), other, found)
    return found


def _mean_of(tokens: jax.Array, visible: jax.Array) -> jax.Array:
    """[B, T, h, w, D] and [B, T] -> [B, D] float32 mean over locations and observed dates; 0 where there is none."""
    weight = visible.astype(jnp.float32)[:, :, None]
    mean = tokens.astype(jnp.float32).mean(axis=(2, 3))
    return jnp.sum(mean * weight, axis=1) / jnp.maximum(weight.sum(axis=1), 1)
