"""What a larger model says is the target: features, decoders' outputs and class probabilities of a teacher.

All need a pretext task under a teacher, `ringmoe_jax.pretext.distilled`, and compare the same batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ringmoe_jax.contracts import valid_cells
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.objectives.base import NOTHING, PIXELS, Objective, Result, find, masked_mean, register
from ringmoe_jax.objectives.supervised import predicted
from ringmoe_jax.sensors import Sensor

LEVELS = ("tokens", "stages")


@register("feature_matching")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureMatching(Objective):
    """Smooth L1 between the features of student and teacher, each standardised over the D channels of its token.

    L = mean over channels of |d| - beta / 2 where |d| > beta, else d^2 / (2 beta), d = s - t. Hidden cells count too:
    there the student foresees what the teacher foresees, or sees. Cells without a valid pixel add nothing. A cell
    counts with its area, so that all stages of "stages" count alike. Matching by layer follows FitNets (Romero et al.
    2015, arXiv 1412.6550) and OneS (arXiv 2201.10890), standardised features and smooth L1 feature distillation (Wei
    et al. 2022, arXiv 2205.14141); standardising the student's too, without a regressor between, is our choice.

    Metric: "cosine", mean cosine of the standardised features, 1 where both agree.

    Attributes:
        sensor: name in `ringmoe_jax.sensors`.
        level: "tokens", what the encoder gives; or "stages", the last block of every stage.
        beta: error from which on the loss grows linearly, in standard deviations, > 0.
    """

    sensor: str
    level: str = "tokens"
    beta: float = 1.0

    def __post_init__(self):
        if self.level not in LEVELS:
            raise ConfigError(f'FeatureMatching: level = "{self.level}" does not exist: {nearest(self.level, LEVELS)}')
        if not self.beta > 0:
            raise ConfigError(f"FeatureMatching: beta = {self.beta}, wanted > 0")

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        find(self, sensors)
        return {}

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        """Raises a `ConfigError` where the features differ in shape, or there is no teacher."""
        if self.sensor not in outputs[self.level]:
            return NOTHING
        own, wanted = (self._maps(of[self.level]) for of in (outputs, teacher_of(outputs, self)))
        if [x.shape for x in own] != [x.shape for x in wanted]:
            raise ConfigError(
                f'FeatureMatching of "{self.sensor}": {self.level} [B, T, h, w, D] are {_shapes(own)} of the student, '
                f"{_shapes(wanted)} of the teacher: match models of equal width and depth, or use prediction_matching"
            )
        value, weight, cosine = jnp.float32(0), jnp.float32(0), jnp.float32(0)
        for s, t in zip(map(standardised, own), map(standardised, wanted), strict=True):
            seen = valid_cells(batch["sensors"][self.sensor]["valid"], s.shape[2:4])
            area = (own[0].shape[2] / s.shape[2]) ** 2  # of a cell, in cells of the finest stage
            errors, cells, _ = masked_mean(smooth_l1(s - t, self.beta), seen)
            value, weight = value + area * errors, weight + area * cells
            cosine += area * masked_mean(s * t, seen)[0]
        return value, weight, {"cosine": cosine / jnp.maximum(weight, 1)}

    def _maps(self, features: Mapping) -> tuple[jax.Array, ...]:
        """[B, T, h, w, D] of every stage, or of the one that is called tokens."""
        return tuple(features[self.sensor]) if self.level == "stages" else (features[self.sensor],)


@register("prediction_matching")
@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictionMatching(Objective):
    """L1 between what the decoders of student and teacher say of hidden pixels: the mean over pixels and channels.

    In the unit of the decoder's output, as `masked_l1` is of the truth: the teacher's guess has no speckle and no
    noise, so it is the easier target. Pixels count where they were hidden and are valid. Source: our choice.

    Attributes:
        sensor: name in `ringmoe_jax.sensors`.
        head: decoder output that both models have. The model is asked for "pixels"; any other is that of an
            objective, which has to be named beside this one.
    """

    sensor: str
    head: str = PIXELS

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        channels = find(self, sensors).channels
        return {self.sensor: {PIXELS: channels}} if self.head == PIXELS else {}

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        """Raises a `ConfigError` where a decoder is missing, or both are of pixels that are normalised differently."""
        if self.sensor not in outputs["tokens"]:
            return NOTHING
        teacher = teacher_of(outputs, self)
        own, wanted = self._decoded(outputs, "student"), self._decoded(teacher, "teacher")
        for what in ("sensors", "statistics"):
            if outputs[what][self.sensor] != teacher[what][self.sensor]:
                raise ConfigError(
                    f'PredictionMatching of "{self.sensor}": student and teacher differ in {what}, so their decoders '
                    "speak of different numbers: build the student with those of the teacher's checkpoint"
                )
        return masked_mean(jnp.abs(own - wanted), outputs["pixel_mask"][self.sensor])

    def _decoded(self, outputs: Mapping, who: str) -> jax.Array:
        """[B, T, H, W, K]."""
        heads = outputs["heads"].get(self.sensor, {})
        if self.head not in heads:
            raise ConfigError(
                f'PredictionMatching: the {who} has no decoder "{self.sensor}/{self.head}": {nearest(self.head, heads)}'
            )
        return heads[self.head]


@register("logit_matching")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitMatching(Objective):
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of a downstream task's logits, in nats.

    The mean over images or pixels, labelled or not; those in which the sensor shows nothing valid add nothing. T^2
    keeps the gradient's size (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).

    Metric: "agreement", share of images or pixels for which both name the same class.

    Attributes:
        sensor: shows where there is anything to predict; maps of logits lie on its grid.
        output: name in `outputs["predictions"]`: logits [B, C] or [B, H, W, C].
        temperature: T > 0.
    """

    sensor: str
    output: str = "logits"
    temperature: float = 2.0

    def __post_init__(self):
        if not self.temperature > 0:
            raise ConfigError(f"LogitMatching: temperature = {self.temperature}, wanted > 0")

    def heads(self, sensors: Mapping[str, Sensor]) -> dict[str, dict[str, int]]:
        find(self, sensors)
        return {}

    def __call__(self, outputs: Mapping, batch: Mapping) -> Result:
        """Raises a `ConfigError` where a model gives no such logits, or they differ in shape."""
        who = type(self).__name__
        own, wanted = (predicted(of, self.output, who) for of in (outputs, teacher_of(outputs, self)))
        seen = batch["sensors"][self.sensor]["valid"].any(axis=1 if own.ndim == 4 else (1, 2, 3))
        if own.shape != wanted.shape or own.shape[:-1] != seen.shape:
            raise ConfigError(
                f'{who}: "{self.output}" is {list(own.shape)} of the student and {list(wanted.shape)} of the teacher, '
                f"wanted {[*seen.shape, 'C']} of both: do they know the same classes, on the grid of {self.sensor}?"
            )
        log_p, log_q = (jax.nn.log_softmax(x / self.temperature) for x in (wanted, own))
        nats = self.temperature**2 * jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
        weight = jnp.sum(seen, dtype=jnp.float32)
        agree = jnp.sum(seen & (jnp.argmax(own, axis=-1) == jnp.argmax(wanted, axis=-1)))
        return jnp.sum(jnp.where(seen, nats, 0)), weight, {"agreement": agree / jnp.maximum(weight, 1)}


def teacher_of(outputs: Mapping, objective: Objective) -> Mapping:
    """The teacher's outputs; a `ConfigError` where the pretext task has no teacher."""
    if "teacher" not in outputs:
        raise ConfigError(
            f"{type(objective).__name__} needs the outputs of another model: name a run in config.teacher"
        )
    return outputs["teacher"]


def smooth_l1(difference: jax.Array, beta: float) -> jax.Array:
    """|d| - beta / 2 where |d| > beta, else d^2 / (2 beta); any shape."""
    error = jnp.abs(difference)
    return jnp.where(error > beta, error - beta / 2, jnp.square(difference) / (2 * beta))


def standardised(features: jax.Array) -> jax.Array:
    """[..., D] float32 of zero mean and unit variance over D; zeros where all channels are equal."""
    x = features.astype(jnp.float32)
    x = x - x.mean(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)


def _shapes(maps) -> str:
    return ", ".join(str(list(x.shape)) for x in maps)
