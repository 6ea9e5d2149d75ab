"""Exports a run for other programs: weights, a program that needs only JAX, and a description of both.

    python -m experiments.export --checkpoint runs/small --out deploy/small
    python -m experiments.export --checkpoint runs/micro --out deploy/s2 --sensors s2_12     # an exact sub-model
    python -m experiments.export --checkpoint runs/seg --out deploy/seg --int8               # a quarter of the bytes

What was written is run on tiles of the run's data and compared with the model in float32; differences are printed and
kept. `ringmoe_jax.deploy.load` reads the folder; its README.md says how to run it without this package.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common, downstream
from experiments.downstream import CHECKPOINT, Adapted
from experiments.tables import table
from input_pipeline.dataset import Dataset, open_dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax import compress, deploy, models
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.compress import Network
from ringmoe_jax.contracts import FUSED
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.deploy import Card, Meaning
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.models.heads.neck import EACH
from ringmoe_jax.sensors import Sensor
from ringmoe_jax.training.checkpoint import Checkpointer, versions

ENGINE = "dense"  # drops no token, and its shapes are static
TILES = 8  # that an export is compared on
SPLITS = ("validation", "test", "train")  # where they are from: the first that a data set has
# Model in the config -> what the literature calls it, and how its part for some sensors is made. What no output of
# SkySense reads, such as encoders of other sensors, is left out of every export anyway.
FAMILIES: dict[str, tuple[str, Callable[[Network, Sequence[str]], Network]]] = {
    "ringmoe": ("RingMoE", compress.submodel),
    "skysense": ("SkySense", lambda network, sensors: network),
}
TASKS = {  # task in the config -> mlm's enumeration
    "classification": "scene-classification",
    "multilabel": "scene-classification",
    "segmentation": "semantic-segmentation",
    "change": "semantic-segmentation",
    "height": "regression",
    "detection": "object-detection",
    "tracking": "object-detection",
}
TRAINING = ("auxiliary", "bins", "raw")  # predictions that only losses read
MAP = ("height", "width")
BOX = "x, y, width, height in pixels and angle in radians, see ringmoe_jax.contracts.BOX"
# Of fine-tuned models: output and number of its axes, without batch and dates, -> what it means.
MEANINGS = {
    ("logits", 1): Meaning(("class",), "logits of the classes of an image"),
    ("logits", 3): Meaning((*MAP, "class"), "logits of the classes of every pixel"),
    ("probability", 1): Meaning(("class",), "probability of every class, each on its own"),
    ("classes", 2): Meaning(MAP, "index of the most likely class of every pixel"),
    ("height", 2): Meaning(MAP, "height above ground of every pixel in metres"),
    ("class", 2): Meaning(("point", "class"), "logits of the classes of an object around every point"),
    ("box", 2): Meaning(("point", "parameter"), f"its box: {BOX}"),
    ("centreness", 1): Meaning(("point",), "logit of how central the point is in it"),
    ("points", 2): Meaning(
        ("point", "coordinate"), "x, y and stride of every point in pixels, the same for all images"
    ),
    ("boxes", 2): Meaning(("object", "parameter"), f"the best boxes before non-maximum suppression: {BOX}"),
    ("scores", 1): Meaning(("object",), "their scores in 0..1, descending"),
    ("classes", 1): Meaning(("object",), "their classes' indices, -1 for rows not to use"),
}


class Subject(NamedTuple):
    """What is exported.

    Attributes:
        used: the model in float32, less what no output reads.
        card: what there is to say of it.
        data: what the run reads, with the bands that the model reads.
        datasets: those of the run.
    """

    used: deploy.Used
    card: Card
    data: DataConfig
    datasets: Sequence[Dataset]


def export(
    checkpoint: str, out: str, *, sensors: Sequence[str] = (), int8: bool = False, licence: str = "other"
) -> dict[str, Any]:
    """Exports the newest checkpoint of a run, pre-trained or fine-tuned.

    Args:
        checkpoint: folder of the run.
        out: folder to write, or an older export to replace.
        sensors: of a pre-trained model, those that are shown; all where empty.
        int8: kernels as 8-bit integers with one float32 scale an output.
        licence: of the weights, an SPDX identifier; "other" where nobody has said.

    Returns:
        What model.json holds.

    Raises:
        UserError: no checkpoint, no data set of the run, an unknown sensor, or `out` holds something else.
    """
    deploy.check_target(out)
    checkpointer = Checkpointer.open(checkpoint)
    record = checkpointer.record()
    checkpointer.close()
    subject = (_fine_tuned if "encoder" in record else _pretrained)(checkpoint, sensors)
    used = subject.used
    stored = used
    if int8:
        packed = lambda tree, inputs: used.apply(compress.dequantise(tree), inputs)  # noqa: E731
        stored = deploy.Used(packed, compress.quantise(used.params), used.inputs)
    program = deploy.export(*stored)
    own = {
        "step": record["step"],
        "versions": versions(),
        "data": [_without_place(dataset) for dataset in subject.datasets],
        "weights": "int8" if int8 else "float32",
        "bytes": {"stored": compress.nbytes(stored.params), "float32": compress.nbytes(used.params)},
        "compared": _compare(subject, program),
    }
    name = re.sub(r"[^a-zA-Z0-9]+", "-", f"{subject.card.architecture} {Path(out).name}").strip("-")
    card = dataclasses.replace(subject.card, name=name, licence=licence, own=subject.card.own | own)
    parameters = sum(leaf.size for leaf in used.params.values())
    return deploy.save(out, program, deploy.describe(program, card, parameters))


# ---- What is exported ---------------------------------------------------------------------------------


def _pretrained(checkpoint: str, sensors: Sequence[str]) -> Subject:
    """Features of some sensors, all by default."""
    trained = common.load(checkpoint)
    parts, data = trained.parts, trained.config.data
    for name in sensors:
        if name not in parts.sensors:
            raise ConfigError(f'--sensors names "{name}", which the model lacks: {nearest(name, parts.sensors)}')
    shown = {name: sensor for name, sensor in parts.sensors.items() if not sensors or name in sensors}
    datasets = _open(data, shown)
    stored = {name: dataset for dataset in reversed(datasets) for name in dataset.sensors}
    architecture, part = FAMILIES[trained.config.model["name"]]
    network = part(Network(trained.config.model, trained.params), tuple(shown))
    model = models.build(models.with_engine(network.model, ENGINE), sensors=parts.sensors, statistics=parts.statistics)

    def apply(params, inputs):
        outputs = model.apply(params, as_batch(inputs))
        found = {f"{kind}/{name}": x for kind in ("pooled", "tokens") for name, x in outputs[kind].items()}
        return jax.tree.map(_plain, found | ({FUSED: outputs[FUSED]} if FUSED in outputs else {}))

    inputs = {}
    for name, sensor in shown.items():
        dates = data.frames.get(name, stored[name].shape(name)[0])
        inputs |= _entries(sensor, dates, data.size(name))
    used = deploy.trim(apply, network.params, inputs)
    names = ", ".join(dataset.metadata.name for dataset in datasets)
    card = Card(
        name=architecture,
        description=f"Features of {', '.join(shown)} by {architecture}, pre-trained on {names}.",
        architecture=architecture,
        tasks=("similarity-search",),
        sensors=shown,
        statistics={name: parts.statistics.get(name, sensor.statistics) for name, sensor in shown.items()},
        outputs=_features(shown),
        pretrained=names,
        own={"model": network.model},
    )
    return Subject(used, card, data, datasets)


def _fine_tuned(checkpoint: str, sensors: Sequence[str]) -> Subject:
    """What a task's head says, and what the task makes of it."""
    adapted = Adapted.load(checkpoint, engine=ENGINE)
    config, encoder, parts = adapted.config, adapted.encoder, adapted.parts
    target, task = parts.target, parts.task
    if sensors and set(sensors) != set(adapted.parts.sensors):
        raise ConfigError(
            f"--sensors {' '.join(sensors)}: a fine-tuned model reads {', '.join(adapted.parts.sensors)}: leave it "
            "out, and show what is missing as zeros that are not valid"
        )
    each = task.purpose(target).dates == EACH
    lead = (1, target.dates) if each else (1,)

    def apply(params, inputs):
        predictions = parts.model.apply(params, as_batch(inputs))["predictions"]
        answer = task.answer(predictions, target)
        found = {name: x for name, x in predictions.items() if name not in TRAINING}
        if "points" in found:
            found["points"] = jnp.broadcast_to(found["points"], (math.prod(lead), *found["points"].shape))
        return jax.tree.map(_plain, {n: x.reshape(*lead, *x.shape[1:]) for n, x in found.items()} | answer)

    data = downstream.with_bands(config.data, encoder)
    read = parts.sensors
    if target.sensor:  # predictions lie on its grid: its size is looked at, its pixels are not
        read = {target.sensor: sensor_table.get(target.sensor)} | read
    inputs = {}
    for name, sensor in read.items():
        inputs |= _entries(sensor, adapted.subject.dates[name], data.size(name))
    used = deploy.trim(apply, adapted.params, inputs)
    dataset = downstream.open_data(config, encoder)
    architecture, _ = FAMILIES[encoder.model["name"]]
    card = Card(
        name=architecture,
        description=f"{config.task['name'].capitalize()} of {target.name} in {', '.join(parts.sensors)} by "
        f"{architecture}, trained on {dataset.metadata.name}.",
        architecture=architecture,
        tasks=[TASKS[name] for name in (config.task["name"],) if name in TASKS],
        sensors=parts.sensors,
        statistics={name: parts.statistics[name] for name in parts.sensors},
        outputs=_answers(used, each, target.names),
        pretrained=config.init_from if config.init_from and config.weights == CHECKPOINT else None,
        own={"model": encoder.model, "task": config.task},
    )
    return Subject(used, card, data, (dataset,))


