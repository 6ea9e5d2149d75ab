"""The interface of a pretext task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Pretext:
    """Forward passes of one training step.

    Attributes:
        init: `init(params) -> state`, arrays that are not trained (a teacher, prototypes); may be {}.
        apply: `apply(params, state, batch, *, key, train) -> (outputs, state)`; outputs as in
            `ringmoe_jax.batch`.
    """

    init: Callable[[Any], Any]
    apply: Callable[..., tuple[dict, Any]]
