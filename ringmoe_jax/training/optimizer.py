"""AdamW with the paper's exclusions, cosine schedule with warm-up, clipping by global norm, layer-wise rates."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import optax

from ringmoe_jax.config import check_ranges
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models import depth
from ringmoe_jax.models.downstream import DECODER
from ringmoe_jax.parallel.sharding import path_name


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Defaults follow the released RingMoE configuration where nothing else is said.

    Attributes:
        learning_rate: at the end of the warm-up, for the batch size that is used (no hidden scaling but `rate_scale`).
        min_learning_rate: at the last step.
        warmup_learning_rate: at step 0.
        rate_scale: multiplies the three learning rates. 1 is ours; the released code multiplies by b / 512, and b, the
            images of a sensor on one of its ranks, is 1: 4.9e-7 at the end of the warm-up. SimMIM, where the rule is
            from, counts all images of a step.
        warmup_steps: linear warm-up, shorter than the run; None for the share `warmup_fraction` of it.
        warmup_fraction: of the run, at least 0 and below 1; not looked at where `warmup_steps` is given. 0.05 is our
            choice; the released code warms up for 200 steps.
        cosine_from_start: whether the cosine is counted from step 0, so that the rate steps down a little at the end of
            the warm-up (released code; timm without a warm-up prefix), or from the end of the warm-up (ours).
        beta1: of AdamW.
        beta2: of AdamW.
        epsilon: of AdamW.
        bias_correction: whether moments are divided by 1 - beta^t (AdamW; ours). Without it, as in MindSpore's
            AdamWeightDecay of the released code, first steps are up to 6 times as long.
        weight_decay: decoupled, not applied to parameters that match `no_decay`.
        no_decay: regular expression over parameter paths: biases, norms, learned tokens, position and date tables,
            learned scales and prototypes.
        clip_norm: largest global norm of the gradients; 0 does not clip.
        momentum_dtype: "float32" or "bfloat16" for AdamW's first moment.
        average: momentum of a moving average of the parameters, which all that opens the run then takes
            (`pretext.averaged`); 0 takes the last ones.
        layer_decay: for fine-tuning: the learning rate of a block over that of the one above it; the head has
            `learning_rate`, the encoder's last block layer_decay times it (BEiT; released RingMo: 0.65, SkySense:
            0.9). 1 is the same for all.
    """

    learning_rate: float = 2.5e-4
    min_learning_rate: float = 5e-7
    warmup_learning_rate: float = 1e-6
    rate_scale: float = 1.0
    warmup_steps: int | None = None
    warmup_fraction: float = 0.05
    cosine_from_start: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    bias_correction: bool = True
    weight_decay: float = 0.05
    no_decay: str = r"(bias|scale|token|positions|dates|prototypes|visits|/b[io])$"
    clip_norm: float = 5.0
    momentum_dtype: str = "float32"
    average: float = 0.0
    layer_decay: float = 1.0

    def __post_init__(self):
        rates = ("learning_rate", "min_learning_rate", "warmup_learning_rate", "rate_scale")
        rates = dict.fromkeys(rates, (0, math.inf))
        check_ranges(self, "optimizer", **rates, weight_decay=(0, math.inf), clip_norm=(0, math.inf))
        check_ranges(self, "optimizer", beta1=(0, 1), beta2=(0, 1), epsilon=(0, 1))
        if not 0 <= self.average < 1:
            raise ConfigError(f"optimizer.average = {self.average}: wanted at least 0 and below 1")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optimizer.layer_decay = {self.layer_decay}: wanted above 0 and at most 1")
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(f"optimizer.warmup_fraction = {self.warmup_fraction}: wanted at least 0 and below 1")

    def warmup(self, steps: int) -> int:
        """Steps of the linear warm-up of a run of `steps` steps.

        Raises:
            ConfigError: the warm-up is not shorter than the run.
        """
        if self.warmup_steps is None:
            return min(round(self.warmup_fraction * steps), steps - 1)
        if not 0 <= self.warmup_steps < steps:
            raise ConfigError(
                f"optimizer.warmup_steps = {self.warmup_steps} must be less than train.steps = {steps}: set "
                "optimizer.warmup_steps to None for a share of the run, optimizer.warmup_fraction"
            )
        return self.warmup_steps


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then cosine to the minimum at step `steps`.

    Raises:
        ConfigError: the warm-up is not shorter than the run.
    """
    warmup, scale = config.warmup(steps), config.rate_scale
    most, least = scale * config.learning_rate, scale * config.min_learning_rate
    first = scale * config.warmup_learning_rate if warmup else most
    if not config.cosine_from_start:
        return optax.warmup_cosine_decay_schedule(first, most, warmup, steps, least)

    def rate(step):
        cosine = least + (most - least) * (1 + jnp.cos(jnp.pi * jnp.minimum(step / steps, 1))) / 2
        return jnp.where(step < warmup, first + (most - first) * step / max(warmup, 1), cosine)

    return rate


def decays(params, no_decay: str):
    """A tree of bool: True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not re.search(no_decay, path_name(path)), params)


