"""Held-out negative log-likelihood: what each objective's model says of pixels that it did not see, in one unit.

An objective that is a `Likelihood` states a density of a sensor's pixels, so models that were trained with
different ones can be compared: by the mean -ln p of hidden, valid pixels in the sensor's own unit, in nats a
pixel over all bands (its zero has no meaning; differences do). Each gets one noise parameter, the best on
training tiles: the scale of a Laplacian or normal error, the looks of speckle, or a factor of the power.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import bootstrap
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.objectives import Likelihood


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """One objective on N validation tiles.

    Attributes:
        noise: the parameter that fits the training tiles best.
        nats: mean -ln p of a hidden pixel of the validation tiles, with a 95 % bootstrap interval.
        tiles: validation tiles with hidden valid pixels.
        at_border: `noise` is the first or last of the values to choose from; a better one may lie beyond.
    """

    noise: float
    nats: Score
    tiles: int
    at_border: bool


def sums(objective: Likelihood, outputs: Mapping, prediction, target, mask) -> jax.Array:
    """Summed nats of every tile for every noise parameter, [B, len(objective.noises)] float32.

    Args:
        objective: states the density.
        outputs: of the model.
        prediction: [B, T, H', W', K] as the objective gives it.
        target: [B, T, H', W', K'], finite.
        mask: [B, T, H', W'] bool, what counts.
    """
    chosen = lambda values: jnp.sum(jnp.where(mask[..., None], values, 0), axis=(1, 2, 3, 4))  # noqa: E731
    unit = chosen(objective.change_of_unit(outputs, target))
    noises = jnp.asarray(objective.noises, jnp.float32)
    return jax.lax.map(lambda noise: chosen(objective.nats(prediction, target, noise)), noises).T + unit[:, None]


def held_out(
    objective: Likelihood,
    train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    groups: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = bootstrap.RESAMPLES,
) -> HeldOut:
    """Fits the noise parameter on some tiles and scores others.

    Args:
        objective: whose `noises` the columns are.
        train: "nats" [M, noises] and "weight" [M], hidden valid pixels, of training tiles.
        test: the same of N validation tiles.
        groups: [N] block of each validation tile, see `bootstrap.blocks`.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        DataError: no validation tile has a pixel that counts.
    """
    best = int(np.argmin(np.sum(train["nats"], axis=0, dtype=np.float64)))
    used = test["weight"] > 0
    if not used.any():
        raise DataError(
            f'{type(objective).__name__} of "{objective.sensor}": no validation tile has a hidden valid pixel'
        )
    nats, weight = (x[used].astype(np.float64) for x in (test["nats"][:, best], test["weight"]))
    drawn = np.concatenate([np.ones((1, len(weight))), bootstrap.draw(groups[used], resamples, seed)])
    values = drawn @ nats / (drawn @ weight)
    score = Score(float(values[0]), *bootstrap.interval(values[1:]))
    return HeldOut(objective.noises[best], score, int(used.sum()), best in (0, len(objective.noises) - 1))
