"""RingMoE (arXiv 2504.03166): modality patch embeddings, a shared Swin backbone with hierarchical
experts in every block, one mask token, one decoder a sensor and target."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.bands import describe
from ringmoe_jax.config import check_ranges
from ringmoe_jax.contracts import PIXELS, cells_to_pixels, mean_of_cells, pixel_mask, valid_cells, validate
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.models.any_sensor import LINEAR, PHYSICS, AnySensorConfig, shown_bands, standardise
from ringmoe_jax.models.api import MODELS, Model, Network, from_module
from ringmoe_jax.models.depth import prefixed
from ringmoe_jax.models.layers import (
    EPSILON,
    KERNELS,
    NORMAL,
    TRUNCATED_NORMAL,
    ConvolutionalStem,
    PatchEmbed,
    PixelDecoder,
    PyramidDecoder,
    layer_norm,
    with_power,
)
from ringmoe_jax.models.metadata import Metadata, MetadataConfig
from ringmoe_jax.models.moe_ffn import MoEConfig, MoEFeedForward, Slots
from ringmoe_jax.models.physics import RANK, PhysicsDecoder, PhysicsStem
from ringmoe_jax.models.stack import REMAT_POLICIES
from ringmoe_jax.models.submodel import submodel
from ringmoe_jax.models.swin import SwinConfig, SwinPyramid, windows
from ringmoe_jax.parallel.mesh import BATCH_AXES
from ringmoe_jax.sensors import COMPLEX, Sensor, Statistics

CONVOLUTIONAL = "convolutional"
LAST, PYRAMID = DECODERS = ("last", "pyramid")


@MODELS.register("ringmoe")
@dataclasses.dataclass(frozen=True)
class RingMoEConfig(AnySensorConfig):
    """Geometry of the model. Defaults are the released configuration except for `width` and what is called ours.

    Attributes:
        sensors: names from `ringmoe_jax.sensors`, the images that the model takes.
        unseen: further ones, that were not there in training; only with the stem "physics". Their tokens choose among
            the specialised experts of their modality, or of none where no sensor has it, and the collaborative ones.
        width: D of the first stage; the one dial that sizes the model. Doubles with every stage.
        depths: blocks of each stage.
        image_size: side of an image in pixels; a pass may show smaller ones, see `sizes`.
        patch: side of a patch in pixels.
        stem: "linear", one patch at a time (released code); "convolutional", see `layers.ConvolutionalStem`; or
            "physics": one for all sensors, made from what bands are; so is the decoder of their pixels, see `physics`.
        decoder: what decoders of pixels see: "last", the tokens of the last stage (released code), or "pyramid", all
            stages of the backbone, see `layers.PyramidDecoder`.
        window: side of an attention window in tokens, clamped to the grid of a stage.
        head_width: D of one attention head, clamped to `width`.
        hidden_ratio: F / D of every expert.
        cosine_attention: SwinV2's cosine attention and log-spaced position bias (more stable at
            scale, transfers between window sizes); False is what the released code trains.
        pre_norm: norms before attention and feed-forward, not after them as the released code has them.
        norm_gain: initial gain of the norms after them: 1 in the released code; 0 starts every block as the identity
            (SwinV2 as its authors published it, and ours).
        epsilon: of the norms of linear patches, blocks and the last tokens: 1e-6 in the released code, 1e-5 ours.
        merge_epsilon: of the norms behind patch merging: 1e-4 in the released code, 1e-5 ours.
        decoder_kernel: how decoders of pixels start: "normal", of standard deviation 0.02 as all others (ours), or
            "uniform", within 1 / sqrt(D) of what they see (released code, in which the framework's default is left
            there).
        power_input: complex sensors also show their patch embedding the logarithm of each polarisation's power,
            which a linear embedding of re and im cannot form. The released code prepends total power in one of
            its files and does not in the other; the logarithm and one channel a polarisation are our choice.
        band_dropout: chance that a band is hidden from the encoder in a whole training image; one stays. Decoders are
            asked for all. Only with the stem "physics", which is told. Panopticon and DOFA sample bands likewise.
        metadata: where, when and how fine images are, added to their tokens; None tells nothing of it.
        drop_path: stochastic depth of the last block, growing linearly from 0.
        moe: the mixture in every block.
        dtype: "float32" or "bfloat16" for activations; parameters, router, norms' statistics,
            softmax and losses stay float32.
        remat: "none", "dots" or "full": what the backward pass computes again.
        unroll: equal blocks are written out one after the other, and not run as a loop whose compilation does not
            grow with depth, see `stack.scan`.
        adapter: width of convolutional bypasses in every block, see `ringmoe_jax.models.adapters`; 0 is none.
    """

    title: ClassVar[str] = "RingMoE"
    layered: ClassVar[bool] = True
    stems: ClassVar[tuple[str, ...]] = (LINEAR, CONVOLUTIONAL, PHYSICS)
    sensors: tuple[str, ...]
    unseen: tuple[str, ...] = ()
    width: int = 448
    depths: tuple[int, ...] = (2, 2, 18, 2)
    image_size: int = 192
    patch: int = 4
    stem: str = "linear"
    decoder: str = "last"
    window: int = 12
    head_width: int = 32
    hidden_ratio: int = 4
    cosine_attention: bool = False
    pre_norm: bool = False
    norm_gain: float = 0.0
    epsilon: float = EPSILON
    merge_epsilon: float = EPSILON
    decoder_kernel: str = NORMAL
    power_input: bool = False
    band_dropout: float = 0.0
    metadata: MetadataConfig | None = None
    drop_path: float = 0.0
    moe: MoEConfig = MoEConfig()
    dtype: str = "float32"
    remat: str = "none"
    unroll: bool = False
    adapter: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f'model.dtype = "{self.dtype}": wanted "float32" or "bfloat16"')
        sizes = ("width", "image_size", "patch", "window", "head_width", "hidden_ratio")
        shares = dict.fromkeys(("drop_path", "epsilon", "merge_epsilon"), (0, 1))
        check_ranges(self, "model", adapter=(0, math.inf), **shares, **dict.fromkeys(sizes, (1, math.inf)))
        if not self.depths or min(self.depths) < 1:
            raise ConfigError(f"model.depths = {self.depths}: wanted one block or more in every stage")
        if self.remat not in REMAT_POLICIES:
            raise ConfigError(f'model.remat = "{self.remat}" does not exist: {nearest(self.remat, REMAT_POLICIES)}')
        for field, known in (("decoder", DECODERS), ("decoder_kernel", KERNELS)):
            if (value := getattr(self, field)) not in known:
                raise ConfigError(f'model.{field} = "{value}" does not exist: {nearest(value, known)}')
        if self.stem == CONVOLUTIONAL and (self.patch < 2 or self.patch & (self.patch - 1)):
            raise ConfigError(f"model.patch = {self.patch}: a convolutional stem wants a power of 2, at least 2")
        if self.told and self.power_input:
            raise ConfigError("model.power_input adds channels that no band describes: not with model.stem = physics")
        if self.pre_norm and self.norm_gain:
            raise ConfigError(f"model.norm_gain = {self.norm_gain} is of norms behind branches: set pre_norm = False")
        if self.width % min(self.head_width, self.width):
            raise ConfigError(f"model.width = {self.width} is not a multiple of head_width = {self.head_width}")
        if self.image_size % self.stride:
            raise ConfigError(
                f"model.image_size = {self.image_size} must be a multiple of {self.stride} pixels, a patch of "
                f"{self.patch} halved {len(self.depths) - 1} times: use {self._near()} px"
            )
        entries, layers = len(self.moe.allowed), sum(self.depths)
        if entries not in (0, layers):
            raise ConfigError(f"model.moe.allowed has {entries} entries, the model {layers} layers: give one each")
        for stage in range(len(self.depths)):
            if self.grid(stage) % self.pyramid.stage_window(stage):
                fitting = ", ".join(map(str, windows(self.grid(0), len(self.depths))))
                raise ConfigError(
                    f"stage {stage + 1} has {self.grid(stage)} tokens a side, no multiple of window = {self.window}: "
                    f"set model.window to one of {fitting}, or use an image_size of {self._near()} px"
                )

    @property
    def pyramid(self) -> SwinConfig:
        """Geometry of the backbone."""
        return SwinConfig(
            self.width,
            self.depths,
            self.grid(0),
            self.window,
            self.head_width,
            self.cosine_attention,
            pre_norm=self.pre_norm,
            norm_gain=self.norm_gain,
            epsilon=self.epsilon,
            merge_epsilon=self.merge_epsilon,
            drop_path=self.drop_path,
            remat=self.remat,
            unroll=self.unroll,
            adapter=self.adapter,
            breaks=self.moe.breaks(),
        )

    @property
    def stride(self) -> int:
        """Pixels per token of the last stage."""
        return self.patch * 2 ** (len(self.depths) - 1)

    def grid(self, stage: int) -> int:
        """Tokens along one side in a stage."""
        return self.image_size // (self.patch * 2**stage)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of images that a pass may show, in pixels, ascending; the last is `image_size`.

        Smaller ones, such as local crops, have patches and windows that tile them; parameters are the same.
        """
        return tuple(size for size in range(self.stride, self.image_size + 1, self.stride) if self.takes(size))

    def takes(self, size: int) -> bool:
        """Whether patches and windows tile square images of `size` pixels a side."""
        if size % self.stride or not 0 < size <= self.image_size:
            return False
        grids = [size // (self.patch * 2**stage) for stage in range(len(self.depths))]
        return all(grid % min(self.pyramid.stage_window(i), grid) == 0 for i, grid in enumerate(grids))

    def _near(self) -> str:
        """The nearest smaller and larger image sizes that patches and windows tile, for messages."""
        below, count = self.image_size // self.stride, len(self.depths)

        def fits(grid: int) -> bool:
            return self.window in windows(grid, count) or grid < self.window

        smaller = next((n for n in range(below, 0, -1) if fits(n * 2 ** (count - 1))), 0)
        larger = next(n for n in itertools.count(below + 1) if fits(n * 2 ** (count - 1)))
        return " or ".join(str(n * self.stride) for n in (smaller, larger) if n)

    @property
    def image_sizes(self) -> dict[str, int]:
        """See `ModelConfig`."""
        return dict.fromkeys(self.all_sensors, self.image_size)

    @property
    def has_experts(self) -> bool:
        """See `ModelConfig`."""
        return self.moe.routed

    @property
    def bias_rate(self) -> float:
        """See `ModelConfig`."""
        return self.moe.bias_rate if self.moe.routed else 0.0

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Width D of every stage of the backbone."""
        return tuple(self.width * 2**i for i in range(len(self.depths)))

    @property
    def token_width(self) -> int:
        """Width D of the last stage."""
        return self.stage_widths[-1]

    @property
    def blocks_above(self) -> dict[str, int | Sequence[int]]:
        """See `Model`."""
        return prefixed("backbone", self.pyramid.blocks_above, 0) | {"": sum(self.depths), "norm": 0}

    def with_engine(self, engine: str) -> RingMoEConfig:
        """See `ModelConfig`."""
        return dataclasses.replace(self, moe=self.moe.with_engine(engine))

    def what_becomes(self, name: str, table: Mapping[str, Sensor]) -> str:
        """See `ModelConfig`."""
        modality = table[name].modality
        trained = sensor_table.modalities({name: table[name] for name in self.sensors})
        own = f"the experts of {modality} and the" if modality in trained else "no experts of its own, only the"
        return f"its tokens choose among {own} collaborative ones"

    def submodel(self, network: Network, sensors: Sequence[str]) -> Network:
        """See `ringmoe_jax.models.submodel`; with sensors that were not there in training it is all of the network."""
        return network if set(sensors) & set(self.unseen) else submodel(network, sensors)

    def build(
        self,
        sensors: Mapping[str, Sensor] | None = None,
        statistics: Mapping[str, Statistics] | None = None,
        heads: Mapping[str, Mapping[str, int]] | None = None,
        mesh: Mesh | None = None,
    ) -> Model:
        """RingMoE as two pure functions, see `ModelConfig`.

        Statistics of routing carry the modality axis M in the order of `ringmoe_jax.sensors.modalities(sensors)`.

        With the stem "physics" every sensor has a decoder of its bands where any is asked for.
        """
        table, values = self.chosen(sensors, statistics)
        unknown = set(heads or {}) - set(table)
        if unknown:
            raise ConfigError(f"heads for sensors that the model lacks: {', '.join(sorted(unknown))}")
        make = functools.partial(RingMoE, self, table, values, dict(heads or {}), mesh)
        widths = self.stage_widths
        finer = ConvolutionalStem.widths(self.patch, self.width) if self.stem == CONVOLUTIONAL else ()
        stages = dict.fromkeys(table, finer + widths)
        return from_module(make, dict.fromkeys(table, widths[-1]), self.blocks_above, stages, self.told)


class RingMoE(nnx.Module):
    """See the module's text; `RingMoEConfig.build` gives the pure functions.

    Args:
        config: geometry.
        sensors: what `config.sensors` names.
        statistics: normalisation of every sensor.
        heads: decoder channels, {sensor: {head: channels}}, as the objectives ask for.
        mesh: None runs on one device.
    """

    def __init__(
        self,
        config: RingMoEConfig,
        sensors: Mapping[str, Sensor],
        statistics: Mapping[str, Statistics],
        heads: Mapping[str, Mapping[str, int]],
        mesh: Mesh | None,
        rngs: nnx.Rngs,
    ):
        self.config, self.mesh = config, mesh
        self.sensors, self.statistics = dict(sensors), dict(statistics)
        self.modalities = sensor_table.modalities(sensors)
        known = sensor_table.modalities({name: sensors[name] for name in config.sensors})
        strangers = len(self.modalities) - len(known)
        dtype = jnp.dtype(config.dtype)
        if config.told:
            self.stem = PhysicsStem(config.patch, config.width, rngs, dtype=dtype)
        else:
            patches = functools.partial(PatchEmbed, epsilon=config.epsilon)
            make_stem = ConvolutionalStem if config.stem == CONVOLUTIONAL else patches
            self.stems = nnx.Dict(
                {
                    name: make_stem(self._stem_channels(sensor), config.patch, config.width, rngs, dtype=dtype)
                    for name, sensor in sensors.items()
                }
            )
        self.metadata = Metadata(config.metadata, config.width, rngs) if config.metadata else None
        self.mask_token = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (config.width,), jnp.float32))
        options = dict(dtype=dtype, strangers=strangers)
        make_ffn = lambda width, rngs, layer: MoEFeedForward(  # noqa: E731
            config.moe, len(known), width, config.hidden_ratio * width, rngs, layer=layer, **options
        )
        spread = lambda collected, layers: config.moe.spread(collected, len(known), layers)  # noqa: E731
        self.backbone = SwinPyramid(
            config.pyramid, make_ffn, rngs, constrain=self._constrain, spread=spread, dtype=dtype
        )
        width = config.token_width
        self.norm = layer_norm(width, rngs, dtype=dtype, epsilon=config.epsilon)
        generated = config.told and any(PIXELS in of for of in heads.values())
        self.decoder = PhysicsDecoder(self._make_decoder(RANK, rngs, dtype), rngs) if generated else None
        own = {name: {h: c for h, c in of.items() if not (generated and h == PIXELS)} for name, of in heads.items()}
        self.decoders = nnx.Dict(
            {
                sensor: nnx.Dict({head: self._make_decoder(channels, rngs, dtype) for head, channels in of.items()})
                for sensor, of in own.items()
                if of
            }
        )

    def _make_decoder(self, channels: int, rngs: nnx.Rngs, dtype) -> nnx.Module:
        config = self.config
        options = dict(dtype=dtype, kernel=config.decoder_kernel)
        if config.decoder == LAST:
            return PixelDecoder(config.token_width, config.stride, channels, rngs, **options)
        return PyramidDecoder(config.stage_widths, config.patch, channels, rngs, **options)

    def _stem_channels(self, sensor: Sensor) -> int:
        return sensor.channels * 3 // 2 if self._shows_power(sensor) else sensor.channels

    def _shows_power(self, sensor: Sensor) -> bool:
        return self.config.power_input and sensor.resampling == COMPLEX

    def __call__(self, batch: Mapping, *, key: jax.Array | None, train: bool) -> dict:
        validate(batch, self.sensors, told=self.config.told)
        entries = {name: batch["sensors"][name] for name in self.sensors if name in batch["sensors"]}
        images = {name: self._standardise(name, entry) for name, entry in entries.items()}
        if len(sizes := {image.shape[2:4] for image in images.values()}) > 1:
            shown = ", ".join(f'"{name}" {"x".join(map(str, image.shape[2:4]))}' for name, image in images.items())
            raise DataError(f"one pass shows images of {len(sizes)} sizes ({shown}): show all its sensors at the same")
        bands, key = shown_bands(entries, self.sensors, self.config.band_dropout if train else 0.0, key)
        stems = {n: self._embed(n, images[n], entry.get("mask"), bands[n]) for n, entry in entries.items()}
        embedded = {name: tokens for name, (tokens, _) in stems.items()}
        if self.metadata is not None:
            key, *draws = [None] * (1 + len(entries)) if key is None else jax.random.split(key, 1 + len(entries))
            for (name, entry), draw in zip(entries.items(), draws, strict=True):
                told = self.metadata(entry, self.sensors[name], draw if train else None)
                embedded[name] += told[:, :, None, None].astype(embedded[name].dtype)
        observed = {name: entry["valid"].any(axis=(2, 3)) for name, entry in entries.items()}
        x, slots, layout = self._interleave(embedded, observed)
        stages, routing = self.backbone(x, slots, key=key, train=train, mesh=self.mesh)
        tokens = self._separate(self.norm(stages[-1]), layout)
        split = [self._separate(stage, layout) for stage in stages]
        backbone = {name: tuple(stage[name] for stage in split) for name in tokens}
        shown = tokens if self.config.decoder == LAST else backbone  # to decoders
        return {
            "tokens": tokens,
            "stages": {name: (*stems[name][1], *maps) for name, maps in backbone.items()},
            "pooled": {
                name: mean_of_cells(t, valid_cells(entries[name]["valid"], t.shape[2:4])) for name, t in tokens.items()
            },
            "heads": {name: heads for name in tokens if (heads := self._decode(name, shown[name]))},
            "standardised": images,
            "pixel_mask": {name: pixel_mask(entry) for name, entry in entries.items()},
            "sensors": {name: self.sensors[name] for name in entries},
            "statistics": {name: self.statistics[name] for name in entries},
            "routing": routing,
        }

    def _standardise(self, name: str, entry: Mapping) -> jax.Array:
        size = entry["pixels"].shape[2:4]
        if size[0] != size[1] or not self.config.takes(size[0]):
            raise DataError(
                f'sensor "{name}": images are {size[0]} x {size[1]} pixels, the model takes '
                f"{' or '.join(f'{s} x {s}' for s in self.config.sizes)}: set data.image_size, or hand over such images"
            )
        return standardise(entry, self.statistics[name])

    def _decode(self, name: str, features) -> dict[str, jax.Array]:
        """What the decoders of a sensor say of its tokens or stages, by head."""
        said = {head: decoder(features) for head, decoder in self.decoders.get(name, {}).items()}
        if self.decoder is not None:
            said[PIXELS] = self.decoder(features, describe(self.sensors[name]))
        return {head: x.astype(jnp.float32) for head, x in said.items()}

    def _embed(
        self, name: str, image: jax.Array, mask: jax.Array | None, bands: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """[B, T, H, W, C] -> [B, T, h, w, D], hidden cells replaced by the mask token; and finer levels of the stem."""
        if mask is not None and self.config.stem == CONVOLUTIONAL:  # its tokens see beyond their own cells
            image = jnp.where(cells_to_pixels(mask, *image.shape[2:4])[:, None, :, :, None], 0, image)
        if self.config.told:
            x = self.stem(image, describe(self.sensors[name]), bands)
        else:
            x = self.stems[name](with_power(image) if self._shows_power(self.sensors[name]) else image)
        x, levels = x if self.config.stem == CONVOLUTIONAL else (x, ())
        if mask is None:
            return x, levels
        hidden = cells_to_pixels(mask, *x.shape[2:4])[:, None, :, :, None]
        return jnp.where(hidden, self.mask_token[...].astype(x.dtype), x), levels

    def _interleave(self, embedded: Mapping[str, jax.Array], observed: Mapping[str, jax.Array]):
        """Joins all sensors' images as slots, [B', S, h, w, D], so that every shard of B' holds every modality.

        B' is the greatest common divisor of the sensors' batch sizes; a sensor with more images or
        dates takes more slots. Returns the tokens, the slots, and what `_separate` needs.
        """
        rows = math.gcd(*(x.shape[0] for x in embedded.values()))
        slots, layout, parts = [], {}, []
        for name, x in embedded.items():
            folded = x.reshape(rows, -1, *x.shape[2:])
            layout[name] = (len(slots), len(slots) + folded.shape[1], x.shape[:2])
            slots += [self.modalities.index(self.sensors[name].modality)] * folded.shape[1]
            parts.append(folded)
        seen = jnp.concatenate([observed[name].reshape(rows, -1) for name in embedded], axis=1)
        return self._constrain(jnp.concatenate(parts, axis=1)), Slots(tuple(slots), seen), layout

    def _separate(self, x: jax.Array, layout: Mapping) -> dict[str, jax.Array]:
        """Inverse of `_interleave`: {sensor: [B, T, h, w, D]}."""
        return {name: x[:, a:b].reshape(*lead, *x.shape[2:]) for name, (a, b, lead) in layout.items()}

    def _constrain(self, x: jax.Array) -> jax.Array:
        """Keeps the batch split over all mesh axes at block borders."""
        if self.mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(BATCH_AXES)))
