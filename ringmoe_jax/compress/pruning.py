"""Expert pruning: which experts stay, and the network without the others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models import count
from ringmoe_jax.models.api import Network
from ringmoe_jax.models.network import Tables, layer_tables, modalities, read, select_experts, with_tables
from ringmoe_jax.models.ringmoe import RingMoEConfig

SCOPES = ("layer", "global")
TABLES = ("shared", "own")
Allowed = tuple[dict[str, tuple[str, ...]], ...]  # as `MoEConfig.allowed`


def choose(
    network: Network,
    importance: Mapping[str, np.ndarray],
    *,
    keep: float | None = None,
    parameters: int | None = None,
    scope: str = "layer",
    tables: str = "shared",
    groups: Sequence[str] = ("collaborative",),
) -> Allowed:
    """Which experts stay. Give either `keep` or `parameters`.

    A *choice* is what one modality, or several with equal tables, may choose from in one router group of one layer. Its
    experts are ranked by their share in the importance of all experts of the layer, over all groups in `importance`:
    the layer norm behind the experts takes a common scale away, so only shares compare between modalities and layers
    (our choice). Of equals the lower expert stays, in the lower layer.

    With the scope "layer" every choice of E experts keeps its ceil(keep E) best, and `top_k` at least (paper, expert
    pruning: 25 % of 4, by frequency). With "global" the worst of all choices go first, down to `top_k` in each; the
    last `top_k` also go, as one item of the ranking, where all modalities share the choice and the layer has a shared
    expert.

    Args:
        network: parameters may be shapes (`jax.ShapeDtypeStruct`).
        importance: {router group: [L, M, E]}, of `ringmoe_jax.compress.importance`.
        keep: share of the experts that stays, above 0, at most 1.
        parameters: of the whole network (all of `network.params`), at most so many stay: with "layer" the largest
            `keep` that does it, with "global" the longest ranking.
        scope: "layer" or "global".
        tables: "shared" prunes modalities with equal tables alike, by the mean of their shares; "own" each by its own
            shares, and an expert is gone when no modality keeps it.
        groups: router groups that are pruned.

    Returns:
        For `prune`, the value of `model.moe.allowed`.

    Raises:
        ConfigError: an argument is out of range, a group or its importance is missing or of another shape, or
            the target cannot be reached.
    """
    config = read(network.model)
    _check(config, importance, keep, parameters, scope, tables, groups)
    choices = _choices(config, importance, tables == "own", groups)
    for kept in (_by_layer if scope == "layer" else _by_rank)(config, choices, keep):
        size = count(network.params) - _saved(config, kept)
        if parameters is None or size <= parameters:
            return read(with_tables(network.model, kept)).moe.allowed
    raise ConfigError(
        f"parameters = {parameters} cannot be reached: {size} are left when {' and '.join(groups)} experts are "
        "pruned as far as they can be: prune more groups, merge the experts, or ask for more"
    )


def prune(network: Network, allowed: Allowed) -> Network:
    """The network without the experts that nobody may choose; routers' softmax runs over those that stay.

    What was pruned before stays so. With nothing more to prune the result is the network itself.

    Args:
        network: a RingMoE model.
        allowed: of `choose`, or written by hand as `MoEConfig.allowed` says.

    Raises:
        ConfigError: `allowed` does not fit the model.
    """
    model = pruned_config(network.model, allowed)
    moe = read(network.model).moe
    numbers = {
        "specialised": np.arange(moe.specialised * len(modalities(read(network.model)))),
        "collaborative": np.arange(moe.collaborative),
    }
    return select_experts(network, model, numbers)


def pruned_config(model: Mapping[str, Any], allowed: Allowed) -> dict[str, Any]:
    """What `prune` makes of `config.model`; arguments and errors are the same."""
    asked = read({**model, "moe": {**model.get("moe", {}), "allowed": allowed}})
    both = zip(layer_tables(read(model)), layer_tables(asked), strict=True)
    return with_tables(model, [{group: old[group] & new[group] for group in old} for old, new in both])


@dataclasses.dataclass(frozen=True)
class _Choice:
    """Experts that some modalities choose from in one layer.

    Attributes:
        layer: number of the layer.
        group: router group.
        rows: modalities, as indices of M.
        experts: [n], most important first.
        shares: [n] in 0..1, their part of the layer's importance.
        whole: all modalities are in it, so that it may go altogether.
    """

    layer: int
    group: str
    rows: np.ndarray
    experts: np.ndarray
    shares: np.ndarray
    whole: bool

    def take_out(self, kept: list[Tables], experts: np.ndarray) -> None:
        """Takes experts out of the tables."""
        kept[self.layer][self.group][np.ix_(self.rows, experts)] = False

    def items(self, k: int) -> list[tuple[float, np.ndarray]]:
        """What may go, and its share: the last k experts only together, if at all, and each of the others."""
        last = [(self.shares[:k].sum(), self.experts[:k])] if self.whole else []
        return last + [(self.shares[i], self.experts[i : i + 1]) for i in range(k, len(self.experts))]


def _choices(config: RingMoEConfig, importance: Mapping, own: bool, groups: Sequence[str]) -> list[_Choice]:
    found = []
    for layer, table in enumerate(layer_tables(config)):
        total = np.maximum(sum(values[layer].sum(axis=-1) for values in importance.values()), 1e-300)  # [M]
        for group in (group for group in table if group in groups and table[group].any()):
            together = _alike(table[group], own)
            for rows in together:
                experts = np.flatnonzero(table[group][rows[0]])
                shares = (importance[group][layer] / total[:, None])[np.ix_(rows, experts)].mean(axis=0)
                order = np.argsort(-shares, kind="stable")
                whole = len(together) == 1 and config.moe.shared
                found.append(_Choice(layer, group, rows, experts[order], shares[order], whole))
    return found


def _alike(table: np.ndarray, own: bool) -> list[np.ndarray]:
    """Modalities that are pruned alike, as indices of M: those with equal rows, or each for itself."""
    _, which = np.unique(table, axis=0, return_inverse=True)
    which = np.arange(len(table)) if own else which.reshape(-1)
    return [np.flatnonzero(which == i) for i in np.unique(which)]


def _by_layer(config: RingMoEConfig, choices: Sequence[_Choice], keep: float | None) -> Iterator[list[Tables]]:
    """Tables where every choice keeps the same share of its experts; without `keep` all shares, largest first."""
    sizes = {len(choice.experts) for choice in choices}
    shares = sorted({1.0} | {n / size for size in sizes for n in range(1, size + 1)}, reverse=True)
    for share in shares if keep is None else (keep,):
        kept = layer_tables(config)
        for choice in choices:
            stay = max(config.moe.top_k, _ceil(share * len(choice.experts)))
            choice.take_out(kept, choice.experts[stay:])
        yield kept


def _by_rank(config: RingMoEConfig, choices: Sequence[_Choice], keep: float | None) -> Iterator[list[Tables]]:
    """Tables from which the least important of all layers is taken again and again; with `keep` once it is reached."""
    items = [(share, choice, experts) for choice in choices for share, experts in choice.items(config.moe.top_k)]
    kept, left = layer_tables(config), sum(len(choice.experts) for choice in choices)
    wanted = left if keep is None else _ceil(keep * left)
    for _, choice, experts in sorted(items, key=lambda item: -item[0])[::-1]:  # of equals the last
        if left <= wanted:
            yield kept
        choice.take_out(kept, experts)
        left -= len(experts)
    yield kept


def _ceil(value: float) -> int:
    return math.ceil(value - 1e-9)  # 0.7 * 10 is a little more than 7


def _saved(config: RingMoEConfig, kept: Sequence[Tables]) -> int:
    """Parameters of the experts that are in nobody's reach any more."""
    widths = [config.width * 2**i for i, depth in enumerate(config.depths) for _ in range(depth)]
    saved = 0
    for width, old, new in zip(widths, layer_tables(config), kept, strict=True):
        hidden = config.hidden_ratio * width
        expert = 2 * width * hidden + hidden + 2 * width  # kernels, biases, a column of the router
        saved += expert * sum(int(old[g].any(axis=0).sum() - new[g].any(axis=0).sum()) for g in old)
    return saved


