"""A pretext task: the encoder sees noisy pixels, objectives compare its decoders with the clean ones."""

import dataclasses

import jax

from ringmoe_jax.contracts import standardise
from ringmoe_jax.pretext import Pretext, PretextConfig


@dataclasses.dataclass(frozen=True)
class Denoising(PretextConfig):
    """`noise` is the standard deviation of what is added, in those of every band."""

    noise: float = 0.5

    def build(self, model, wanted):
        def apply(params, state, batch, *, key, train):
            names = tuple(batch["sensors"])
            keys = jax.random.split(jax.random.key(0) if key is None else key, len(names))
            shown = {n: self.noisy(n, batch["sensors"][n], k, outputs_of) for n, k in zip(names, keys, strict=True)}
            outputs = model.apply(params, batch | {"sensors": shown}, key=key, train=train)
            clean = {
                n: standardise(e["pixels"], e["valid"], outputs["statistics"][n]) for n, e in batch["sensors"].items()
            }
            return outputs | {"standardised": clean}, state

        return Pretext(apply)
