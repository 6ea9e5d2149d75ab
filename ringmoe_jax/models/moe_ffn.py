"""RingMoE's feed-forward layer: specialised + collaborative + shared experts (paper Eq. 3)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from ringmoe_jax.config import check_ranges
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.layers import KERNELS, NORMAL, TRUNCATED_NORMAL, Mlp, start
from ringmoe_jax.moe import contribution, parallel, routing, statistics, table
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.parallel.mesh import EXPERT_AXIS

LEAST_CAPACITY = 1e-3  # of a buffer over its expected load: it holds one row at least anyway
SHARED = "shared"  # in statistics, where contributions are measured


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """The mixture in every block. Defaults follow the released RingMoE configuration, but where a field says "ours".

    Attributes:
        specialised: experts of each modality's own, N_S; 0 leaves the group out.
        collaborative: experts for all modalities, N_C; 0 leaves the group out.
        shared: whether one expert that is always on is added. With both groups at 0 the layer
            is a plain dense FFN.
        top_k: experts chosen per token in each group.
        capacity_factor: buffer rows over expected load, in training.
        eval_capacity_factor: the same at evaluation (V-MoE practice: >= 2).
        exchange_factor: room for rows that a dropless engine receives where experts are split over devices, over a
            device's even share of them, in training; what comes beyond is dropped and counted. 0 has room for all.
        ring: where experts are split over devices, whether a dropless engine sends experts round the devices and leaves
            rows where they are (ours): no device ever has more rows than its own, and what is sent does not grow with
            the batch. Or sends rows to their experts and back. The same values.
        normalise_gates: whether gates are divided by their sum over the chosen experts (released code: with `top_k` = 1
            they are 1, and the task does not train the routers), or are the softmax probabilities (Switch, ours).
        after_drops: whether `normalise_gates` divides by the sum over the chosen experts that had a row for the token
            (released code), so that what it loses elsewhere is made up for; or over all chosen ones (GShard, ours).
            The same with `top_k` = 1, or where nothing is dropped.
        rounds: whether the `top_k` choices are made one after the other (released code): a token whose choice finds
            its expert full asks it again, in vain, and gets no later one; and balance losses are summed over the
            rounds, each of the probabilities that are left. Or all at once (V-MoE, ours): every choice is served
            where there is room, and one balance loss sees them all. The same with `top_k` = 1.
        router_kernel: how the routers' kernels start: "normal", of standard deviation 0.02 as all others (ours), or
            "uniform", within 1 / sqrt(D), of standard deviation 0.58 / sqrt(D) (released code, in which the
            framework's default is left there: 0.037 at D = 256).
        router: how scores become choices: `name` in `moe.routing.ROUTERS`, or `module:Name`, and the router's fields.
        bias_rate: what a step changes the bias of an expert by that got more or fewer choices than its share, see
            `pretext.balanced`; Wang et al. 2024 and DeepSeek-V3 take 0.001. 0 has no biases.
        engine: "capacity" (drops what overflows, as the released code), "dropless", "dense", or one of
            the products that "dropless" chooses from by platform, see `moe.engines`; or `module:function`.
        priority: with the capacity engine, tokens with the highest gates get rows first (batch-priority
            routing, V-MoE section 3); False serves tokens in their order.
        by_modality: whether tokens are queued for rows by modality, and token groups cut from that row (released
            code: later modalities of a group find collaborative experts full, and with many groups each shows one
            modality); or image by image, all modalities in turn (ours), which serves them alike and leaves tokens on
            their device. Only with the capacity engine on one device.
        groups: token groups that compete for buffer rows on their own; 0 means one per device
            (then results depend on the number of devices where tokens overflow). Released code: 32.
        balance_groups: whether balance losses are those of the token groups, and their mean counts (released code: a
            modality may not prefer collaborative experts of its own); or of the whole batch (ours).
        allowed: who may choose what in a pruned model, one entry a layer over all stages: {router group: for each
            modality a string of 0 and 1, one character an expert}. An expert that nobody may choose is gone, with
            its parameters; a router group that is not named is whole. Empty: nothing was pruned.
        measure: statistics also say what every expert contributes, see `moe.contribution`; slow, for pruning.
    """

    specialised: int = 4
    collaborative: int = 4
    shared: bool = True
    top_k: int = 1
    capacity_factor: float = 1.2
    eval_capacity_factor: float = 2.0
    exchange_factor: float = 0.0
    ring: bool = False
    normalise_gates: bool = False
    after_drops: bool = False
    rounds: bool = False
    router_kernel: str = NORMAL
    router: dict[str, Any] = dataclasses.field(default_factory=lambda: {"name": "softmax_top_k"}, hash=False)
    bias_rate: float = 0.0
    engine: str = "capacity"
    priority: bool = False
    by_modality: bool = False
    groups: int = 0
    balance_groups: bool = False
    allowed: tuple[dict[str, tuple[str, ...]], ...] = dataclasses.field(default=(), hash=False)
    measure: bool = False

    def __post_init__(self):
        parallel.find(self.engine)
        factors = dict.fromkeys(("capacity_factor", "eval_capacity_factor"), (LEAST_CAPACITY, math.inf))
        counts = dict.fromkeys(("specialised", "collaborative", "groups"), (0, math.inf))
        check_ranges(self, "model.moe", bias_rate=(0, 1), exchange_factor=(0, math.inf), **factors, **counts)
        if 0 < self.exchange_factor < 1:
            raise ConfigError(
                f"model.moe.exchange_factor = {self.exchange_factor}: wanted 1 or more, or 0 for all that may come"
            )
        if self.exchange_factor and self.rounds:
            raise ConfigError(
                "model.moe.rounds is of the capacity engine, exchange_factor is not: set one to False or 0"
            )
        if self.ring and (self.exchange_factor or self.engine in ("capacity", "dense")):
            other = "exchange_factor" if self.exchange_factor else f'engine = "{self.engine}"'
            raise ConfigError(
                f"model.moe.ring is for dropless engines with room for all rows, not for {other}: set one of them back"
            )
        if self.top_k < 1:
            raise ConfigError(f"model.moe.top_k = {self.top_k}: wanted at least 1 expert per token")
        if self.router_kernel not in KERNELS:
            known = nearest(self.router_kernel, KERNELS)
            raise ConfigError(f'model.moe.router_kernel = "{self.router_kernel}" does not exist: {known}')
        if self.priority and self.by_modality:
            raise ConfigError("model.moe.priority and by_modality are two orders of service: set one to False")
        if self.after_drops and not self.normalise_gates:
            raise ConfigError("model.moe.after_drops says how gates are normalised: set normalise_gates to True")
        if not self.build_router().takes_bias and self.bias_rate:
            raise ConfigError(
                f'model.moe.bias_rate = {self.bias_rate}: the router "{self.router["name"]}" takes no bias '
                "(Router.takes_bias): set it to 0, or choose another router"
            )

    def build_router(self) -> routing.Router:
        """What `router` names; raises ConfigError where there is no such router or field."""
        return routing.ROUTERS.build(self.router, "config.model.moe.router", "softmax_top_k")

    def with_engine(self, engine: str) -> MoEConfig:
        """The same experts under another engine, without the token groups of the one that trained them."""
        return dataclasses.replace(self, engine=engine, groups=0, by_modality=False) if engine != self.engine else self

    @property
    def routed(self) -> bool:
        """Whether there are router groups, not only a dense feed-forward."""
        return bool(self.specialised or self.collaborative)

    def tables(self, modalities: int, layer: int = 0, strangers: int = 0) -> dict[str, np.ndarray]:
        """The router groups and who may choose what in a layer: {group: allowed[M, E]}.

        Args:
            modalities: that were there in training.
            layer: its number.
            strangers: further ones, the last rows: they have no specialised experts, and all collaborative ones.
        """
        groups = {}
        if self.specialised:
            groups["specialised"] = table.specialised(modalities, self.specialised)
        if self.collaborative:
            groups["collaborative"] = table.collaborative(modalities, self.collaborative)
        if not groups and not self.shared:
            raise ConfigError("model.moe has no experts: set specialised, collaborative or shared")
        groups |= self._pruned(groups, layer)
        for allowed in groups.values():
            if allowed.any():
                table.check(allowed, self.top_k)
        of_all = {name: np.any(rows, axis=0) & (name == "collaborative") for name, rows in groups.items()}
        return {name: np.vstack([rows, *[of_all[name]] * strangers]) for name, rows in groups.items()}

    def breaks(self) -> tuple[int, ...]:
        """Layers whose experts have other shapes, or are other modalities', than those of the layer below."""
        modalities = next((len(rows) for entry in self.allowed for rows in entry.values()), 0)
        if not modalities:
            return ()
        layers = [self.tables(modalities, layer) for layer in range(len(self.allowed))]
        left = [{name: table_[:, table_.any(axis=0)].tolist() for name, table_ in tables.items()} for tables in layers]
        return tuple(i for i, (below, here) in enumerate(itertools.pairwise(left), 1) if below != here)

    def spread(self, collected: dict, modalities: int, layers: range) -> dict:
        """Puts what `MoEFeedForward` says of the experts that are left back among all E.

        Args:
            collected: {router group: `RoutingStatistics`, stacked}.
            modalities: M.
            layers: their numbers.
        """
        tables = [self.tables(modalities, layer) for layer in layers]
        spread = {}
        for name, found in collected.items():
            experts = tables[0][name].shape[1] if name in tables[0] else found.load.shape[-1]
            if found.load.shape[-1] < experts:
                columns = np.stack([np.flatnonzero(table_[name].any(axis=0)) for table_ in tables])
                found = jax.vmap(lambda s, c, e=experts: statistics.expand(s, c, e))(found, columns)
            spread[name] = found
        return spread

    def _pruned(self, groups: dict[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
        """What `allowed` says of a layer's groups."""
        tables = {}
        for name, rows in (self.allowed[layer] if self.allowed else {}).items():
            where = f"model.moe.allowed[{layer}].{name}"
            if name not in groups:
                raise ConfigError(f"{where}: the model has no such router group: {nearest(name, groups)}")
            shape = groups[name].shape
            if len(rows) != shape[0] or {len(row) for row in rows} != {shape[1]} or set("".join(rows)) - set("01"):
                raise ConfigError(f"{where} = {rows!r}: wanted {shape[0]} strings of {shape[1]} characters 0 or 1")
            tables[name] = groups[name] & (np.array([list(row) for row in rows]) == "1")
        return tables


class Slots(NamedTuple):
    """What the image slots of a mixed batch show.

    Attributes:
        modalities: [S] of each slot, static.
        observed: [B, S] bool, whether anything of the image was observed: the tokens of others choose no expert, take
            no row of a buffer and count nowhere. None: all were.
    """

    modalities: tuple[int, ...]
    observed: jax.Array | None = None


class RouterGroup(nnx.Module):
    """One router and its experts: kernel [D, E] and stacked expert weights.

    Args:
        width: D.
        hidden: F.
        experts: E that there are.
        router_kernel: as `MoEConfig` has it.
        biases: of all experts, pruned ones among them as in `RoutingStatistics`; 0 where choices have no bias.
    """

    def __init__(
        self, width: int, hidden: int, experts: int, rngs: nnx.Rngs, *, router_kernel: str = NORMAL, biases: int = 0
    ):
        keys = [rngs.params() for _ in range(3)]
        self.router = nnx.Param(start(router_kernel, width)(keys[0], (width, experts), jnp.float32))
        self.wi = nnx.Param(TRUNCATED_NORMAL(keys[1], (experts, width, hidden), jnp.float32))
        self.bi = nnx.Param(jnp.zeros((experts, hidden), jnp.float32))
        self.wo = nnx.Param(TRUNCATED_NORMAL(keys[2], (experts, hidden, width), jnp.float32))
        self.bo = nnx.Param(jnp.zeros((experts, width), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(biases, jnp.float32)) if biases else None

    def experts(self, columns: np.ndarray | slice) -> Experts:
        """The stacked weights of the experts at `columns`."""
        return Experts(self.wi[columns], self.bi[columns], self.wo[columns], self.bo[columns])


class MoEFeedForward(nnx.Module):
    """y = sum of the router groups' outputs + shared expert (plain sum, no extra gate).

    Call: tokens [B, S, n, D] of `Slots`, to outputs of the same shape and one `RoutingStatistics` per router group,
    of the experts that are left; see `MoEConfig.spread`.

    Args:
        config: which experts there are.
        modalities: that were there in training.
        width: D.
        hidden: F.
        layer: number of the layer; in a stack that of the first, which tells what all of them have left.
        strangers: further modalities, see `MoEConfig.tables`; M is both.
    """

    def __init__(
        self,
        config: MoEConfig,
        modalities: int,
        width: int,
        hidden: int,
        rngs: nnx.Rngs,
        *,
        dtype,
        layer: int = 0,
        strangers: int = 0,
    ):
        self.config = config
        self.modalities, self.strangers, self.hidden, self.layer = modalities + strangers, strangers, hidden, layer
        for name, allowed in config.tables(modalities, layer).items():
            if allowed.any():
                options = dict(router_kernel=config.router_kernel, biases=allowed.shape[1] if config.bias_rate else 0)
                setattr(self, name, RouterGroup(width, hidden, int(allowed.any(axis=0).sum()), rngs, **options))
        if config.shared:
            self.shared = Mlp(width, hidden, rngs, dtype=dtype)

    def __call__(self, x: jax.Array, slots: Slots, *, train: bool, mesh: Mesh | None):
        batch, _, n, width = x.shape
        by_token = lambda values: jnp.broadcast_to(values[..., None], x.shape[:3]).reshape(-1)  # noqa: E731
        modality = by_token(jnp.asarray(slots.modalities, jnp.int32))
        observed = None if slots.observed is None else by_token(slots.observed)
        tokens = x.reshape(-1, width)
        counts = tuple(batch * n * slots.modalities.count(m) for m in range(self.modalities))
        tables = self.config.tables(self.modalities - self.strangers, self.layer, self.strangers)
        outputs, collected = jnp.zeros_like(tokens), {}
        reached = {name: allowed for name, allowed in tables.items() if allowed[np.array(counts) > 0].any()}
        if reached:
            queues = self._queues(reached, slots, x.shape[:3])
            outputs, collected = self._routed(reached, tokens, modality, observed, counts, queues, train, mesh)
        hidden = self.hidden if self.config.measure else None
        for name in tables.keys() - collected.keys():
            collected[name] = statistics.nothing(*tables[name].shape, hidden)
        if self.config.shared:  # depends on no exchange, so that a compiler can overlap the two
            with jax.named_scope("shared"):
                outputs = outputs + self.shared(tokens)
            if self.config.measure:
                collected[SHARED] = self._shared_statistics(tokens, _counted(modality, observed))
        return outputs.reshape(x.shape), collected

    def _queues(self, tables, slots: Slots, shape: tuple[int, int, int]) -> tuple[table.Queue, ...]:
        """Of every router group, where tokens [B, S, n] are served by modality; else ()."""
        if not self.config.by_modality:
            return ()
        modality = np.broadcast_to(np.asarray(slots.modalities)[:, None], shape).reshape(-1)
        return tuple(table.queue(allowed, modality, self.config.groups or 1) for allowed in tables.values())

    def _routed(self, tables, tokens, modality, observed, counts, queues, train: bool, mesh: Mesh | None):
        """Router groups of `tables` on tokens [N, D]; experts that no present modality can choose are left out."""
        config = self.config
        shards = mesh.size if mesh is not None else 1
        groups = config.groups or shards
        factor = config.capacity_factor if train else config.eval_capacity_factor
        chosen = {name: _Columns.of(allowed, counts, mesh) for name, allowed in tables.items()}
        allowed = {name: tables[name][:, columns.of_all] for name, columns in chosen.items()}
        rows = [
            table.capacity(who, tuple(c // groups for c in counts), config.top_k, factor) for who in allowed.values()
        ]
        experts = [getattr(self, name).experts(columns.of_kept) for name, columns in chosen.items()]
        with jax.named_scope("route"):
            kernels = [getattr(self, name).router[...][:, columns.of_kept] for name, columns in chosen.items()]
            rule = dict(k=config.top_k, normalise_gates=config.normalise_gates, observed=observed)
            router = config.build_router()
            biases = [
                getattr(self, name).bias[columns.of_all] if config.bias_rate else None
                for name, columns in chosen.items()
            ]
            choices = [
                routing.route(scores, modality, who, router=router, bias=bias, **rule)
                for scores, who, bias in zip(routing.logits(tokens, kernels), allowed.values(), biases, strict=True)
            ]
        outputs, kept = parallel.run(
            config.engine,
            tokens,
            choices,
            experts,
            rows,
            groups=groups,
            mesh=mesh,
            priority=config.priority,
            exchange_factor=config.exchange_factor if train else 0.0,
            ring=config.ring,
            queues=queues,
            rounds=config.rounds,
            after_drops=config.after_drops,
        )
        collected, modality = {}, _counted(modality, observed)
        apart = [None] * len(chosen)
        if config.balance_groups:
            contiguous = np.arange(len(tokens)) // (len(tokens) // groups)
            apart = [queue.group for queue in queues] or [contiguous] * len(chosen)
        rule = dict(groups=groups, rounds=config.rounds)
        for i, (name, columns) in enumerate(chosen.items()):
            found = statistics.layer(choices[i], kept[i], modality, allowed[name], group=apart[i], **rule)
            if config.measure:
                found = found._replace(
                    contribution=contribution.measure(tokens, choices[i], experts[i], modality, self.modalities)
                )
            collected[name] = statistics.expand(found, columns.of_kept, int(tables[name].any(axis=0).sum()))
        return outputs, collected

    def _shared_statistics(self, tokens: jax.Array, modality: jax.Array) -> statistics.RoutingStatistics:
        """The shared expert as a router group of one that every token chooses."""
        mlp, ones = self.shared, jnp.ones((len(tokens), 1), jnp.float32)
        everyone = routing.Routing(jnp.zeros((len(tokens), 1), jnp.int32), ones, ones)
        expert = Experts(*(leaf[...][None] for leaf in (mlp.wi.kernel, mlp.wi.bias, mlp.wo.kernel, mlp.wo.bias)))
        found = statistics.layer(everyone, ones > 0, modality, np.ones((self.modalities, 1), bool))
        return found._replace(contribution=contribution.measure(tokens, everyone, expert, modality, self.modalities))


def _counted(modality: jax.Array, observed: jax.Array | None) -> jax.Array:
    """[N] the modality that a token counts for."""
    return modality if observed is None else jnp.where(observed, modality, routing.NOTHING)


class _Columns(NamedTuple):
    """Experts to compute, as columns of a router group's table and as rows of its weights, which pruned ones lack."""

    of_all: np.ndarray
    of_kept: np.ndarray | slice

    @staticmethod
    def of(allowed: np.ndarray, counts: tuple[int, ...], mesh: Mesh | None) -> _Columns:
        """All that there are, or where the expert axis is not split those that a present modality can choose."""
        kept = np.flatnonzero(allowed.any(axis=0))
        reached = table.reachable(allowed, tuple(m for m, c in enumerate(counts) if c))
        split = mesh is not None and mesh.shape[EXPERT_AXIS] > 1
        if split or len(reached) == len(kept):
            return _Columns(kept, slice(None))
        return _Columns(reached, np.searchsorted(kept, reached))
