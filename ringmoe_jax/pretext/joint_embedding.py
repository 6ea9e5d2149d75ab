"""Joint embedding without a teacher: all views of a place go through one network and its projector.

Two views and any number of local crops (multi-crop, SwAV); with several sensors each shows the place again. What makes
embeddings of one place alike and those of all places spread is for the objectives: `vicreg`, `sigreg`. Source: VICReg
(Bardes et al. 2022, arXiv 2105.04906); many crops with a mean view as centre, LeJEPA (arXiv 2511.08544).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ringmoe_jax.contracts import FUSED, OF_EVERY_MODEL, SECOND, mean_of_cells, valid_cells
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.models import projection
from ringmoe_jax.models.api import Model, Params
from ringmoe_jax.pretext.base import PRETEXTS, Pretext, PretextConfig, PretextSpec, encoder

EMBEDDING = "embedding"  # level of `Objective.projections`
FULL = ("first", SECOND)  # views that are no local crops

_STATIC = ("sensors", "statistics")
_PER_ROW = tuple(name for name in (*OF_EVERY_MODEL, FUSED, "regions", "context") if name not in _STATIC)


@PRETEXTS.register("joint_embedding")
@dataclasses.dataclass(frozen=True)
class JointEmbeddingConfig(PretextConfig):
    """The projector. Defaults are VICReg's but for their size (2048 an each for a ResNet-50).

    Attributes:
        hidden: width of its two hidden layers.
        outputs: K, width of the embeddings.
        all_stages: embeds the mean tokens of all stages, joined, and not of the last one only: a path of gradients to
            every stage, so that each holds features of its own (our choice).
    """

    levels: ClassVar[tuple[str, ...]] = (EMBEDDING,)
    hidden: int = 512
    outputs: int = 256
    all_stages: bool = False

    def __post_init__(self):
        if min(self.hidden, self.outputs) < 2:
            raise ConfigError(f"pretext: hidden = {self.hidden}, outputs = {self.outputs}: wanted 2 or more")

    def build(self, model: Model, spec: PretextSpec) -> Pretext:
        return joint_embedding(model, spec, self)


def joint_embedding(model: Model, spec: PretextSpec, config: JointEmbeddingConfig) -> Pretext:
    """All views through the network.

    Outputs are those of the first view, and besides

        outputs["embeddings"][stream]   {"rows": [B, V, K] float32, "weight": [B, V] 1 where the view shows anything,
                                         "full": how many of the V are no local crops; they come first}
        outputs["draw"]                 a random key of the step, for objectives that draw

    Routing statistics are those of the passes that show full views. Views of the same shapes are one pass.

    Args:
        model: its streams are what can be embedded.
        spec: what the objectives compare.
        config: see there.

    Raises:
        ConfigError: no objective compares embeddings, or one names features that the model does not have.
        DataError: (when traced) the batch has one view only.
    """
    if not spec.projections:
        raise ConfigError(
            'pretext "joint_embedding" has nothing to compare: name vicreg or sigreg in config.objectives'
        )
    sizes = {stream: _width(model, stream, config.all_stages) for stream in spec.projections}
    projectors = {
        stream: projection.build_projector(width, config.hidden, config.outputs) for stream, width in sizes.items()
    }

    def init(params: Params, key: jax.Array) -> tuple[Params, Any]:
        keys = jax.random.split(key, len(projectors))
        return params | {"projections": {s: p.init(k) for (s, p), k in zip(projectors.items(), keys, strict=True)}}, {}

    def apply(params: Params, state: Any, batch: Mapping, *, key, train: bool) -> tuple[dict, Any]:
        draw, key = (jax.random.key(0), None) if key is None else jax.random.split(key)
        outputs, features = _passes(model, params, batch, key, train, config.all_stages)
        embeddings = {}
        for stream, projector in projectors.items():
            shown = [name for name in features if stream in features[name]]
            if "first" not in shown:
                continue
            shown.sort(key=lambda name: name not in FULL)  # stable
            rows, weight = (jnp.stack([features[n][stream][i] for n in shown], axis=1) for i in (0, 1))
            flat = rows.reshape(-1, rows.shape[-1]), weight.reshape(-1)
            embedded = projector.apply(params["projections"][stream], flat)
            full = sum(name in FULL for name in shown)
            embeddings[stream] = {"rows": embedded.reshape(*weight.shape, -1), "weight": weight, "full": full}
        return outputs | {"embeddings": embeddings, "draw": draw}, state

    def export(params: Params, state: Any) -> Params:
        return encoder(params)

    return Pretext(apply, init, export=export)


def _width(model: Model, stream: str, all_stages: bool) -> int:
    """D of the features that are embedded."""
    if stream not in model.streams:
        raise ConfigError(f'an objective compares "{stream}": {nearest(stream, model.streams)}')
    if all_stages and stream not in model.stages and stream != FUSED:
        raise ConfigError(
            "pretext.all_stages: this model does not say how wide its stages are (Model.stages): set False"
        )
    return sum(model.stages.get(stream, (model.streams[stream],))) if all_stages else model.streams[stream]


def _passes(model: Model, params: Params, batch: Mapping, key, train: bool, all_stages: bool):
    """The outputs of the first view, and {view: {stream: features [B, D] and weight [B]}}."""
    views = {"first": batch["sensors"]} | dict(batch.get("views", {}))
    if SECOND not in views:
        raise DataError("a joint embedding needs two views of every sample: set data.views")
    first, features = {}, {}
    for number, names in enumerate(_alike(views)):
        part = None if key is None else jax.random.fold_in(key, number)
        shown = jax.tree.map(lambda *x: _join(x), *(views[name] for name in names))
        outputs = model.apply(params, {"sensors": shown}, key=part, train=train)
        features |= dict(zip(names, _split(_pooled(outputs, shown, all_stages), len(names)), strict=True))
        if "first" in names:
            rows = {name: value for name, value in outputs.items() if name in _PER_ROW}
            first = outputs | _split(rows, len(names))[names.index("first")]
    return first, features


def _alike(views: Mapping[str, Mapping]) -> list[list[str]]:
    """Names of the views in groups of equal structure and shapes, the first view's before the others."""
    groups: dict[Any, list[str]] = {}
    for name, view in views.items():
        leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: (x.shape, x.dtype), view))
        groups.setdefault((tuple(leaves), tree), []).append(name)
    return list(groups.values())


