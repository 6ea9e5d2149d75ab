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
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.contracts import PIXELS
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.registry import Registry
from ringmoe_jax.sensors import Sensor

Result = tuple[jax.Array, jax.Array, dict[str, jax.Array]]
NOTHING: Result = (np.float32(0), np.float32(0), {})  # of a batch that does not show the sensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """One term of the loss.

    Attributes:
        scale: weight of the term in the total loss.
        start_step: before it the term has no weight.
        ramp_steps: from there the weight grows linearly over this many steps; 0 is at once.
        stop_step: from it on the term has no weight; 0 is never.
    """

    scale: float = 1.0
    start_step: int = 0
    ramp_steps: int = 0
    stop_step: int = 0

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        """Decoder outputs that the model must have, {sensor: {head: channels}}, given the model's sensors.

        This is also where an objective checks that it suits them.

        Raises:
            ConfigError: the objective cannot be computed on these sensors.
        """
        return {}

    def together(self) -> tuple[str, ...]:
        """Sensors whose rows must show the same place, so one stream has to hold them all; none by default."""
        return ()

    def projections(self) -> dict[str, tuple[str, ...]]:
        """Features of several views that the objective compares, {sensor or "fused": levels}; none by default.

        Levels are "pixel", "object", "image" (in `outputs["contrast"]`) and "align" (in `outputs["projected"]`), see
        `ringmoe_jax.pretext.contrastive`, which then makes them; "embedding" (in `outputs["embeddings"]`), see
        `ringmoe_jax.pretext.joint_embedding`; or "latent" (in `outputs["latent"]`), see `ringmoe_jax.pretext.latent`.
        """
        return {}

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        """Returns `value_sum` [] and `weight` [], both float32 sums over the batch, and metrics []."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(outputs, batch)")

    def scale_at(self, step: jax.Array) -> jax.Array:
        """The term's weight at a training step, float32 []."""
        scale = jnp.float32(self.scale)
        if self.ramp_steps:
            scale *= jnp.clip((step + 1 - self.start_step) / self.ramp_steps, 0.0, 1.0)
        if self.start_step:
            scale = jnp.where(step < self.start_step, 0.0, scale)
        return jnp.where(step >= self.stop_step, 0.0, scale) if self.stop_step else scale


