"""What an objective is, and how a config names one.

An objective maps `(outputs, batch)` to `(value_sum, weight, metrics)`. The step adds
`scale * sum(value_sum) / sum(weight)` over the objectives that the config names; sums and weights are
added over micro-batches before the division, so that masked means stay exact under accumulation.

To add one: write a frozen dataclass with these methods in a file of your own, anywhere on the Python
path, and name it in the config, `{"name": "my_losses:SpeckleLoss", "sensor": "s1_grd"}`. Classes of
this package are known by a short name (`register`).
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ringmoe_jax import config as configuration
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.sensors import Sensor

Result = tuple[jax.Array, jax.Array, dict[str, jax.Array]]
REGISTRY: dict[str, type[Objective]] = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """One term of the loss.

    Attributes:
        scale: weight of the term in the total loss.
        ramp_steps: the scale grows linearly from 0 over this many steps; 0 is constant.
    """

    scale: float = 1.0
    ramp_steps: int = 0

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        """Decoder outputs that the model must have, {sensor: {head: channels}}, given the model's sensors."""
        return {}

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        """Returns `value_sum` [] and `weight` [], both float32 sums over the batch, and metrics []."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(outputs, batch)")

    def scale_at(self, step: jax.Array) -> jax.Array:
        """The term's weight at a training step."""
        if not self.ramp_steps:
            return jnp.float32(self.scale)
        return self.scale * jnp.minimum(1.0, (step + 1) / self.ramp_steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Objective):
    """A masked mean of a pointwise penalty between a decoder's output and a target.

    Subclasses give `target` and `penalty`, and `channels` and `head` where the target is not the
    sensor's own bands. Pixels count where they were hidden from the encoder and are valid; no-data
    pixels add neither value, weight nor gradient. The mean is over pixels and channels.

    Attributes:
        sensor: name in `ringmoe_jax.sensors`.
    """

    sensor: str
    head: ClassVar[str] = "pixels"

    def channels(self, sensor: Sensor) -> int:
        """Channels of the decoder's output; default: the sensor's."""
        return sensor.channels

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        """[B, T, H, W, channels] float32; any finite value where not valid."""
        raise NotImplementedError(f"{type(self).__name__} must define target(outputs, batch)")

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        """Pointwise loss, same shape as the arguments."""
        raise NotImplementedError(f"{type(self).__name__} must define penalty(prediction, target)")

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        if self.sensor not in sensors:
            raise ConfigError(f'{type(self).__name__} of "{self.sensor}": not in model.sensors ({", ".join(sensors)})')
        return {self.sensor: {self.head: self.channels(sensors[self.sensor])}}

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        if self.sensor not in outputs["heads"]:  # this batch does not show the sensor
            return jnp.float32(0), jnp.float32(0), {}
        mask = outputs["pixel_mask"][self.sensor]
        prediction, target = outputs["heads"][self.sensor][self.head], self.target(outputs, batch)
        values = jnp.where(mask[..., None], self.penalty(prediction, target), 0)
        return jnp.sum(jnp.mean(values, axis=-1)), jnp.sum(mask, dtype=jnp.float32), {}


def register(name: str) -> Callable[[type[Objective]], type[Objective]]:
    """Class decorator: makes an objective known to configs by a short name.

    Raises:
        ConfigError: another class has the name.
    """

    def add(cls: type[Objective]) -> type[Objective]:
        known = REGISTRY.setdefault(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ConfigError(f'objective "{name}" is {known.__module__}.{known.__qualname__} already')
        REGISTRY[name] = cls  # the same class again: a notebook cell that was run twice
        return cls

    return add


def build(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Objective]:
    """Builds the objectives of a config.

    Args:
        config: {label: {"name": short name or "module:Class", other fields of the class}}.

    Raises:
        ConfigError: unknown objective, sensor or key; the message names the nearest.
    """
    built = {}
    for label, values in config.items():
        values = dict(values)
        where = f"config.objectives.{label}"
        built[label] = configuration.build(_find(values.pop("name", None), where), values, where)
    if not built:
        raise ConfigError("config.objectives is empty: name at least one objective")
    return built


def _find(name: str | None, where: str) -> type[Objective]:
    if name in REGISTRY:
        return REGISTRY[name]
    module, _, attribute = str(name).partition(":")
    if not attribute:
        raise ConfigError(f'{where}.name = "{name}" does not exist: {nearest(str(name), REGISTRY)}')
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f'{where}.name = "{name}" cannot be imported: {error}') from error


def collect_heads(objectives: Mapping[str, Objective], sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
    """Joins the decoder outputs that all objectives need: {sensor: {head: channels}}.

    Raises:
        ConfigError: an objective is about a sensor that the model lacks, or two want different channel
            counts of one head.
    """
    joined: dict[str, dict[str, int]] = {}
    for label, objective in objectives.items():
        for sensor, heads in objective.heads(sensors).items():
            for head, channels in heads.items():
                known = joined.setdefault(sensor, {}).setdefault(head, channels)
                if known != channels:
                    raise ConfigError(
                        f"objective {label} wants {channels} channels of {sensor}/{head}, another wants {known}"
                    )
    return joined
