"""Experts that stay unused in training are dropped, with the optimiser's memory of them, and training goes on.

Tokens that never chose such an expert go on as before, but for the softmax over experts: what the dropped ones had of a
token's probability is shared out, p / (1 - sum of theirs), so gates grow a little. Tokens that did choose one go to
their next best. RingMoE prunes after training (its third idea); doing it while training goes on is our choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax.compress.pruning import Allowed, prune
from ringmoe_jax.compress.quantise import nbytes
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models import count
from ringmoe_jax.models.api import Network
from ringmoe_jax.models.network import Tables, layer_tables, read, with_tables
from ringmoe_jax.parallel.mesh import EXPERT_AXIS
from ringmoe_jax.parallel.sharding import to_host
from ringmoe_jax.pretext import Pretext
from ringmoe_jax.training.loop import Evaluate, Step, Training
from ringmoe_jax.training.state import TrainState, state_shardings

GROUPS = ("specialised", "collaborative")
CHOICES = "choices"  # entry of the pretext task's state


@dataclasses.dataclass(frozen=True)
class PruningConfig:
    """When an expert goes.

    Attributes:
        every: optimiser steps of a window, at whose end unused experts go; 0 is never.
        least: an expert is unused where its share of a modality's choices over the whole window stayed below `least`
            times the even share, 1 over the number of experts that the modality may choose; 0..1.
        groups: router groups that may lose experts.
    """

    every: int = 0
    least: float = 0.1
    groups: tuple[str, ...] = GROUPS

    def __post_init__(self):
        if self.every < 0:
            raise ConfigError(f"pruning.every = {self.every}: wanted steps of a window, or 0 for never")
        if not 0 <= self.least <= 1:
            raise ConfigError(f"pruning.least = {self.least}: wanted 0 to 1, the even share")
        for group in self.groups:
            if group not in GROUPS:
                raise ConfigError(f'pruning.groups: there is no router group "{group}": {nearest(group, GROUPS)}')


class Dropped(NamedTuple):
    """What the end of a window took.

    Attributes:
        step: optimiser steps taken.
        model: `config.model` of what is left.
        experts: {router group: {layer: numbers of the experts that went}}, empty where all were used.
        left: {router group: [L] experts that are left}.
        parameters: that the model lost.
        nbytes: that the training state lost: parameters, the optimiser's moments, a moving average.
    """

    step: int
    model: dict[str, Any]
    experts: dict[str, dict[int, tuple[int, ...]]]
    left: dict[str, np.ndarray]
    parameters: int
    nbytes: int

    @property
    def count(self) -> int:
        """Experts that went."""
        return sum(len(numbers) for layers in self.experts.values() for numbers in layers.values())


def counted(pretext: Pretext, model: Mapping[str, Any], config: PruningConfig) -> Pretext:
    """The pretext task, which also counts the routers' choices in training, on the device.

    Its state has one more entry, "choices": {router group: [L, M, E] float32}, so that checkpoints hold the
    window; sums are exact to 2^24 choices, and to a rounding a step beyond.

    Args:
        pretext: of the model.
        model: `config.model`.
        config: which router groups.

    Raises:
        ConfigError: the model is not RingMoE, or has none of the router groups.
    """
    layers = layer_tables(read(model))
    sizes = {group: (len(layers), *table.shape) for group, table in layers[0].items() if group in config.groups}
    if not sizes:
        raise ConfigError(f"pruning: the model has no experts in {' or '.join(config.groups)}: set pruning.every = 0")

    def init(params, key):
        trained, state = pretext.init(params, key)
        return trained, state | {CHOICES: {group: jnp.zeros(size, jnp.float32) for group, size in sizes.items()}}

    def apply(params, state, batch, *, key, train):
        outputs, own = pretext.apply(params, state, batch, key=key, train=train)
        if not train:
            return outputs, own
        seen = {g: sums + jax.lax.stop_gradient(outputs["routing"][g].load) for g, sums in state[CHOICES].items()}
        return outputs, own | {CHOICES: seen}

    return dataclasses.replace(pretext, init=init, apply=apply)


@dataclasses.dataclass(frozen=True)
class OnlinePruning:
    """Callback: takes unused experts away at the end of every window, and lets training go on with what is left.

    Windows end at the multiples of `config.every`. The decision needs nothing but the state, so a run that is resumed
    from any checkpoint takes the same ones. Checkpoints say in their record's config.model what is left.

    Attributes:
        config: when experts go.
        build: `build(model) -> (train_step, evaluate)` of a `config.model` with fewer experts: the training step, whose
            pretext task is `counted`, and the validation pass, which may be None.
        mesh: None is one device.
        report: told of the end of every window; default: the screen and the metrics.

    Raises:
        ConfigError: experts are split over devices.
    """

    config: PruningConfig
    build: Callable[[dict[str, Any]], tuple[Step, Evaluate | None]]
    mesh: jax.sharding.Mesh | None = None
    report: Callable[[Training, Dropped], None] | None = None
    name = "pruning"
    watches = False

    def __post_init__(self):
        if self.mesh is not None and self.mesh.shape[EXPERT_AXIS] > 1:
            raise ConfigError(
                f"pruning with mesh.expert = {self.mesh.shape[EXPERT_AXIS]}: the experts that are left may not divide "
                "over so many devices: set mesh.expert = 1 and use mesh.fsdp"
            )

    def due(self, training: Training) -> bool:
        """See `training.loop.Callback`."""
        return training.step % self.config.every == 0

    def __call__(self, training: Training) -> None:
        """See `training.loop.Callback`."""
        state, before = training.state, training.record["config"]["model"]
        choices = to_host(state.pretext[CHOICES])
        model = remaining(before, choices, self.config)
        empty = lambda sums: jax.device_put(np.zeros(sums.shape, sums.dtype), sums.sharding)  # noqa: E731
        cleared = {group: empty(sums) for group, sums in state.pretext[CHOICES].items()}
        state = dataclasses.replace(state, pretext=state.pretext | {CHOICES: cleared})
        smaller = shrink(state, before, model, self.mesh) if model != before else state
        (self.report or _report)(training, _dropped(training.step, before, model, state, smaller))
        training.state = smaller
        if model != before:
            training.record = {**training.record, "config": {**training.record["config"], "model": model}}
            training.train_step, training.evaluate = self.build(model)


def _report(training: Training, dropped: Dropped) -> None:
    """Says what the end of a window took, in the metrics and on the screen."""
    scalars = {"experts": dropped.count, "parameters": dropped.parameters, "bytes": dropped.nbytes}
    training.writer.write(
        dropped.step,
        {f"pruning/{name}": value for name, value in scalars.items()},
        {f"pruning/{group}/left": counts for group, counts in dropped.left.items()},
    )
    if not dropped.count:
        print(f"pruning     step {dropped.step}: every expert was used", flush=True)
        return
    for group, layers in dropped.experts.items():
        went = "; ".join(f"layer {layer}: {', '.join(map(str, numbers))}" for layer, numbers in layers.items())
        print(f"pruning     step {dropped.step}: unused {group} experts went ({went})")
    left = sum(int(counts.sum()) for counts in dropped.left.values())
    print(
        f"            {dropped.count} experts with {dropped.parameters:,} parameters, with the optimiser's state "
        f"{dropped.nbytes / 1e6:,.1f} MB; {left} experts are left",
        flush=True,
    )


def used(choices: np.ndarray, allowed: np.ndarray, *, least: float, top_k: int) -> np.ndarray:
    """The experts of one router that stay: somebody used them, or is left with too few otherwise.

    Args:
        choices: [M, E] how often tokens of each modality chose each expert; a modality that made no choice at all says
            nothing against its experts.
        allowed: [M, E] bool, who might choose what.
        least: see `PruningConfig`.
        top_k: experts a token; every modality keeps its `top_k` most chosen ones, of equals those of lower number.

    Returns:
        [M, E] bool, a part of `allowed`; experts that go are columns of False.
    """
    even = choices.sum(axis=1, keepdims=True) / np.maximum(allowed.sum(axis=1, keepdims=True), 1)
    stays = allowed & ~(choices < least * even)
    most = np.argsort(-np.where(allowed, choices, -1.0), axis=1, kind="stable")[:, :top_k]
    np.put_along_axis(stays, most, True, axis=1)
    return allowed & (allowed & stays).any(axis=0)


def remaining(model: dict[str, Any], choices: Mapping[str, np.ndarray], config: PruningConfig) -> dict[str, Any]:
    """`config.model` without the experts that a window did not use; the same where all were used.

    Args:
        model: before.
        choices: {router group: [L, M, E]} of the window.
        config: which experts go.
    """
    top_k = read(model).moe.top_k

    def left(layer: int, tables: Tables) -> Tables:
        return {
            group: used(choices[group][layer], table, least=config.least, top_k=top_k) if group in choices else table
            for group, table in tables.items()
        }

    return with_tables(model, [left(layer, tables) for layer, tables in enumerate(layer_tables(read(model)))])


def shrink(state: TrainState, model: dict[str, Any], smaller: dict[str, Any], mesh=None) -> TrainState:
    """The training state of a model with fewer experts: every part that mirrors the parameters is cut as they are.

    Those are the parameters, the optimiser's moments and a moving average of the student. The state is donated: it goes
    to the host, of several processes the whole state to each, and off the devices before what is left of it comes back.

    Args:
        state: of `model`.
        model: `config.model`.
        smaller: the same with fewer experts, see `remaining`.
        mesh: where the result goes; None is one device.
    """
    allowed: Allowed = read(smaller).moe.allowed
    structure = jax.tree.structure(state.params)
    mirrors = lambda part: jax.tree.structure(part) == structure  # noqa: E731
    cut = lambda part: prune(Network(model, part), allowed).params if mirrors(part) else part  # noqa: E731
    host = to_host(state)
    jax.tree.map(lambda leaf: leaf.delete(), state)
    left = jax.tree.map(cut, host, is_leaf=mirrors)
    return jax.device_put(left, None if mesh is None else state_shardings(left, mesh))


def taken_over(model: dict[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config with the experts of a checkpoint's, where that is the same model with fewer experts.

    Args:
        model: `config.model` that a run is started with.
        saved: that of its checkpoint.

    Returns:
        `model`, as it is where the two tell of other experts; whoever compares them will say so.
    """
    if model.get("name") != saved.get("name"):
        return model
    own, left = layer_tables(read(model)), layer_tables(read(saved))
    if jax.tree.map(np.shape, own) != jax.tree.map(np.shape, left):
        return model
    narrower = jax.tree.map(lambda a, b: not (b & ~a).any(), own, left)
    return with_tables(model, left) if all(jax.tree.leaves(narrower)) else model


def _dropped(step: int, model: Mapping, left: dict[str, Any], state: TrainState, smaller: TrainState) -> Dropped:
    before, after = (layer_tables(read(m)) for m in (model, left))
    experts: dict[str, dict[int, tuple[int, ...]]] = {}
    for layer, (old, new) in enumerate(zip(before, after, strict=True)):
        for group in old:
            if gone := np.flatnonzero(old[group].any(axis=0) & ~new[group].any(axis=0)).tolist():
                experts.setdefault(group, {})[layer] = tuple(gone)
    counts = {group: np.array([tables[group].any(axis=0).sum() for tables in after]) for group in after[0]}
    lost = count(state.params) - count(smaller.params)
    return Dropped(step, left, experts, counts, lost, nbytes(state) - nbytes(smaller))
