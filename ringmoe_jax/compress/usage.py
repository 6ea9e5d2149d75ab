"""How a model uses its experts on some images, and three ways to say how much each of them matters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np

from ringmoe_jax import files
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.moe.contribution import Contribution
from ringmoe_jax.moe.statistics import RoutingStatistics
from ringmoe_jax.parallel.sharding import path_name

_ABOUT = "about"  # entry of a file with what is no array


@dataclasses.dataclass(frozen=True)
class Usage:
    """Routing statistics of a model, summed over images.

    Attributes:
        modalities: names along the axis M, as `ringmoe_jax.sensors.modalities` of the model's sensors gives them.
        images: number of images that were looked at, by modality.
        statistics: {router group: `RoutingStatistics` stacked over L layers}, NumPy arrays of float64.
    """

    modalities: tuple[str, ...]
    images: dict[str, int]
    statistics: dict[str, RoutingStatistics]

    @staticmethod
    def none(modalities: tuple[str, ...]) -> Usage:
        """Nothing looked at yet."""
        return Usage(tuple(modalities), dict.fromkeys(modalities, 0), {})

    def add(self, routing: Mapping[str, RoutingStatistics], images: Mapping[str, int]) -> Usage:
        """With one more batch.

        Args:
            routing: the model's `outputs["routing"]`.
            images: number of images in the batch by modality; those without any may be left out.

        Raises:
            DataError: the model has no routers, or is not the one that was looked at before.
        """
        if not routing:
            raise DataError("the model gave no routing statistics: wanted one with router groups, not a dense one")
        new = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), dict(routing))
        if self.statistics and _shapes(new) != _shapes(self.statistics):
            raise DataError(
                f"routing statistics of another model: wanted {_shapes(self.statistics)}, got {_shapes(new)}"
            )
        if sizes := {s.load.shape[1] for s in new.values()} - {len(self.modalities)}:
            raise DataError(f"statistics of {sizes.pop()} modalities, wanted those of {', '.join(self.modalities)}")
        if unknown := set(images) - set(self.modalities):
            name = unknown.pop()
            raise DataError(f'images of the modality "{name}": {nearest(name, self.modalities)}')
        total = jax.tree.map(np.add, self.statistics, new) if self.statistics else new
        return Usage(self.modalities, {m: n + int(images.get(m, 0)) for m, n in self.images.items()}, total)

    def save(self, path: str | Path) -> None:
        """Writes an .npz file: whole or not at all."""
        leaves = jax.tree_util.tree_flatten_with_path(self.statistics)[0]
        arrays = {path_name(where): leaf for where, leaf in leaves}
        arrays[_ABOUT] = json.dumps({"modalities": self.modalities, "images": self.images})
        with files.replaced(path) as draft, draft.open("wb") as file:
            np.savez(file, **arrays)

    @staticmethod
    def load(path: str | Path) -> Usage:
        """Reads what `save` wrote.

        Raises:
            DataError: there is no such file, or it holds something else.
        """
        try:
            with np.load(path) as file:
                arrays = dict(file)
            about = json.loads(str(arrays.pop(_ABOUT)))
        except FileNotFoundError as error:
            raise DataError(f"no file {path}: measure how the model uses its experts first") from error
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise DataError(f"{path} is no record of how a model uses its experts: {error}") from error
        groups: dict[str, dict[str, np.ndarray]] = {}
        for name, leaf in arrays.items():
            group, _, field = name.partition("/")
            groups.setdefault(group, {})[field] = leaf
        return Usage(tuple(about["modalities"]), about["images"], {g: _statistics(f) for g, f in groups.items()})


def _statistics(fields: dict[str, np.ndarray]) -> RoutingStatistics:
    """From names such as "load" and "contribution/norm" to arrays."""
    # Files of earlier versions: whoever had a probability was in reach.
    fields.setdefault("reach", np.where(fields["probability"] > 0, fields["tokens"][..., None], 0.0))
    measured = {name: fields.pop(f"contribution/{name}", None) for name in Contribution._fields}
    return RoutingStatistics(**fields, contribution=None if measured["norm"] is None else Contribution(**measured))


def _shapes(statistics: Mapping[str, RoutingStatistics]) -> dict[str, tuple[int, ...]]:
    """Shape [L, M, E] of each group, and F where contributions were measured."""
    return {g: s.load.shape if s.contribution is None else s.contribution.hidden.shape for g, s in statistics.items()}


def importance(usage: Usage, name: str) -> dict[str, np.ndarray]:
    """How much each expert matters to the tokens of each modality.

        "frequency"  share of the tokens that chose it; all experts of a group together give top_k. What RingMoE
                     prunes by (paper, expert pruning)
        "gate"       mean gate that it was given, 0 where it was not chosen: frequency x mean gate of its tokens
        "norm"       mean Euclidean norm of what it added, in the units of the layer's output; needs statistics with
                     `model.moe.measure`. The layer norm that follows takes a common scale of a layer's experts away,
                     so compare norms within a layer

    Args:
        usage: what was measured.
        name: one of `IMPORTANCES`.

    Returns:
        {router group: [L, M, E] float64, >= 0}; 0 for experts that are pruned or out of a modality's reach.

    Raises:
        ConfigError: no such measure, or one that was not measured.
        DataError: nothing was measured, or no image of some modality.
    """
    if name not in IMPORTANCES:
        raise ConfigError(f'no importance "{name}": {nearest(name, IMPORTANCES)}')
    if not usage.statistics:
        raise DataError("no image was looked at: add the routing statistics of some batches first")
    if unseen := [modality for modality, images in usage.images.items() if not images]:
        raise DataError(f"no image of {', '.join(unseen)} was looked at: show some, or take a sub-model without it")
    return {group: _per_token(IMPORTANCES[name](s), s.tokens) for group, s in usage.statistics.items()}


def _per_token(total: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """[L, M, E] sums over [L, M] tokens; a router whose experts all are gone in a layer saw none."""
    return total / np.maximum(tokens, 1)[..., None]


def _norm(statistics: RoutingStatistics) -> np.ndarray:
    if statistics.contribution is None:
        raise ConfigError('importance "norm" was not measured: set model.moe.measure = True and look again')
    return statistics.contribution.norm


IMPORTANCES: dict[str, Callable[[RoutingStatistics], np.ndarray]] = {
    "frequency": lambda statistics: statistics.load,
    "gate": lambda statistics: statistics.gate,
    "norm": _norm,
}
