"""A pretext task: the encoder sees noisy pixels, and what its decoders say is compared with the clean ones."""

import dataclasses

import jax
import jax.numpy as jnp

from ringmoe_jax import sensors
from ringmoe_jax.contracts import standardise
from ringmoe_jax.pretext import Pretext, PretextConfig


@dataclasses.dataclass(frozen=True)
class Denoising(PretextConfig):
    """`noise` is the standard deviation of what is added, as a share of the one of every band in the sensor table."""

    noise: float = 0.5

    def build(self, model, spec):
        def apply(params, state, batch, *, key, train):
            draws = jax.random.split(jax.random.key(0) if key is None else key, len(batch["sensors"]))
            shown = {
                name: entry | {"pixels": self.noisy(name, entry["pixels"], draw)}
                for (name, entry), draw in zip(batch["sensors"].items(), draws, strict=True)
            }
            outputs = model.apply(params, batch | {"sensors": shown}, key=key, train=train)
            clean = {
                name: standardise(entry["pixels"], entry["valid"], outputs["statistics"][name])
                for name, entry in batch["sensors"].items()
            }
            return outputs | {"standardised": clean}, state

        return Pretext(apply)

    def noisy(self, name, pixels, key):
        deviation = jnp.asarray(sensors.get(name).statistics.std, jnp.float32)
        return pixels + self.noise * deviation * jax.random.normal(key, pixels.shape)