def _join(arrays) -> jax.Array:
    """[B, ...] of V views to [B V, ...], a sample's views side by side, so that no shard of B moves."""
    return arrays[0] if len(arrays) == 1 else jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])


def _split(tree, count: int) -> list:
    """Inverse of `_join` for every array of a tree."""
    return [jax.tree.map(lambda x, i=i: x.reshape(-1, count, *x.shape[1:])[:, i], tree) for i in range(count)]


def _pooled(outputs: Mapping, entries: Mapping, all_stages: bool) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Mean features over dates and cells that show anything, [B, D] float32, and whether one does, [B], by stream."""
    pooled, shown = {}, []
    for name, tokens in outputs["tokens"].items():
        maps = (*(outputs["stages"][name][:-1] if all_stages else ()), tokens)
        cells = [valid_cells(entries[name]["valid"], x.shape[2:4]) for x in maps]
        means = [mean_of_cells(x, seen) for x, seen in zip(maps, cells, strict=True)]
        pooled[name] = jnp.concatenate(means, axis=-1), cells[-1].any(axis=(1, 2, 3)).astype(jnp.float32)
        shown.append(cells[-1].any(axis=1, keepdims=True))
    if FUSED in outputs:
        seen = functools.reduce(jnp.logical_or, shown)
        pooled[FUSED] = mean_of_cells(outputs[FUSED][:, None], seen), seen.any(axis=(1, 2, 3)).astype(jnp.float32)
    return pooled
