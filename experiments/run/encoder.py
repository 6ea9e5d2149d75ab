"""The encoder that a configuration begins with: what a checkpoint has, or a new one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ringmoe_jax import models
from ringmoe_jax.config import merged
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.run import (
    FEATURES,
    Encoder,
    FinetuneConfig,
    PretrainConfig,
    kind_of,
    origin_of,
    read_record,
)
from ringmoe_jax.sensors import Statistics


def encoder_of(config: FinetuneConfig) -> Encoder:
    """What the config's `init_from`, `model` and `override` say; it takes images of the size that data shows.

    Raises:
        ConfigError: `init_from` is a fine-tuned run, or data shows images of several sizes.
    """
    changes = {"adapter": config.adaptation.hidden} if config.adaptation.method == "convpass" else {}
    if not config.init_from:
        return Encoder(_sized(config.model | changes, config.data), config.data.bands, {})
    return _saved(config, changes)


def _saved(config: FinetuneConfig | PretrainConfig, changes: Mapping[str, Any]) -> Encoder:
    """The encoder of a config's `init_from`, with what `override` and `changes` say differs."""
    record = read_record(config.init_from)
    if kind_of(record) not in FEATURES:
        raise ConfigError(f"init_from = {config.init_from} is a fine-tuned run: give the pre-trained one before it")
    saved = record["config"]
    return Encoder(
        _sized(merged(saved["model"], config.override) | changes, config.data),
        {name: tuple(chosen) for name, chosen in saved["data"].get("bands", {}).items()},
        {name: Statistics(**s) for name, s in record["statistics"].items()},
        record["step"],
        origin_of(record),
    )


def begun(values: Mapping[str, Any]) -> tuple[PretrainConfig, Encoder | None]:
    """A checked pre-training configuration, with the model and bands of its `init_from` where it names one.

    Args:
        values: nested dict of a configuration file.

    Raises:
        ConfigError: see `PretrainConfig.of` and `encoder_of`.
    """
    config = PretrainConfig.of(values)
    if not config.init_from:
        return config, None
    encoder = _saved(config, {})
    return dataclasses.replace(config, model=encoder.model, override={}, data=encoder.data(config.data)), encoder


def _sized(model: Mapping[str, Any], data: DataConfig) -> dict[str, Any]:
    """A model that takes images of the size that the data shows it."""
    shown = {name for stream in data.streams.values() for name in stream.sensors}
    sizes = {data.size(name) for name in models.image_sizes(model) if name in shown}
    if len(sizes) > 1:
        raise ConfigError(f"data shows images of {sorted(sizes)} px to an encoder that takes one size: set data.sizes")
    return dict(model) | ({"image_size": sizes.pop()} if sizes else {})