def build(
    config: OptimizerConfig, steps: int, blocks_above: Mapping[str, int | Sequence[int]] | None = None
) -> optax.GradientTransformation:
    """The optimiser for a run of `steps` steps.

    Args:
        config: see there.
        steps: of the run.
        blocks_above: of a model that is fine-tuned, see `models.api.Model`; for `layer_decay`.

    Raises:
        ConfigError: `layer_decay` below 1 where there is no `blocks_above`; or see `schedule`.
    """
    if config.layer_decay < 1 and not blocks_above:
        raise ConfigError(
            f"optimizer.layer_decay = {config.layer_decay}: this model does not say in which order its blocks are "
            "(Model.blocks_above of an encoder that is fine-tuned): set it to 1"
        )
    moments = dict(b1=config.beta1, b2=config.beta2, eps=config.epsilon, mu_dtype=config.momentum_dtype)
    adamw = optax.chain(
        optax.scale_by_adam(**moments) if config.bias_correction else _by_uncorrected_adam(**moments),
        optax.add_decayed_weights(config.weight_decay, lambda params: decays(params, config.no_decay)),
        optax.scale_by_learning_rate(schedule(config, steps)),
    )
    clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    layers = [_by_layer(config.layer_decay, blocks_above)] if config.layer_decay < 1 else []
    return optax.chain(*clip, adamw, *layers) if clip or layers else adamw


def layer_rates(params, layer_decay: float, blocks_above: Mapping[str, int | Sequence[int]]):
    """Factor of the learning rate for every parameter of `pretext.supervised`, a tree of numbers or [L, 1, ...].

    decay ^ (1 + blocks above) in the encoder and its low-rank changes, 1 in the head.
    """
    return {
        name: jax.tree.map(lambda _: 1.0, part)
        if name == DECODER
        else jax.tree.map(lambda above: layer_decay ** (1.0 + above), depth.distances(part, blocks_above))
        for name, part in params.items()
    }


def _by_uncorrected_adam(b1: float, b2: float, eps: float, mu_dtype) -> optax.GradientTransformation:
    """`optax.scale_by_adam` without correction of the moments: m / (sqrt(v) + eps)."""
    corrected = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)

    def update(updates, state, params=None):
        _, after = corrected.update(updates, state, params)
        mean = optax.tree.update_moment(updates, state.mu, b1, 1)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mean, after.nu), after

    return optax.GradientTransformation(corrected.init, update)


def _by_layer(layer_decay: float, blocks_above) -> optax.GradientTransformation:
    """Scales updates, decoupled weight decay among them, as a lower learning rate would."""

    def scale(updates, params):
        del params
        return jax.tree.map(
            lambda u, rate: (u * rate).astype(u.dtype), updates, layer_rates(updates, layer_decay, blocks_above)
        )

    return optax.stateless(scale)
