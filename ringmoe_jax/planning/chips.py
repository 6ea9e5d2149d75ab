"""What accelerators can do at best, as their makers publish it. Plans use it for bounds, never for predictions.

Sources (dense bfloat16, no sparsity; "GB" is 1e9 bytes for GPUs, 2**30 for TPUs):
    TPUs: the "system architecture" page of each generation, docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}.
        `interconnect` is half the published bidirectional bandwidth of a chip. A v4 chip is one device ("megacore"),
        a tpu7x chip is two. `usable` of a TPU is the limit that its compiler names when a program is too large
        (read from libtpu 0.0.50; that of v5p lies above the published 95 GiB).
    GPUs: NVIDIA's data sheets of A100, H100, H200 and B200 (SXM). `interconnect` is NVLink in one direction;
        `network` is one network port per GPU in a DGX of that generation (A100 200 Gbit/s, the others 400).
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them; all figures are per device.

    Attributes:
        name: as in a topology, for example "v5p".
        platform: "tpu", "gpu" or "cpu".
        flops: bfloat16 FLOP/s; 0 where nobody publishes it.
        memory: bytes.
        bandwidth: bytes/s of that memory.
        interconnect: bytes/s out of a device to its neighbours: ICI, or NVLink within a host.
        usable: bytes that a program may use; 0 takes `share` of `memory`.
        share: of `memory`, where `usable` is 0. JAX takes three quarters of a GPU unless told otherwise
            (XLA_PYTHON_CLIENT_MEM_FRACTION).
        network: bytes/s out of a device to other hosts; 0 where the interconnect reaches all devices.
        host: devices of one host, where `network` is not 0.
        dimensions: how many numbers a topology has, for example 3 for "4x4x8"; 1 is a plain count.
        per_chip: devices of one chip.
    """

    name: str
    platform: str
    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    usable: float = 0.0
    share: float = 1.0
    network: float = 0.0
    host: int = 8
    dimensions: int = 1
    per_chip: int = 1

    @property
    def limit(self) -> float:
        """Bytes that a program may use."""
        return self.usable or self.share * self.memory


def _tpu(name, flops, memory, usable, bandwidth, interconnect, dimensions, per_chip=1) -> Chip:
    return Chip(
        name,
        "tpu",
        flops * 1e12,
        memory * GIB,
        bandwidth * 1e9,
        interconnect * 1e9,
        usable=usable * GIB,
        dimensions=dimensions,
        per_chip=per_chip,
    )


def _gpu(name, flops, memory, bandwidth, interconnect, network) -> Chip:
    link, port = interconnect * 1e9, network * 1e9
    return Chip(name, "gpu", flops * 1e12, memory * 1e9, bandwidth * 1e9, link, share=0.75, network=port)


CHIPS = {
    chip.name: chip
    for chip in (
        #     name    TFLOP/s  GiB  usable  GB/s  links GB/s, dimensions, devices a chip
        _tpu("v4", 275, 32, 30.75, 1228, 150, 3),
        _tpu("v5e", 197, 16, 15.75, 819, 200, 2),
        _tpu("v5p", 459, 95, 95.73, 2765, 600, 3),
        _tpu("v6e", 918, 32, 31.24, 1638, 400, 2),
        _tpu("tpu7x", 2307 / 2, 192 / 2, 94.74, 7380 / 2, 1200 / 2 / 2, 3, 2),
        #     name    TFLOP/s  GB   GB/s  NVLink GB/s, network GB/s
        _gpu("a100", 312, 80, 2039, 300, 25),
        _gpu("h100", 989, 80, 3350, 450, 50),
        _gpu("h200", 989, 141, 4800, 450, 50),
        _gpu("b200", 2250, 180, 8000, 900, 50),
        _gpu("gpu", 0, 80, 0, 0, 0),
        Chip("cpu", "cpu", 0, 0, 0, 0),
    )
}
