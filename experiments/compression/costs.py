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

import jax
import numpy as np

from experiments.benchmarks import clock
from experiments.common import ExperimentConfig
from experiments.compression.recipe import Version
from ringmoe_jax import compress
from ringmoe_jax.errors import TrainingError
from ringmoe_jax.models import count
from ringmoe_jax.planning import hlo
from ringmoe_jax.sensors import Sensor

ROWS = 4  # images of every sensor in a call
REPEATS = 15  # timed calls
LIMIT = 900  # seconds for the process that measures memory


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one network.

    Attributes:
        parameters: of the encoder, without decoders.
        decoders: parameters of the decoders.
        bytes: of all parameters as they are stored.
        flops: of products, for one image, as compiled: 2 M N K each, empty buffer rows of experts included.
        seconds: median for one image, all chosen sensors alike.
        ratio: seconds over those of the first network.
        peak_bytes: largest resident memory of a process that loads the network, compiles and runs it, on the CPU.
        idle_bytes: of that process before it loads the network.
    """

    parameters: int
    decoders: int
    bytes: int
    flops: float
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


def compare(versions: Mapping[str, Version], rows: int = ROWS, repeats: int = REPEATS) -> tuple[dict[str, Costs], Gap]:
    """Measures several networks on the same images, noise of every sensor of the last one.

    Args:
        versions: by name, at least two; the first is what the others are compared with. All take the sensors of the
            last one.
        rows: images of every sensor in a call.
        repeats: timed calls of each.

    Returns:
        Costs by name, and the gap between the first two networks.
    """
    last = list(versions.values())[-1]
    batch = noise(last.sensors, ExperimentConfig.of(last.config), rows)
    images, on_device = rows * len(last.sensors), jax.device_put(batch)
    jobs, flops = {}, {}
    for name, version in versions.items():
        params = jax.device_put(version.params)
        compiled = encoder(version).lower(params, on_device).compile()
        flops[name] = hlo.analyse(compiled.as_text()).flops / images
        jobs[name] = lambda run=compiled, params=params: run(params, on_device)
    seconds = clock.interleaved(jobs, repeats)
    first = next(iter(seconds.values()))
    gap = _gap(*(jax.device_get(jobs[name]()) for name in list(versions)[:2]))
    costs = {}
    for name, version in versions.items():
        decoders = count(version.params.get("decoders", {}))
        peak, idle = peak_memory(version, batch)
        costs[name] = Costs(
            parameters=count(version.params) - decoders,
            decoders=decoders,
            bytes=compress.nbytes(version.params),
            flops=flops[name],
            seconds=seconds[name] / images,
            ratio=seconds[name] / first,
            peak_bytes=peak,
            idle_bytes=idle,
        )
    return costs, gap


def _gap(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> Gap:
    """Of tokens by sensor."""
    gaps = [float(np.abs(first[name] - second[name]).max()) for name in second]
    return Gap(max(gaps), max(float(np.abs(x).max()) for x in first.values()))


def flops(version: Version, rows: int = ROWS) -> float:
    """Of products for one image, as compiled."""
    batch = noise(version.sensors, ExperimentConfig.of(version.config), rows)
    compiled = encoder(version).lower(version.params, batch).compile()
    return hlo.analyse(compiled.as_text()).flops / (rows * len(version.sensors))


def encoder(version: Version) -> Callable:
    """Jitted `(params, batch) -> tokens`; the compiler drops the decoders."""
    model = version.parts().model
    return jax.jit(lambda params, batch: model.apply(params, batch)["tokens"])


def noise(sensors: Mapping[str, Sensor], config: ExperimentConfig, rows: int) -> dict:
    """A batch of normal noise with the mean and deviation of every band, everything valid, nothing hidden."""
    rng, entries = np.random.default_rng(0), {}
    for name, sensor in sensors.items():
        side, known = config.data.size(name), sensor.statistics
        pixels = rng.standard_normal((rows, 1, side, side, sensor.channels), np.float32)
        pixels = pixels * np.float32(known.std) + np.float32(known.mean)
        entries[name] = {"pixels": pixels, "valid": np.ones((rows, 1, side, side), bool)}
    return {"sensors": entries}


def peak_memory(version: Version, batch: Mapping) -> tuple[int, int]:
    """Largest resident bytes of a fresh process that runs a network on a batch, on the CPU, and those before it did.

    Raises:
        TrainingError: that process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pickle"
        with path.open("wb") as file:
            pickle.dump(dataclasses.replace(version, params=jax.device_get(version.params)), file)
            pickle.dump(batch, file)
        command = [sys.executable, "-m", "experiments.compression.costs", str(path)]
        root, quiet = Path(__file__).parents[2], os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        done = subprocess.run(command, cwd=root, env=quiet, capture_output=True, text=True, timeout=LIMIT, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TrainingError(f"the process that measures memory failed with status {done.returncode}: {reason}")
    peak, idle = json.loads(done.stdout.splitlines()[-1])
    return peak, idle


def _high_water() -> int:
    """Largest resident bytes of this process so far; `getrusage` would count the one that started it on Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024


def _run(path: str) -> None:
    """Loads what `peak_memory` wrote, runs it once and prints the two figures."""
    jax.devices()
    idle = _high_water()
    with Path(path).open("rb") as file:
        version, batch = pickle.load(file), pickle.load(file)
    jax.block_until_ready(encoder(version)(jax.device_put(version.params), jax.device_put(batch)))
    print(json.dumps([_high_water(), idle]))


if __name__ == "__main__":
    _run(sys.argv[1])
