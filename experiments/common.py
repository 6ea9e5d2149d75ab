"""What the scripts share: configs to objects, checkpoints to models, errors to one line."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from ringmoe_jax import config as configuration
from ringmoe_jax import models, objectives, pretext
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.compress.online import PruningConfig
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError, UserError, nearest
from ringmoe_jax.models import Model, Params
from ringmoe_jax.parallel import host
from ringmoe_jax.parallel import mesh as meshes
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.sensors import Sensor, Statistics
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.loop import TrainConfig
from ringmoe_jax.training.optimizer import OptimizerConfig

CACHE = ".cache/jax"  # of compiled programs


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
    """All keys of a configuration file.

    Attributes:
        model: `name` and the fields of that model's dataclass.
        objectives: {label: {"name": ..., fields of that objective}}.
        data: what is read.
        pretext: which forward passes are made: `name` and the fields of that task's dataclass.
        optimizer: AdamW and its schedule.
        train: how long.
        mesh: devices along each axis.
        pruning: which experts go while the model trains; none by default.
        modules: Python modules to import first, for example one that registers a sensor of your own.
    """

    model: dict[str, Any]
    objectives: dict[str, Any]
    data: DataConfig
    pretext: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "masked"})
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    pruning: PruningConfig = PruningConfig()
    modules: tuple[str, ...] = ()

    @staticmethod
    def of(values: Mapping[str, Any]) -> ExperimentConfig:
        """Checks every key and type of a configuration (a `ConfigDict`'s `to_dict()`, or a checkpoint's)."""
        config = configuration.build(ExperimentConfig, values)
        configuration.import_modules(config.modules)
        for sensor, size in models.image_sizes(config.model).items():
            if (shown := config.data.size(sensor)) != size:
                raise ConfigError(
                    f'config.model.image_size = {size}, but data shows "{sensor}" at {shown} pixels: set '
                    f"config.data.image_size (or config.data.sizes.{sensor}) to the same number"
                )
        return config

    @property
    def sensors(self) -> dict[str, Sensor]:
        """The model's sensors with the bands that `data.bands` selects."""
        return sensors_of(self.model, self.data.bands)


