"""From an encoder's outputs to one feature pyramid: fuses sensors and dates for a head."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.contracts import FUSED
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.models.layers import layer_norm, linear

FUSIONS = ("concat", "gated")
MEAN, PAIR, EACH = "mean", "pair", "each"  # what becomes of dates


@dataclasses.dataclass(frozen=True)
class NeckConfig:
    """How the features of several sensors become those of one image.

    Attributes:
        streams: sensors, and "fused" for what SkySense's fusion makes of all of them; default: all sensors that the
            data set shows. Levels of the result are those of the stream with the most of them.
        fusion: "concat": features side by side and a 1 x 1 convolution at every level; "gated": a sum whose weights,
            a softmax over the sensors that are there, depend on the place. One stream needs neither.
        modality_dropout: chance that a sensor of a training sample is left out, never the last one; with it a model
            that was trained on all sensors also works on some.
    """

    streams: tuple[str, ...] = ()
    fusion: str = "concat"
    modality_dropout: float = 0.0

    def __post_init__(self):
        if self.fusion not in FUSIONS:
            raise ConfigError(f'neck.fusion = "{self.fusion}" does not exist: {nearest(self.fusion, FUSIONS)}')
        if not 0 <= self.modality_dropout < 1:
            raise ConfigError(f"neck.modality_dropout = {self.modality_dropout}: wanted at least 0 and below 1")


class Neck(nnx.Module):
    """See the module's text. RingMoE says nothing about fusing modalities; per-stage concat and 1 x 1 convolution is
    the usual way, the gates are our choice. Every stream's levels are layer-normed first, for stages are not.

    A sensor that a sample lacks adds nothing. Levels of another sensor are those nearest in resolution, resized.

    Args:
        config: see `NeckConfig`.
        dates: "mean" over those with a valid pixel, "pair" of the first and the last, or "each" as an image.
        shapes: of the levels of every stream, as `pyramids` gives them.
    """

    def __init__(self, config: NeckConfig, dates: str, shapes: Mapping[str, Sequence], rngs: nnx.Rngs, *, dtype):
        self.config, self.dates = config, dates
        self.streams = _streams(config, dates, shapes)
        levels = {name: shapes[name] for name in self.streams}
        most = max(levels, key=lambda name: len(levels[name]))  # the first of equals
        reference = sorted(levels[most], key=lambda level: -level.shape[2])
        self.grids = tuple(level.shape[2:4] for level in reference)
        self.chosen = {name: tuple(_nearest(h, levels[name]) for h, _ in self.grids) for name in self.streams}
        widths = {n: [levels[n][i].shape[-1] for i in self.chosen[n]] for n in self.streams}
        self.widths = tuple(widths[most])
        self.norms = nnx.Dict(
            {n: nnx.List([layer_norm(width, rngs, dtype=dtype) for width in widths[n]]) for n in self.streams}
        )
        if len(self.streams) == 1:
            return
        if config.fusion == "concat":
            inputs = [sum(of) for of in zip(*widths.values(), strict=True)]
            self.mix = nnx.List([linear(i, o, rngs, dtype=dtype) for i, o in zip(inputs, self.widths, strict=True)])
        else:  # one more output is the logit of the gate
            self.mix = nnx.Dict(
                {
                    n: nnx.List([linear(i, o + 1, rngs, dtype=dtype) for i, o in zip(of, self.widths, strict=True)])
                    for n, of in widths.items()
                }
            )

    def __call__(
        self, maps: Mapping[str, Sequence[jax.Array]], present: Mapping[str, jax.Array], *, key, train: bool
    ) -> tuple[jax.Array, ...]:
        """Fuses.

        Args:
            maps: of `pyramids`.
            present: [B, T] bool by stream: dates that show anything.
            key: for modality dropout.
            train: whether sensors are dropped.

        Returns:
            Levels, finest first: [B, h_i, w_i, D_i]; of "pair" [B, 2, h_i, w_i, D_i], of "each" [B T, h_i, w_i, D_i].
        """
        for name in self.streams:
            if name not in maps:
                got = ", ".join(maps)
                raise DataError(f'the head reads "{name}", too, got {got}: hand it over, NaN where it was not observed')
        present = {name: present[name] for name in self.streams}
        if train and key is not None and self.config.modality_dropout and len(self.streams) > 1:
            present = self._drop(present, key)
        return tuple(self._level(i, maps, present) for i in range(len(self.widths)))

    def _drop(self, present: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        there = jnp.stack([p.any(axis=1) for p in present.values()], axis=1)  # [B, streams]
        first, second = jax.random.split(key)
        luck = jnp.where(there, jax.random.uniform(first, there.shape), -1.0)
        kept = ~jax.random.bernoulli(second, self.config.modality_dropout, there.shape)
        kept |= jnp.arange(there.shape[1]) == jnp.argmax(luck, axis=1)[:, None]
        return {name: p & kept[:, i, None] for i, (name, p) in enumerate(present.items())}

    def _level(self, i: int, maps: Mapping, present: Mapping[str, jax.Array]) -> jax.Array:
        parts, seen = [], []
        for name in self.streams:
            x = self.norms[name][i](maps[name][self.chosen[name][i]])
            x, there = _dates(x, present[name], self.dates)
            if x.shape[-3:-1] != self.grids[i]:
                x = jax.image.resize(x, (*x.shape[:-3], *self.grids[i], x.shape[-1]), "linear")
            parts.append(x * there.astype(x.dtype))
            seen.append(there)
        if len(parts) == 1:
            return parts[0]
        if self.config.fusion == "concat":
            return self.mix[i](jnp.concatenate(parts, axis=-1))
        mixed = [self.mix[name][i](x) for name, x in zip(self.streams, parts, strict=True)]
        logits = [jnp.where(there, y[..., -1:].astype(jnp.float32), -1e9) for y, there in zip(mixed, seen, strict=True)]
        gates = jax.nn.softmax(jnp.stack(logits), axis=0).astype(parts[0].dtype)
        return sum(gate * y[..., :-1] * t for gate, y, t in zip(gates, mixed, seen, strict=True))


def pyramids(outputs: Mapping) -> dict[str, tuple[jax.Array, ...]]:
    """Levels of every stream of an encoder's outputs, each [B, T, h, w, D]; "fused" is one level of one date."""
    fused = {FUSED: (outputs[FUSED][:, None],)} if FUSED in outputs else {}
    return {name: tuple(levels) for name, levels in outputs["stages"].items()} | fused


