"""RingMoE's feed-forward layer: specialised + collaborative + shared experts (paper Eq. 3)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.layers import TRUNCATED_NORMAL, Mlp
from ringmoe_jax.moe import parallel, routing, statistics, table
from ringmoe_jax.moe.experts import Experts


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """The mixture in every block. Defaults follow the released RingMoE configuration.

    Attributes:
        specialised: experts of each modality's own, N_S; 0 leaves the group out.
        collaborative: experts for all modalities, N_C; 0 leaves the group out.
        shared: whether one expert that is always on is added. With both groups at 0 the layer
            is a plain dense FFN.
        top_k: experts chosen per token in each group.
        capacity_factor: buffer rows over expected load, in training.
        eval_capacity_factor: the same at evaluation (V-MoE practice: >= 2).
        normalise_gates: the released code's gate, see `moe.routing.route`.
        engine: "capacity" or "dense", see `moe.engines`.
        groups: token groups that compete for buffer rows on their own; 0 means one per device
            (then results depend on the number of devices where tokens overflow).
    """

    specialised: int = 4
    collaborative: int = 4
    shared: bool = True
    top_k: int = 1
    capacity_factor: float = 1.2
    eval_capacity_factor: float = 2.0
    normalise_gates: bool = False
    engine: str = "capacity"
    groups: int = 0

    def tables(self, modalities: int) -> dict[str, np.ndarray]:
        """The router groups and who may choose what: {group: allowed[M, E]}."""
        groups = {}
        if self.specialised:
            groups["specialised"] = table.specialised(modalities, self.specialised)
        if self.collaborative:
            groups["collaborative"] = table.collaborative(modalities, self.collaborative)
        if not groups and not self.shared:
            raise ConfigError("model.moe has no experts: set specialised, collaborative or shared")
        for allowed in groups.values():
            table.check(allowed, self.top_k)
        return groups


class RouterGroup(nnx.Module):
    """One router and its experts: kernel [D, E] and stacked expert weights."""

    def __init__(self, width: int, hidden: int, experts: int, rngs: nnx.Rngs):
        keys = [rngs.params() for _ in range(3)]
        self.router = nnx.Param(TRUNCATED_NORMAL(keys[0], (width, experts), jnp.float32))
        self.wi = nnx.Param(TRUNCATED_NORMAL(keys[1], (experts, width, hidden), jnp.float32))
        self.bi = nnx.Param(jnp.zeros((experts, hidden), jnp.float32))
        self.wo = nnx.Param(TRUNCATED_NORMAL(keys[2], (experts, hidden, width), jnp.float32))
        self.bo = nnx.Param(jnp.zeros((experts, width), jnp.float32))

    def experts(self) -> Experts:
        """The stacked expert weights."""
        return Experts(self.wi[...], self.bi[...], self.wo[...], self.bo[...])


class MoEFeedForward(nnx.Module):
    """y = sum of the router groups' outputs + shared expert (plain sum, no extra gate).

    Call: tokens [B, S, n, D] with slot s of modality `slots[s]`, to outputs of the same shape and
    one `Statistics` per router group.
    """

    def __init__(self, config: MoEConfig, modalities: int, width: int, hidden: int, rngs: nnx.Rngs, *, dtype):
        self.config = config
        self.modalities = modalities
        for name, allowed in config.tables(modalities).items():
            setattr(self, name, RouterGroup(width, hidden, allowed.shape[1], rngs))
        if config.shared:
            self.shared = Mlp(width, hidden, rngs, dtype=dtype)

    def __call__(self, x: jax.Array, slots: tuple[int, ...], *, train: bool, mesh: Mesh | None):
        batch, _, n, width = x.shape
        modality = jnp.broadcast_to(jnp.asarray(slots, jnp.int32)[:, None], x.shape[:3]).reshape(-1)
        tokens = x.reshape(-1, width)
        counts = tuple(batch * n * slots.count(m) for m in range(self.modalities))
        outputs = self.shared(tokens) if self.config.shared else jnp.zeros_like(tokens)
        collected = {}
        for name, allowed in self.config.tables(self.modalities).items():
            y, collected[name] = self._group(getattr(self, name), allowed, tokens, modality, counts, train, mesh)
            outputs = outputs + y
        return outputs.reshape(x.shape), collected

    def _group(self, group: RouterGroup, allowed, tokens, modality, counts, train: bool, mesh: Mesh | None):
        """One router group on tokens [N, D]; experts that no present modality can choose are left out."""
        total, experts, kernel = allowed.shape[1], group.experts(), group.router[...]
        columns = table.reachable(allowed, tuple(m for m, c in enumerate(counts) if c))
        expert_shards = mesh.shape["expert"] if mesh is not None else 1
        if len(columns) < total and expert_shards == 1:
            allowed, kernel, experts = allowed[:, columns], kernel[:, columns], experts.take(columns)
        config = self.config
        shards = mesh.size if mesh is not None else 1
        groups = config.groups or shards
        factor = config.capacity_factor if train else config.eval_capacity_factor
        rows = table.capacity(allowed, tuple(c // groups for c in counts), config.top_k, factor)
        with jax.named_scope("route"):
            choice = routing.route(
                tokens, kernel, modality, allowed, k=config.top_k, normalise_gates=config.normalise_gates
            )
        outputs, kept = parallel.run(config.engine, tokens, choice, experts, rows, groups=groups, mesh=mesh)
        collected = statistics.layer(choice, kept, modality, allowed)
        return outputs, collected if allowed.shape[1] == total else statistics.expand(collected, columns, total)
