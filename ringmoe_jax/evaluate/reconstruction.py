"""Masked reconstruction losses beside those of predictors that look at no neighbourhood.

A masked loss has no natural zero: speckle and texture cannot be predicted. What it means is seen beside
constants under the same penalty, target and mask. Which constants is our choice; the median is there because
it, not the mean, is the best constant under an absolute error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import bootstrap, likelihood
from ringmoe_jax.evaluate.features import stage_moments
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.models import Model, Params
from ringmoe_jax.objectives import Likelihood, Objective, Reconstruction
from ringmoe_jax.parallel import processes

MODEL = "model"
TRIVIAL = {
    "image mean": "mean of the tile's visible valid pixels, per channel",
    "image median": "median of the tile's visible valid pixels, per channel",
    "training mean": "mean over the training tiles, per channel",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One objective on N validation tiles. Losses are in the objective's own, standardised unit.

    Attributes:
        losses: by predictor ("model" and the keys of `TRIVIAL`), with 95 % bootstrap intervals.
        best: name of the best trivial predictor.
        difference: model minus that predictor, paired tile by tile; below 0 the model is better.
        tiles: number of tiles that have hidden valid pixels.
        blocks: spatial blocks among them, what the intervals rest on.
    """

    losses: dict[str, Score]
    best: str
    difference: Score
    tiles: int
    blocks: int


def reconstructions(objectives: Mapping[str, Objective]) -> dict[str, Reconstruction]:
    """The objectives of a run that reconstruct a sensor."""
    return {label: o for label, o in objectives.items() if isinstance(o, Reconstruction)}


def training_means(
    model: Model, objectives: Mapping[str, Reconstruction], params: Params, batches: Iterable[Mapping]
) -> dict[str, np.ndarray]:
    """Mean of every objective's target over the valid pixels of some tiles, {label: [channels] float32}.

    Objectives about sensors that the batches lack are left out. Of several processes each gives its `processes.turns`.
    """
    if not objectives:
        return {}

    @jax.jit
    def sums(params: Params, batch: Mapping) -> dict:
        outputs = model.apply(params, batch)  # the compiler drops what the targets do not use
        totals = {}
        for label, objective in objectives.items():
            if objective.sensor in batch["sensors"]:
                target, finite = objective.usable(outputs, batch)
                valid = (finite & objective.grid(batch["sensors"][objective.sensor]["valid"]))[..., None]
                totals[label] = (jnp.sum(jnp.where(valid, target, 0), axis=(0, 1, 2, 3)), jnp.sum(valid))
        return totals

    own = (jax.device_get(sums(params, {"sensors": batch["sensors"]})) for batch in batches)
    collected = list(processes.in_turn(own))
    totals = jax.tree.map(lambda *x: np.sum(np.asarray(x, np.float64), axis=0), *collected)
    return {label: (value / max(weight, 1)).astype(np.float32) for label, (value, weight) in totals.items()}


def inspector(
    model: Model, objectives: Mapping[str, Reconstruction]
) -> Callable[[Params, Mapping, Mapping[str, np.ndarray]], dict]:
    """Builds the jitted pass `(params, batch, means) -> seen`: one compiled function for everything that is reported.

    With masks that hide nothing (`unmasked`) it gives the frozen features, with the pipeline's masks the rest.
    `seen` holds "pooled" {sensor: [B, D] float32}; "stages", see `features.stage_moments`; "sums" {label: {predictor or
    "weight": [B] float32}}, the summed penalty and the hidden valid pixels of every tile, with "nats" [B, noises] for
    a comparable `Likelihood`, see `likelihood`; "predictions" and "targets" {label: [B, T, H', W', channels]}, as
    `Reconstruction.picture` gives them; and "routing".
    """

    @jax.jit
    def inspect(params: Params, batch: Mapping, means: Mapping[str, jax.Array]) -> dict:
        outputs = model.apply(params, batch)
        seen = {
            "pooled": outputs["pooled"],
            "stages": stage_moments(outputs, batch),
            "sums": {},
            "predictions": {},
            "targets": {},
            "routing": outputs.get("routing", {}),
        }
        for label, objective in objectives.items():
            if objective.sensor not in outputs["heads"]:
                continue
            target, finite = objective.usable(outputs, batch)
            hidden = outputs["pixel_mask"][objective.sensor]
            mask = finite & objective.grid(hidden)
            visible = finite & objective.grid(batch["sensors"][objective.sensor]["valid"] & ~hidden)
            measured = partial(_sums, objective, outputs, target, mask, visible, means[label])
            shapes = jax.eval_shape(measured)
            nothing = lambda shapes=shapes: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)  # noqa: E731
            seen["sums"][label] = jax.lax.cond(jnp.any(mask), measured, nothing)  # medians take long: not for features
            seen["predictions"][label], seen["targets"][label] = objective.picture(outputs, batch)
        return seen

    return inspect


