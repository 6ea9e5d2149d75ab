"""The data sets of a run and batches of them, as its configuration says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from input_pipeline.dataset import Dataset, open_dataset
from input_pipeline.reader import BatchIterator, train_batches
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax import tasks
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.run import Encoder, FinetuneConfig, Run, TaskSpec
from ringmoe_jax.tasks import SENSOR, Target

TRAIN, VALIDATION, TEST = "train", "validation", "test"


def open_training(data: DataConfig, mesh: jax.sharding.Mesh | None, accumulate: int) -> BatchIterator:
    """Batches for training on this host, which split evenly over the devices and micro-batches.

    Raises:
        UserError: see `input_pipeline.reader.train_batches`.
    """
    multiple = (mesh.size if mesh else 1) * accumulate
    return train_batches(data, host=jax.process_index(), hosts=jax.process_count(), multiple_of=multiple)


def open_streams(data: DataConfig, sensors: Collection[str] | None = None) -> list[Dataset]:
    """The data sets of a config's streams, each opened once, with the sensors that are wanted; all by default."""
    wanted: dict[str, list[str]] = {}
    for stream in data.streams.values():
        chosen = [name for name in stream.sensors if sensors is None or name in sensors]
        wanted.setdefault(stream.directory, []).extend(chosen)
    return [open_dataset(d, tuple(dict.fromkeys(names)), data.bands) for d, names in wanted.items() if names]


def open_for(run: Run, directories: Sequence[str] = ()) -> list[Dataset]:
    """Data sets with the sensors that a run's model reads; by default those that the run was trained on.

    Raises:
        DataError: a data set holds none of them.
    """
    if not directories:
        return open_streams(run.data)
    opened = []
    for directory in directories:
        stored = open_dataset(directory, ()).metadata.sensors
        sensors = tuple(name for name in run.sensors if name in stored)
        if not sensors:
            raise DataError(f"{directory} holds {', '.join(stored)}, the model reads {', '.join(run.sensors)}")
        opened.append(open_dataset(directory, sensors, run.data.bands))
    return opened


def meets(run: Run, sensors: Sequence[str], directories: Sequence[str] = ()) -> Run:
    """A run with sensors that were not there in training, normalised as the first data set that holds them was.

    Args:
        run: of features.
        sensors: see `Run.with_sensors`.
        directories: of data sets; by default those that the run was trained on.

    Raises:
        ConfigError: see `Run.with_sensors`.
    """
    statistics = {}
    for directory in directories or [stream.directory for stream in run.data.streams.values()] if sensors else ():
        stored = open_dataset(directory, ()).metadata.sensors
        names = [n for n in sensor_table.own_names(sensors) if n in stored and stored[n].mean is not None]
        statistics = {name: open_dataset(directory, (name,)).statistics(name) for name in names} | statistics
    return run.with_sensors(sensors, statistics)


def by_name(folders: Sequence[str]) -> dict[str, str]:
    """Folders of `--beside` by their own names, which tables show.

    Raises:
        ConfigError: two have one name.
    """
    named = {Path(folder).name: str(folder) for folder in folders}
    if len(named) < len(folders):
        raise ConfigError(f"--beside {' '.join(map(str, folders))}: two folders have one name, rename one of them")
    return named


def open_labelled(config: FinetuneConfig, encoder: Encoder, directory: str = "") -> Dataset:
    """The data set that a task learns from, or another one that it is scored on.

    Args:
        config: of the task.
        encoder: that its head is put on.
        directory: default: of the config's stream.

    Raises:
        ConfigError: the stream is to show a sensor that the encoder does not know.
        DataError: the data set does not hold what it is asked for.
    """
    (stream,) = config.data.streams.values()
    truth = config.task.get("target")
    unknown = [name for name in stream.sensors if name not in encoder.sensors and name != truth]
    if unknown or not set(stream.sensors) - {truth}:
        where = f"the checkpoint {config.init_from}" if config.init_from else "config.model"
        odd = f'"{unknown[0]}"' if unknown else "no sensor beside the truth"
        raise ConfigError(
            f"data.streams shows {odd}, but {where} reads {', '.join(encoder.sensors)}: "
            "name sensors that both have, or pre-train an encoder with this one"
        )
    return open_dataset(directory or stream.directory, stream.sensors, encoder.data(config.data).bands)


def task_spec(config: FinetuneConfig, dataset: Dataset) -> TaskSpec:
    """What the config's task learns from a data set.

    Raises:
        ConfigError: the data set has no such label or sensor, or the task cannot learn it.
    """
    task = tasks.build(config.task)
    name, labels = task.target, dataset.labels
    dates = {sensor: config.data.frames.get(sensor, dataset.shape(sensor)[0]) for sensor in dataset.sensors}
    if name in labels:
        label, carrier = labels[name], dataset.carrier(name)
        if label.sensor and not carrier:
            raise ConfigError(
                f'the label "{name}" lies on the pixels of "{label.sensor}", which data.streams does not show, and no '
                f"sensor that it shows ({', '.join(dataset.sensors)}) has the same dates, rows and columns: add it"
            )
        target = Target(name, label.kind, label.names, carrier, dates[carrier or next(iter(dates))], label.colours)
    elif name in dataset.sensors:
        target = Target(name, SENSOR, (), name, dates[name])
    else:
        known = ", ".join(f"{label} ({info.kind})" for label, info in labels.items()) or "none"
        raise ConfigError(
            f'{dataset.directory} has no label "{name}": its labels are {known}; set config.task.target to one of '
            f"them, or to a sensor whose pixels are the truth ({', '.join(dataset.metadata.sensors)})"
        )
    task.check(target)
    return TaskSpec(target, dates)


def scored_split(dataset: Dataset, asked: str = "") -> str:
    """The split to score: the one asked for; for "" the test split of a data set that has one, else validation.

    Raises:
        DataError: the data set does not have it.
    """
    split = asked or (TEST if TEST in dataset.counts else VALIDATION)
    dataset.size(split)
    return split


def check_hidden(without: Collection[str], sensors: Collection[str]) -> None:
    """Raises a `ConfigError` where a sensor is to be hidden that a model does not read, or none would be left."""
    for name in without:
        if name not in sensors:
            raise ConfigError(f'--without "{name}": {nearest(name, sensors)}')
    if set(sensors) <= set(without):
        raise ConfigError(f"--without {' '.join(without)} leaves no sensor to look at")


def hide(batch: Mapping, sensors: Collection[str]) -> Mapping:
    """A batch without the pixels of some sensors, as if they had not been observed."""
    blank = lambda entry: entry | {key: np.zeros_like(entry[key]) for key in ("pixels", "valid")}  # noqa: E731
    return {**batch, "sensors": {k: blank(e) if k in sensors else e for k, e in batch["sensors"].items()}}
