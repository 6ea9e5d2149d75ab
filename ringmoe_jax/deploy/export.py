"""A run for other programs: what of it is exported, written to a folder, and how far that is from the model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax import compress, deploy, models
from ringmoe_jax.contracts import FUSED, Meaning
from ringmoe_jax.deploy.stac import ENTRIES, Card
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.heads.base import ROWS_COLUMNS
from ringmoe_jax.models.heads.neck import EACH
from ringmoe_jax.run import CHECKPOINT, TASK, Run
from ringmoe_jax.sensors import Sensor
from ringmoe_jax.training.checkpoint import versions

ENGINE = "dense"  # drops no token, and its shapes are static


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Tiles of a run's data: a program takes such shapes, and is compared with the model on them.

    Attributes:
        batch: N tiles, see `ringmoe_jax.contracts`; what the model is shown. Sensors that it reads apart need not show
            the same places.
        source: which they are, by data set: "first 8 of validation".
        datasets: what there is to say of every data set, JSON types.
    """

    batch: Mapping[str, Any]
    source: Mapping[str, str]
    datasets: Sequence[Mapping[str, Any]]


def select_sensors(run: Run, names: Sequence[str] = ()) -> dict[str, Sensor]:
    """The sensors that an export of a run is shown.

    Args:
        run: opened.
        names: of a pre-trained model, those to show; all where empty.

    Raises:
        ConfigError: the model lacks a sensor, or is fine-tuned and reads others beside these.
    """
    if run.kind == TASK and names and set(names) != set(run.sensors):
        raise ConfigError(
            f"--sensors {' '.join(names)}: a fine-tuned model reads {', '.join(run.sensors)}: leave it out, and show "
            "what is missing as zeros that are not valid"
        )
    for name in names:
        if name not in run.sensors:
            raise ConfigError(f'--sensors names "{name}", which the model lacks: {nearest(name, run.sensors)}')
    return {name: sensor for name, sensor in run.sensors.items() if not names or name in names}


def export(run: Run, tiles: Tiles, out: str | Path, *, int8: bool = False, licence: str = "") -> dict[str, Any]:
    """Exports a run, pre-trained or fine-tuned.

    Args:
        run: opened. Mixtures of experts drop no token, whatever it was trained with.
        tiles: of a pre-training run with some of its sensors or all, see `select_sensors`; of a task with all that it
            reads, and with the sensor that its answers lie on.
        out: folder to write, or an older export to replace.
        int8: kernels as 8-bit integers with one float32 scale an output.
        licence: of the weights, an SPDX identifier; "" is that of imported weights, and "other" where nobody has said.

    Returns:
        What model.json holds.

    Raises:
        ConfigError: `out` holds something else.
    """
    deploy.check_target(out)
    used, card = (_answers if run.kind == TASK else _features)(run.with_engine(ENGINE), tiles)
    stored = used
    if int8:
        packed = lambda tree, inputs: used.apply(compress.dequantise(tree), inputs)  # noqa: E731
        stored = deploy.Used(packed, compress.quantise(used.params), used.inputs)
    program = deploy.lower(*stored)
    facts = {
        "step": run.step,
        "versions": versions(),
        "data": list(tiles.datasets),
        "weights": "int8" if int8 else "float32",
        "bytes": {"stored": compress.nbytes(stored.params), "float32": compress.nbytes(used.params)},
        "compared": {"tiles": dict(tiles.source), "outputs": compare(used, program, tiles.batch)},
    }
    name = re.sub(r"[^a-zA-Z0-9]+", "-", f"{card.architecture} {Path(out).name}").strip("-")
    if run.origin:
        facts["origin"] = run.origin
    licence = licence or run.origin.get("licence", "other")
    card = dataclasses.replace(card, name=name, licence=licence, facts={**card.facts, **facts})
    parameters = sum(leaf.size for leaf in used.params.values())
    return deploy.save(out, program, deploy.describe(program, card, parameters))


