"""A run as something that answers windows of a scene: pixels of its sensors in, a grid of numbers for each out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax import tasks
from ringmoe_jax.contracts import FUSED
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.deploy.maps import Layers
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.evaluate.task_figures import class_colours
from ringmoe_jax.models import Model, Params
from ringmoe_jax.models.heads.neck import PAIR
from ringmoe_jax.run import TASK, Run
from ringmoe_jax.sensors import Sensor
from ringmoe_jax.tasks.base import CLASSES
from ringmoe_jax.tasks.objects import Objects

EMBEDDINGS = "embeddings"  # what a run without a task says
NO_CLASS = 255  # where there is no data


@dataclasses.dataclass(frozen=True)
class WindowModel:
    """A trained model as the prediction of scenes sees it.

    Attributes:
        sensors: that it may be shown, with the bands that it reads.
        dates: T of every sensor; none where the model takes any.
        complete: whether it has to be shown all sensors.
        every_date: whether a place is known only where all dates saw it.
        size: rows and columns of a window, in pixels.
        output: name of what it says.
        names: of the K numbers; () for vectors, as long as the sensors that are shown make them.
        colours: "#rrggbb" of the classes, or none.
        answer: `answer(batch) -> [B, h, w, K]` float32; h = w divides the window, or is 1: one answer for the whole.
            Where it finds objects, what the task's `answer` gives.
        facts: what decides the answers, JSON types.
        objects: the task, where it finds some.
    """

    sensors: Mapping[str, Sensor]
    dates: Mapping[str, int]
    complete: bool
    every_date: bool
    size: int
    output: str
    names: tuple[str, ...]
    colours: tuple[str, ...]
    answer: Callable[[Mapping], Any]
    facts: Mapping[str, Any]
    objects: Objects | None = None

    @property
    def is_classes(self) -> bool:
        """Whether a map holds the index of the largest number instead of the numbers."""
        return self.output == CLASSES

    @property
    def tags(self) -> dict[str, str]:
        """The facts as texts."""
        return {name: str(value) for name, value in self.facts.items()}

    def layers(self, channels: int) -> Layers:
        """What a map of K = `channels` blended numbers holds."""
        names, tags = self.names or tuple(f"embedding_{i}" for i in range(channels)), self.tags
        if not self.is_classes:
            return Layers(names, "float32", float("nan"), tags=tags)
        if len(names) > NO_CLASS:
            raise ConfigError(f"{len(names)} classes do not fit 8 bits: ask for another --output than {self.output}")
        colours = np.round(255 * class_colours(len(names), self.colours))
        numbered = {f"CLASS_{i}": name for i, name in enumerate(names)}
        return Layers((self.output,), "uint8", NO_CLASS, colours, tags | numbered)


def window_model(run: Run, output: str = "") -> WindowModel:
    """What a pre-training, compressed or fine-tuned run says of windows.

    Mixtures of experts drop no token, whatever the run was trained with, so that an answer does not depend on which
    windows share a batch.

    Args:
        run: opened.
        output: what to say, see `Task.maps`; "" is the task's default, and embeddings without a task.

    Raises:
        UserError: a task that says nothing of scenes, or an output that the run does not give.
    """
    return (_of_task if run.kind == TASK else _of_encoder)(run.frozen, output)


def _of_encoder(run: Run, output: str) -> WindowModel:
    _check_output(output, (EMBEDDINGS,), f"the {run.kind} run {run.folder}")
    return WindowModel(
        sensors=run.sensors,
        dates={},
        complete=False,
        every_date=False,
        size=_one_size(run.sensors, run.config.data),
        output=EMBEDDINGS,
        names=(),
        colours=(),
        answer=_jitted(run.model, run.params, _embeddings),
        facts=_facts(run, EMBEDDINGS),
    )


def _of_task(run: Run, output: str) -> WindowModel:
    name, task, target = run.config.task["name"], run.parts.task, run.parts.target
    if not task.maps:
        offered = ", ".join(known for known, cls in tasks.TASKS.items() if cls.maps)
        raise ConfigError(
            f'{run.folder} learnt the task "{name}", which is not offered for scenes (offered: {offered}, and '
            "embeddings of pre-training runs): cut the scene into tiles with experiments.prepare"
        )
    output = _check_output(output, task.maps, f'the task "{name}" of {run.folder}')
    model = _on_grid_of(run.model, target.sensor)
    sensors = {name: sensor for name, sensor in run.sensors.items() if name != target.name}

    def speak(outputs: Mapping, batch: Mapping) -> Any:
        predictions = outputs["predictions"]
        return task.answer(predictions, target) if task.finds else task.windows(predictions).astype(jnp.float32)

    return WindowModel(
        sensors=sensors,
        dates={name: run.spec.dates[name] for name in sensors},
        complete=True,
        every_date=task.head_spec(target).dates == PAIR,
        size=_one_size([*sensors, *filter(None, [target.sensor])], run.config.data),
        output=output,
        names=target.names if task.finds else task.map_names(target),
        colours=target.colours,
        answer=_jitted(model, run.params, speak),
        facts=_facts(run, name),
        objects=task if task.finds else None,
    )


# ---- Helpers ------------------------------------------------------------------------------------------


def _embeddings(outputs: Mapping, batch: Mapping) -> jax.Array:
    """Tokens of all sensors and dates in one, else of all sensors side by side, each the mean of its dates."""
    if FUSED in outputs:
        return outputs[FUSED].astype(jnp.float32)
    means = []
    for name, tokens in outputs["tokens"].items():
        shown = batch["sensors"][name]["valid"].any(axis=(2, 3))[:, :, None, None, None]
        means.append((tokens * shown).sum(1) / jnp.maximum(shown.sum(1), 1))
    return jnp.concatenate(means, axis=-1).astype(jnp.float32)


def _jitted(model: Model, params: Params, speak: Callable[[Mapping, Mapping], jax.Array]) -> Callable:
    params = jax.device_put(params)  # where they are not on a device yet
    apply = jax.jit(lambda params, batch: speak(model.apply(params, batch), batch))
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


def _check_output(output: str, known: Iterable[str], whose: str) -> str:
    if output and output not in known:
        raise ConfigError(f'--output "{output}" is not what {whose} gives: {nearest(output, known)}')
    return output or next(iter(known))


def _one_size(sensors: Iterable[str], data: DataConfig) -> int:
    sizes = {name: data.size(name) for name in sensors}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise DataError(f"the run was trained on images of several sizes ({listed} px): scenes share one grid and size")
    return next(iter(sizes.values()))


def _facts(run: Run, task: str) -> dict[str, Any]:
    return {"checkpoint": str(run.folder), "step": run.step, "task": task, "parameters": _digest(run.params)}


def _digest(params: Params) -> str:
    """A short text that differs where parameters do."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]
