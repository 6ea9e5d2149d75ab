"""The interface of a pretext task, and how a config names one."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax

from ringmoe_jax.models.api import Model, Params
from ringmoe_jax.registry import Registry


def _keep_all(params: Params, key: jax.Array) -> tuple[Params, Any]:
    return params, {}


def _no_change(params: Params, state: Any) -> Any:
    return state


def _trained(params: Params, state: Any) -> Params:
    return params


def encoder(params: Params) -> Params:
    """What is trained without the heads that only a pretext task has, its "projections"."""
    return {name: value for name, value in params.items() if name != "projections"}


@dataclasses.dataclass(frozen=True)
class Pretext:
    """Forward passes of one training step.

    Attributes:
        apply: `apply(params, state, batch, *, key, train) -> (outputs, state)`; outputs as in
            `ringmoe_jax.contracts`.
        init: `init(params, key) -> (params, state)` from the model's parameters: what the optimiser trains, which
            may be more (projections) or less (prototypes) than the model's, and arrays that it does not train
            (a teacher, prototypes). Default: the model's parameters and {}.
        after: `after(params, state) -> state`, once after every optimiser step. Default: no change.
        export: `export(params, state) -> params` that `model.apply` takes when training is over. Default: those
            that were trained.
    """

    apply: Callable[..., tuple[dict, Any]]
    init: Callable[[Params, jax.Array], tuple[Params, Any]] = _keep_all
    after: Callable[[Params, Any], Any] = _no_change
    export: Callable[[Params, Any], Params] = _trained


@dataclasses.dataclass(frozen=True)
class PretextSpec:
    """What a pretext task is built for.

    Attributes:
        steps: optimiser steps of the run, for schedules.
        projections: {stream of features: levels} that objectives compare, see `Objective.projections`.
    """

    steps: int = 1
    projections: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PretextConfig(abc.ABC):
    """A pretext task as a config names it. One of your own is a frozen dataclass made from this class.

    Attributes:
        levels: of features of several views that it makes for objectives to compare, see `PretextSpec.projections`.
    """

    levels: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def build(self, model: Model, spec: PretextSpec) -> Pretext:
        """The task on a model.

        Args:
            model: what the passes go through.
            spec: what objectives compare, and for how many steps.

        Raises:
            ConfigError: objectives want what it does not give.
        """


PRETEXTS = Registry("pretext task", PretextConfig)
