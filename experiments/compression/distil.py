"""Trains a compressed network under the larger one that it came from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.common import ExperimentConfig
from experiments.compression.recipe import Version
from experiments.fitting import fit
from input_pipeline.reader import train_batches
from ringmoe_jax import objectives
from ringmoe_jax.errors import TrainingError
from ringmoe_jax.models import Params
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.pretext.distilled import distilled
from ringmoe_jax.training import optimizer
from ringmoe_jax.training.loop import TrainConfig
from ringmoe_jax.training.state import TrainState, state_shardings

SAVES = 4  # checkpoints of a distillation
WARMUP = 10  # a tenth of the steps (our choice)
SECTIONS = ("model", "pretext", "objectives", "data", "optimizer", "train")


def distil(student: Version, teacher: Version, steps: int, workdir: Path) -> Version:
    """Trains with the run's own data, objectives and optimiser, and to say what the teacher says.

    Per sensor, features are matched in every stage, and decoders' outputs on hidden pixels where the run hides any and
    has a decoder; all weights are 1 (our choice). Goes on where an earlier call was stopped.

    Args:
        student: the compressed network.
        teacher: the sub-model, which sees what the student sees.
        steps: optimiser steps.
        workdir: folder of this run: checkpoints and metrics.

    Returns:
        The trained student; its steps are those of the run before and these.

    Raises:
        TrainingError: the distillation was stopped; the same command goes on.
    """
    values = _config(student, steps)
    config = ExperimentConfig.of(values)
    mesh = common.make_mesh(config.mesh)
    shards = mesh.size if mesh else 1
    data = train_batches(
        config.data, host=jax.process_index(), hosts=jax.process_count(), multiple_of=shards * config.train.accumulate
    )
    parts = common.build(config, student.statistics, mesh)
    pretext = distilled(parts.pretext, teacher.parts(mesh).model, teacher.params)
    rule = optimizer.build(config.optimizer, steps)
    state = fit(
        str(workdir),
        _state(student.params, pretext, rule, config.train.seed, mesh),
        data,
        pretext=pretext,
        objectives=parts.objectives,
        optimizer=rule,
        learning_rate=optimizer.schedule(config.optimizer, steps),
        train=config.train,
        record={"config": values, "statistics": {name: s.to_json() for name, s in student.statistics.items()}},
        sections=SECTIONS,
        complete=lambda saved: ExperimentConfig.of(saved).complete(),
        mesh=mesh,
    )
    if int(state.step) < steps:
        raise TrainingError(f"{workdir} was stopped as asked: the same command goes on from there")
    trained = jax.device_get(pretext.export(state.params, state.pretext))
    return dataclasses.replace(student, params=trained, step=student.step + steps)


def _config(student: Version, steps: int) -> dict[str, Any]:
    """The run's config with the matching objectives and another length."""
    values, config = student.config, ExperimentConfig.of(student.config)
    heads = objectives.collect_heads(objectives.build(config.objectives), config.sensors)
    matching = {f"features_{name}": _objective("feature_matching", name, level="stages") for name in config.sensors}
    if config.data.mask_unit:
        matching |= {
            f"predictions_{name}_{head}": _objective("prediction_matching", name, head=head)
            for name, of in heads.items()
            for head in of
        }
    every = max(1, steps // SAVES)
    train = TrainConfig(steps, config.train.accumulate, max(1, steps // 10), every, 1, 0, config.train.seed)
    rate = dataclasses.replace(
        config.optimizer, warmup_steps=min(config.optimizer.warmup_steps, steps // WARMUP), layer_decay=1.0
    )
    return values | {
        "objectives": values["objectives"] | matching,
        "optimizer": dataclasses.asdict(rate),
        "train": dataclasses.asdict(train),
        "mesh": dataclasses.asdict(MeshConfig()),
    }


def _objective(name: str, sensor: str, **fields: str) -> dict[str, Any]:
    return {"name": name, "sensor": sensor, "scale": 1.0} | fields


def _state(params: Params, pretext, rule, seed: int, mesh) -> TrainState:
    """A new state around given parameters; nothing in it is shared with them, for a step donates its state."""
    trained, own = pretext.init(params, jax.random.key(seed))
    state = TrainState(jnp.int32(0), trained, rule.init(trained), own)
    return jax.device_put(jax.tree.map(np.array, state), None if mesh is None else state_shardings(state, mesh))
