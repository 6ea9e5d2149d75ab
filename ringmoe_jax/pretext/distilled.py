"""Learning from a larger model: the student's own pretext task, with a frozen teacher's outputs beside its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ringmoe_jax.contracts import unmasked
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.api import Model, Params
from ringmoe_jax.pretext.base import Pretext

LARGER = "larger"  # entry of the state; "teacher" there may be a moving average of the student
SEES = ("masked", "whole")


def distilled(student: Pretext, teacher: Model, teacher_params: Params, *, teacher_sees: str = "masked") -> Pretext:
    """Any pretext task under a teacher, for `feature_matching`, `prediction_matching` and `logit_matching`.

    Outputs are the student's, and under "teacher" those of `teacher` on `batch["sensors"]` (of two views, the first),
    as at evaluation, without randomness and without gradients. The state is the student's with one more entry,
    "larger", the teacher's parameters: they are saved, placed on a mesh as parameters are, and never trained. What is
    trained and exported is the student's, so a checkpoint reads as one of the student's own task.

    Args:
        student: what the student learns by itself.
        teacher: knows every sensor of the batch; normalises pixels by itself. Of RingMoE, equal in image size.
        teacher_params: what `teacher.apply` takes; the program that initialises the state holds them as constants.
        teacher_sees: "masked": the pixels that the student sees, so that both answer the same question and decoders'
            outputs of hidden pixels can be compared. "whole": hidden pixels too, for features only: the student
            learns to foresee what it would have felt (as data2vec, arXiv 2202.03555); a masked model's decoders say
            nothing of use of pixels that it sees.

    Raises:
        ConfigError: another `teacher_sees`.
        DataError: (when traced) the teacher does not know a sensor of the batch, or takes other images.
    """
    if teacher_sees not in SEES:
        raise ConfigError(f'teacher_sees = "{teacher_sees}" does not exist: {nearest(teacher_sees, SEES)}')

    def init(params: Params, key: jax.Array) -> tuple[Params, Any]:
        trained, state = student.init(params, key)
        return trained, state | {LARGER: jax.tree.map(jnp.asarray, teacher_params)}

    def apply(params: Params, state: Any, batch: Mapping, *, key, train: bool) -> tuple[dict, Any]:
        outputs, own = student.apply(params, _own(state), batch, key=key, train=train)
        shown = batch["sensors"] if teacher_sees == "masked" else unmasked(batch["sensors"])
        said = teacher.apply(state[LARGER], dict(batch) | {"sensors": shown}, key=None, train=False)
        return outputs | {"teacher": jax.lax.stop_gradient(said)}, own | {LARGER: state[LARGER]}

    def after(params: Params, state: Any) -> Any:
        return student.after(params, _own(state)) | {LARGER: state[LARGER]}

    def export(params: Params, state: Any) -> Params:
        return student.export(params, _own(state))

    return Pretext(apply, init, after, export)


def _own(state: Mapping) -> dict:
    """The student's part of the state."""
    return {name: value for name, value in state.items() if name != LARGER}
