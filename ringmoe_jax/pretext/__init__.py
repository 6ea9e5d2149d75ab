"""How a batch becomes outputs: which forward passes a pretext task makes, and its own state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.api import Model
from ringmoe_jax.pretext import masked as _masked  # noqa: F401  (registers)
from ringmoe_jax.pretext.base import PRETEXTS, Pretext, PretextConfig, PretextSpec
from ringmoe_jax.pretext.contrastive import ContrastiveConfig

__all__ = ["PRETEXTS", "ContrastiveConfig", "Pretext", "PretextConfig", "PretextSpec", "build", "complete", "register"]

register = PRETEXTS.register


def build(config: Mapping[str, Any], model: Model, spec: PretextSpec = PretextSpec()) -> Pretext:  # noqa: B008
    """Builds the pretext task that `config["name"]` names from the other keys.

    Args:
        config: for example `config.pretext` of a config file.
        model: what the passes go through.
        spec: what objectives compare, and for how many steps.

    Raises:
        ConfigError: unknown task or key, the message names the nearest; or objectives want what it does not give.
    """
    built = PRETEXTS.build(config, "config.pretext")
    if spec.projections and not built.projects:
        raise ConfigError(
            f"objectives compare {', '.join(spec.projections)} of two views, which this pretext task does not "
            'make: set pretext.name = "contrastive"'
        )
    return built.build(model, spec)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with every default of the task's dataclass filled in.

    Raises:
        ConfigError: unknown task or key, the message names the nearest.
    """
    return dataclasses.asdict(PRETEXTS.build(config, "config.pretext")) | {"name": config["name"]}
