"""Scores a fine-tuned run on a split: metrics with intervals beside the best constant answer, and pictures."""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import downstream, probing
from experiments.downstream import RANDOM, Adapted, Parts
from experiments.tables import plain, table, with_interval
from input_pipeline.dataset import Dataset, open_dataset
from input_pipeline.evaluation import EvalBatches
from input_pipeline.reader import BatchIterator
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.evaluate import bootstrap, figures, quicklook
from ringmoe_jax.evaluate.metrics.base import Metric
from ringmoe_jax.evaluate.metrics.base import score as scored
from ringmoe_jax.models import count
from ringmoe_jax.tasks import SENSOR, Example
from ringmoe_jax.training.checkpoint import versions

BATCH = 16
SHOWN = 4  # samples in a picture
LOOKED_AT = 500  # training samples that the constant answer is taken from
MODEL, CONSTANT = "model", "constant"
RESULT = "task.json"  # of one run
SEEDS = "seeds.json"  # of `experiments.finetune --seeds`


class Checked:
    """Batches for training whose truth is looked at before it is learnt; otherwise as the iterator it wraps."""

    def __init__(self, data: BatchIterator, parts: Parts):
        self._data, self._parts = data, parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def __iter__(self) -> Iterator[Mapping]:
        return self

    def __next__(self) -> Mapping:
        batch = next(self._data)
        _check(batch, self._parts)
        return batch


