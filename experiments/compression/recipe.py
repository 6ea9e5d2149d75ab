"""What `experiments.compress` turns one checkpoint into, and how: versions of a network, and recipes between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import common
from experiments.common import ExperimentConfig
from ringmoe_jax import compress, objectives
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.compress import Network, Usage
from ringmoe_jax.compress.pruning import SCOPES, TABLES
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models import Params, count
from ringmoe_jax.sensors import Sensor, Statistics
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.state import TrainState

SUBMODEL, PRUNE = "submodel", "prune"
METHODS = (SUBMODEL, PRUNE, *compress.MERGES)
PAPER_KEEP = 0.25  # of the collaborative experts: RingMoE's 6.5 B parameters become 4.5 B
NEEDS_USAGE = ("weighted", "select")  # merges that weigh experts or hidden units by what they did
RESIZES = ("svd", "select")  # merges that choose hidden units, and may choose fewer or more of them


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is done to a sub-model.

    Attributes:
        method: one of `METHODS`: "submodel" and nothing more, "prune" experts, or merge those of every layer, perhaps
            after pruning, into one dense feed-forward.
        keep: share of the collaborative experts that stay, above 0 and at most 1; None is a quarter for "prune" (the
            paper's) and all of them where experts are merged.
        parameters: prune until at most so many parameters are left, instead of `keep`; 0 is not asked.
        importance: what says which experts stay, one of `compress.IMPORTANCES`.
        scope: "layer" keeps as many in every layer, "global" ranks the experts of all layers together.
        tables: with several modalities, "shared" keeps the same experts for all of them, "own" each its own.
        hidden_ratio: F / D of a merged feed-forward; 0 leaves it as it is.
        distil: optimiser steps of distillation from the sub-model; 0 is none.
        int8: whether the loss by eight-bit weights is measured too.

    Raises:
        ConfigError: no such method or choice, a number out of its range, or settings that contradict each other.
    """

    method: str
    keep: float | None = None
    parameters: int = 0
    importance: str = "frequency"
    scope: str = "layer"
    tables: str = "shared"
    hidden_ratio: int = 0
    distil: int = 0
    int8: bool = False

    def __post_init__(self):
        choices = {"method": METHODS, "importance": compress.IMPORTANCES, "scope": SCOPES, "tables": TABLES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f'--{name} "{getattr(self, name)}": {nearest(getattr(self, name), known)}')
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ConfigError(f"--keep {self.keep}: wanted the share of experts that stay, above 0 and at most 1")
        for name in ("parameters", "hidden_ratio", "distil"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)}: wanted 0 or more")
        if self.keep is not None and self.parameters:
            raise ConfigError("--keep and --parameters both say how much stays: give one of them")
        if self.method == SUBMODEL and (self.keep not in (None, 1) or self.parameters or self.distil):
            raise ConfigError(
                f"--method {SUBMODEL} is exact and keeps every expert: leave out --keep, --parameters and --distil"
            )
        if self.hidden_ratio and self.method not in RESIZES:
            raise ConfigError(
                f"--hidden-ratio {self.hidden_ratio}: --method {self.method} cannot change how wide a feed-forward is, "
                f"{' and '.join(RESIZES)} can"
            )
        if self.keep is None and not self.parameters:
            object.__setattr__(self, "keep", PAPER_KEEP if self.method == PRUNE else 1.0)

    @property
    def prunes(self) -> bool:
        """Whether experts are taken away before anything else."""
        return bool(self.parameters) or self.keep < 1

    @property
    def needs_usage(self) -> bool:
        """Whether somebody has to count first what the experts do."""
        return self.prunes or self.method in NEEDS_USAGE

    @property
    def title(self) -> str:
        """For people, for example "sum, keep 0.25, 200 steps of distillation"."""
        kept = [f"at most {self.parameters:,} parameters"] if self.parameters else []
        kept += [f"keep {self.keep:g}"] if self.keep is not None and self.keep < 1 else []
        ratio = [f"hidden ratio {self.hidden_ratio}"] if self.hidden_ratio else []
        distilled = [f"{self.distil} steps of distillation"] if self.distil else []
        return ", ".join([self.method, *kept, *ratio, *distilled])

    def allowed(self, network: Network, usage: Usage) -> tuple:
        """Who may choose what in every layer of the pruned network; see `compress.choose`."""
        found = compress.importance(usage, self.importance)
        how = {"parameters": self.parameters} if self.parameters else {"keep": self.keep}
        return compress.choose(network, found, scope=self.scope, tables=self.tables, **how)

    def __call__(self, network: Network, usage: Usage | None) -> Network:
        """Prunes, merges, or both.

        Args:
            network: the sub-model.
            usage: of its experts, where `needs_usage`.
        """
        if self.prunes:
            network = compress.prune(network, self.allowed(network, usage))
        if self.method in compress.MERGES:
            network = compress.merge(network, self.method, usage, self.hidden_ratio or None)
        return network


