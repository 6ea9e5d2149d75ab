"""Counts what every expert does on some images, in one pass that can be stopped and resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.compress.usage import Usage
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models import Model, Params
from ringmoe_jax.moe.statistics import RoutingStatistics
from ringmoe_jax.parallel import processes, sharding
from ringmoe_jax.parallel.mesh import replicated
from ringmoe_jax.sensors import Sensor
from ringmoe_jax.training import loop

EVERY = 20  # batches between two saves, with a line of progress each
USAGE = "usage.npz"


class Batches(Protocol):
    """Batches of one sensor, as `ringmoe_jax.contracts` describes them: the same ones in every pass."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Mapping]: ...


def measuring(model: Mapping[str, Any]) -> dict[str, Any]:
    """`config.model` of the network whose experts `count` counts: it measures all that they do, and drops no token."""
    return {**model, "moe": {**model.get("moe", {}), "measure": True, "engine": "dropless"}}


def count(
    model: Model,
    params: Params,
    sensors: Mapping[str, Sensor],
    readers: Mapping[str, Batches],
    folder: Path,
    mesh: jax.sharding.Mesh | None = None,
) -> Usage:
    """Shows a network every image once, without masks, one sensor after the other.

    Goes on where an earlier call was stopped, with the same sums; the caller sees to it that a folder is used for one
    network and the same batches. A sensor that a sample lacks counts nothing.

    Args:
        model: built from `measuring` of its config, on `mesh`.
        params: what it takes.
        sensors: of the model, by name.
        readers: of the sensors whose images are counted, this host's share of all batches.
        folder: gets `usage.npz`; until then every host reads its position from the name of `usage.<batches>.npz`.
        mesh: None on one device.

    Returns:
        What was counted, by the modalities of `sensors`.

    Raises:
        DataError: there is no image of any sensor.
    """
    modalities = sensor_table.modalities(sensors)
    if processes.from_first((folder / USAGE).exists):
        return load(folder / USAGE, modalities)
    add_up = _counter(model, params, mesh)
    total = sum(map(len, readers.values()))
    usage, done = _resume(folder, modalities)
    images, started = 0, time.perf_counter()
    for number, (name, batch) in enumerate(_batches(readers, skip=done), done + 1):
        routing, seen = add_up(name, batch)
        usage = usage.add(routing, {sensors[name].modality: seen})
        images += seen
        if number % EVERY == 0 or number == total:
            _save(usage, folder / f"usage.{number}.npz")
            speed = images / (time.perf_counter() - started)
            print(f"usage       batch {number} of {total}, {images:,} images, {speed:.1f} images/s", flush=True)
    if not any(usage.images.values()):
        raise DataError(f"no image shows {', '.join(readers)}: show some")
    if jax.process_index() == 0:
        (folder / f"usage.{total}.npz").replace(folder / USAGE)
        for draft in folder.glob("usage.*.npz"):
            draft.unlink()
    return usage


def load(path: Path, modalities: tuple[str, ...]) -> Usage:
    """Reads what was counted before, and checks that it is about the experts of these modalities.

    Raises:
        UserError: there is no such file, or it is about other modalities.
    """
    usage = Usage.load(path)
    if tuple(usage.modalities) != modalities:
        raise ConfigError(
            f"{path} is about the modalities {', '.join(usage.modalities)}, wanted {', '.join(modalities)}: "
            "leave it out to count anew"
        )
    return usage


def _batches(readers: Mapping[str, Batches], skip: int) -> Iterator[tuple[str, Mapping]]:
    """All batches but the first `skip`; whole sensors are skipped unread."""
    for name, reader in readers.items():
        passed = min(skip, len(reader))
        skip -= passed
        if passed < len(reader):
            for number, batch in enumerate(reader):
                if number >= passed:
                    yield name, batch


def _counter(model: Model, params: Params, mesh) -> Callable:
    """Builds `add_up(sensor, batch) -> (routing statistics of the images that were observed, their number)`.

    Rows that fill up a batch, and those of samples without the sensor, are images of nothing, which choose no expert.
    """
    place = {} if mesh is None else {"out_shardings": replicated(mesh)}
    forward = jax.jit(lambda params, batch: model.apply(params, batch)["routing"], **place)
    if mesh is not None:
        params = jax.device_put(jax.device_get(params), sharding.shardings(params, mesh))

    def add_up(name: str, batch: Mapping) -> tuple[dict[str, RoutingStatistics], int]:
        entry = batch["sensors"][name]
        routing = jax.device_get(forward(params, loop.place({"sensors": {name: entry}}, mesh)))
        routing = jax.tree.map(lambda x: np.asarray(x, np.float64), routing)
        return routing, sum(processes.gather(int(entry["valid"].any(axis=(1, 2, 3)).sum())))

    return add_up


def _resume(folder: Path, modalities: tuple[str, ...]) -> tuple[Usage, int]:
    """The newest sums of a pass that was stopped, and after how many batches."""
    drafts = processes.from_first(lambda: [int(path.name.split(".")[1]) for path in folder.glob("usage.*.npz")])
    if not drafts:
        return Usage.none(modalities), 0
    print(f"usage       going on after batch {max(drafts)}")
    return Usage.load(folder / f"usage.{max(drafts)}.npz"), max(drafts)


def _save(usage: Usage, path: Path) -> None:
    """The newest sums stay, older ones go."""
    if jax.process_index():
        return
    usage.save(path)
    for other in path.parent.glob("usage.*.npz"):
        if other != path:
            other.unlink()
