"""An encoder: a plain ViT, the same for all sensors but for their patch embeddings. It has no experts."""

import dataclasses
import functools
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.contracts import cells_to_pixels, pixel_mask, standardise, validate
from ringmoe_jax.models.api import ModelConfig, chosen_sensors, from_module
from ringmoe_jax.models.layers import TRUNCATED_NORMAL, Mlp, PatchEmbed, PixelDecoder, layer_norm
from ringmoe_jax.models.transformer import Transformer, TransformerConfig


@dataclasses.dataclass(frozen=True)
class PlainViT(ModelConfig):
    """What the config says."""

    title: ClassVar[str] = "ViT"
    sensors: tuple[str, ...]
    image_size: int = 32
    patch: int = 8
    width: int = 64
    depth: int = 4
    heads: int = 4

    @property
    def image_sizes(self):
        return dict.fromkeys(self.sensors, self.image_size)

    def build(self, sensors=None, statistics=None, heads=None, mesh=None):
        table, values = chosen_sensors(self.sensors, sensors, statistics)
        above = {"": self.depth, "transformer/blocks": range(self.depth)[::-1], "norm": 0}
        make = functools.partial(Network, self, table, values, heads or {})
        return from_module(make, dict.fromkeys(table, self.width), above)


class FeedForward(nnx.Module):
    """As a `Transformer` calls it: with statistics of routing, of which there are none."""

    def __init__(self, width, rngs):
        self.mlp = Mlp(width, 4 * width, rngs, dtype=jnp.float32)

    def __call__(self, x, slots, *, train, mesh):
        return self.mlp(x), {}


class Network(nnx.Module):
    def __init__(self, config, sensors, statistics, heads, rngs):
        self.sensors, self.statistics = sensors, statistics
        width, patch, cells = config.width, config.patch, (config.image_size // config.patch) ** 2
        embed = functools.partial(PatchEmbed, patch=patch, width=width, rngs=rngs, dtype=jnp.float32, norm=False)
        self.stems = nnx.Dict({name: embed(sensor.channels) for name, sensor in sensors.items()})
        self.mask_token = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (width,), jnp.float32))
        self.positions = nnx.Param(TRUNCATED_NORMAL(rngs.params(), (cells, width), jnp.float32))
        geometry = TransformerConfig(width, config.depth, config.heads, drop_path=0.0)
        self.transformer = Transformer(geometry, FeedForward, rngs, constrain=lambda x: x, dtype=jnp.float32)
        self.norm = layer_norm(width, rngs, dtype=jnp.float32)
        decoder = lambda channels: PixelDecoder(width, patch, channels, rngs, dtype=jnp.float32)  # noqa: E731
        self.decoders = nnx.Dict({s: nnx.Dict({h: decoder(c) for h, c in of.items()}) for s, of in heads.items()})

    def __call__(self, batch, *, key, train):
        validate(batch, self.sensors)
        entries = {name: batch["sensors"][name] for name in self.sensors if name in batch["sensors"]}
        images = {n: standardise(e["pixels"], e["valid"], self.statistics[n]) for n, e in entries.items()}
        tokens = {n: self.encode(n, images[n], e.get("mask"), key, train) for n, e in entries.items()}
        return {
            "tokens": tokens,
            "stages": {name: (x,) for name, x in tokens.items()},
            "pooled": {name: x.mean(axis=(1, 2, 3)) for name, x in tokens.items()},
            "heads": {
                name: {head: decode(tokens[name]) for head, decode in self.decoders[name].items()}
                for name in tokens
                if name in self.decoders
            },
            "standardised": images,
            "pixel_mask": {name: pixel_mask(entry) for name, entry in entries.items()},
            "sensors": {name: self.sensors[name] for name in entries},
            "statistics": {name: self.statistics[name] for name in entries},
        }

    def encode(self, name, image, mask, key, train):
        """[B, T, H, W, C] -> [B, T, h, w, D]; hidden cells show the mask token."""
        x = self.stems[name](image)
        shape = x.shape
        if mask is not None:
            hidden = cells_to_pixels(mask, *shape[2:4])[:, None, ..., None]
            x = jnp.where(hidden, self.mask_token[...], x)
        x = x.reshape(-1, 1, shape[2] * shape[3], shape[4]) + self.positions[...]
        x, _ = self.transformer(x, None, (0,), key=key, train=train, mesh=None)
        return self.norm(x).reshape(shape)
