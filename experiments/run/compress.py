"""The steps from a checkpoint to a smaller one: sub-model, count, reduce, distil, score. Each can go on."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.run.data import TRAIN
from experiments.run.distil import distil
from experiments.run.evaluate import evaluate
from experiments.run.fit import logged, once
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.compress import MERGES, Network, Usage, costs, counting, dequantise, nbytes, quantise
from ringmoe_jax.compress import submodel as submodel_of
from ringmoe_jax.compress.recipe import PRUNE, SUBMODEL, Recipe
from ringmoe_jax.compress.results import (
    FRONT,
    FULL,
    INT8,
    PART,
    RESULT,
    Compression,
    Front,
    FrontPoint,
    Quality,
    kept_experts,
)
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.models import count
from ringmoe_jax.parallel import processes
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.run import FEATURES, Run, claim, make_mesh, read_record, results
from ringmoe_jax.run.evaluation import EVALUATION, Evaluation
from ringmoe_jax.sensors import Sensor

REQUEST = "compression_request.json"
SIZE = "size.json"  # of a point of a front, written last
USAGE = "usage"  # folder of a pass over the training images
BATCH = 32  # images of all hosts, but at least one a device
ROWS = 4  # images of every sensor that costs are measured on
STEPS = 200  # of every distillation of a front
COMPARED = tuple[dict[str, costs.Costs], costs.Gap]  # what `costs.compare` gives
GRID = (Recipe(PRUNE, keep=0.5), Recipe(PRUNE, keep=0.25), *map(Recipe, MERGES))


def compress(
    checkpoint: str,
    out: str,
    recipe: Recipe,
    *,
    modality: Sequence[str],
    dataset: str = "",
    statistics: str = "",
    int8: bool = False,
) -> Compression:
    """Compresses the newest checkpoint of a pre-training run, and measures before and after.

    Args:
        checkpoint: folder of the run.
        out: folder of the result, a checkpoint like any other.
        recipe: what is done.
        modality: sensors and modalities to keep.
        dataset: folder of a data set to count experts and to score on; default those of the run.
        statistics: file of statistics that were counted before; default: counts them.
        int8: whether to measure too what eight-bit weights lose.

    Returns:
        What `<out>/report/compression.json` holds.

    Raises:
        UserError: no checkpoint, one of a task, no such modality, or a folder that holds another run.
    """
    started, folder = time.perf_counter(), Path(out)
    source = Run.open(checkpoint, kinds=FEATURES)
    sensors = select(modality, source.sensors)
    part = submodel(source, sensors)
    _claim(folder, source, sensors, dataset, dataclasses.asdict(recipe) | {"int8": int8})
    where = folder if recipe.method == SUBMODEL else folder / SUBMODEL
    part = part.save(where, _about(source, part, source.folder, Recipe(SUBMODEL)))
    usage = usage_of(part, folder, dataset, statistics) if recipe.needs_usage else None
    result = part if recipe.method == SUBMODEL else reduce(part, recipe, usage, folder, source.folder)
    runs = {FULL: source, PART: part} | ({} if result is part else {recipe.method: result})
    compared, gap = results.from_first(COMPARED, lambda: costs.compare(runs, _noise(part)))
    scored = {name: quality(run.folder, dataset) for name, run in runs.items() if run is not source}
    small = quantise(result.params) if int8 else {}
    if int8:
        scored[INT8] = _quality_in_memory(result, dequantise(small), dataset, folder)
    compression = Compression(
        checkpoint=str(source.folder),
        step=source.step,
        recipe=recipe,
        sensors=sensors,
        modalities=modalities(part),
        dropped=tuple(name for name in source.sensors if name not in sensors),
        images=usage.images if usage else {},
        experts=kept_experts(part.network, recipe, usage) if usage else {},
        costs=compared,
        gap=gap,
        quality=scored,
        int8_bytes=nbytes(small),
        provenance=results.provenance(),
        seconds=time.perf_counter() - started,
    )
    results.write(folder / "report" / RESULT, compression)
    return compression


def curve(
    checkpoint: str,
    out: str,
    *,
    modality: Sequence[str],
    dataset: str = "",
    statistics: str = "",
    steps: int = STEPS,
) -> Front:
    """Makes what is missing of the points of `GRID`, as they are and after distillation.

    Args:
        checkpoint: folder of a pre-training run.
        out: folder; points lie in `<out>/<name>`, each a checkpoint.
        modality: sensors and modalities to keep.
        dataset: folder of a data set to count experts and to score on; default those of the run.
        statistics: file of statistics that were counted before; default: counts them.
        steps: of every distillation; 0 leaves these points out.

    Returns:
        What `<out>/report/curve.json` holds.

    Raises:
        UserError: see `compress`; points that are finished are kept.
    """
    started, folder = time.perf_counter(), Path(out)
    source = Run.open(checkpoint, kinds=FEATURES)
    sensors = select(modality, source.sensors)
    part = submodel(source, sensors)
    _claim(folder, source, sensors, dataset, {"curve": True})
    usage = usage_of(part, folder, dataset, statistics)

    def make(recipe: Recipe, where: Path) -> None:
        if recipe.method == SUBMODEL:
            made = part.save(where, _about(source, part, source.folder, recipe))
        else:
            made = reduce(part, recipe, usage, where, source.folder)
        quality(where, dataset)
        results.write(where / SIZE, costs.size(made, _noise(made)))

    points = []
    for recipe in recipes(steps):
        where = folder / name_of(recipe)
        request = {"recipe": recipe, "step": source.step, "sensors": sensors}
        once(results.plain(request), where, SIZE, lambda recipe=recipe, where=where: make(recipe, where))
        size = results.from_first(costs.Size, lambda where=where: results.load(costs.Size, where / SIZE))
        points.append(FrontPoint(name_of(recipe), str(where), recipe, size, quality(where, dataset)))
    front = Front(
        checkpoint=str(source.folder),
        step=source.step,
        sensors=sensors,
        images=usage.images,
        distil=steps,
        points=tuple(points),
        provenance=results.provenance(),
        seconds=time.perf_counter() - started,
    )
    results.write(folder / "report" / FRONT, front)
    return front


def recipes(steps: int) -> Iterator[Recipe]:
    """The sub-model, then every point of `GRID` without and with distillation."""
    yield Recipe(SUBMODEL)
    for recipe in GRID:
        yield recipe
        if steps:
            yield dataclasses.replace(recipe, distil=steps)


def name_of(recipe: Recipe) -> str:
    """Folder of a point, for example "prune-0.25-distil200"."""
    share = [f"{recipe.keep:g}"] if recipe.keep < 1 else []
    distilled = [f"distil{recipe.distil}"] if recipe.distil else []
    return "-".join([recipe.method, *share, *distilled])


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


def modalities(run: Run) -> tuple[str, ...]:
    """Of a run's sensors, as its routers count them."""
    return sensor_table.modalities(run.sensors)


