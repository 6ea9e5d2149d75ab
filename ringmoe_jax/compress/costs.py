"""What it costs to encode an image with a network, on this machine: parameters, bytes, FLOPs, time, memory.

Several networks are measured in one run: timed calls take turns, and every peak of memory is that of a fresh process.
Decoders, which a deployed encoder does not have, are left out of all figures but the bytes and the memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from ringmoe_jax import clock
from ringmoe_jax.compress.quantise import nbytes
from ringmoe_jax.errors import TrainingError
from ringmoe_jax.models import Model, Params, count
from ringmoe_jax.parallel import hlo
from ringmoe_jax.sensors import Sensor

REPEATS = 15  # timed calls
LIMIT = 900  # seconds for the process that measures memory


class Runnable(Protocol):
    """A dataclass with a network in it, such as a run. A copy of it can be pickled."""

    @property
    def model(self) -> Model: ...

    @property
    def params(self) -> Params: ...


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a network is, and how much it computes.

    Attributes:
        parameters: of the encoder, without decoders.
        decoders: parameters of the decoders.
        bytes: of all parameters as they are stored.
        flops: of products, for one image, as compiled: 2 M N K each, empty buffer rows of experts included.
    """

    parameters: int
    decoders: int
    bytes: int
    flops: float


@dataclasses.dataclass(frozen=True)
class Costs(Size):
    """Also what it takes on this machine.

    Attributes:
        seconds: median for one image, all chosen sensors alike.
        ratio: seconds over those of the first network.
        peak_bytes: largest resident memory of a process that loads the network, compiles and runs it, on the CPU.
        idle_bytes: of that process before it loads the network.
    """

    seconds: float
    ratio: float
    peak_bytes: int
    idle_bytes: int


@dataclasses.dataclass(frozen=True)
class Gap:
    """How far the tokens of two networks lie apart.

    Attributes:
        largest: difference of two values; 0 where all bits agree.
        scale: largest value.
    """

    largest: float
    scale: float


def compare(networks: Mapping[str, Runnable], batch: Mapping, repeats: int = 0) -> tuple[dict[str, Costs], Gap]:
    """Measures several networks on the same images.

    Args:
        networks: by name, at least two; the first is what the others are compared with.
        batch: of sensors that all of them take, for example of `noise`; T = 1.
        repeats: timed calls of each, 0 is `REPEATS`.

    Returns:
        Costs by name, and the gap between the first two networks.
    """
    images, on_device = _images(batch), jax.device_put(batch)
    jobs, sizes = {}, {}
    for name, network in networks.items():
        params = jax.device_put(network.params)
        compiled = encoder(network.model).lower(params, on_device).compile()
        sizes[name] = _size(network.params, compiled, images)
        jobs[name] = lambda run=compiled, params=params: run(params, on_device)
    seconds = clock.interleaved(jobs, repeats or REPEATS)
    first = next(iter(seconds.values()))
    gap = _gap(*(jax.device_get(jobs[name]()) for name in list(networks)[:2]))
    costs = {}
    for name, network in networks.items():
        peak, idle = peak_memory(network, batch)
        taken = seconds[name]
        costs[name] = Costs(
            **vars(sizes[name]), seconds=taken / images, ratio=taken / first, peak_bytes=peak, idle_bytes=idle
        )
    return costs, gap


def size(network: Runnable, batch: Mapping) -> Size:
    """Parameters, bytes and products of a network.

    Args:
        network: see `compare`.
        batch: images, see `compare`.
    """
    return _size(network.params, encoder(network.model).lower(network.params, batch).compile(), _images(batch))


def encoder(model: Model) -> Callable:
    """Jitted `(params, batch) -> tokens`; the compiler drops the decoders."""
    return jax.jit(lambda params, batch: model.apply(params, batch)["tokens"])


def noise(sensors: Mapping[str, Sensor], sides: Mapping[str, int], rows: int) -> dict:
    """A batch of normal noise with the mean and deviation of every band, everything valid, nothing hidden.

    Args:
        sensors: by name.
        sides: rows and columns of an image by sensor, in pixels.
        rows: B.
    """
    rng, entries = np.random.default_rng(0), {}
    for name, sensor in sensors.items():
        side, known = sides[name], sensor.statistics
        pixels = rng.standard_normal((rows, 1, side, side, sensor.channels), np.float32)
        pixels = pixels * np.float32(known.std) + np.float32(known.mean)
        entries[name] = {"pixels": pixels, "valid": np.ones((rows, 1, side, side), bool)}
    return {"sensors": entries}


def peak_memory(network: Runnable, batch: Mapping) -> tuple[int, int]:
    """Largest resident bytes of a fresh process that runs a network on a batch, on the CPU, and those before it did.

    Raises:
        TrainingError: that process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pickle"
        with path.open("wb") as file:
            pickle.dump(type(network), file)  # its modules are loaded before memory is looked at first
            pickle.dump(dataclasses.replace(network, params=jax.device_get(network.params)), file)
            pickle.dump(batch, file)
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        quiet = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(
            [sys.executable, "-m", "ringmoe_jax.compress.costs", str(path)],
            env=os.environ | quiet,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrainingError(f"the process that measures memory failed with status {done.returncode}: {reason}")
    peak, idle = json.loads(done.stdout.splitlines()[-1])
    return peak, idle


def _images(batch: Mapping) -> int:
    return sum(len(entry["pixels"]) for entry in batch["sensors"].values())


def _size(params: Params, compiled, images: int) -> Size:
    decoders = count(params.get("decoders", {}))
    return Size(count(params) - decoders, decoders, nbytes(params), hlo.analyse(compiled.as_text()).flops / images)


def _gap(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> Gap:
    """Of tokens by sensor."""
    gaps = [float(np.abs(first[name] - second[name]).max()) for name in second]
    return Gap(max(gaps), max(float(np.abs(x).max()) for x in first.values()))


def _high_water() -> int:
    """Largest resident bytes of this process so far; `getrusage` would count the one that started it on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024


def _run(path: str) -> None:
    """Loads what `peak_memory` wrote, runs it once and prints the two figures."""
    jax.devices()
    with Path(path).open("rb") as file:
        pickle.load(file)
        idle = _high_water()
        network, batch = pickle.load(file), pickle.load(file)
    jax.block_until_ready(encoder(network.model)(jax.device_put(network.params), jax.device_put(batch)))
    print(json.dumps([_high_water(), idle]))


if __name__ == "__main__":
    _run(sys.argv[1])
