"""Expert parallelism: the same engines on a mesh, experts split over its "expert" axis."""

from __future__ import annotations

import functools

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.moe import engines
from ringmoe_jax.moe import experts as expert_ops
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing
from ringmoe_jax.parallel.mesh import BATCH_AXES, EXPERT_AXIS


def run(
    engine: str,
    tokens: jax.Array,
    routing: Routing,
    experts: Experts,
    capacity: int,
    *,
    groups: int = 1,
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes the experts' contribution to every token.

    Tokens compete for buffer rows within a group. Groups are contiguous and of equal size, so a
    result depends on `groups` but not on how many devices share the work.

    Args:
        engine: key of `engines.ENGINES`.
        tokens: [N, D], split over every mesh axis along N where a mesh is given.
        routing: choices for the N tokens.
        experts: E experts, split over "expert" along E where a mesh is given.
        capacity: rows per expert in one group.
        groups: number of groups; must be a multiple of the number of devices.
        mesh: None runs on one device.

    Returns:
        outputs [N, D]; kept [N, K] bool.

    Raises:
        ConfigError: N, E, groups and mesh do not divide.
    """
    if engine not in engines.ENGINES:
        raise ConfigError(f'unknown engine "{engine}", wanted one of {", ".join(engines.ENGINES)}')
    if mesh is None or mesh.size == 1:
        return _grouped(engine, tokens, routing, experts, capacity, groups)
    shards, expert_shards = mesh.size, mesh.shape[EXPERT_AXIS]
    if groups % shards or tokens.shape[0] % groups or experts.count % expert_shards:
        raise ConfigError(
            f"cannot split {tokens.shape[0]} tokens in {groups} groups and {experts.count} experts over {shards} "
            f"devices with {expert_shards} on the expert axis: each must be a multiple of the one that divides it"
        )
    body = functools.partial(_shard, engine, capacity=capacity, groups=groups // shards, expert_shards=expert_shards)
    split, by_expert = P(BATCH_AXES), P(EXPERT_AXIS)
    return jax.shard_map(
        body, mesh=mesh, in_specs=(split, split, by_expert), out_specs=(split, split), check_vma=False
    )(tokens, routing, experts)


def _grouped(engine, tokens, routing, experts, capacity, groups):
    """One device: [N, D] as [groups, N / groups, D]."""
    if groups == 1:
        return engines.ENGINES[engine](tokens, routing, experts, capacity)
    split = functools.partial(jax.tree.map, lambda x: x.reshape(groups, -1, *x.shape[1:]))
    run_one = lambda t, r: engines.ENGINES[engine](t, r, experts, capacity)  # noqa: E731
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), jax.vmap(run_one)(split(tokens), split(routing)))


def _shard(engine, tokens, routing, experts, *, capacity, groups, expert_shards):
    """One device of a mesh: local tokens [N / shards, D], local experts [E / expert_shards, ...]."""
    if engine == "dense":
        everyone = jax.tree.map(lambda w: jax.lax.all_gather(w, EXPERT_AXIS, tiled=True), experts)
        return engines.dense(tokens, routing, everyone)
    local = experts.count
    split = functools.partial(jax.tree.map, lambda x: x.reshape(groups, -1, *x.shape[1:]))
    token_groups, routing_groups = split(tokens), split(routing)
    source, slot, kept = jax.vmap(lambda c: engines.assign(c, local * expert_shards, capacity))(routing_groups.experts)
    rows = jax.vmap(engines.gather_rows)(token_groups, source)  # [g, E * C, D]
    rows = rows.reshape(groups, local * expert_shards, capacity, -1)
    # Send rows to the devices that hold their experts: [g, E, C, D] -> [g * expert_shards, E / expert_shards, C, D].
    rows = jax.lax.all_to_all(rows, EXPERT_AXIS, split_axis=1, concat_axis=0, tiled=True)
    rows = expert_ops.apply(experts, rows)
    rows = jax.lax.all_to_all(rows, EXPERT_AXIS, split_axis=0, concat_axis=1, tiled=True)
    outputs = jax.vmap(engines.combine)(rows, slot, kept, routing_groups.gates)
    return outputs.reshape(tokens.shape), kept.reshape(routing.experts.shape)