def _streams(config: NeckConfig, dates: str, known: Mapping) -> tuple[str, ...]:
    for name in config.streams:
        if name not in known:
            raise ConfigError(f'neck.streams names "{name}", which the encoder does not give: {nearest(name, known)}')
    streams = config.streams or tuple(name for name in known if name != FUSED)
    if FUSED in streams and dates != MEAN:
        raise ConfigError(f'neck.streams names "{FUSED}", which has no dates, but this task looks at single dates')
    return streams


def _nearest(height: int, levels: Sequence) -> int:
    """Which of a stream's levels is nearest in resolution to a grid, the finer of two."""
    return min(range(len(levels)), key=lambda i: (abs(math.log(levels[i].shape[2] / height)), -levels[i].shape[2]))


def _dates(x: jax.Array, present: jax.Array, dates: str) -> tuple[jax.Array, jax.Array]:
    """Features [B, T, h, w, D] and [B, T] of a stream to those of the images that a head looks at, and which are."""
    if dates == EACH:
        return x.reshape(-1, *x.shape[2:]), present.reshape(-1, 1, 1, 1)
    if dates == PAIR:
        ends = jnp.array([0, x.shape[1] - 1])
        return x[:, ends], present[:, ends, None, None, None]
    weight = present.astype(x.dtype)[:, :, None, None, None]
    mean = jnp.sum(x * weight, axis=1) / jnp.maximum(weight.sum(axis=1), 1)
    return mean, present.any(axis=1)[:, None, None, None]