@dataclasses.dataclass(frozen=True)
class Version:
    """A network with all that a checkpoint says of it.

    Attributes:
        config: nested dict, as the record of a checkpoint holds it.
        statistics: normalisation by sensor.
        params: what the model takes.
        step: optimiser steps that were taken.
    """

    config: dict[str, Any]
    statistics: dict[str, Statistics]
    params: Params
    step: int

    @staticmethod
    def load(workdir: str) -> Version:
        """The newest checkpoint of a pre-training run.

        Raises:
            UserError: there is none, it is a fine-tuned run, or its model has no experts to compress.
        """
        checkpointer = Checkpointer.open(workdir)
        record = checkpointer.record()
        checkpointer.close()
        if "encoder" in record:
            raise ConfigError(
                f"{workdir} is a fine-tuned run: compress the pre-training run that it started from, then fine-tune "
                "the result"
            )
        name = record["config"]["model"]["name"]
        if name != "ringmoe":
            raise ConfigError(f'{workdir} holds a model "{name}": only "ringmoe" models can be compressed')
        trained = common.load(workdir, record["step"])
        return Version(record["config"], trained.parts.statistics, trained.params, trained.step)

    @property
    def network(self) -> Network:
        """What `ringmoe_jax.compress` works on."""
        return Network(self.config["model"], self.params)

    @property
    def size(self) -> int:
        """Number of parameters, decoders included."""
        return count(self.params)

    @property
    def sensors(self) -> dict[str, Sensor]:
        """That the model takes, by name."""
        return ExperimentConfig.of(self.config).sensors

    @property
    def modalities(self) -> tuple[str, ...]:
        """Of these sensors, as the routers count them."""
        return sensor_table.modalities(self.sensors)

    def parts(self, mesh=None) -> common.Parts:
        """Model, objectives and pretext task."""
        return common.build(ExperimentConfig.of(self.config), self.statistics, mesh)

    def of(self, network: Network) -> Version:
        """The same run with another network: without the data and the objectives of sensors that it lacks."""
        model = network.model
        statistics = {name: self.statistics[name] for name in model["sensors"]}
        return Version(_narrowed(self.config, model), statistics, network.params, self.step)

    def save(self, workdir: Path, compressed: Mapping[str, Any]) -> None:
        """Writes a checkpoint without an optimiser's state.

        Args:
            workdir: folder of the run.
            compressed: where it comes from, JSON types for the record.
        """
        params, state = self.parts().pretext.init(self.params, jax.random.key(0))
        record = {
            "config": self.config,
            "statistics": {name: s.to_json() for name, s in self.statistics.items()},
            "compressed": dict(compressed),
        }
        checkpointer = Checkpointer(workdir)
        checkpointer.save(self.step, TrainState(np.int32(self.step), params, {}, state), record)
        checkpointer.wait()
        checkpointer.close()


def select(asked: Sequence[str], sensors: Mapping[str, Sensor]) -> tuple[str, ...]:
    """Sensors that names of sensors and of modalities stand for, in the model's order.

    Raises:
        ConfigError: the model has no such sensor or modality; the message names the nearest.
    """
    known = {*sensors, *sensor_table.modalities(sensors)}
    for name in asked:
        if name not in known:
            raise ConfigError(
                f'--modality "{name}" is no sensor or modality of this checkpoint: {nearest(name, known)}'
            )
    return tuple(name for name, sensor in sensors.items() if {name, sensor.modality} & set(asked))


def routed(model: Mapping[str, Any]) -> bool:
    """Whether a model's config has router groups."""
    moe = model.get("moe", {})
    return bool(moe.get("specialised", True) or moe.get("collaborative", True))


def _narrowed(config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config for a model with fewer sensors or experts."""
    left, data = set(model["sensors"]), config["data"]
    streams = {
        name: {**stream, "sensors": [sensor for sensor in stream["sensors"] if sensor in left]}
        for name, stream in data["streams"].items()
        if left & set(stream["sensors"])
    }
    if not streams:
        raise ConfigError(f"no stream of the run's data shows {', '.join(model['sensors'])}: keep another modality")
    of_sensors = {key: data[key] for key in ("bands", "sizes", "frames") if key in data}
    of_sensors = {key: {name: value for name, value in of.items() if name in left} for key, of in of_sensors.items()}
    before = ExperimentConfig.of(config)
    terms = {
        label: config["objectives"][label]
        for label, term in objectives.build(before.objectives).items()
        if _looks_at(term, before.sensors) <= left and (routed(model) or not isinstance(term, objectives.Balance))
    }
    if not terms:
        raise ConfigError(f"no objective of the run looks at {', '.join(model['sensors'])} alone: keep further sensors")
    return {**config, "model": model, "data": {**data, **of_sensors, "streams": streams}, "objectives": terms}


def _looks_at(term: objectives.Objective, sensors: Mapping[str, Sensor]) -> set[str]:
    """The sensors that an objective cannot do without."""
    return set(term.heads(sensors)) | set(term.together()) | (set(term.projections()) & set(sensors))