def _entries(sensor: Sensor, dates: int, side: int) -> dict[str, jax.ShapeDtypeStruct]:
    """All that a batch may hold of a sensor, for one image."""
    shape = (dates, side, side)
    arrays = {
        "pixels": ((*shape, sensor.channels), np.float32),
        "valid": (shape, np.bool_),
        "time": ((dates,), np.int32),
        "location": ((2,), np.float32),
    }
    return {f"{sensor.name}/{name}": jax.ShapeDtypeStruct(*array) for name, array in arrays.items()}


def as_batch(inputs: Mapping[str, jax.Array]) -> dict[str, Any]:
    """{"<sensor>/<entry>": array} as a batch of `ringmoe_jax.contracts`."""
    sensors: dict[str, dict[str, jax.Array]] = {}
    for name, x in inputs.items():
        sensor, _, entry = name.rpartition("/")
        sensors.setdefault(sensor, {})[entry] = x
    return {"sensors": sensors}


def _plain(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _features(sensors: Mapping[str, Sensor]) -> dict[str, Meaning]:
    meanings = {}
    for name in sensors:
        meanings[f"pooled/{name}"] = Meaning(("embedding",), f"mean of the tokens of {name}")
        meanings[f"tokens/{name}"] = Meaning(("time", *MAP, "embedding"), f"one token for every cell of {name}")
    meanings[FUSED] = Meaning((*MAP, "embedding"), "all sensors and dates of every location in one")
    meanings[f"pooled/{FUSED}"] = Meaning(("embedding",), "mean of them over locations")
    return meanings


def _answers(used: deploy.Used, each: bool, names: tuple[str, ...]) -> dict[str, Meaning]:
    """Meanings of a task's outputs; those of a task of your own have nameless axes."""
    image = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in used.inputs.items()}
    meanings = {}
    for name, x in jax.eval_shape(used.apply, used.params, image).items():
        rank = x.ndim - 1 - each
        nameless = Meaning(tuple(f"axis-{letter}" for letter in "abcdef"[:rank]), "see the task")
        known = MEANINGS.get((name, rank), nameless)
        classes = names if name in ("logits", "probability", "class", "classes") else ()
        meanings[name] = Meaning((*(("time",) if each else ()), *known.axes), known.description, classes)
    return meanings


