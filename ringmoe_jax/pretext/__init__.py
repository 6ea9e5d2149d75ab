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
from ringmoe_jax.pretext.joint_embedding import JointEmbeddingConfig
from ringmoe_jax.pretext.latent import LatentConfig

__all__ = [
    "PRETEXTS",
    "ContrastiveConfig",
    "JointEmbeddingConfig",
    "LatentConfig",
    "Pretext",
    "PretextConfig",
    "PretextSpec",
    "build",
    "complete",
    "register",
]

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
    asked = {level for levels in spec.projections.values() for level in levels}
    if missing := sorted(asked - set(built.levels)):
        makers = [name for name, part in PRETEXTS.items() if asked <= set(part.levels)]
        fix = f'set pretext.name = "{makers[0]}"' if makers else "no pretext task makes all of them, take some out"
        raise ConfigError(
            f"objectives compare {', '.join(missing)} features of {', '.join(spec.projections)}, which this pretext "
            f"task does not make: {fix}"
        )
    return built.build(model, spec)


def complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with every default of the task's dataclass filled in.

    Raises:
        ConfigError: unknown task or key, the message names the nearest.
    """
    return dataclasses.asdict(PRETEXTS.build(config, "config.pretext")) | {"name": config["name"]}
