"""An encoder with a head on it, as one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ringmoe_jax.contracts import FUSED
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.models.api import Model, Params, params_of
from ringmoe_jax.models.heads import HEADS, HeadConfig
from ringmoe_jax.models.heads.neck import PAIR, Neck, NeckConfig, pyramids
from ringmoe_jax.models.keys import Keys

ENCODER, DECODER = "encoder", "decoder"  # the two parts of the parameters


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """What a task asks of its head.

    Attributes:
        head: name of the default in `HEADS`.
        reads: predictions that the task reads, {name: names of the axes behind the batch}; any head that gives them
            suits.
        outputs: classes, or whatever the head gives so many of.
        dates: what becomes of several dates, see `heads.neck.Neck`.
        sensor: whose grid predictions lie on; "" is the first that is shown.
        fields: of the head's config that the task decides, such as whether boxes are rotated.
    """

    head: str
    reads: Mapping[str, tuple[str, ...]]
    outputs: int
    dates: str
    sensor: str = ""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def suits(self, head: type[HeadConfig]) -> bool:
        """Whether a head gives what the task reads, of as many dates."""
        given = {name: meaning.axes for name, meaning in head.gives.items()}
        return self.reads.items() <= given.items() and head.pairs == (self.dates == PAIR)

    def chosen(self, head: Mapping[str, Any]) -> HeadConfig:
        """The head that a config names, or the default.

        Args:
            head: `name` of `HEADS` or `module:Name`, and fields; may be empty.

        Raises:
            ConfigError: no such head or field, or the head does not suit the task.
        """
        name = head.get("name", self.head)
        if decided := set(self.fields) & set(head):
            raise ConfigError(f"config.head.{decided.pop()} follows from the task: set it there")
        built = HEADS.build(dict(head) | dict(self.fields), "config.head", self.head)
        if not self.suits(type(built)):
            known = [name for name, cls in HEADS.items() if self.suits(cls)]
            raise ConfigError(f'config.head.name = "{name}" does not suit this task: {nearest(name, known)}')
        return built


class Decoder(nnx.Module):
    """Neck and head."""

    def __init__(self, head: HeadConfig, neck: NeckConfig, spec: HeadSpec, shapes, rngs, *, dtype):
        self.spec = spec
        self.neck = Neck(neck, spec.dates, shapes, rngs, dtype=dtype)
        self.head = head.build(self.neck.widths, spec.outputs, rngs, dtype=dtype)

    def __call__(self, maps, present, size: tuple[int, int], *, key, train: bool) -> dict[str, jax.Array]:
        keys = (None, None) if key is None else jax.random.split(key)
        levels = self.neck(maps, present, key=keys[0], train=train)
        return self.head(levels, size, key=keys[1], train=train)


def attach(
    encoder: Model,
    head: Mapping[str, Any],
    neck: NeckConfig,
    spec: HeadSpec,
    example: Mapping,
    *,
    dtype: str = "float32",
    train_encoder: bool = True,
) -> Model:
    """Puts a head on an encoder.

    Args:
        encoder: gives the features.
        head: `name` of `HEADS`, or `module:Name`, and the fields of its dataclass; {} is the task's default.
        neck: how sensors are fused.
        spec: what the task asks for.
        example: a batch, shapes are enough; shapes and sensors of later ones must be like it. A batch may show
            sensors that the encoder does not know, such as one that is the truth: it never sees them.
        dtype: of the head's activations, "float32" or "bfloat16".
        train_encoder: whether the encoder's own randomness (stochastic depth, modality dropout) is on in training;
            not where nothing of it is trained.

    Returns:
        `Model` of the parameters {"encoder": ..., "decoder": ...}; its outputs are the encoder's and "predictions",
        see `ringmoe_jax.models.heads`.

    Raises:
        ConfigError: no such head, or one that does not suit the task; a stream that the encoder does not give.
    """
    built = spec.chosen(head)
    try:
        shapes = jax.eval_shape(lambda p, b: pyramids(encoder.apply(p, b)), encoder.shapes(), dict(example))
    except KeyError as error:
        raise ConfigError(f"the encoder gives no outputs[{error}], which heads read: see contracts.py") from error
    make = lambda rngs: Decoder(built, neck, spec, shapes, rngs, dtype=jnp.dtype(dtype))  # noqa: E731
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key)
        decoder = params_of(nnx.split(make(Keys(keys[1])))[1])
        return {ENCODER: encoder.init(keys[0]), DECODER: decoder}

    def apply(params: Params, batch: Mapping, *, key: jax.Array | None = None, train: bool = False) -> dict:
        keys = (None, None) if key is None else jax.random.split(key)
        inner = train and train_encoder
        shown = {name: entry for name, entry in batch["sensors"].items() if name in encoder.streams}
        outputs = encoder.apply(params[ENCODER], {"sensors": shown}, key=keys[0] if inner else None, train=inner)
        state = jax.tree.map(lambda leaf: leaf, abstract)
        nnx.replace_by_pure_dict(state, params[DECODER])
        decoder = nnx.merge(graph, state)
        maps = pyramids(outputs)
        predictions = decoder(maps, _present(maps, batch), _size(spec, batch), key=keys[1], train=train)
        return outputs | {"predictions": predictions}

    return Model(init, apply, encoder.streams, encoder.blocks_above)


def _present(maps: Mapping, batch: Mapping) -> dict[str, jax.Array]:
    """[B, T] bool by stream: dates that show anything; a fusion knows itself what it was not shown."""
    return {
        name: jnp.ones(levels[0].shape[:2], bool) if name == FUSED else batch["sensors"][name]["valid"].any(axis=(2, 3))
        for name, levels in maps.items()
    }


def _size(spec: HeadSpec, batch: Mapping) -> tuple[int, int]:
    """Rows and columns of the sensor that predictions lie on."""
    shown = batch["sensors"]
    if spec.sensor and spec.sensor not in shown:
        raise DataError(f'labels lie on the grid of "{spec.sensor}", but the batch shows {", ".join(shown)}')
    return shown[spec.sensor or next(iter(shown))]["pixels"].shape[2:4]