# ---- The run's data -----------------------------------------------------------------------------------


def _open(data: DataConfig, sensors: Mapping[str, Sensor]) -> list[Dataset]:
    """The data sets of a pre-training that hold any of the sensors, each once."""
    wanted: dict[str, list[str]] = {}
    for stream in data.streams.values():
        wanted.setdefault(stream.directory, []).extend(name for name in stream.sensors if name in sensors)
    return [open_dataset(d, tuple(dict.fromkeys(names)), data.bands) for d, names in wanted.items() if names]


def _without_place(dataset: Dataset) -> dict[str, Any]:
    """What is said of a data set elsewhere: not where it lies here."""
    return {key: value for key, value in dataset.about().items() if key != "directory"}


def _split(dataset: Dataset) -> str:
    return next(split for split in SPLITS if split in dataset.counts)


def _tiles(subject: Subject) -> dict[str, np.ndarray]:
    """The first tiles of every data set as inputs; those of sensors that a model reads apart are not of one place."""
    data, found = subject.data, {}
    rows = min(TILES, *(dataset.size(_split(dataset)) for dataset in subject.datasets))
    for dataset in subject.datasets:
        batches = EvalBatches(
            dataset.directory,
            tuple(dataset.sensors),
            split=_split(dataset),
            image_size=data.image_size,
            sizes=data.sizes,
            frames=data.frames,
            grid=data.views.grid if data.views else "",
            batch_size=rows,
            bands=data.bands,
            seed=data.shuffle_seed,
            max_bad_records=data.max_bad_records,
        )
        for name, entry in next(iter(batches))["sensors"].items():
            found = {f"{name}/{key}": np.asarray(x) for key, x in entry.items()} | found
    return {name: found[name] for name in subject.used.inputs}


