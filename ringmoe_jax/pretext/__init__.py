"""How a batch becomes outputs: which forward passes a pretext task makes, and its own state."""

from __future__ import annotations

from collections.abc import Callable

from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.api import Model
from ringmoe_jax.pretext.base import Pretext
from ringmoe_jax.pretext.masked import masked, masked_parts

__all__ = ["PRETEXTS", "Pretext", "build"]

PRETEXTS: dict[str, Callable[[Model], Pretext]] = {"masked": masked, "masked_parts": masked_parts}


def build(name: str, model: Model) -> Pretext:
    """Builds the pretext task that a config names.

    Raises:
        ConfigError: unknown task; the message names the nearest.
    """
    if name not in PRETEXTS:
        raise ConfigError(f'config.pretext = "{name}" does not exist: {nearest(name, PRETEXTS)}')
    return PRETEXTS[name](model)
