"""What an engine must know beside arrays. All of it is static."""

from __future__ import annotations

import dataclasses

from ringmoe_jax.moe.table import Queue


@dataclasses.dataclass(frozen=True)
class Layout:
    """The work of one device.

    Attributes:
        rows: buffer rows per expert and token group, for each router group (capacity engine).
        groups: token groups of this device that compete for rows apart (capacity engine).
        priority: tokens with the highest gates get rows first (capacity engine).
        queues: of each router group, its token groups and order of service in place of contiguous groups and the
            tokens' own order (capacity engine); () where there is none.
        rounds: a token whose choice finds its expert full gets none of its later choices (capacity engine).
        after_drops: a token's gates in a router group are divided by the sum of those that found a row.
        shards: devices that share the experts; 1 where each device has all of them.
        exchange_factor: rows that a device can receive over its even share; 0 for all that may come (dropless engine
            where devices share experts).
        ring: experts go round the devices that share them, and rows stay where they are (dropless engine).
        platform: "cpu", "gpu" or "tpu", of the device that will run this.
    """

    rows: tuple[int, ...]
    groups: int = 1
    priority: bool = False
    queues: tuple[Queue, ...] = ()
    rounds: bool = False
    after_drops: bool = False
    shards: int = 1
    exchange_factor: float = 0.0
    ring: bool = False
    platform: str = "cpu"