def _check(config: RingMoEConfig, importance: Mapping, keep, parameters, scope: str, tables: str, groups) -> None:
    """Raises ConfigError where `choose` cannot do what it is asked."""
    if (keep is None) == (parameters is None):
        raise ConfigError(f"keep = {keep} and parameters = {parameters}: give one of them")
    if keep is not None and not 0 < keep <= 1:
        raise ConfigError(f"keep = {keep}: wanted a share of the experts above 0, at most 1")
    for name, value, known in (("scope", scope, SCOPES), ("tables", tables, TABLES)):
        if value not in known:
            raise ConfigError(f'{name} = "{value}" does not exist: {nearest(value, known)}')
    first = layer_tables(config)[0]
    for group in groups:
        if group not in first:
            raise ConfigError(f'the model has no router group "{group}" to prune: {nearest(group, first)}')
        if group not in importance:
            raise ConfigError(f'no importance of the router group "{group}": {nearest(group, importance)}')
    for group, values in importance.items():
        shape = first[group].shape if group in first else (len(modalities(config)), 1)
        wanted = (sum(config.depths), *shape)
        if values.shape != wanted:
            raise ConfigError(
                f'importance of "{group}" has the shape {values.shape}, the model {wanted}: measure again'
            )
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ConfigError(f'importance of "{group}" has values that are negative or not finite: measure again')
