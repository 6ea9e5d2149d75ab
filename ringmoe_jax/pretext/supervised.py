"""A downstream task: one forward pass of an adapted encoder and its head."""

from __future__ import annotations

import jax

from ringmoe_jax.models import adaptation
from ringmoe_jax.models.adaptation import AdaptationConfig
from ringmoe_jax.models.api import Model, Params
from ringmoe_jax.models.downstream import DECODER, ENCODER
from ringmoe_jax.pretext.base import Pretext


def supervised(model: Model, config: AdaptationConfig) -> Pretext:
    """Trains the head, and of the encoder what `config` says.

    What is trained is {"encoder": ..., "lora": ..., "decoder": ...}, each where there is any; the rest of the encoder
    is state, {"frozen": ...}, and gets neither gradients nor memory of the optimiser. What is exported is whole again.

    Args:
        model: of `models.downstream.attach`.
        config: how the encoder is adapted.
    """

    def init(params: Params, key: jax.Array):
        trained, frozen = adaptation.split(params[ENCODER], config, key)
        return trained | {DECODER: params[DECODER]}, {"frozen": frozen} if frozen else {}

    def whole(trained: Params, state: Params) -> Params:
        return {ENCODER: adaptation.join(trained, state.get("frozen", {}), config), DECODER: trained[DECODER]}

    def apply(params, state, batch, *, key, train):
        return model.apply(whole(params, state), batch, key=key, train=train), state

    return Pretext(apply, init, export=whole)
