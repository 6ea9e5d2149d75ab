"""Names of machines, such as "v5p:4x4x8" or "h100:64", and devices to compile for without owning one."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import re

import jax

from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.planning.chips import CHIPS, Chip

EFFORT_O1 = 19  # XLA's number for it; jax 0.10.2 takes no names, newer ones take both
EXAMPLES = "v5e:16x16, v5p:4x4x8, v6e:16x16, tpu7x:4x4x4, h100:64, gpu:64:80GB, cpu:8"
# What the GPU compiler asks of a chip: multiprocessors, clock (GHz), level-2 cache and shared memory per
# multiprocessor (bytes), compute capability. NVIDIA's tuning guides of Ampere, Hopper and Blackwell.
_GPUS = {
    "a100": (108, 1.41, 40 * 2**20, 164 * 2**10, (8, 0)),
    "h100": (132, 1.98, 50 * 2**20, 228 * 2**10, (9, 0)),
    "h200": (132, 1.98, 50 * 2**20, 228 * 2**10, (9, 0)),
    "b200": (148, 1.97, 126 * 2**20, 228 * 2**10, (10, 0)),
}
# So that libtpu neither looks for a machine, nor locks other programs out, nor talks.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine to plan for.

    Attributes:
        name: as it was asked for.
        chip: what one device can do.
        shape: chips along each side; one number for GPUs and CPUs.
        installed: bytes of one device's memory; 0 where unknown.
        memory: those that a program may use.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    installed: float
    memory: float

    @property
    def count(self) -> int:
        """Devices, as JAX counts them."""
        return math.prod(self.shape) * self.chip.per_chip


def parse(name: str) -> Topology:
    """Reads `<chip>:<sides>` or `<chip>:<count>[:<memory>]`, for example "v5e:16x16" or "gpu:64:80GB".

    Raises:
        ConfigError: no such chip (names the nearest), or the sides or the memory make no sense.
    """
    kind, _, rest = name.partition(":")
    if kind not in CHIPS:
        raise ConfigError(f'topology "{name}": no chip "{kind}": {nearest(kind, CHIPS)}; for example {EXAMPLES}')
    chip = CHIPS[kind]
    sides, _, memory = rest.partition(":")
    if not re.fullmatch(r"[1-9]\d*" + r"x[1-9]\d*" * (chip.dimensions - 1), sides):
        wanted = "x".join("NNN"[: chip.dimensions]) if chip.dimensions > 1 else "a number of devices"
        raise ConfigError(f'topology "{name}": got "{sides}" after "{kind}:", wanted {wanted}; for example {EXAMPLES}')
    shape = tuple(int(side) for side in sides.split("x"))
    if chip.platform == "gpu" and shape[0] > chip.host and shape[0] % chip.host:
        raise ConfigError(f'topology "{name}": more than {chip.host} GPUs come in hosts of {chip.host}, got {shape[0]}')
    if not memory:
        return Topology(name, chip, shape, chip.memory, chip.limit)
    number = re.fullmatch(r"(\d+(?:\.\d+)?)(GB|GiB)", memory)
    if not number or chip.platform == "tpu":
        wanted = "nothing, a TPU's memory is known" if chip.platform == "tpu" else 'for example "80GB" or "80GiB"'
        raise ConfigError(f'topology "{name}": got the memory "{memory}", wanted {wanted}')
    size = float(number[1]) * (1e9 if number[2] == "GB" else 2**30)
    return Topology(name, chip, shape, size, size * chip.share)


def start(topology: Topology) -> None:
    """Call before JAX first touches a device: it runs on the CPU, whatever the machine has."""
    jax.config.update("jax_platforms", "cpu")
    if topology.chip.platform == "cpu":
        with contextlib.suppress(RuntimeError):  # too late, JAX runs already
            jax.config.update("jax_num_cpu_devices", topology.count)
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)


def devices(topology: Topology) -> list:
    """Devices to build a mesh of. TPUs and GPUs need no hardware, only their compiler. See `start`.

    Raises:
        ConfigError: the compiler is not installed, or it knows no such topology.
    """
    if topology.chip.platform == "cpu":
        return _cpus(topology.count)
    from jax.experimental import topologies

    try:
        if topology.chip.platform == "tpu":
            options = {"chip_config_name": "megacore"} if topology.chip.name == "v4" else {}
            described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
        else:
            hosts = max(1, topology.count // topology.chip.host)
            described = topologies.get_topology_desc(
                topology.chip.name,
                "cuda",
                target_config=_gpu_target(topology),
                topology=f"1x{hosts}x{topology.count // hosts}",
            )
    except Exception as error:
        raise ConfigError(_explain(topology, error)) from error
    return list(described.devices)


def compiler_options(topology: Topology, *, full: bool = False) -> dict[str, str | int]:
    """Options of `lowered.compile` that suit a plan.

    TPU programs are compiled at XLA's first effort level (our choice): the step of `configs/ringmoe.py:14b` then
    took 218 s instead of 370 s for 128 TPU v5p and 347 s instead of 509 s for 256 TPU v5e, on 2 shared cores. Its
    temporaries came out 36 % larger and 5 % smaller, respectively.
    Kernels of an absent GPU cannot be timed.

    Args:
        topology: what to compile for.
        full: the effort that training takes.
    """
    return {
        "tpu": {} if full else {"optimization_level": EFFORT_O1},
        "gpu": {"xla_gpu_autotune_level": "0"},
        "cpu": {},
    }[topology.chip.platform]


def _explain(topology: Topology, error: Exception) -> str:
    text = " ".join(str(error).split())
    missing = {"tpu": "libtpu", "gpu": "cuda"}[topology.chip.platform]
    installed = _installed("libtpu") if missing == "libtpu" else _installed("jax_cuda13_plugin")
    if not installed:
        return f"compiling for {topology.name} needs {missing}: pip install -r requirements-plan.txt"
    return f'the compiler refuses the topology "{topology.name}": {text[:200]}'


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _cpus(count: int) -> list:
    found = jax.devices("cpu")
    if len(found) < count:
        raise ConfigError(f'topology "cpu:{count}": this program has {len(found)} CPU devices: start a new one')
    return found[:count]


def _gpu_target(topology: Topology) -> str:
    """A `GpuTargetConfigProto` in text form, for a compiler without the GPU."""
    cores, clock, cache, shared, (major, minor) = _GPUS.get(topology.chip.name, _GPUS["h100"])
    bandwidth = topology.chip.bandwidth or CHIPS["h100"].bandwidth
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 2**10,
        "shared_memory_per_core": shared,
        "shared_memory_per_block_optin": shared - 2**10,
        "threads_per_core_limit": 2048,
        "core_count": cores,
        "fpus_per_core": 64 if major == 8 else 128,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "memory_bandwidth": int(bandwidth),
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": int(topology.installed),
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
    }
    fields = " ".join(f"{key}: {value}" for key, value in device.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} minor: {minor} }} }} "
        'platform_name: "CUDA" runtime_version { major: 13 minor: 0 patch: 0 } '
        f'dnn_version_info {{ major: 9 minor: 12 }} device_description_str: "{topology.chip.name.upper()}"'
    )
