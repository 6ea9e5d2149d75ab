"""Networks. The only place with `flax.nnx`; everything else sees `Model(init, apply)`.

A model of your own is a frozen dataclass made from `ModelConfig`, which a config names as `module:Name`, see
docs/extend.md. `register` gives it a short name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ringmoe_jax.models import galileo as _galileo  # noqa: F401  (registers)
from ringmoe_jax.models import presto as _presto  # noqa: F401
from ringmoe_jax.models import ringmoe as _ringmoe  # noqa: F401
from ringmoe_jax.models import skysense as _skysense  # noqa: F401
from ringmoe_jax.models import vision as _vision  # noqa: F401
from ringmoe_jax.models.api import MODELS, Model, ModelConfig, Params, from_module
from ringmoe_jax.models.layers import count

__all__ = [
    "MODELS",
    "Model",
    "ModelConfig",
    "Params",
    "build",
    "complete",
    "count",
    "from_module",
    "image_sizes",
    "read",
    "register",
    "with_engine",
    "with_unseen",
]

register = MODELS.register
KEPT = 32
_MADE: dict[tuple, Model] = {}


def read(config: Mapping) -> ModelConfig:
    """What the model that `config["name"]` names says of itself, given the other keys.

    Args:
        config: for example `config.model` of a config file.

    Raises:
        ConfigError: unknown model or key; the message names the nearest.
    """
    return MODELS.build(config, "config.model")


def build(config: Mapping, **context) -> Model:
    """Builds the model that `config["name"]` names from the other keys.

    One configuration is one model in a process, of the last `KEPT`: it is traced once, and what was compiled of it
    serves again.

    Args:
        config: see `read`.
        **context: `sensors`, `statistics`, `heads` and `mesh`, see `ModelConfig.build`.

    Raises:
        ConfigError: as `read`.
    """
    config = read(config)
    rest = repr((config, {name: value for name, value in context.items() if name != "mesh"}))
    key = (type(config), rest, context.get("mesh"))
    if key not in _MADE:
        for oldest in list(_MADE)[: len(_MADE) + 1 - KEPT]:
            del _MADE[oldest]
        _MADE[key] = config.build(**context)
    return _MADE[key]


def image_sizes(config: Mapping) -> dict[str, int]:
    """Side in pixels that the images of a sensor must have, for the sensors where the model says so.

    Raises:
        ConfigError: as `read`.
    """
    return read(config).image_sizes


def complete(config: Mapping) -> dict[str, Any]:
    """The same config with every default of the model's dataclass filled in.

    Raises:
        ConfigError: as `build`.
    """
    return _stated(config, read(config))


def with_engine(config: Mapping, engine: str) -> dict[str, Any]:
    """The same model whose experts, if it has any, are computed by another engine, for example one that drops no token.

    Args:
        config: see `read`.
        engine: see `ringmoe_jax.moe.engines`.

    Raises:
        ConfigError: as `read`.
    """
    return _stated(config, read(config).with_engine(engine))


def with_unseen(config: Mapping, names: Sequence[str], changed: Sequence[str] = ()) -> dict[str, Any]:
    """The same model that takes sensors, or bands, that were not there in training, see `ModelConfig.with_unseen`.

    Args:
        config: see `read`.
        names: of further sensors, as a config says them.
        changed: sensors of the model that show other bands than in training.

    Raises:
        ConfigError: as `read`; or every sensor has weights of its own in this model.
    """
    read(config).with_unseen(names, changed)
    return complete(config) | ({"unseen": (*config.get("unseen", ()), *names)} if names else {})


def _stated(config: Mapping, built: ModelConfig) -> dict[str, Any]:
    """All fields under the config's names: `module:NAME` of a sensor stays, so that a checkpoint finds it again."""
    said = {key: tuple(config[key]) for key in ("sensors", "unseen") if key in config}
    return dataclasses.asdict(built) | {"name": config["name"]} | said
