"""Folders of small runs that have not begun, or were trained by a test: what a run would have saved."""

import dataclasses

import jax
import numpy as np
import optax

from ringmoe_jax import run as runs
from ringmoe_jax.run import Encoder, FinetuneConfig, PretrainConfig, TaskSpec
from ringmoe_jax.training import optimizer, step
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.state import create, shapes
from tests.helpers.parameters import stirred

STEP = 7  # that checkpoints say


def data(sensors, size, directory="nowhere", **changes):
    """A data config of one stream."""
    streams = dict(all=dict(directory=str(directory), sensors=tuple(sensors)))
    return dict(streams=streams, image_size=size, batch_size=8, mask_unit=8) | changes


def pretraining(folder, model, *, size=16, directory="nowhere", objectives=None, **changes):
    """A pre-training run with random parameters.

    Args:
        folder: of the run.
        model: its config; `model["sensors"]` are one stream.
        size: of images.
        directory: of the data set, which need not be there.
        objectives: default: masked reconstruction of every sensor.
        **changes: of the config's data.
    """
    names = model["sensors"]
    terms = {name: dict(name="masked_l1", sensor=name) for name in names}
    values = dict(model=model, objectives=objectives or terms, data=data(names, size, directory, **changes))
    config = PretrainConfig.of(values)
    parts = runs.pretraining(config, {name: sensor.statistics for name, sensor in config.sensors.items()})
    return save(folder, values, parts, drawn(parts.model, parts.pretext, optax.sgd(0.1)))


def finetuning(folder, values, target, dates, train=None):
    """A fine-tuned run of an encoder of `values["model"]`, drawn or after `train(state, step)` of a new one.

    Args:
        folder: of the run.
        values: of the config.
        target: of the task.
        dates: T by sensor that is read.
        train: takes and gives a training state; `step` is of `make_train_step`.
    """
    config = FinetuneConfig.of(values)
    encoder, spec = Encoder(config.model, config.data.bands, {}), TaskSpec(target, dates)
    statistics = {name: sensor.statistics for name, sensor in encoder.sensors.items()}
    parts = runs.finetuning(config, encoder, spec, statistics)
    rule = optimizer.build(config.optimizer, config.train.steps, parts.model.blocks_above)
    if train is None:
        state = drawn(parts.model, parts.pretext, rule)
    else:
        state = create(parts.model, parts.pretext, rule, seed=0)
        rate = optimizer.schedule(config.optimizer, config.train.steps)
        state = train(state, step.make_train_step(parts.pretext, parts.objectives, rule, rate, seed=0))
    return save(folder, values, parts, state, encoder=dataclasses.asdict(encoder), subject=dataclasses.asdict(spec))


def drawn(model, pretext, rule):
    """A state like that of `create`, far from its start and drawn without compiling anything."""
    state = shapes(model, pretext, rule)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    return dataclasses.replace(zeros, params=stirred(state.params), pretext=stirred(state.pretext))


def save(folder, values, parts, state, **record):
    """Writes a checkpoint as a run does; returns its folder."""
    statistics = {name: s.to_json() for name, s in parts.statistics.items()}
    checkpointer = Checkpointer(folder)
    checkpointer.save(STEP, state, {"config": values, "statistics": statistics} | record)
    checkpointer.wait()
    checkpointer.close()
    return str(folder)