def sensors_of(model: Mapping[str, Any], bands: Mapping[str, Sequence[str]]) -> dict[str, Sensor]:
    """The sensors that a model's config names, by name, with the bands that are selected; all where there are none."""
    selected = {name: sensor_table.get(name).select(chosen) for name, chosen in bands.items()}
    return sensor_table.resolve(tuple(model.get("sensors", ())), selected)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a config builds.

    Attributes:
        sensors: by name, as the model takes them.
        statistics: normalisation by sensor.
        model: pure functions.
        objectives: terms of the loss by label.
        pretext: forward passes.
        mesh: None on one device.
    """

    sensors: dict[str, Sensor]
    statistics: dict[str, Statistics]
    model: Model
    objectives: dict[str, objectives.Objective]
    pretext: pretext.Pretext
    mesh: jax.sharding.Mesh | None


def read_config(path: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Runs `get_config()` of a configuration file and applies `--config.a.b=value` arguments.

    Args:
        path: Python file with `get_config() -> ml_collections.ConfigDict`.
        overrides: command-line arguments; values are Python literals, anything else is a string.

    Returns:
        Nested dict.

    Raises:
        ConfigError: no such file, no such key (names the nearest), or a value of another type.
    """
    if not Path(path).is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.py") if p.stem not in ("__init__", "common"))
        raise ConfigError(f'no configuration file "{path}": {nearest(path, known)}')
    spec = importlib.util.spec_from_file_location("_config", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{path} has no function get_config() that returns an ml_collections.ConfigDict")
    config = module.get_config()
    _open_groups(config)
    for argument in overrides:
        key, equals, text = argument.partition("=")
        if not equals or not key.startswith("--config."):
            raise ConfigError(f'unknown argument "{argument}": wanted --config.<key>=<value>')
        _override(config, key.removeprefix("--config.").split("."), text)
    return config.to_dict()


def _open_groups(config: ConfigDict) -> None:
    """Lets the command line add keys to empty groups, and to those whose `name` says what they hold, as `head` does.

    The dataclass of such a group checks them later.
    """
    config.lock()
    for value in config.values():
        if isinstance(value, ConfigDict):
            _open_groups(value)
            if not value or "name" in value:
                value.unlock()


def _override(config: ConfigDict, keys: Sequence[str], text: str) -> None:
    where = "config"
    for i, key in enumerate(keys):
        last = i == len(keys) - 1
        if last and isinstance(config, ConfigDict) and not config.is_locked and key not in config:
            config[key] = None
        if not isinstance(config, ConfigDict) or key not in config:
            known = config.keys() if isinstance(config, ConfigDict) else ()
            raise ConfigError(f"{where}.{key} does not exist: {nearest(key, known)}")
        if not last:
            config, where = config[key], f"{where}.{key}"
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        value = text
    try:
        config[keys[-1]] = value
    except TypeError as error:
        old = config[keys[-1]]
        raise ConfigError(
            f"{where}.{keys[-1]} = {value!r} is a {type(value).__name__}, wanted a {type(old).__name__} such as {old!r}"
        ) from error


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh | None:
    """The mesh over all devices, or None where there is one device."""
    mesh = meshes.make(config)
    return mesh if mesh.size > 1 else None


def build(config: ExperimentConfig, statistics: Mapping[str, Statistics], mesh=None) -> Parts:
    """Builds model, objectives and pretext task.

    Args:
        config: checked configuration.
        statistics: normalisation of every sensor of the model.
        mesh: see `make_mesh`.
    """
    sensors = config.sensors
    terms, heads = build_objectives(config)
    statistics = {name: statistics[name] for name in sensors if name in statistics}
    model = models.build(config.model, sensors=sensors, statistics=statistics, heads=heads, mesh=mesh)
    wanted = pretext.Wanted(config.train.steps, objectives.collect_projections(terms))
    return Parts(sensors, statistics, model, terms, pretext.build(config.pretext, model, wanted), mesh)


def build_objectives(config: ExperimentConfig) -> tuple[dict[str, objectives.Objective], dict[str, dict[str, int]]]:
    """Objectives by label and the decoder outputs that they need, {sensor: {head: channels}}.

    Raises:
        ConfigError: an objective does not exist, does not suit the model's sensors or the streams of data.
    """
    terms = objectives.build(config.objectives)
    for label, term in terms.items():
        if term.together() and not any(set(term.together()) <= set(s.sensors) for s in config.data.streams.values()):
            raise ConfigError(
                f"objective {label} compares {' and '.join(term.together())} of the same place, but no stream of "
                "config.data.streams holds them all: name them in one stream's sensors"
            )
        unit = config.data.mask_unit
        if isinstance(term, objectives.Reconstruction) and unit and term.footprint > unit:
            side = f"{term.footprint} x {term.footprint}"
            raise ConfigError(
                f"objective {label} needs {side} hidden pixels, but data.mask_unit = {unit} hides fewer at a time: "
                "every target would be left out"
            )
    return terms, objectives.collect_heads(terms, config.sensors)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint, ready to use on one device.

    Attributes:
        config: of the run.
        parts: model and objectives with the statistics of the checkpoint.
        params: what `parts.model` takes: trained parameters, or those that the pretext task exports (a teacher's).
        step: optimiser steps that were taken.
    """

    config: ExperimentConfig
    parts: Parts
    params: Params
    step: int


def load(workdir: str, step: int | None = None) -> Trained:
    """Opens the newest checkpoint of a run, or the one of `step`, on the default device.

    Raises:
        DataError: there is none.
    """
    checkpointer = Checkpointer.open(workdir)
    record = checkpointer.record(step)
    config = ExperimentConfig.of(record["config"])
    parts = build(config, {name: Statistics(**s) for name, s in record["statistics"].items()})
    params, state = checkpointer.restore_model(record["step"])
    checkpointer.close()
    return Trained(config, parts, parts.pretext.export(params, state), record["step"])


def read_run(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Adds what every script that trains takes, reads the command line and the configuration, and sets up the cache.

    Args:
        parser: with the script's own arguments.

    Returns:
        The arguments, and the nested dict of the configuration with its `--config.a.b=value` in it.
    """
    parser.add_argument("--config", required=True, help="configuration file; --config.<key>=<value> changes a value")
    parser.add_argument("--compilation-cache", default=CACHE, help='keeps compiled programs; "" for none')
    arguments, overrides = parser.parse_known_args()
    if arguments.compilation_cache:
        keep_compiled(arguments.compilation_cache)
    return arguments, read_config(arguments.config, overrides)


def keep_compiled(folder: str = CACHE) -> None:
    """Keeps compiled programs in a folder, for runs to come."""
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).absolute()))


def entry_point(main: Callable[..., int | None]) -> Callable[..., None]:
    """Decorator: a `UserError` becomes one line on standard error and exit status 1. Tunes the host's allocator."""

    @functools.wraps(main)
    def run(*arguments, **keywords):
        logging.set_verbosity(logging.WARNING)  # Orbax and TFDS report every file otherwise
        host.keep_memory()
        try:
            sys.exit(main(*arguments, **keywords))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)

    return run
