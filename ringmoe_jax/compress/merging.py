"""All experts of a layer in one dense feed-forward layer (paper: 6.5 B or what pruning leaves -> 1 B)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ringmoe_jax.compress.usage import Usage, importance
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models import Params
from ringmoe_jax.models.api import Network
from ringmoe_jax.models.network import Tables, join, layer_tables, modalities, read, split
from ringmoe_jax.models.ringmoe import RingMoEConfig
from ringmoe_jax.moe.experts import Experts

SHARED = "shared"


def merge(network: Network, method: str, usage: Usage | None = None, hidden_ratio: int | None = None) -> Network:
    """One dense feed-forward layer in the place of all experts, y = GELU(x W1 + b1) W2 + b2.

        "sum"       RingMoE-KS: the sums of all experts' W1, b1, W2 and b2
        "mean"      RingMoE-KA: their means
        "weighted"  means weighted by how much each expert acts (our choice)
        "svd"       RingMoE-KC: the strongest rank-one pieces of all experts, see `_svd`
        "select"    the strongest hidden units of all experts, as they are, see `_select` (our choice)

    The paper names KS, KA and KC and describes KC; KS and KA are read as the summation and averaging of "One Student
    Knows All Experts Know" (arXiv 2201.10890). How it joins its three kinds of experts is not known; here all count
    alike. Every method is an approximation, since a router's choice is gone, and a start for distillation. The layer
    norm that follows takes a common scale of W2 and b2 away, so "sum" and "mean" differ only in how far their W1 drives
    the GELU.

    An expert e acts by a_e, the mean over modalities of: with `usage` the gate that their tokens gave it (frequency x
    gate), without it top_k over the number of experts that the modality may choose; 1 for the shared expert. A network
    of several modalities is merged from all experts that any of them may choose: take a sub-model first.

    Args:
        network: a RingMoE model, pruned or not.
        method: one of `MERGES`.
        usage: needed by "weighted", used by "select"; of this network, or of the one that it was pruned from, which
            misses the tokens that pruning has sent to other experts.
        hidden_ratio: F / D of the result, default the model's; for "svd" and "select", the others cannot change it.

    Returns:
        A network with no router groups and `model.moe.shared`.

    Raises:
        ConfigError: no such method, usage is needed or of another model, or `hidden_ratio` does not fit.
    """
    if method not in MERGES:
        raise ConfigError(f'no way to merge called "{method}": {nearest(method, MERGES)}')
    config, model = read(network.model), merged_config(network.model, hidden_ratio)
    ratio = read(model).hidden_ratio
    if ratio != config.hidden_ratio and method not in ("svd", "select"):
        raise ConfigError(f'hidden_ratio = {ratio}: "{method}" keeps the model\'s {config.hidden_ratio}')
    if method == "weighted" and usage is None:
        raise ConfigError('merging by "weighted" needs to know how the model uses its experts: give usage')
    if usage is not None:
        _check(config, usage)
    blocks = split(network)
    for layer, (block, table) in enumerate(zip(blocks, layer_tables(config), strict=True)):
        groups = _groups(config, table, block["ffn"], layer, usage)
        if not groups:
            raise ConfigError(f"layer {layer} has no expert left that could be merged: keep one in every layer")
        width = groups[0].experts.wi.shape[1]
        block["ffn"] = {SHARED: _mlp(MERGES[method](groups, ratio * width))}
    return join(network, model, blocks)


def merged_config(model: Mapping[str, Any], hidden_ratio: int | None = None) -> dict[str, Any]:
    """What `merge` makes of `config.model`."""
    config = read(model)
    ratio = config.hidden_ratio if hidden_ratio is None else hidden_ratio
    if ratio < 1:
        raise ConfigError(f"hidden_ratio = {ratio}: wanted 1 or more")
    moe = {**model.get("moe", {}), "specialised": 0, "collaborative": 0, "shared": True, "allowed": ()}
    return {**model, "hidden_ratio": ratio, "moe": moe}


class _Group(NamedTuple):
    """Experts of one router group in one layer, or the shared expert.

    Attributes:
        experts: E of them, float64.
        acts: [E] in 0..1, a_e of `merge`.
        activity: [E, F] mean of gate * |hidden unit| over all tokens, or None where it was not measured.
    """

    experts: Experts
    acts: np.ndarray
    activity: np.ndarray | None

    def one_by_one(self) -> list[Experts]:
        """Each expert as leaves without the axis E."""
        return [Experts(*leaves) for leaves in zip(*self.experts, strict=True)]


def _sum(groups: list[_Group], hidden: int) -> Experts:
    return _total(groups, [np.ones_like(group.acts) for group in groups])


def _mean(groups: list[_Group], hidden: int) -> Experts:
    experts = sum(group.experts.count for group in groups)
    return _total(groups, [np.full_like(group.acts, 1 / experts) for group in groups])


def _weighted(groups: list[_Group], hidden: int) -> Experts:
    acts = sum(group.acts.sum() for group in groups)
    return _total(groups, [group.acts / acts for group in groups])


def _total(groups: list[_Group], weights: list[np.ndarray]) -> Experts:
    """Leaf by leaf, the weighted sum of all experts."""
    sums = [[np.tensordot(w, leaf, 1) for leaf in group.experts] for group, w in zip(groups, weights, strict=True)]
    return Experts(*(sum(leaves) for leaves in zip(*sums, strict=True)))


def _svd(groups: list[_Group], hidden: int) -> Experts:
    """Knowledge compression by truncated SVD.

    In a router group of N experts each first kernel is W1 = U S V^T, of which the K = F / N strongest components stay
    (paper). They become K hidden units: the columns of U_K S_K are their first kernel, the rows of V_K^T W2 their
    second. Concatenated over the group that is F units again, [U_1K S_1K ... U_NK S_NK], and for linear experts

        sum_e (U_K S_K)_e (V_K^T W2)_e = sum_e W1_e W2_e    where K >= the rank of W1_e, which is at most D

    so that what a group adds up to is kept. With RingMoE's F = 4 D and N = 4 it is K = D: nothing is cut off. With a
    GELU between the kernels this holds to first order in the hidden units.

    All else is our choice. The shared expert is a group of one. A component's bias is V_K^T b1, and what that loses of
    b1 W2 goes to b2, so that the linear sum keeps its constant. Signs make the sum of each row of V^T positive, since
    a GELU passes what is positive. Of the units of all groups the F with the largest |U_k S_k| |V_k^T W2| stay:
    an expert's rank-one pieces are orthogonal, so no other choice among them comes closer to its W1 W2.
    """
    pieces = [_components(e, hidden // group.experts.count) for group in groups for e in group.one_by_one()]
    return _strongest(pieces, [_product_norms(piece) for piece in pieces], hidden)


def _components(expert: Experts, rank: int) -> Experts:
    """One expert in the basis of the `rank` strongest components of its first kernel."""
    u, s, v = np.linalg.svd(expert.wi, full_matrices=False)
    sign = np.where(v.sum(axis=1) < 0, -1.0, 1.0)[:rank]
    u, s, v = u[:, :rank] * sign, s[:rank], v[:rank] * sign[:, None]
    lost = expert.bi - (v @ expert.bi) @ v
    return Experts(u * s, v @ expert.bi, v @ expert.wo, expert.bo + lost @ expert.wo)


def _select(groups: list[_Group], hidden: int) -> Experts:
    """The hidden units that add most, as they are, with W2 and b2 of expert e scaled by a_e.

    A unit adds its mean activation times the norm of its row of W2; where activations were not measured
    a_e |column of W1| |row of W2| stands for that. With room for all units, and experts that are always on with gate 1,
    the layer computes what it did.
    """
    scaled = [e._replace(wo=a * e.wo, bo=a * e.bo) for g in groups for a, e in zip(g.acts, g.one_by_one(), strict=True)]
    if any(group.activity is None for group in groups):
        return _strongest(scaled, [_product_norms(expert) for expert in scaled], hidden)
    added = [group.activity * np.linalg.norm(group.experts.wo, axis=-1) for group in groups]
    return _strongest(scaled, [units for group in added for units in group], hidden)


def _product_norms(expert: Experts) -> np.ndarray:
    """[F] Frobenius norms of the rank-one products of a column of W1 and a row of W2."""
    return np.linalg.norm(expert.wi, axis=0) * np.linalg.norm(expert.wo, axis=1)


def _strongest(experts: list[Experts], strengths: list[np.ndarray], hidden: int) -> Experts:
    """One expert of the strongest hidden units of several, and all their output biases.

    Units come in the order of their experts. Where there are fewer than `hidden`, units that are 0 fill up; they have
    no gradient and stay so in training.
    """
    wi = np.concatenate([e.wi for e in experts], axis=1)
    bi = np.concatenate([e.bi for e in experts])
    wo = np.concatenate([e.wo for e in experts])
    best = np.sort(np.argsort(-np.concatenate(strengths), kind="stable")[:hidden])
    fill = (0, hidden - len(best))
    return Experts(
        np.pad(wi[:, best], ((0, 0), fill)),
        np.pad(bi[best], fill),
        np.pad(wo[best], (fill, (0, 0))),
        np.sum([e.bo for e in experts], axis=0),
    )


MERGES: dict[str, Callable[[list[_Group], int], Experts]] = {
    "sum": _sum,
    "mean": _mean,
    "weighted": _weighted,
    "svd": _svd,
    "select": _select,
}


def _groups(config: RingMoEConfig, table: Tables, ffn: Params, layer: int, usage: Usage | None) -> list[_Group]:
    """What a layer has: its router groups in their order, then the shared expert."""
    groups = []
    for name, allowed in table.items():
        if allowed.any():
            experts = Experts(*(ffn[name][leaf] for leaf in Experts._fields))
            groups.append(_group(name, experts, allowed, config.moe.top_k, layer, usage))
    if config.moe.shared:
        mlp, always = ffn[SHARED], np.ones((len(modalities(config)), 1), bool)
        leaves = (mlp["wi"]["kernel"], mlp["wi"]["bias"], mlp["wo"]["kernel"], mlp["wo"]["bias"])
        groups.append(_group(SHARED, Experts(*(leaf[None] for leaf in leaves)), always, 1, layer, usage))
    return groups


def _group(name: str, experts: Experts, allowed: np.ndarray, k: int, layer: int, usage: Usage | None) -> _Group:
    """Experts with how much they act, where each token chooses k of those that `allowed` [M, E] allows."""
    stored = allowed.any(axis=0)
    acts, activity = k * allowed / np.maximum(allowed.sum(axis=1, keepdims=True), 1), None
    if usage is not None and name in usage.statistics:
        statistics = usage.statistics[name]
        tokens = np.maximum(statistics.tokens[layer], 1)[:, None]
        acts = statistics.gate[layer] / tokens
        if statistics.contribution is not None:
            hidden = statistics.contribution.hidden[layer, ..., : experts.wi.shape[-1]] / tokens[..., None]
            activity = hidden.mean(axis=0)[stored]
    return _Group(experts.astype(np.float64), acts.mean(axis=0)[stored], activity)


def _mlp(expert: Experts) -> Params:
    """As `models.layers.Mlp` stores it."""
    wi, bi, wo, bo = (leaf.astype(np.float32) for leaf in expert)
    return {"wi": {"kernel": wi, "bias": bi}, "wo": {"kernel": wo, "bias": bo}}


def _check(config: RingMoEConfig, usage: Usage) -> None:
    """Raises where a usage is not that of the model."""
    if usage.modalities != modalities(config):
        raise ConfigError(
            f"usage of a model of {', '.join(usage.modalities)}, but this one has {', '.join(modalities(config))}: "
            "measure how this one uses its experts"
        )
    measured = importance(usage, "gate")
    for group, allowed in layer_tables(config)[0].items():
        wanted, got = (sum(config.depths), *allowed.shape), getattr(measured.get(group), "shape", None)
        if got != wanted:
            raise ConfigError(f'usage of "{group}" has the shape {got}, the model {wanted}: measure this one')
