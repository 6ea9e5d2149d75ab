"""An engine on a mesh: tokens split over all its axes, experts over its "expert" axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.moe.engines import ENGINES, Layout
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing
from ringmoe_jax.parallel.mesh import BATCH_AXES, EXPERT_AXIS


def run(
    engine: str,
    tokens: jax.Array,
    routings: Sequence[Routing],
    experts: Sequence[Experts],
    rows: Sequence[int],
    *,
    groups: int = 1,
    mesh: Mesh | None = None,
    **rules,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Computes the experts' contribution to every token, summed over router groups.

    Where rows are limited, tokens compete for them within a group. Groups are contiguous and of equal
    size, or as `queues` say, so a result depends on them but not on how many devices share the work.

    Args:
        engine: name in `engines.ENGINES`, or `module:function`.
        tokens: [N, D], split over every mesh axis along N where a mesh is given.
        routings: choices for the N tokens, one per router group.
        experts: E experts per router group, split over "expert" along E where a mesh is given.
        rows: capacity of an expert in one token group, per router group.
        groups: number of token groups; must be a multiple of the number of devices.
        mesh: None runs on one device.
        **rules: further ones of `engines.Layout`: priority, exchange_factor, ring, queues, rounds,
            after_drops.

    Returns:
        outputs [N, D]; kept [N, K] bool per router group.

    Raises:
        ConfigError: unknown engine, or N, E, groups and mesh do not divide.
    """
    compute = find(engine)
    if mesh is None or mesh.size == 1:
        if tokens.shape[0] % groups:
            raise ConfigError(
                f"{tokens.shape[0]} tokens do not split in model.moe.groups = {groups}: set it to a divisor of them"
            )
        platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
        layout = Layout(tuple(rows), groups, platform=_platform(platform), **rules)
        return compute(tokens, tuple(routings), tuple(experts), layout)
    shards, expert_shards = mesh.size, mesh.shape[EXPERT_AXIS]
    if rules.get("queues"):
        raise ConfigError(
            f"model.moe.by_modality serves the tokens of all devices in one order, and there are {shards}: set it to "
            "False, or train on one device"
        )
    uneven = [group.count for group in experts if group.count % expert_shards]
    if groups % shards or tokens.shape[0] % groups or uneven:
        raise ConfigError(
            f"cannot split {tokens.shape[0]} tokens in {groups} groups and {(uneven or [experts[0].count])[0]} experts "
            f"over {shards} devices with {expert_shards} on the expert axis: each must be a multiple of the one that "
            f"divides it"
        )
    platform = _platform(mesh.devices.flat[0].platform)
    layout = Layout(tuple(rows), groups // shards, shards=expert_shards, platform=platform, **rules)
    split, by_expert = P(BATCH_AXES), P(EXPERT_AXIS)
    return jax.shard_map(
        lambda t, r, e: compute(t, r, e, layout),
        mesh=mesh,
        in_specs=(split, split, by_expert),
        out_specs=(split, split),
        check_vma=False,
    )(tokens, tuple(routings), tuple(experts))


def find(engine: str) -> Callable:
    """The engine of that name, or of one's own file; raises ConfigError where there is none."""
    return ENGINES.find(engine, "model.moe.engine")


def _platform(name: str) -> str:
    return "gpu" if name in ("cuda", "rocm") else name
