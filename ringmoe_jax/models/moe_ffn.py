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
from ringmoe_jax.parallel.mesh import EXPERT_AXIS


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
        engine: "capacity" (drops what overflows, as the released code), "dropless", "dense", or one of
            the products that "dropless" chooses from by platform, see `moe.engines`.
        priority: with the capacity engine, tokens with the highest gates get rows first (batch-priority
            routing, V-MoE section 3); False serves tokens in their order.
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
    priority: bool = False
    groups: int = 0

    def __post_init__(self):
        parallel.check(self.engine)
        if self.top_k < 1:
            raise ConfigError(f"model.moe.top_k = {self.top_k}: wanted at least 1 expert per token")

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

    def experts(self, columns: np.ndarray | slice) -> Experts:
        """The stacked weights of the experts at `columns`."""
        return Experts(self.wi[columns], self.bi[columns], self.wo[columns], self.bo[columns])


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
        tables = self.config.tables(self.modalities)
        outputs, collected = jnp.zeros_like(tokens), {}
        if tables:
            outputs, collected = self._routed(tables, tokens, modality, counts, train, mesh)
        if self.config.shared:  # depends on no exchange, so that a compiler can overlap the two
            with jax.named_scope("shared"):
                outputs = outputs + self.shared(tokens)
        return outputs.reshape(x.shape), collected

    def _routed(self, tables, tokens, modality, counts, train: bool, mesh: Mesh | None):
        """All router groups on tokens [N, D]; experts that no present modality can choose are left out."""
        config = self.config
        shards = mesh.size if mesh is not None else 1
        groups = config.groups or shards
        factor = config.capacity_factor if train else config.eval_capacity_factor
        columns = {name: self._columns(allowed, counts, mesh) for name, allowed in tables.items()}
        allowed = {name: table_[:, columns[name]] for name, table_ in tables.items()}
        rows = [
            table.capacity(who, tuple(c // groups for c in counts), config.top_k, factor) for who in allowed.values()
        ]
        with jax.named_scope("route"):
            kernels = [getattr(self, name).router[...][:, columns[name]] for name in tables]
            choices = [
                routing.route(scores, modality, who, k=config.top_k, normalise_gates=config.normalise_gates)
                for scores, who in zip(routing.logits(tokens, kernels), allowed.values(), strict=True)
            ]
        outputs, kept = parallel.run(
            config.engine,
            tokens,
            choices,
            [getattr(self, name).experts(columns[name]) for name in tables],
            rows,
            groups=groups,
            priority=config.priority,
            mesh=mesh,
        )
        collected = {
            name: statistics.expand(
                statistics.layer(choice, mask, modality, allowed[name]), columns[name], tables[name].shape[1]
            )
            for name, choice, mask in zip(tables, choices, kept, strict=True)
        }
        return outputs, collected

    def _columns(self, allowed: np.ndarray, counts, mesh: Mesh | None) -> np.ndarray | slice:
        """Experts to compute: all, or on one device of the expert axis those that can be chosen."""
        columns = table.reachable(allowed, tuple(m for m, c in enumerate(counts) if c))
        split = mesh is not None and mesh.shape[EXPERT_AXIS] > 1
        return slice(None) if split or len(columns) == allowed.shape[1] else columns
