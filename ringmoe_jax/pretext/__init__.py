"""How a batch becomes outputs: which forward passes a pretext task makes, and its own state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ringmoe_jax import config as configuration
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.api import Model
from ringmoe_jax.pretext.base import Pretext, Wanted
from ringmoe_jax.pretext.contrastive import ContrastiveConfig, contrastive
from ringmoe_jax.pretext.masked import masked, masked_parts

__all__ = ["PRETEXTS", "ContrastiveConfig", "Pretext", "Wanted", "build", "complete"]


@dataclasses.dataclass(frozen=True)
class NoConfig:
    """Of a task without choices."""


def _without_projections(make: Callable[[Model], Pretext]) -> Callable[..., Pretext]:
    def checked(model: Model, wanted: Wanted, config: NoConfig) -> Pretext:
        if wanted.projections:
            raise ConfigError(
                f"objectives compare {', '.join(wanted.projections)} of two views, which this pretext task does not "
                'make: set pretext.name = "contrastive"'
            )
        return make(model)

    return checked


# name in the config -> (its dataclass, its builder)
PRETEXTS: dict[str, tuple[type, Callable[..., Pretext]]] = {
    "masked": (NoConfig, _without_projections(masked)),
    "masked_parts": (NoConfig, _without_projections(masked_parts)),
    "contrastive": (ContrastiveConfig, contrastive),
}


def build(config: Mapping[str, Any], model: Model, wanted: Wanted = Wanted()) -> Pretext:  # noqa: B008
    """Builds the pretext task that `config["name"]` names from the other keys.

    Args:
        config: for example `config.pretext` of a config file.
        model: what the passes go through.
        wanted: what objectives compare, and for how many steps.

    Raises:
        ConfigError: unknown task or key, the message names the nearest; or objectives want what it does not give.
    """
    built, make = _find(config)
    return make(model, wanted, built)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with every default of the task's dataclass filled in.

    Raises:
        ConfigError: unknown task or key, the message names the nearest.
    """
    built = _find(config)[0]
    return {"name": config["name"], **dataclasses.asdict(built)}


def _find(config: Mapping[str, Any]) -> tuple[Any, Callable[..., Pretext]]:
    values = dict(config)
    name = values.pop("name", None)
    if name not in PRETEXTS:
        raise ConfigError(f'config.pretext.name = "{name}" does not exist: {nearest(str(name), PRETEXTS)}')
    cls, make = PRETEXTS[name]
    return configuration.build(cls, values, "config.pretext"), make