def _compare(subject: Subject, program: deploy.Program) -> dict[str, Any]:
    """How far the program's outputs are from the model's, on tiles of the run's data.

    Of numbers the largest and the mean difference beside the mean size; of indices the share that differs.
    """
    inputs, used = _tiles(subject), subject.used
    wanted = jax.jit(used.apply)(used.params, inputs)
    got = jax.jit(jax.export.deserialize(program.serialised).call)(program.weights, inputs)
    differences = {}
    for name, (a, b) in {name: (np.asarray(got[name]), np.asarray(wanted[name])) for name in got}.items():
        if np.issubdtype(a.dtype, np.integer):
            differences[name] = {"share": float((a != b).mean())}
        else:
            apart = np.abs(a - b)
            differences[name] = {k: float(v) for k, v in (("max", apart.max()), ("mean", apart.mean()))}
            differences[name]["size"] = float(np.abs(b).mean())
    rows = len(next(iter(inputs.values())))
    tiles = {dataset.metadata.name: f"first {rows} of {_split(dataset)}" for dataset in subject.datasets}
    return {"tiles": tiles, "outputs": differences}


# ---- Command line -------------------------------------------------------------------------------------


def show(item: Mapping[str, Any], out: str) -> None:
    """Prints what was written and how far it is from the model."""
    of = item["properties"]
    stored, whole = (of["ringmoe:bytes"][name] / 1e6 for name in ("stored", "float32"))
    print(f"{of['mlm:name']}: {of['mlm:total_parameters']:,} parameters, ", end="")
    print(
        f"{stored:.2f} MB of weights in {of['ringmoe:weights']}"
        + (f" ({whole:.2f} in float32)" if stored < whole else "")
    )
    compared = of["ringmoe:compared"]
    print(f"compared with the model on {', '.join(f'{name}: {tiles}' for name, tiles in compared['tiles'].items())}")
    rows = [
        (name, f"{100 * d['share']:.2f} % differ", "", "")
        if "share" in d
        else (name, *(f"{d[key]:.3g}" for key in ("max", "mean", "size")))
        for name, d in compared["outputs"].items()
    ]
    print(table(("output", "largest difference", "mean difference", "mean size"), rows))
    files = ", ".join(asset["href"].removeprefix("./") for asset in item["assets"].values())
    print(f"\n{out} holds {files} and model.json; ", end="")
    print(f"how to run it without this package: {out}/README.md")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, help="folder of a run")
    parser.add_argument("--out", required=True, help="folder to write; an older export there is replaced")
    parser.add_argument("--sensors", nargs="+", default=(), help="that are shown; default: all of the model")
    parser.add_argument("--int8", action="store_true", help="kernels as 8-bit integers")
    parser.add_argument("--licence", default="other", help="of the weights, an SPDX identifier such as CC-BY-4.0")
    return parser.parse_args(arguments)


@common.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = vars(parse(arguments))
    show(export(**options), options["out"])
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
