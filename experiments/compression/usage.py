"""Counts what every expert does on the training images, in one pass that can be stopped and resumed."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import common
from experiments.common import ExperimentConfig
from experiments.compression.recipe import Version
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax.compress import Usage
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.moe.statistics import Statistics as Routing
from ringmoe_jax.parallel import sharding
from ringmoe_jax.parallel.mesh import MeshConfig, replicated
from ringmoe_jax.training import loop

BATCH = 32  # images of all hosts, but at least one a device
EVERY = 20  # batches between two saves, with a line of progress each
SPLIT = "train"
USAGE = "usage.npz"


def measure(version: Version, folder: Path, dataset: str = "") -> Usage:
    """Shows a network every training image once, whole and without masks, one sensor after the other.

    Goes on where an earlier call was stopped, with the same sums. A sensor that a sample lacks counts nothing.

    Args:
        version: the network whose experts are counted.
        folder: gets `usage.npz`; until then every host reads its position from the name of `usage.<batches>.npz`.
        dataset: folder of a data set; default those of the run.

    Raises:
        UserError: the data set lacks a sensor, there is no image, or the folder holds the pass of something else.
    """
    config = ExperimentConfig.of(version.config)
    readers = {name: _reader(config, name, dataset) for name in config.sensors}
    _claim(folder, version, readers)
    if (folder / USAGE).exists():
        return load(folder / USAGE, version)
    mesh = common.make_mesh(MeshConfig())
    count = _counter(version, readers, mesh)
    total = sum(map(len, readers.values()))
    usage, done = _resume(folder, version)
    images, started = 0, time.perf_counter()
    for number, (name, batch) in enumerate(_batches(readers, skip=done), done + 1):
        routing, seen = count(name, batch)
        usage = usage.add(routing, {config.sensors[name].modality: seen})
        images += seen
        if number % EVERY == 0 or number == total:
            _save(usage, folder / f"usage.{number}.npz")
            speed = images / (time.perf_counter() - started)
            print(f"usage       batch {number} of {total}, {images:,} images, {speed:.1f} images/s", flush=True)
    if not any(usage.images.values()):
        raise DataError(f"no training image shows {', '.join(readers)}: give --dataset with some")
    if jax.process_index() == 0:
        (folder / f"usage.{total}.npz").replace(folder / USAGE)
        for draft in folder.glob("usage.*.npz"):
            draft.unlink()
    for name, reader in readers.items():
        if reader.bad_records:
            print(f"note        {reader.bad_records} broken records of {name} were not counted")
    return usage


def load(path: Path, version: Version) -> Usage:
    """Reads what was counted before, and checks that it is about this network's experts.

    Raises:
        UserError: there is no such file, or it is about other modalities or layers.
    """
    if not path.exists():
        raise DataError(f"--statistics {path} does not exist: leave it out to count what the experts do")
    usage = Usage.load(path)
    if tuple(usage.modalities) != version.modalities:
        raise ConfigError(
            f"{path} is about the modalities {', '.join(usage.modalities)}, wanted {', '.join(version.modalities)}: "
            "leave out --statistics to count anew"
        )
    return usage


def _reader(config: ExperimentConfig, sensor: str, dataset: str) -> EvalBatches:
    """This host's share of the training images of a sensor."""
    if dataset:
        known = open_dataset(dataset, ()).metadata.sensors
        if sensor not in known:
            raise DataError(f'--dataset {dataset} holds {", ".join(known)}, but not "{sensor}", which is to be kept')
        directory, split = dataset, SPLIT
    else:
        streams = [stream for stream in config.data.streams.values() if sensor in stream.sensors]
        if not streams:
            raise DataError(f'no stream of the run shows "{sensor}": give --dataset with a folder that does')
        directory, split = streams[0].directory, streams[0].split
    shards = len(jax.devices())
    return EvalBatches(
        directory,
        (sensor,),
        split=split,
        image_size=config.data.image_size,
        sizes={name: size for name, size in config.data.sizes.items() if name == sensor},
        frames={name: count for name, count in config.data.frames.items() if name == sensor},
        batch_size=-(-BATCH // shards) * shards // jax.process_count(),
        bands=config.data.bands,
        host=jax.process_index(),
        hosts=jax.process_count(),
        max_bad_records=config.data.max_bad_records,
    )


def _batches(readers: Mapping[str, EvalBatches], skip: int) -> Iterator[tuple[str, Mapping]]:
    """All batches but the first `skip`; whole sensors are skipped unread."""
    for name, reader in readers.items():
        passed = min(skip, len(reader))
        skip -= passed
        if passed < len(reader):
            for number, batch in enumerate(reader):
                if number >= passed:
                    yield name, batch


def _counter(version: Version, readers: Mapping[str, EvalBatches], mesh) -> Callable:
    """Builds `count(sensor, batch) -> (routing statistics of the images that were observed, their number)`.

    Rows that fill up a batch, and those of samples without the sensor, are images of nothing. Sums are over images
    that do not know of each other (no token is dropped), so what such an image adds is taken off again.
    """
    moe = version.config["model"].get("moe", {}) | {"measure": True, "engine": "dropless"}
    model = version.of(version.network._replace(model=version.config["model"] | {"moe": moe})).parts(mesh).model
    place = {} if mesh is None else {"out_shardings": replicated(mesh)}
    forward = jax.jit(lambda params, batch: model.apply(params, batch)["routing"], **place)
    params = (
        version.params if mesh is None else jax.device_put(version.params, sharding.shardings(version.params, mesh))
    )

    def run(batch: Mapping) -> dict[str, Routing]:
        found = jax.device_get(forward(params, loop.place(batch, mesh)))
        return jax.tree.map(lambda x: np.asarray(x, np.float64), found)

    @functools.cache
    def nothing(name: str) -> dict[str, Routing]:
        """What a batch of images adds in which nothing was observed."""
        batch = next(iter(readers[name]))
        return run({"sensors": {name: _blank(batch["sensors"][name])}})

    def count(name: str, batch: Mapping) -> tuple[dict[str, Routing], int]:
        entry = batch["sensors"][name]
        observed = entry["valid"].any(axis=(1, 2, 3))
        rows, seen = _sum_over_hosts(len(observed), observed.sum())
        routing = run({"sensors": {name: entry}})
        if seen < rows:
            share = (rows - seen) / rows
            empty = nothing(name)
            routing = {group: _less(of, empty[group], share) for group, of in routing.items()}
        return routing, seen

    return count


def _blank(entry: Mapping) -> dict:
    return dict(entry) | {key: np.zeros_like(entry[key]) for key in ("pixels", "valid")}


def _less(routing: Routing, empty: Routing, share: float) -> Routing:
    """Takes a share of `empty` off all sums; the balance loss is none."""
    return jax.tree.map(lambda x, e: x - share * e, routing, empty)._replace(balance=routing.balance)


def _sum_over_hosts(*counts: int) -> tuple[int, ...]:
    if jax.process_count() == 1:
        return tuple(map(int, counts))
    from jax.experimental import multihost_utils

    return tuple(map(int, multihost_utils.process_allgather(np.array(counts)).sum(axis=0)))


def _claim(folder: Path, version: Version, readers: Mapping[str, EvalBatches]) -> None:
    """Writes down what is counted, or raises where the folder holds the pass of something else."""
    settings: dict[str, Any] = {
        "step": version.step,
        "model": version.config["model"],
        "batches": {name: len(reader) for name, reader in readers.items()},
        "data": {name: reader.dataset.directory for name, reader in readers.items()},
        "hosts": jax.process_count(),
    }
    settings = json.loads(json.dumps(settings))
    path = folder / "usage.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise ConfigError(f"{folder} holds expert statistics of another network or data set: choose another --out")
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=1) + "\n")


def _resume(folder: Path, version: Version) -> tuple[Usage, int]:
    """The newest sums of a pass that was stopped, and after how many batches."""
    drafts = {int(path.name.split(".")[1]): path for path in folder.glob("usage.*.npz")}
    if not drafts:
        return Usage.none(version.modalities), 0
    print(f"usage       going on after batch {max(drafts)}")
    return Usage.load(drafts[max(drafts)]), max(drafts)


def _save(usage: Usage, path: Path) -> None:
    """The newest sums stay, older ones go."""
    if jax.process_index():
        return
    usage.save(path)
    for other in path.parent.glob("usage.*.npz"):
        if other != path:
            other.unlink()