OBJECTIVES = Registry("objective", Objective)
register = OBJECTIVES.register


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction(Objective):
    """A masked mean of a penalty between what a decoder says of a sensor and a target.

    Subclasses give `target` and `penalty`; `channels`, `head` and `prediction` where the decoder's output is
    not the standardised bands; `grid` where the target is coarser than the image. Pixels count where they
    were hidden from the encoder, are valid and have a finite target; all others, no-data pixels among them,
    add neither value, weight nor gradient. The mean is over pixels and channels. The metric "unusable" is the
    share of hidden, valid pixels whose target is not finite: anything but 0 is worth a look at the data.

    Attributes:
        sensor: name in `ringmoe_jax.sensors`.
    """

    sensor: str
    head: ClassVar[str] = PIXELS

    def channels(self, sensor: Sensor) -> int:
        """Channels of the decoder's output; default: the sensor's."""
        return sensor.channels

    def prediction(self, outputs: Mapping) -> jax.Array:
        """[B, T, H', W', K] in the unit of the target; default: the decoder's output as it is."""
        return outputs["heads"][self.sensor][self.head]

    def target(self, outputs: Mapping, batch: Mapping) -> jax.Array:
        """[B, T, H', W', K'] float32; any value where not valid, NaN where there is nothing to predict."""
        raise NotImplementedError(f"{type(self).__name__} must define target(outputs, batch)")

    def penalty(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        """Pointwise loss, [B, T, H', W', any], of finite arguments."""
        raise NotImplementedError(f"{type(self).__name__} must define penalty(prediction, target)")

    @property
    def footprint(self) -> int:
        """Side in pixels of what has to be hidden for a target to count; hidden cells must be that large."""
        return 1

    def grid(self, mask: jax.Array) -> jax.Array:
        """Which cells of the target's grid lie in a pixel mask, bool [B, T, H, W] to [B, T, H', W']."""
        return mask

    def constant(self, target: jax.Array) -> jax.Array:
        """The prediction [..., K] that states the target [..., K'] exactly; for trivial predictors."""
        return target

    def picture(self, outputs: Mapping, batch: Mapping) -> tuple[jax.Array, jax.Array]:
        """Prediction and target as a person would look at them, [B, T, H', W', K]: standardised bands, dB, ..."""
        if self.head == PIXELS:
            return outputs["heads"][self.sensor][PIXELS], outputs["standardised"][self.sensor]
        return self.prediction(outputs), self.target(outputs, batch)

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        return {self.sensor: {self.head: self.channels(find(self, sensors))}}

    def usable(self, outputs: Mapping, batch: Mapping) -> tuple[jax.Array, jax.Array]:
        """The target, 1 where it is not finite, and which of its cells are finite, bool [B, T, H', W']."""
        target = self.target(outputs, batch)
        finite = jnp.isfinite(target).all(axis=-1)
        return jnp.where(finite[..., None], target, 1.0), finite

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        if self.sensor not in outputs["heads"]:
            return NOTHING
        target, finite = self.usable(outputs, batch)
        hidden = self.grid(outputs["pixel_mask"][self.sensor])
        value, weight, _ = masked_mean(self.penalty(self.prediction(outputs), target), hidden & finite)
        return value, weight, {"unusable": jnp.sum(hidden & ~finite) / jnp.maximum(jnp.sum(hidden), 1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Likelihood(Reconstruction):
    """A reconstruction that states a probability density of the sensor's pixels.

    All such objectives of a sensor speak about the same pixels in the same unit, so that their held-out
    negative log-likelihoods can be compared (`ringmoe_jax.evaluate.likelihood`), each with one noise
    parameter fitted on training tiles.
    """

    noises: ClassVar[tuple[float, ...]]  # values of the noise parameter to choose from
    comparable: ClassVar[bool] = True  # whether the density is one of all the sensor's bands

    def nats(self, prediction: jax.Array, target: jax.Array, noise: jax.Array | float) -> jax.Array:
        """-ln p of the target, [..., terms that add up], in nats."""
        raise NotImplementedError(f"{type(self).__name__} must define nats(prediction, target, noise)")

    def change_of_unit(self, outputs: Mapping, target: jax.Array) -> jax.Array:
        """What to add to `nats` to make them -ln p of the pixel in the sensor's unit, [..., terms that add up]."""
        raise NotImplementedError(f"{type(self).__name__} must define change_of_unit(outputs, target)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constraint(Objective):
    """What the decoders of a sensor must fulfil whatever the data: the masked mean square of what should be 0.

    It says nothing of the truth, so it goes beside objectives that do. Subclasses give `residual` and `heads`.
    Pixels count where they were hidden and are valid; no-data pixels add neither value, weight nor gradient.

    Attributes:
        sensor: name in `ringmoe_jax.sensors`.
    """

    sensor: str

    def residual(self, outputs: Mapping) -> jax.Array:
        """[B, T, H, W, any]; 0 where the constraint holds."""
        raise NotImplementedError(f"{type(self).__name__} must define residual(outputs)")

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        if self.sensor not in outputs["heads"]:
            return NOTHING
        return masked_mean(jnp.square(self.residual(outputs)), outputs["pixel_mask"][self.sensor])


def find(objective: Reconstruction | Constraint, sensors: Mapping[str, Sensor]) -> Sensor:
    """The objective's sensor among the model's; raises a `ConfigError` where it is not there."""
    if objective.sensor not in sensors:
        who = type(objective).__name__
        raise ConfigError(f'{who} of "{objective.sensor}": not in model.sensors ({", ".join(sensors)})')
    return sensors[objective.sensor]


def masked_mean(values: jax.Array, mask: jax.Array) -> Result:
    """Sum over a mask [B, T, H, W] of the mean over channels of values [B, T, H, W, K], and the mask's size."""
    chosen = jnp.where(mask[..., None], values, 0)
    return jnp.sum(jnp.mean(chosen, axis=-1)), jnp.sum(mask, dtype=jnp.float32), {}


def build(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Objective]:
    """Builds the objectives of a config.

    Args:
        config: {label: {"name": short name or "module:Class", other fields of the class}}.

    Raises:
        ConfigError: unknown objective, sensor or key; the message names the nearest.
    """
    built = {}
    for label, values in config.items():
        where = f"config.objectives.{label}"
        if "name" not in values:
            others = nearest(label, [other for other in config if other != label])
            raise ConfigError(
                f"{where} has no name of an objective: give one, or name an entry that is there: {others}"
            )
        built[label] = OBJECTIVES.build(values, where)
    if not built:
        raise ConfigError("config.objectives is empty: name at least one objective")
    return built


def without(terms: Mapping[str, Mapping[str, Any]], gone: Collection[str]) -> dict[str, dict[str, Any]]:
    """The objectives of a config in a model that lacks some sensors.

    Args:
        terms: {label: {"name": ..., fields}}.
        gone: names of sensors.

    Returns:
        Those that can do without: with fewer `streams`, where they have several, and not naming one that is gone.
    """
    left = {}
    for label, term in terms.items():
        streams = term.get("streams", ())
        fewer = tuple(name for name in streams if name not in gone)
        term = dict(term) | ({"streams": fewer} if streams else {})
        named = [value if isinstance(value, list | tuple) else (value,) for value in term.values()]
        if bool(fewer) == bool(streams) and not any(isinstance(n, str) and n in gone for names in named for n in names):
            left[label] = term
    return left


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


def collect_projections(objectives: Mapping[str, Objective]) -> dict[str, tuple[str, ...]]:
    """Joins the levels that all objectives compare: {sensor or "fused": levels}, in the order of the config."""
    joined: dict[str, dict[str, None]] = {}
    for objective in objectives.values():
        for stream, levels in objective.projections().items():
            joined.setdefault(stream, {}).update(dict.fromkeys(levels))
    return {stream: tuple(levels) for stream, levels in joined.items()}
