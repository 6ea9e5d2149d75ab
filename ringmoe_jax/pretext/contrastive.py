"""Multi-granularity contrastive learning (SkySense, section 3): a student sees one view, its moving average another.

The first view of a batch goes through the student, the second through the teacher, local crops through the student.
Features of the same ground (pixel level), of the same cluster (object) and of the whole image are projected, and the
teacher's projections become target distributions. What is compared with what, and with which weight, is for the
objectives: `self_distillation` and `alignment`. Levels, streams and the update of prototypes are the paper's; heads,
temperatures, centring and matching are unknown there and follow DINO, iBOT and CrOC (our choice).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ringmoe_jax.contracts import FUSED, SECOND, mean_of_cells, unmasked, valid_cells
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.models import projection
from ringmoe_jax.models.api import Model, Params
from ringmoe_jax.models.geo_context import BANK
from ringmoe_jax.pretext import matching, prototypes
from ringmoe_jax.pretext.base import PRETEXTS, Pretext, PretextConfig, PretextSpec, encoder
from ringmoe_jax.pretext.sinkhorn import sinkhorn

IMAGE, LOCAL, ALIGN = "image", "local", "align"  # projections of a stream
LEVELS = {"image": IMAGE, "pixel": LOCAL, "object": LOCAL, "align": ALIGN}  # which one each level uses


@PRETEXTS.register("contrastive")
@dataclasses.dataclass(frozen=True)
class ContrastiveConfig(PretextConfig):
    """How targets are made. Defaults are DINO's and iBOT's (our choice, the paper is silent).

    Attributes:
        momentum: of the teacher at the first step; a cosine takes it to 1 at the last one.
        targets: "sinkhorn" or "centre" (DINO: minus a moving mean).
        temperature: of the teacher, after its warm-up.
        warmup_temperature: of the teacher at the first step.
        warmup_steps: steps from the one to the other, linearly.
        centre_momentum: of the moving mean, for targets = "centre".
        image_outputs: K of the image level.
        local_outputs: K of pixels and objects, which share one head.
        hidden: width of the heads' MLP.
        head_norm: "batch" or "layer", see `ringmoe_jax.models.projection`; with micro-batches, over each of them.
        bottleneck: width of the heads' unit vector, and of the features that `alignment` compares.
        clusters: objects an image.
        cluster_temperature: of the assignment to clusters.
        tokens: pairs of pixels an image that the pixel level looks at, drawn at random; 0 is all.
        prototype_momentum: m of geo-context prototypes.
        prototype_temperature: of the assignment to prototypes.
    """

    levels: ClassVar[tuple[str, ...]] = tuple(LEVELS)
    momentum: float = 0.996
    targets: str = "sinkhorn"
    temperature: float = 0.07
    warmup_temperature: float = 0.04
    warmup_steps: int = 0
    centre_momentum: float = 0.9
    image_outputs: int = 65536
    local_outputs: int = 8192
    hidden: int = 2048
    head_norm: str = "batch"
    bottleneck: int = 256
    clusters: int = 8
    cluster_temperature: float = 0.05
    tokens: int = 0
    prototype_momentum: float = 0.99
    prototype_temperature: float = 0.05

    def __post_init__(self):
        if self.targets not in ("sinkhorn", "centre"):
            raise ConfigError(f'pretext.targets = "{self.targets}": wanted "sinkhorn" or "centre"')
        if self.head_norm not in ("batch", "layer"):
            raise ConfigError(f'pretext.head_norm = "{self.head_norm}": wanted "batch" or "layer"')
        for name in ("momentum", "centre_momentum", "prototype_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"pretext.{name} = {getattr(self, name)}: wanted 0 to 1")
        for name in ("temperature", "warmup_temperature", "cluster_temperature", "prototype_temperature"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"pretext.{name} = {getattr(self, name)}: wanted > 0")
        if min(self.image_outputs, self.local_outputs, self.hidden, self.bottleneck, self.clusters) < 2:
            raise ConfigError(
                "pretext: image_outputs, local_outputs, hidden, bottleneck and clusters must be 2 or more"
            )

    def build(self, model: Model, spec: PretextSpec) -> Pretext:
        return contrastive(model, spec, self)


def contrastive(model: Model, spec: PretextSpec, config: ContrastiveConfig) -> Pretext:
    """Two views and a teacher.

    The state holds "teacher" (as the trained parameters), "step", "centres" (for targets = "centre") and, for a model
    with geo-context, its bank. Outputs are the student's on the first view, and besides

        outputs["contrast"][stream][level]   {"student": [N, K] float32 cosines, "teacher": [N, K] probabilities,
                                             "weight": [N] 1 where the pair counts}
        outputs["projected"][sensor]         [B, T, h, w, bottleneck] for `alignment`
        outputs["teacher_temperature"]       []

    Args:
        model: its streams are what can be compared.
        spec: what the objectives compare.
        config: see there.

    Raises:
        ConfigError: no objective compares views, or one names features that the model does not have.
        DataError: (when traced) the batch has no second view.
    """
    heads = _heads(model, spec, config)

    def init(params: Params, key: jax.Array) -> tuple[Params, Any]:
        trained = {name: value for name, value in params.items() if name != BANK}
        keys = iter(jax.random.split(key, sum(map(len, heads.values()))))
        trained["projections"] = {
            s: {kind: head.init(next(keys)) for kind, head in of.items()} for s, of in heads.items()
        }
        state = {"teacher": jax.tree.map(jnp.copy, trained), "step": jnp.int32(0)}
        if BANK in params:
            state[BANK] = params[BANK]
        if config.targets == "centre":
            sizes = {IMAGE: config.image_outputs, LOCAL: config.local_outputs}
            state["centres"] = {s: {k: jnp.zeros(sizes[k]) for k in of if k in sizes} for s, of in heads.items()}
        return trained, state

    def apply(params: Params, state: Any, batch: Mapping, *, key, train: bool) -> tuple[dict, Any]:
        return _Passes(model, heads, config, spec, params, state, key, train)(batch)

    def after(params: Params, state: Any) -> Any:
        step = state["step"]
        momentum = momentum_at(step, spec.steps, config.momentum)
        teacher = jax.tree.map(lambda t, p: momentum * t + (1 - momentum) * p, state["teacher"], params)
        return state | {"teacher": teacher, "step": step + 1}

    def export(params: Params, state: Any) -> Params:
        return encoder(state["teacher"]) | ({BANK: state[BANK]} if BANK in state else {})

    return Pretext(apply, init, after, export)


def momentum_at(step: jax.Array, steps: int, first: float) -> jax.Array:
    """Of the teacher after optimiser step number `step` (from 0): a cosine from `first` to 1 (DINO)."""
    share = jnp.minimum(step / max(steps - 1, 1), 1.0)
    return 1 - (1 - first) * (jnp.cos(jnp.pi * share) + 1) / 2


def _heads(model: Model, spec: PretextSpec, config: ContrastiveConfig) -> dict[str, dict[str, Model]]:
    outputs = {IMAGE: config.image_outputs, LOCAL: config.local_outputs, ALIGN: 0}
    heads: dict[str, dict[str, Model]] = {}
    for stream, levels in spec.projections.items():
        if stream not in model.streams:
            raise ConfigError(f'an objective compares "{stream}" of two views: {nearest(stream, model.streams)}')
        kinds = sorted({LEVELS[level] for level in levels})
        width = model.streams[stream]
        make = functools.partial(projection.build, width, config.hidden, config.bottleneck, norm=config.head_norm)
        heads[stream] = {kind: make(outputs[kind]) for kind in kinds}
    if not heads:
        raise ConfigError(
            'pretext "contrastive" has nothing to compare: name self_distillation or a projected alignment in '
            "config.objectives"
        )
    return heads


@dataclasses.dataclass(frozen=True)
class _Stream:
    """Features of one view: tokens [B, T, h, w, D], seen [B, T, h, w] bool, ground [B, 2, 3]."""

    tokens: jax.Array
    seen: jax.Array
    ground: jax.Array


def _streams(outputs: Mapping, entries: Mapping) -> dict[str, _Stream]:
    """Every kind of features that a pass gave, by sensor and "fused"."""
    found = {}
    for name, tokens in outputs["tokens"].items():
        seen = valid_cells(entries[name]["valid"], tokens.shape[2:4])
        found[name] = _Stream(tokens, seen, entries[name]["ground"])
    if FUSED in outputs:
        seen = functools.reduce(jnp.logical_or, [s.seen.any(axis=1, keepdims=True) for s in found.values()])
        found[FUSED] = _Stream(outputs[FUSED][:, None], seen, next(iter(found.values())).ground)
    return found


class _Passes:
    """The forward passes of one step and their pairs."""

    def __init__(self, model, heads, config: ContrastiveConfig, spec: PretextSpec, params, state, key, train: bool):
        self.model, self.heads, self.config, self.spec = model, heads, config, spec
        self.params, self.state, self.train = params, state, train
        self.bank = {BANK: state[BANK]} if BANK in state else {}
        self.rows: dict[tuple[str, str], list] = {}  # what centres move towards
        self.key, self.draws = (None, jax.random.key(0)) if key is None else jax.random.split(key)
        warm = jnp.minimum(state["step"] / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
        self.temperature = config.warmup_temperature + warm * (config.temperature - config.warmup_temperature)

    def __call__(self, batch: Mapping) -> tuple[dict, Any]:
        views = {"first": batch["sensors"]} | dict(batch.get("views", {}))
        if SECOND not in views or any("ground" not in e for view in views.values() for e in view.values()):
            raise DataError("contrastive pre-training needs two views of every sample: set data.views")
        second = unmasked(views.pop(SECOND))
        teacher = self.model.apply(self.state["teacher"] | self.bank, {"sensors": second}, key=None, train=False)
        teacher = _streams(jax.lax.stop_gradient(teacher), second)
        outputs, students = {}, {}
        for number, (name, view) in enumerate(views.items()):
            key = None if self.key is None else jax.random.fold_in(self.key, number)
            outputs[name] = self.model.apply(self.params | self.bank, {"sensors": view}, key=key, train=self.train)
            students[name] = _streams(outputs[name], view)
        state, contrast = dict(self.state), {}
        for stream, levels in self.spec.projections.items():
            if stream not in teacher or stream not in students["first"]:
                continue
            contrast[stream] = {
                level: self._compare(stream, level, students, teacher[stream])
                for level in levels
                if LEVELS[level] != ALIGN
            }
        first = outputs["first"]
        if self.rows and self.train:
            state["centres"] = self._moved_centres()
        if self.bank and self.train:
            state[BANK] = self._moved_bank(first, students["first"][FUSED])
        projected = {
            stream: self._project(self.params, stream, ALIGN, view.tokens, view.seen)
            for stream, view in students["first"].items()
            if ALIGN in self.heads.get(stream, {})
        }
        return first | {"contrast": contrast, "projected": projected, "teacher_temperature": self.temperature}, state

    def _compare(self, stream: str, level: str, students: Mapping, teacher: _Stream) -> dict:
        """Rows of student and teacher features that belong together, projected; local crops add rows."""
        pair = {"pixel": self._pixels, "object": self._objects, "image": self._images}[level]
        views = [view[stream] for view in students.values() if stream in view]  # the first view comes first
        if level == "object" or stream == FUSED:
            views = views[:1]
        rows = [pair(view, teacher) for view in views]
        a, b, weight = (jnp.concatenate(part) for part in zip(*rows, strict=True))
        kind = LEVELS[level]
        weight = jax.lax.stop_gradient(weight.astype(jnp.float32))
        cosines = jax.lax.stop_gradient(self._project(self.state["teacher"], stream, kind, b, weight))
        return {
            "student": self._project(self.params, stream, kind, a, weight),
            "teacher": self._targets(cosines, weight, stream, kind),
            "weight": weight,
        }

    def _project(self, params: Params, stream: str, kind: str, features: jax.Array, weight: jax.Array) -> jax.Array:
        """[..., D] and weights [...] -> [..., K or bottleneck]."""
        rows = (_rows(features), weight.reshape(-1).astype(jnp.float32))
        projected = self.heads[stream][kind].apply(params["projections"][stream][kind], rows)
        return projected.reshape(*features.shape[:-1], -1)

    def _targets(self, cosines: jax.Array, weight: jax.Array, stream: str, kind: str) -> jax.Array:
        """[N, K] -> probabilities."""
        if self.config.targets == "sinkhorn":
            return sinkhorn(cosines, weight, temperature=self.temperature)
        self.rows.setdefault((stream, kind), []).append((jnp.einsum("n,nk->k", weight, cosines), weight.sum()))
        return jax.nn.softmax((cosines - self.state["centres"][stream][kind]) / self.temperature)

    def _moved_centres(self) -> dict:
        """Every centre a step towards the mean of the rows that used it, whatever their level."""
        centres = {stream: dict(of) for stream, of in self.state["centres"].items()}
        for (stream, kind), rows in self.rows.items():
            total, weight = (sum(part) for part in zip(*rows, strict=True))
            m = jnp.where(weight > 0, self.config.centre_momentum, 1.0)
            centres[stream][kind] = m * centres[stream][kind] + (1 - m) * total / jnp.maximum(weight, 1)
        return centres

    def _pixels(self, student: _Stream, teacher: _Stream):
        """The teacher's features at the centres of the student's cells, dates paired by rank."""
        at, inside = matching.positions(student.ground, teacher.ground, student.tokens.shape[2:4])
        dates = _common_dates(student, teacher)
        a, seen = student.tokens[:, :dates], student.seen[:, :dates]
        b = matching.sample(teacher.tokens[:, :dates], at)
        seen &= matching.sample(teacher.seen[:, :dates, ..., None].astype(jnp.float32), at)[..., 0] > 0.5
        a, b, weight = (x.reshape(len(x), -1, *x.shape[4:]) for x in (a, b, seen & inside[:, None]))
        if 0 < self.config.tokens < weight.shape[1]:
            self.draws, key = jax.random.split(self.draws)
            luck = jax.random.uniform(key, weight.shape) + weight
            chosen = jax.lax.top_k(luck, self.config.tokens)[1]
            a, b = (jnp.take_along_axis(x, chosen[..., None], axis=1) for x in (a, b))
            weight = jnp.take_along_axis(weight, chosen, axis=1)
        return _rows(a), _rows(b), weight.reshape(-1)

    def _objects(self, student: _Stream, teacher: _Stream):
        """Centres of joint clusters, image by image and date by date."""
        dates = _common_dates(student, teacher)

        def images(x):
            return x[:, :dates].reshape(len(x) * dates, -1, *x.shape[4:])

        parts = map(images, (student.tokens, teacher.tokens, student.seen, teacher.seen))
        a, b, used = matching.clusters(*parts, self.config.clusters, self.config.cluster_temperature)
        return _rows(a), _rows(b), used.reshape(-1)

    def _images(self, student: _Stream, teacher: _Stream):
        """Means over what each view shows, dates paired by rank."""
        dates = _common_dates(student, teacher)
        tokens, seen = ([getattr(view, part)[:, :dates] for view in (student, teacher)] for part in ("tokens", "seen"))
        a, b = (mean_of_cells(x, cells, axis=(2, 3)) for x, cells in zip(tokens, seen, strict=True))
        return _rows(a), _rows(b), (seen[0].any(axis=(2, 3)) & seen[1].any(axis=(2, 3))).reshape(-1)

    def _moved_bank(self, outputs: Mapping, fused: _Stream):
        bank = self.state[BANK]
        features = fused.tokens[:, 0, ..., : bank["prototypes"].shape[-1]]
        return prototypes.update(
            bank,
            features,
            fused.seen[:, 0],
            outputs["regions"],
            momentum=self.config.prototype_momentum,
            temperature=self.config.prototype_temperature,
        )


def _common_dates(student: _Stream, teacher: _Stream) -> int:
    return min(student.tokens.shape[1], teacher.tokens.shape[1])


def _rows(x: jax.Array) -> jax.Array:
    """[..., n, D] -> [N, D]."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