def score(
    adapted: Adapted,
    workdir: str,
    *,
    directory: str = "",
    split: str = "",
    without: Sequence[str] = (),
    seed: int = 0,
    out: str = "",
) -> dict[str, Any]:
    """Scores a run.

    Args:
        adapted: the run.
        workdir: its folder.
        directory: data set; default the one that it was trained on.
        split: default "test" where the data set has one, else "validation".
        without: sensors that the model is not shown: their pixels are taken for not observed.
        seed: of the bootstrap.
        out: folder for numbers and pictures, default `<workdir>/report`.

    Returns:
        What `<out>/task.json` holds: scores of the model and of the best constant answer, tables, names of pictures.

    Raises:
        UserError: no such split or sensor, or truth that cannot be right.
    """
    started, parts = time.perf_counter(), adapted.parts
    (stream,) = adapted.config.data.streams.values()
    bands = downstream.with_bands(adapted.config.data, adapted.encoder).bands
    dataset = open_dataset(directory or stream.directory, stream.sensors, bands)
    _check_asked(adapted, dataset, without)
    split = probing.scored_split(dataset, split)
    run = _Run(adapted, dataset, tuple(without))
    metrics, groups, examples = run(split)
    scores = {name: scored(metric, groups, seed) for name, metric in metrics.items()}
    folder = Path(out) if out else Path(workdir) / "report"
    title = f"{dataset.metadata.name}: {parts.target.name}"
    drawn = parts.task.figures(title, metrics[MODEL], examples, parts.target)
    result = plain(
        {
            "split": split,
            "without": without,
            "samples": len(metrics[MODEL]),
            "blocks": len(np.unique(groups)),
            "scores": {name: dataclasses.asdict(s) for name, s in scores[MODEL].items()},
            "constant": {name: dataclasses.asdict(s) for name, s in scores[CONSTANT].items()},
            "classes": metrics[MODEL].table() if hasattr(metrics[MODEL], "table") else {},
            "left_out": metrics[MODEL].left_out() if hasattr(metrics[MODEL], "left_out") else (),
            "notes": run.notes,
            "dataset": dataset.about(),
            "figures": {name: figures.save(f, folder / f"task_{name}.png").name for name, f in drawn.items()},
        }
        | _about(adapted)
        | {"seconds": time.perf_counter() - started}
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    return result


def _check_asked(adapted: Adapted, dataset: Dataset, without: Sequence[str]) -> None:
    """Raises unless the data set's truth is the one that was learnt, and a sensor is left to look at."""
    learnt, found = adapted.parts.target, downstream.Subject.of(adapted.config, dataset).target
    if found.names != learnt.names:
        raise DataError(
            f'{dataset.directory} has the classes {", ".join(found.names)} in "{learnt.name}", the model learnt '
            f"{', '.join(learnt.names)}: score it on a data set with the same classes in this order"
        )
    sensors = adapted.parts.sensors
    probing.check_hidden(without, sensors)
    if set(sensors) <= set(without):
        raise ConfigError(f"--without {' '.join(without)} leaves no sensor to look at")


def _about(adapted: Adapted) -> dict[str, Any]:
    """The run, and when and on what it was scored."""
    config, encoder = adapted.config, adapted.encoder
    return {
        "task": config.task["name"],
        "target": dataclasses.asdict(adapted.parts.target),
        "step": adapted.step,
        "encoder": {
            "model": encoder.model["name"],
            "from": config.init_from,
            "step": encoder.step,
            "weights": config.weights if config.init_from else RANDOM,
        },
        "parameters": {"trained": adapted.trained, "total": count(adapted.params)},
        "versions": versions(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "devices": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
    }


class _Run:
    """Predictions for all samples of a split."""

    def __init__(self, adapted: Adapted, dataset: Dataset, without: tuple[str, ...]):
        self.adapted, self.dataset, self.without = adapted, dataset, without
        self.notes: list[str] = []
        task, target, model = adapted.parts.task, adapted.parts.target, adapted.parts.model
        self.params = jax.device_put(adapted.params, jax.devices()[0])
        self.answer = jax.jit(lambda params, batch: task.answer(model.apply(params, batch)["predictions"], target))

    def __call__(self, split: str) -> tuple[dict[str, Metric], np.ndarray, list[Example]]:
        parts, task = self.adapted.parts, self.adapted.parts.task
        constant = task.constant(self._training_truths(), parts.target)
        metrics = {name: task.metric(parts.target) for name in (MODEL, CONSTANT)}
        locations, examples = [], []
        shown = set(np.linspace(0, self.dataset.size(split) - 1, SHOWN).astype(int).tolist())
        for batch in self._batches(split):
            _check(batch, parts)
            truth, hidden = task.truth(batch), probing.hide(batch, self.without)
            answers = jax.device_get(self.answer(self.params, {"sensors": hidden["sensors"]}))
            for row in np.flatnonzero(batch["real"]):
                own = {name: x[row] for name, x in answers.items()}
                true = jax.tree.map(lambda x, row=row: x[row], truth)
                task.add(metrics[MODEL], own, true)
                task.add(metrics[CONSTANT], constant, true)
                locations.append(next(iter(batch["sensors"].values()))["location"][row])
                if int(batch["index"][row]) in shown:
                    examples.append(Example(int(batch["index"][row]), self._images(batch, row), own, true))
        groups = bootstrap.blocks(np.array(locations))
        if (groups < 0).all():
            self.notes.append("samples have no coordinates: overlapping ones count as independent")
        return metrics, groups, examples

    def _training_truths(self) -> list[Any]:
        task, found = self.adapted.parts.task, []
        for batch in self._batches("train"):
            _check(batch, self.adapted.parts)
            truth = task.truth(batch)
            found += [jax.tree.map(lambda x, row=row: x[row], truth) for row in np.flatnonzero(batch["real"])]
            if len(found) >= LOOKED_AT:
                self.notes.append(f"the constant answer is taken from the first {len(found)} training samples")
                break
        return found

    def _batches(self, split: str) -> EvalBatches:
        data = downstream.with_bands(self.adapted.config.data, self.adapted.encoder)
        return EvalBatches(
            self.dataset.directory,
            tuple(self.dataset.sensors),
            split=split,
            image_size=data.image_size,
            sizes=data.sizes,
            frames=data.frames,
            batch_size=min(BATCH, self.dataset.size(split)),
            bands=data.bands,
            seed=data.shuffle_seed,
            max_bad_records=data.max_bad_records,
        )

    def _images(self, batch: Mapping, row: int) -> list[np.ndarray]:
        """What to look at: the dates of the sensor that predictions lie on, or of the first one."""
        parts = self.adapted.parts
        name = parts.target.sensor if parts.target.kind != SENSOR and parts.target.sensor else next(iter(parts.sensors))
        entry = batch["sensors"][name]
        values = [quicklook.view(self.dataset.sensors[name], pixels)[0] for pixels in entry["pixels"][row]]
        limits = quicklook.stretch(np.concatenate(values), np.concatenate(entry["valid"][row]))
        return [quicklook.paint(v, limits, valid) for v, valid in zip(values, entry["valid"][row], strict=True)]


def _check(batch: Mapping, parts: Parts) -> None:
    real = batch.get("real")
    truth = parts.task.truth(batch)
    parts.task.check_truth(truth if real is None else jax.tree.map(lambda x: x[real], truth), parts.target)


# ---- Output -------------------------------------------------------------------------------------------


def show(result: Mapping) -> None:
    """Prints the table of a run."""
    print(f"\n{result['task']} of {result['target']['name']}, {result['dataset']['name']}/{result['split']}, ", end="")
    print(f"{result['samples']} samples in {result['blocks']} blocks; 95 % bootstrap intervals")
    if result["without"]:
        print(f"without {', '.join(result['without'])}")
    rows = [(name, with_interval(s), with_interval(result["constant"][name])) for name, s in result["scores"].items()]
    print(table(("metric", MODEL, "constant answer"), rows))
    for note in result["notes"]:
        print(f"note        {note}")
    if result["left_out"]:
        print(f"note        classes that no sample holds are not scored: {', '.join(result['left_out'])}")


def show_seeds(joined: Mapping) -> None:
    """Prints means over seeds."""
    print(f"\n{joined['task']}: mean and 95 % t interval over the seeds {', '.join(map(str, joined['seeds']))}")
    rows = [(name, with_interval(score)) for name, score in joined["scores"].items()]
    print(table(("metric", "mean"), rows))
