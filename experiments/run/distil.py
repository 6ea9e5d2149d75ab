"""Trains a compressed network under the larger one that it came from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run import data as run_data
from experiments.run.fit import fit, require_done
from ringmoe_jax import objectives
from ringmoe_jax.compress import Network
from ringmoe_jax.models import Params
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.pretext.distilled import distilled
from ringmoe_jax.run import Parts, PretrainConfig, Run, make_mesh
from ringmoe_jax.training import optimizer
from ringmoe_jax.training.goodput import Goodput
from ringmoe_jax.training.loop import TrainConfig
from ringmoe_jax.training.state import TrainState, state_shardings

SAVES = 4  # checkpoints of a distillation
WARMUP = 10  # a tenth of the steps (our choice)
SECTIONS = ("model", "pretext", "objectives", "data", "optimizer", "train")  # that a resumed distillation must share


def distil(student: Run, teacher: Run, steps: int, workdir: Path) -> Run:
    """Trains with the run's own data, objectives and optimiser, and to say what the teacher says.

    Per sensor, features are matched in every stage, and decoders' outputs on hidden pixels where the run hides any and
    has a decoder; all weights are 1 (our choice). Goes on where an earlier call was stopped.

    Args:
        student: the compressed network.
        teacher: the sub-model, which sees what the student sees.
        steps: optimiser steps.
        workdir: folder of this run: checkpoints and metrics.

    Returns:
        The trained student, in memory; its steps are those of the run before and these.

    Raises:
        TrainingError: the distillation was stopped; the same command goes on.
    """
    goodput, values = Goodput(), distillation_config(student, steps)
    lesson = dataclasses.replace(student, record={**student.record, "config": values})
    config = lesson.config
    mesh = make_mesh(config.mesh)
    data = run_data.open_training(config.data, mesh, config.train.accumulate)
    parts = lesson.build(mesh)
    parts = dataclasses.replace(parts, pretext=distilled(parts.pretext, teacher.build(mesh).model, teacher.params))
    record = {name: lesson.record[name] for name in ("config", "statistics")}
    create = lambda: _state(student.params, parts, config)  # noqa: E731
    state = fit(workdir, create, data, parts, config, record, SECTIONS, goodput=goodput)
    require_done(state, steps, workdir)
    trained = jax.device_get(parts.pretext.export(state.params, state.pretext))
    return student.with_network(Network(student.network.model, trained), steps)


def distillation_config(student: Run, steps: int) -> dict[str, Any]:
    """The run's config with the matching objectives and another length: JSON types."""
    values, config = student.record["config"], student.config
    heads = objectives.collect_heads(objectives.build(config.objectives), config.sensors)
    matching = {f"features_{name}": _objective("feature_matching", name, level="stages") for name in config.sensors}
    if config.data.mask_unit:
        matching |= {
            f"predictions_{name}_{head}": _objective("prediction_matching", name, head=head)
            for name, channels in heads.items()
            for head in channels
        }
    every = max(1, steps // SAVES)
    train = TrainConfig(steps, config.train.accumulate, max(1, steps // 10), every, 1, 0, config.train.seed)
    longest, asked = steps // WARMUP, config.optimizer.warmup_steps
    warmup = longest if asked is None else min(asked, longest)
    rate = dataclasses.replace(config.optimizer, warmup_steps=warmup, layer_decay=1.0)
    return values | {
        "objectives": values["objectives"] | matching,
        "optimizer": dataclasses.asdict(rate),
        "train": dataclasses.asdict(train),
        "mesh": dataclasses.asdict(MeshConfig()),
    }


def _objective(name: str, sensor: str, **fields: str) -> dict[str, Any]:
    return {"name": name, "sensor": sensor, "scale": 1.0} | fields


def _state(params: Params, parts: Parts, config: PretrainConfig) -> TrainState:
    """A new state around given parameters; nothing in it is shared with them, for a step donates its state."""
    trained, own = parts.pretext.init(params, jax.random.key(config.train.seed))
    rule = optimizer.build(config.optimizer, config.train.steps, parts.model.blocks_above)
    state = TrainState(jnp.int32(0), trained, rule.init(trained), own)
    return jax.device_put(
        jax.tree.map(np.array, state), None if parts.mesh is None else state_shardings(state, parts.mesh)
    )
