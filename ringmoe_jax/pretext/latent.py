"""Masked modelling of features: hidden cells are to be foreseen as a teacher describes them, and not as pixels.

The student sees the batch with its hidden cells and a predictor says what stands there; the teacher sees everything.
The teacher is a moving average of the student (data2vec, Baevski et al. 2022, arXiv 2202.03555; I-JEPA, Assran et al.
2023, arXiv 2301.08243), or it stays as it was drawn, for random networks describe images as well and cannot collapse
(OlmoEarth's frozen random targets). For `latent_targets`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ringmoe_jax.contracts import unmasked, valid_cells
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models import projection
from ringmoe_jax.models.api import Model, Params
from ringmoe_jax.pretext.base import PRETEXTS, Pretext, PretextConfig, PretextSpec, encoder
from ringmoe_jax.pretext.contrastive import momentum_at
from ringmoe_jax.pretext.masked import require_masks

LATENT = "latent"  # level of `Objective.projections`


@PRETEXTS.register("latent")
@dataclasses.dataclass(frozen=True)
class LatentConfig(PretextConfig):
    """The teacher and the predictor.

    Attributes:
        momentum: of the teacher at the first step; a cosine takes it to 1 at the last one. 1 keeps the teacher as it
            was drawn, at random.
        hidden: width of the predictor's hidden layer.
    """

    levels: ClassVar[tuple[str, ...]] = (LATENT,)
    momentum: float = 0.996
    hidden: int = 512

    def __post_init__(self):
        if not 0 <= self.momentum <= 1:
            raise ConfigError(f"pretext.momentum = {self.momentum}: wanted 0 to 1")
        if self.hidden < 1:
            raise ConfigError(f"pretext.hidden = {self.hidden}: wanted 1 or more")

    def build(self, model: Model, spec: PretextSpec) -> Pretext:
        return latent(model, spec, self)


def latent(model: Model, spec: PretextSpec, config: LatentConfig) -> Pretext:
    """A pass of the student and one of the teacher.

    The state holds "teacher", parameters of the model, and "step". Outputs are the student's, and besides

        outputs["latent"][sensor]   {"prediction": [B, T, h, w, D] float32, "target": the same, the teacher's tokens,
                                     "weight": [B, T, h, w] bool, cells of which everything valid is hidden, and
                                     something is}

    What is exported is the teacher where it moves (data2vec, I-JEPA), else the student.

    Args:
        model: its sensors are what can be foreseen.
        spec: what the objectives compare.
        config: see there.

    Raises:
        ConfigError: no objective wants latent targets, one names a sensor that the model does not have, or the model
            hides nothing: it has no "mask_token".
        DataError: (when traced) a sensor of the batch has no "mask".
    """
    if not spec.projections:
        raise ConfigError('pretext "latent" has nothing to foresee: name latent_targets in config.objectives')
    for stream in spec.projections:
        if stream not in model.streams:
            raise ConfigError(f'an objective foresees "{stream}": {nearest(stream, model.streams)}')
    if "mask_token" not in model.shapes():
        raise ConfigError(
            'pretext "latent" hides cells, and this model has no mask_token: it would see them all the same'
        )
    predictors = {
        name: projection.build_predictor(model.streams[name], config.hidden, model.streams[name])
        for name in spec.projections
    }

    def init(params: Params, key: jax.Array) -> tuple[Params, Any]:
        keys = jax.random.split(key, len(predictors))
        heads = {name: p.init(k) for (name, p), k in zip(predictors.items(), keys, strict=True)}
        return params | {"projections": heads}, {"teacher": jax.tree.map(jnp.copy, params), "step": jnp.int32(0)}

    def apply(params: Params, state: Any, batch: Mapping, *, key, train: bool) -> tuple[dict, Any]:
        require_masks(batch)
        outputs = model.apply(params, batch, key=key, train=train)
        whole = dict(batch) | {"sensors": unmasked(batch["sensors"])}
        seen = jax.lax.stop_gradient(model.apply(state["teacher"], whole, key=None, train=False)["tokens"])
        compare = functools.partial(_compare, outputs, seen, batch["sensors"])
        found = {
            name: compare(name, functools.partial(predictor.apply, params["projections"][name]))
            for name, predictor in predictors.items()
            if name in seen
        }
        return outputs | {"latent": found}, state

    def after(params: Params, state: Any) -> Any:
        m = momentum_at(state["step"], spec.steps, config.momentum)
        teacher = jax.tree.map(lambda t, p: m * t + (1 - m) * p, state["teacher"], encoder(params))
        return {"teacher": teacher, "step": state["step"] + 1}

    def export(params: Params, state: Any) -> Params:
        return encoder(params) if config.momentum == 1 else state["teacher"]

    return Pretext(apply, init, after, export)


def _compare(outputs: Mapping, seen: Mapping, entries: Mapping, name: str, predict) -> dict[str, jax.Array]:
    """What `outputs["latent"]` says of a sensor."""
    hidden, valid, grid = outputs["pixel_mask"][name], entries[name]["valid"], seen[name].shape[2:4]
    return {
        "prediction": predict(outputs["tokens"][name]).astype(jnp.float32),
        "target": seen[name].astype(jnp.float32),
        "weight": valid_cells(hidden, grid) & ~valid_cells(valid & ~hidden, grid),
    }
