"""Networks. The only place with `flax.nnx`; everything else sees `Model(init, apply)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ringmoe_jax import config as configuration
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models import ringmoe, skysense
from ringmoe_jax.models.api import Model, Params
from ringmoe_jax.models.layers import count

__all__ = ["MODELS", "Model", "Params", "build", "complete", "count", "image_sizes", "with_engine"]

# name in the config -> (its dataclass, its builder)
MODELS: dict[str, tuple[type, Callable[..., Model]]] = {
    "ringmoe": (ringmoe.RingMoEConfig, ringmoe.build),
    "skysense": (skysense.SkySenseConfig, skysense.build),
}


def image_sizes(config: Mapping) -> dict[str, int]:
    """Side in pixels that the images of a sensor must have, for the sensors where the model says so.

    Raises:
        ConfigError: as `build`.
    """
    return _find(config)[0].image_sizes


def build(config: Mapping, **context) -> Model:
    """Builds the model that `config["name"]` names from the other keys.

    Args:
        config: for example `config.model` of a config file.
        **context: `sensors`, `statistics`, `heads` and `mesh`, see `ringmoe.build`.

    Raises:
        ConfigError: unknown model or key; the message names the nearest.
    """
    built, make = _find(config)
    return make(built, **context)


def complete(config: Mapping) -> dict[str, Any]:
    """The same config with every default of the model's dataclass filled in.

    Raises:
        ConfigError: as `build`.
    """
    built = _find(config)[0]
    return {"name": config["name"], **dataclasses.asdict(built)}


def with_engine(config: Mapping, engine: str) -> dict[str, Any]:
    """The same model whose experts are computed by another engine, for example one that drops no token.

    Args:
        config: as for `build`.
        engine: key of `ringmoe_jax.moe.engines.ENGINES`.

    Raises:
        ConfigError: as `build`.
    """
    built = _find(config)[0]
    moe = dataclasses.replace(built.moe, engine=engine)
    return {"name": config["name"], **dataclasses.asdict(dataclasses.replace(built, moe=moe))}


def _find(config: Mapping) -> tuple[Any, Callable[..., Model]]:
    values = dict(config)
    name = values.pop("name", None)
    if name not in MODELS:
        raise ConfigError(f'model.name = "{name}" does not exist: {nearest(str(name), MODELS)}')
    cls, make = MODELS[name]
    return configuration.build(cls, values, "config.model"), make