def compare(used: deploy.Used, program: deploy.Program, batch: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """How far a program's outputs are from the model's, by output.

    Of numbers the largest ("max") and the mean difference beside the mean size; of indices the share that differs.

    Args:
        used: the model.
        program: of it.
        batch: what both are shown.
    """
    inputs = {name: x for name, x in flatten(batch).items() if name in used.inputs}
    expected = jax.jit(used.apply)(used.params, inputs)
    outputs = jax.jit(jax.export.deserialize(program.serialised).call)(program.weights, inputs)
    differences = {}
    for name in outputs:
        a, b = np.asarray(outputs[name]), np.asarray(expected[name])
        if np.issubdtype(a.dtype, np.integer):
            differences[name] = {"share": float((a != b).mean())}
        else:
            apart = np.abs(a - b)
            differences[name] = {
                "max": float(apart.max()), "mean": float(apart.mean()), "size": float(np.abs(b).mean())
            }  # fmt: skip
    return differences


# ---- What is exported ---------------------------------------------------------------------------------


def _features(run: Run, tiles: Tiles) -> tuple[deploy.Used, Card]:
    """Features of the sensors that tiles show, and what there is to say of them."""
    shown = select_sensors(run, tuple(tiles.batch["sensors"]))
    network = models.read(run.network.model).submodel(run.network, tuple(shown))
    model = models.build(network.model, sensors=run.sensors, statistics=run.statistics)

    def apply(params, inputs):
        outputs = model.apply(params, as_batch(inputs))
        features = {f"{kind}/{name}": x for kind in ("pooled", "tokens") for name, x in outputs[kind].items()}
        return _float32(features | ({FUSED: outputs[FUSED]} if FUSED in outputs else {}))

    meanings = {}
    for name in shown:
        meanings[f"pooled/{name}"] = Meaning(("embedding",), f"mean of the tokens of {name}")
        meanings[f"tokens/{name}"] = Meaning(
            ("time", *ROWS_COLUMNS, "embedding"), f"one token for every cell of {name}"
        )
    meanings[FUSED] = Meaning((*ROWS_COLUMNS, "embedding"), "all sensors and dates of every location in one")
    meanings[f"pooled/{FUSED}"] = Meaning(("embedding",), "mean of them over locations")
    architecture, names = _architecture(network.model), ", ".join(tiles.source)
    card = Card(
        name=architecture,
        description=f"Features of {', '.join(shown)} by {architecture}, pre-trained on {names}.",
        architecture=architecture,
        tasks=("similarity-search",),
        sensors=shown,
        statistics={name: run.statistics.get(name, sensor.statistics) for name, sensor in shown.items()},
        outputs=meanings,
        pretrained=names,
        facts={"model": network.model},
    )
    return deploy.trim(apply, network.params, _shapes(tiles.batch)), card


def _answers(run: Run, tiles: Tiles) -> tuple[deploy.Used, Card]:
    """What a task's head gives and what the task makes of it, as far as both say what it means; and a card of it."""
    config, task, target = run.config, run.parts.task, run.parts.target
    spec = task.head_spec(target)
    predicted = dict(spec.chosen(config.head).gives)
    dates = (target.dates,) if spec.dates == EACH else ()

    def apply(params, inputs):
        batch = as_batch(inputs)
        predictions = run.model.apply(params, batch)["predictions"]
        images = (_rows(inputs), *dates)
        said = {name: _by_image(predictions[name], images, meaning.axes) for name, meaning in predicted.items()}
        answer = task.answer(predictions, target)
        return _float32(said | {name: answer[name] for name in task.answers})

    architecture, title = _architecture(run.encoder.model), config.task["name"].rpartition(":")[2]
    card = Card(
        name=architecture,
        description=f"{title[:1].upper()}{title[1:]} of {target.name} in {', '.join(run.sensors)} by {architecture}, "
        f"trained on {', '.join(tiles.source)}.",
        architecture=architecture,
        tasks=[task.stac_task] if task.stac_task else [],
        sensors=run.sensors,
        statistics={name: run.parts.statistics[name] for name in run.sensors},
        outputs={
            name: dataclasses.replace(
                meaning,
                axes=(*(("time",) if dates else ()), *meaning.axes),
                classes=target.names if meaning.of_classes else meaning.classes,
            )
            for name, meaning in (predicted | dict(task.answers)).items()
        },
        pretrained=config.init_from if config.init_from and config.weights == CHECKPOINT else None,
        facts={"model": run.encoder.model, "task": config.task},
    )
    return deploy.trim(apply, run.params, _shapes(tiles.batch)), card


def _by_image(x: jax.Array, images: tuple[int, ...], axes: Sequence[str]) -> jax.Array:
    """A prediction [prod(images), ...], or one that is the same for all images, as [*images, ...]."""
    if x.ndim == len(axes):
        return jnp.broadcast_to(x, (*images, *x.shape))
    return x.reshape(*images, *x.shape[1:])


def _architecture(model: Mapping[str, Any]) -> str:
    config = models.read(model)
    return config.title or type(config).__name__


# ---- Batches as flat dicts ----------------------------------------------------------------------------


def flatten(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{"<sensor>/<entry>": array} of a batch of `ringmoe_jax.contracts`, of what may be an input."""
    sensors = batch["sensors"].items()
    return {f"{name}/{key}": np.asarray(entry[key]) for name, entry in sensors for key in ENTRIES if key in entry}


def as_batch(inputs: Mapping[str, jax.Array]) -> dict[str, Any]:
    """Inverse of `flatten`."""
    sensors: dict[str, dict[str, jax.Array]] = {}
    for name, x in inputs.items():
        sensor, _, entry = name.rpartition("/")
        sensors.setdefault(sensor, {})[entry] = x
    return {"sensors": sensors}


def _shapes(batch: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Of one image's inputs."""
    return {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in flatten(batch).items()}


def _rows(inputs: Mapping[str, jax.Array]) -> int:
    return len(next(iter(inputs.values())))


def _float32(outputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x, dict(outputs))