def _claim(folder: Path, source: Run, sensors: Sequence[str], dataset: str, what: Mapping[str, Any]) -> None:
    """Writes down what a folder is for, or raises where it holds something else."""
    asked = {"checkpoint": str(source.folder), "step": source.step, "sensors": sensors, "dataset": dataset}
    claim(folder, REQUEST, asked | {"what": what})


# ---- Steps --------------------------------------------------------------------------------------------


def submodel(source: Run, sensors: Sequence[str]) -> Run:
    """The part of a run that some sensors use, in memory.

    Raises:
        ConfigError: the model has no experts that could be told apart by sensor.
    """
    part = source.with_network(submodel_of(source.network, sensors))
    print(f"sub-model   {' and '.join(sensors)}: {_size(source)} -> {_size(part)} parameters")
    return part


def reduce(part: Run, recipe: Recipe, usage: Usage | None, folder: Path, checkpoint: Path) -> Run:
    """The sub-model pruned, merged and distilled as a recipe says, as a checkpoint in `folder`.

    Args:
        part: the sub-model.
        recipe: what is done.
        usage: of its experts, where the recipe needs it.
        folder: of the result.
        checkpoint: that all this comes from, for the record.
    """
    result = part.with_network(recipe(part.network, usage))
    print(f"{recipe.method:<11} {recipe.title}: {_size(part)} -> {_size(result)} parameters")
    if recipe.distil:
        result = distil(result, part, recipe.distil, folder / "distillation")
    return result.save(folder, _about(part, result, checkpoint, recipe))


