"""A loss: Huber's penalty of hidden pixels, in standard deviations of every band."""

import dataclasses

import jax.numpy as jnp

from ringmoe_jax.objectives import Reconstruction


@dataclasses.dataclass(frozen=True, kw_only=True)
class Huber(Reconstruction):
    """Quadratic up to `delta`, linear beyond."""

    delta: float = 1.0

    def target(self, outputs, batch):
        return outputs["standardised"][self.sensor]

    def penalty(self, prediction, target):
        error = jnp.abs(prediction - target)
        return jnp.where(error < self.delta, error**2 / 2, self.delta * (error - self.delta / 2))
