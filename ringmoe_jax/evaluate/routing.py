"""What the routers did on a set of tiles: loads, drops, entropies, dead experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from ringmoe_jax.moe.statistics import RoutingStatistics


@dataclasses.dataclass(frozen=True)
class GroupSummary:
    """One router group.

    Attributes:
        load: [L, M, E] float64, share of a modality's choices that fell on each expert; NaN where the
            modality may not choose the expert or was not seen.
        drop_rate: [L, M] share of choices that found their expert full, NaN where not seen.
        entropy: [L, M] mean entropy of the router in nats, NaN where not seen.
        gate: [L, M] mean gate of the chosen experts, NaN where not seen.
        dead: (layer, expert) pairs that got no token although a modality that was seen may choose them.
        tokens: [M] tokens seen, over all layers.
    """

    load: np.ndarray
    drop_rate: np.ndarray
    entropy: np.ndarray
    gate: np.ndarray
    dead: tuple[tuple[int, int], ...]
    tokens: np.ndarray

    @property
    def most_entropy(self) -> np.ndarray:
        """[L, M] entropy in nats of a router that prefers none of the experts in reach, NaN where not seen."""
        reach = np.isfinite(self.load).sum(axis=-1)
        return np.log(np.where(reach, reach, np.nan))


def add(parts: Sequence[Mapping[str, RoutingStatistics]]) -> dict[str, RoutingStatistics]:
    """Sums statistics of several batches, of any mix of data sets, on the host in float64."""
    return jax.tree.map(lambda *x: np.sum([np.asarray(v, np.float64) for v in x], axis=0), *parts)


def summarise(statistics: Mapping[str, RoutingStatistics]) -> dict[str, GroupSummary]:
    """Ratios of the sums of every router group, fields stacked over L layers."""
    return {name: _group(jax.tree.map(np.asarray, s)) for name, s in statistics.items()}


def history(records: Sequence[Mapping]) -> dict[str, dict[str, np.ndarray]]:
    """What the routers did during training, from the logged records (see `training.step.routing_metrics`).

    Returns:
        {router group: {"step": [R], "drop_rate", "entropy", "most_entropy", "gate", "max_load": [R, M]}}; means over
        layers, NaN where a modality was absent. `max_load` is the busiest expert's load over the mean of those in
        reach, `most_entropy` the entropy of a router that prefers none of them, in nats; in reach are those that some
        layer chose.
    """
    groups: dict[str, dict[str, list]] = {}
    for record in records:
        tables = {name: value for name, value in record.items() if "/by_layer/" in name}
        for name, value in tables.items():
            _, group, _, metric = name.split("/")
            value, series = np.asarray(value, np.float64), groups.setdefault(group, {})
            if metric == "load":
                reach = (value.sum(axis=0) > 0).sum(axis=-1)
                metric, value = "max_load", value.max(axis=-1) * reach
                series.setdefault("most_entropy", []).append(np.log(np.where(reach, reach, np.nan)))
            series.setdefault(metric, []).append(value.mean(axis=0))
        for group in {name.split("/")[1] for name in tables}:
            groups[group].setdefault("step", []).append(record["step"])
    return {group: {name: np.asarray(v) for name, v in series.items()} for group, series in groups.items()}


def _group(s: RoutingStatistics) -> GroupSummary:
    allowed = s.reach > 0  # [L, M, E]
    choices = s.load.sum(axis=-1)
    load = np.where(allowed, _ratio(s.load, choices[..., None]), np.nan)
    dead = np.argwhere((s.load.sum(axis=1) == 0) & allowed.any(axis=1))
    return GroupSummary(
        load,
        _ratio(s.dropped, choices),
        _ratio(s.entropy, s.tokens),
        _ratio(s.gate.sum(axis=-1), choices),
        tuple((int(layer), int(expert)) for layer, expert in dead),
        s.tokens.sum(axis=0),
    )


def _ratio(value: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(value, total, out=np.full(np.broadcast_shapes(value.shape, total.shape), np.nan), where=total > 0)