def _sums(objective: Reconstruction, outputs: Mapping, target, mask, visible, mean) -> dict[str, jax.Array]:
    """{predictor, "weight" or "nats": [B] or [B, noises]} of one objective, see `inspector`."""
    prediction = objective.prediction(outputs)
    constants = {k: objective.constant(v) for k, v in _trivial(target, visible, mean).items()}
    penalties = {
        name: objective.penalty(jnp.broadcast_to(guess, prediction.shape), target).mean(axis=-1)
        for name, guess in ({MODEL: prediction} | constants).items()
    }
    sums = {name: jnp.sum(jnp.where(mask, value, 0), axis=(1, 2, 3)) for name, value in penalties.items()}
    sums["weight"] = jnp.sum(mask, axis=(1, 2, 3), dtype=jnp.float32)
    if isinstance(objective, Likelihood) and objective.comparable:
        sums["nats"] = likelihood.sums(objective, outputs, prediction, target, mask)
    return sums


def unmasked(batch: Mapping, cells: int) -> dict:
    """The sensors of a batch with masks of cells x cells that hide nothing, so that shapes are those of masked ones."""
    shown = {
        name: entry | {"mask": np.zeros((len(entry["pixels"]), cells, cells), bool)}
        for name, entry in batch["sensors"].items()
    }
    return {"sensors": shown}


def _trivial(target: jax.Array, visible: jax.Array, mean: jax.Array) -> dict[str, jax.Array]:
    """Constants per image and channel, [B, T, 1, 1, C] or [C]; the training mean where nothing is visible."""
    shown = jnp.where(visible[..., None], target, jnp.nan)
    over_image = dict(axis=(2, 3), keepdims=True)
    fill = lambda x: jnp.where(jnp.isnan(x), mean, x)  # noqa: E731
    return {
        "image mean": fill(jnp.nanmean(shown, **over_image)),
        "image median": fill(jnp.nanmedian(shown, **over_image)),
        "training mean": mean,
    }


def compare(
    sums: Mapping[str, np.ndarray], groups: np.ndarray, *, seed: int = 0, resamples: int = bootstrap.RESAMPLES
) -> Comparison:
    """Turns the sums of N tiles into losses with intervals.

    Args:
        sums: predictor: [N] summed penalty, and "weight": [N] hidden valid pixels.
        groups: [N] block of each tile, see `bootstrap.blocks`.
        seed: of the bootstrap.
        resamples: of the bootstrap.
    """
    used = sums["weight"] > 0
    if not used.any():
        raise DataError(
            "no tile has a hidden valid pixel that an objective can look at: check data.mask_ratio and no-data"
        )
    weight, groups = sums["weight"][used].astype(np.float64), groups[used]
    drawn = np.concatenate([np.ones((1, len(weight))), bootstrap.draw(groups, resamples, seed)])
    losses = {name: drawn @ sums[name][used].astype(np.float64) / (drawn @ weight) for name in (MODEL, *TRIVIAL)}
    best = min(TRIVIAL, key=lambda name: losses[name][0])
    score = lambda values: Score(float(values[0]), *bootstrap.interval(values[1:]))  # noqa: E731
    return Comparison(
        {name: score(values) for name, values in losses.items()},
        best,
        score(losses[MODEL] - losses[best]),
        int(used.sum()),
        len(np.unique(groups)),
    )