def _about(before: Run, after: Run, checkpoint: Path, recipe: Recipe) -> dict[str, Any]:
    """What a record says of where a compressed checkpoint comes from."""
    settings = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "method"}
    sizes = {"before": count(before.params), "after": count(after.params)}
    where = {"from": str(checkpoint), "step": before.step, "method": recipe.method}
    return where | {"settings": settings, "parameters": sizes}


def _size(run: Run) -> str:
    return f"{count(run.params):,}"


def _noise(run: Run) -> dict:
    return costs.noise(run.sensors, {name: run.data.size(name) for name in run.sensors}, ROWS)


# ---- What the experts do ------------------------------------------------------------------------------


def usage_of(part: Run, folder: Path, dataset: str = "", statistics: str = "") -> Usage:
    """What every expert does on the training images, read or counted.

    Args:
        part: the run whose experts are counted.
        folder: gets `usage/usage.npz`.
        dataset: folder of a data set; default those of the run.
        statistics: file that was counted before; "" for none.

    Raises:
        UserError: there is no such file, the data set lacks a sensor, there is no image, or the folder holds the pass
            of something else.
    """
    if statistics:
        if not Path(statistics).exists():
            raise DataError(f"--statistics {statistics} does not exist: leave it out to count what the experts do")
        return counting.load(Path(statistics), modalities(part))
    readers = {name: _training_images(part, name, dataset) for name in part.sensors}
    request = {
        "step": part.step,
        "model": part.network.model,
        "batches": {name: len(reader) for name, reader in readers.items()},
        "data": {name: reader.dataset.directory for name, reader in readers.items()},
        "hosts": jax.process_count(),
    }
    claim(folder / USAGE, "request.json", request)
    mesh = make_mesh(MeshConfig())
    model = part.with_network(part.network._replace(model=counting.measuring(part.network.model))).build(mesh).model
    usage = counting.count(model, part.params, part.sensors, readers, folder / USAGE, mesh)
    for name, reader in readers.items():
        if reader.bad_records:
            print(f"note        {reader.bad_records} broken records of {name} were not counted")
    return usage


def _training_images(run: Run, sensor: str, dataset: str) -> EvalBatches:
    """This host's share of the training images of a sensor, which show the ground that probes see."""
    if dataset:
        known = open_dataset(dataset, ()).metadata.sensors
        if sensor not in known:
            raise DataError(f'--dataset {dataset} holds {", ".join(known)}, but not "{sensor}", which is to be kept')
        directory, split = dataset, TRAIN
    else:
        streams = [stream for stream in run.data.streams.values() if sensor in stream.sensors]
        if not streams:
            raise DataError(f'no stream of the run shows "{sensor}": give --dataset with a folder that does')
        directory, split, known = streams[0].directory, streams[0].split, streams[0].sensors
    grid = run.data.views.grid if run.data.views else ""
    shards = len(jax.devices())
    return EvalBatches.of(
        run.data,
        directory,
        tuple(dict.fromkeys([sensor, *([grid] if grid in known else [])])),
        split=split,
        batch_size=-(-BATCH // shards) * shards // jax.process_count(),
        host=jax.process_index(),
        hosts=jax.process_count(),
    )


# ---- What a network is worth --------------------------------------------------------------------------


def quality(folder: Path, dataset: str = "") -> Quality:
    """Evaluates a checkpoint, unless that was done.

    Args:
        folder: of the checkpoint; what `experiments.evaluate` writes and prints goes to `<folder>/report/brief`.
        dataset: to score on; default those of the run.
    """
    where = folder / "report" / "brief"
    step = read_record(folder)["step"]
    evaluation = results.from_first(Evaluation | None, lambda: results.load(Evaluation, where / EVALUATION, step))
    if evaluation is None:
        print(f"scoring     {folder}", flush=True)
        with logged(where, "w"):
            evaluation = evaluate(str(folder), [dataset] if dataset else (), brief=True, out=str(where))
    return Quality.from_evaluation(evaluation)


def _quality_in_memory(run: Run, params, dataset: str, folder: Path) -> Quality:
    """Of a run with other parameters, which lie in a folder that all hosts share meanwhile."""
    where = processes.from_first(lambda: tempfile.mkdtemp(dir=folder))
    run.with_network(Network(run.network.model, params)).save(Path(where), {"method": INT8})
    found = quality(Path(where), dataset)
    processes.from_first(lambda: shutil.rmtree(where))
    return found
