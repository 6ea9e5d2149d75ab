"""The device mesh: data parallel, fully sharded, expert parallel. Any axis may be 1."""

from __future__ import annotations

import dataclasses
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ringmoe_jax.errors import ConfigError

EXPERT_AXIS = "expert"
FSDP_AXIS = "fsdp"
BATCH_AXES = ("data", FSDP_AXIS, EXPERT_AXIS)  # the batch is split over all three
AXIS_TYPES = (AxisType.Auto,) * 3


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 on one axis takes what is left.

    Attributes:
        data: replicas of the parameters.
        fsdp: shards of every large parameter and of the optimiser's state.
        expert: shards of the experts.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1


def sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """Devices along ("data", "fsdp", "expert").

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    wanted = (config.data, config.fsdp, config.expert)
    known = math.prod(s for s in wanted if s > 0)
    found = list(wanted)
    if found.count(-1) == 1 and devices % known == 0:
        found[found.index(-1)] = devices // known
    if min(found) < 1 or math.prod(found) != devices:
        asked = " x ".join(f"{a}={s}" for a, s in zip(BATCH_AXES, wanted, strict=True))
        raise ConfigError(f"mesh {asked} does not fit {devices} devices: the sizes must multiply to that")
    return tuple(found)


def make(config: MeshConfig, devices=None) -> Mesh:
    """Builds the mesh with axes ("data", "fsdp", "expert") in Auto mode.

    Args:
        config: sizes of the axes.
        devices: default all devices of the program.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    # As `jax.make_mesh`, which refuses an axis of 4 on a torus of 16 x 16.
    arranged = mesh_utils.create_device_mesh(sizes(config, len(devices)), devices, allow_split_physical_axes=True)
    return Mesh(arranged, BATCH_AXES, axis_types=AXIS_TYPES)


def abstract(config: MeshConfig, devices: int) -> AbstractMesh:
    """The same mesh without devices: enough to place shapes.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    return AbstractMesh(sizes(config, devices), BATCH_AXES, axis_types=AXIS_TYPES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis over all mesh axes."""
    return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())
