"""What an engine must know beside arrays. All of it is static."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Layout:
    """The work of one device.

    Attributes:
        rows: buffer rows per expert and token group, for each router group (capacity engine).
        groups: token groups of this device that compete for rows apart (capacity engine).
        priority: tokens with the highest gates get rows first (capacity engine).
        shards: devices that share the experts; 1 where each device has all of them.
        platform: "cpu", "gpu" or "tpu", of the device that will run this.
    """

    rows: tuple[int, ...]
    groups: int = 1
    priority: bool = False
    shards: int = 1
    platform: str = "cpu"
