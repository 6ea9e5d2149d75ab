"""What a run can say of a scene: windows of its sensors in, a grid of numbers for each out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.downstream import Adapted
from ringmoe_jax import models
from ringmoe_jax.contracts import FUSED
from ringmoe_jax.deploy.maps import Layers
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.evaluate.task_figures import class_colours
from ringmoe_jax.models import Model, Params
from ringmoe_jax.models.heads.neck import PAIR
from ringmoe_jax.sensors import Sensor
from ringmoe_jax.training.checkpoint import Checkpointer

CLASSES, PROBABILITIES, HEIGHTS, EMBEDDINGS = "classes", "probabilities", "heights", "embeddings"
OUTPUTS = {  # of the tasks that are offered, the default first
    "segmentation": (CLASSES, PROBABILITIES),
    "change": (CLASSES, PROBABILITIES),
    "classification": (CLASSES, PROBABILITIES),
    "multilabel": (PROBABILITIES,),
    "height": (HEIGHTS,),
}
ENGINE = "dropless"  # an answer does not depend on which windows share a batch
UNKNOWN = 255  # class where there is no data


@dataclasses.dataclass(frozen=True)
class WindowModel:
    """A trained model as the prediction of scenes sees it.

    Attributes:
        sensors: that it may be shown, with the bands that it reads.
        dates: T of every sensor; none where the model takes any.
        complete: whether it has to be shown all sensors.
        every_date: whether a place is known only where all dates saw it.
        size: rows and columns of a window, in pixels.
        names: of the K numbers, where they do not depend on the sensors that are shown.
        colours: "#rrggbb" of the classes, or none.
        output: one of the module's four.
        answer: `answer(batch) -> [B, h, w, K]` float32; h = w divides the window, or is 1: one answer for the whole.
        facts: what decides the answers, JSON types.
    """

    sensors: Mapping[str, Sensor]
    dates: Mapping[str, int]
    complete: bool
    every_date: bool
    size: int
    names: tuple[str, ...]
    output: str
    answer: Callable[[Mapping], jax.Array]
    facts: Mapping[str, Any]
    colours: tuple[str, ...] = ()

    def layers(self, channels: int) -> Layers:
        """What a map of K = `channels` blended numbers holds."""
        names = self.names or tuple(f"embedding_{i}" for i in range(channels))
        tags = {name: str(value) for name, value in self.facts.items()}
        if self.output != CLASSES:
            return Layers(names, "float32", float("nan"), tags=tags)
        if len(names) > UNKNOWN:
            raise ConfigError(f'{len(names)} classes do not fit 8 bits: use --output "{PROBABILITIES}"')
        colours = np.round(255 * class_colours(len(names), self.colours))
        numbered = {f"CLASS_{i}": name for i, name in enumerate(names)}
        return Layers((CLASSES,), "uint8", UNKNOWN, colours, tags | numbered)


def load(checkpoint: str, output: str = "") -> WindowModel:
    """The newest checkpoint of a pre-training, compressed or fine-tuned run.

    Mixtures of experts drop no token, whatever the run was trained with, so that an answer does not depend on which
    windows share a batch.

    Args:
        checkpoint: folder of the run.
        output: what to say; "" is the task's default.

    Raises:
        UserError: no checkpoint, a task that is not offered for scenes, or an output that the run does not give.
    """
    checkpointer = Checkpointer.open(checkpoint)
    record = checkpointer.record()
    checkpointer.close()
    if "encoder" in record:
        return _fine_tuned(checkpoint, record["config"]["task"]["name"], output)
    return _pretrained(checkpoint, output)


def _pretrained(checkpoint: str, output: str) -> WindowModel:
    trained = common.load(checkpoint)
    _check_output(output, (EMBEDDINGS,), f"the pre-training run {checkpoint}")
    config = dataclasses.replace(trained.config, model=models.with_engine(trained.config.model, ENGINE))
    model = common.build(config, trained.parts.statistics).model
    size = _one_size(trained.parts.sensors, config.data)
    facts = dict(checkpoint=checkpoint, step=trained.step, task="embeddings", parameters=_digest(trained.params))
    sensors = trained.parts.sensors
    return WindowModel(
        sensors, {}, False, False, size, (), EMBEDDINGS, _jitted(model, trained.params, _embeddings), facts
    )


def _fine_tuned(checkpoint: str, task: str, output: str) -> WindowModel:
    if task not in OUTPUTS:
        raise ConfigError(
            f'{checkpoint} learnt the task "{task}", which is not offered for scenes (offered: {", ".join(OUTPUTS)}, '
            "and embeddings of pre-training runs): cut the scene into tiles with experiments.prepare"
        )
    output = _check_output(output, OUTPUTS[task], f'the task "{task}" of {checkpoint}')
    adapted = Adapted.load(checkpoint, engine=ENGINE)
    config, parts, params = adapted.config, adapted.parts, adapted.params
    sensors = {name: sensor for name, sensor in parts.sensors.items() if name != parts.target.name}
    size = _one_size({**sensors, **({parts.target.sensor: None} if parts.target.sensor else {})}, config.data)
    facts = dict(checkpoint=checkpoint, step=adapted.step, task=task, parameters=_digest(params))
    speak = {"height": _heights, "multilabel": _chances}.get(task, _probabilities)
    return WindowModel(
        sensors,
        {name: adapted.subject.dates[name] for name in sensors},
        True,
        parts.task.purpose(parts.target).dates == PAIR,
        size,
        parts.target.names or ("height",),
        output,
        _jitted(_on_grid_of(parts.model, parts.target.sensor), params, speak),
        facts,
        parts.target.colours,
    )


# ---- From outputs to answers --------------------------------------------------------------------------


def _embeddings(outputs: Mapping, batch: Mapping) -> jax.Array:
    """Tokens of all sensors and dates in one, else of all sensors side by side, each the mean of its dates."""
    if FUSED in outputs:
        return outputs[FUSED]
    means = []
    for name, tokens in outputs["tokens"].items():
        shown = batch["sensors"][name]["valid"].any(axis=(2, 3))[:, :, None, None, None]
        means.append((tokens * shown).sum(1) / jnp.maximum(shown.sum(1), 1))
    return jnp.concatenate(means, axis=-1)


def _probabilities(outputs: Mapping, batch: Mapping) -> jax.Array:
    logits = outputs["predictions"]["logits"].astype(jnp.float32)
    return jax.nn.softmax(logits if logits.ndim == 4 else logits[:, None, None])


def _chances(outputs: Mapping, batch: Mapping) -> jax.Array:
    """Of every class on its own, of the whole window."""
    return jax.nn.sigmoid(outputs["predictions"]["logits"].astype(jnp.float32))[:, None, None]


def _heights(outputs: Mapping, batch: Mapping) -> jax.Array:
    return outputs["predictions"]["height"][..., None]


# ---- Helpers ------------------------------------------------------------------------------------------


def _jitted(model: Model, params: Params, speak: Callable[[Mapping, Mapping], jax.Array]) -> Callable:
    params = jax.device_put(params, jax.devices()[0])
    apply = jax.jit(lambda params, batch: speak(model.apply(params, batch), batch).astype(jnp.float32))
    return lambda batch: apply(params, batch)


def _on_grid_of(model: Model, sensor: str) -> Model:
    """A model that finds the sensor whose grid its answers lie on in every batch, as pixels that nobody looks at."""

    def apply(params: Params, batch: Mapping, **keywords) -> dict:
        shown = batch["sensors"]
        if sensor and sensor not in shown:
            like = next(iter(shown.values()))
            shown = shown | {sensor: like | {"pixels": like["pixels"][..., :1]}}
        return model.apply(params, {"sensors": shown}, **keywords)

    return dataclasses.replace(model, apply=apply)


def _check_output(output: str, known: tuple[str, ...], whose: str) -> str:
    if output and output not in known:
        raise ConfigError(f'--output "{output}" is not what {whose} gives: {nearest(output, known)}')
    return output or known[0]


def _one_size(sensors: Mapping[str, Any], data) -> int:
    sizes = {name: data.size(name) for name in sensors}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(f"the run was trained on images of several sizes ({listed} px): scenes share one grid and size")
    return next(iter(sizes.values()))


def _digest(params: Params) -> str:
    """A short text that differs where parameters do."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]
