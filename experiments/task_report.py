"""The page of a fine-tuned run, and of several seeds of one: scores beside the best answer that looks at no image."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import page, scoring
from experiments.downstream import CHECKPOINT, DownstreamConfig
from ringmoe_jax import tasks
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import figures
from ringmoe_jax.evaluate.metrics import COUNT, Quantity
from ringmoe_jax.models.adaptation import AdaptationConfig
from ringmoe_jax.tasks import Target, Task
from ringmoe_jax.training import metrics
from ringmoe_jax.training.checkpoint import Checkpointer

FEW = 10  # blocks below which a bootstrap interval says little (our choice)
BETTER, WORSE, OPEN = "better", "worse", "open"
VERDICTS = {BETTER: "better", WORSE: "worse", OPEN: "not to be told apart", "": "\N{EN DASH}"}
PARTS = ("neck", "adaptation", "objectives", "optimizer", "train")  # of the configuration, that settings list
CAPTIONS = {
    "masks": "Samples from all over the split: image, true classes, predicted classes, and in red where they differ. "
    "Hatched: void, which is not scored.",
    "confusion": "Of every true class (rows), the share in % that was given each class (columns). A perfect model has "
    "100 along the diagonal; grey rows have no truth.",
    "classes": "Average precision of every class, the best on top.",
    "changes": "Samples from all over the split: before, after, what truly changed, and the prediction by outcome.",
    "heights": "Samples from all over the split: image, true and predicted height, and their difference. "
    "Grey: height unknown, not scored.",
    "errors": "Left: predicted against true height. Right: error by true height, median and middle half. What lies "
    "below the line on the left is predicted too low.",
    "boxes": "Samples from all over the split, true and predicted boxes. Dashed and tinted: without a partner, so "
    "missed on the left, false on the right.",
    "tracks": "Sequences on their last date with the tails of true and predicted tracks; a predicted track has the "
    "colour of the true one that it follows, white follows none. Red rings: identities that passed to another track.",
    "losses": "Loss on training batches by optimiser step: the weighted total, and every objective.",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A metric of the model beside that of the constant answer.

    Attributes:
        metric: its name.
        model: value and 95 % interval.
        constant: likewise.
        quantity: direction, unit and range.
    """

    metric: str
    model: Mapping[str, float | None]
    constant: Mapping[str, float | None]
    quantity: Quantity

    @property
    def less(self) -> bool:
        """Whether less is better."""
        return not self.quantity.higher_is_better

    @property
    def meaning(self) -> str:
        """What is measured, and its unit."""
        unit = "" if self.quantity.unit in ("", COUNT) else f", {self.quantity.unit}"
        return self.quantity.meaning + unit

    @property
    def digits(self) -> int:
        """After the decimal point."""
        return 0 if self.quantity.unit == COUNT else 3

    @property
    def verdict(self) -> str:
        """Whether the model is `BETTER` or `WORSE` than the constant answer by intervals apart, or it is `OPEN`.

        "" where one has no interval, and for counts, which answer different questions.
        """
        ends = (self.model["low"], self.model["high"], self.constant["low"], self.constant["high"])
        if not self.quantity.comparable or None in ends:
            return ""
        above, below = self.model["low"] > self.constant["high"], self.model["high"] < self.constant["low"]
        if not (above or below):
            return OPEN
        return BETTER if below == self.less else WORSE


@dataclasses.dataclass(frozen=True)
class Run:
    """A fine-tuned run with its scores.

    Attributes:
        workdir: its folder.
        record: of its newest checkpoint.
        config: checked.
        result: what `experiments.scoring` wrote.
        images: PNG files as text, by what they show.
        speed: see `page.speed`.
    """

    workdir: Path
    record: Mapping[str, Any]
    config: DownstreamConfig
    result: Mapping[str, Any]
    images: Mapping[str, Sequence[str]]
    speed: Mapping[str, float] | None

    @staticmethod
    def load(workdir: Path, record: Mapping | None = None) -> Run:
        """Reads a run, scores it where its newest checkpoint was not scored yet, and draws its losses."""
        record = record or newest(workdir)
        config, folder = DownstreamConfig.of(record["config"]), workdir / "report"
        result = page.current(folder / scoring.RESULT, record["step"])
        if result is None:
            print(f"step {record['step']} of {workdir} was not scored yet: that comes first")
            result = scoring.score(scoring.Adapted.load(str(workdir)), str(workdir))
        records = metrics.read(workdir)
        images: dict[str, list[str]] = {}
        for name, file in result["figures"].items():
            images.setdefault(re.sub(r"_\d+$", "", name), []).append(page.embedded(folder / file))
        if any("loss" in line for line in records):
            images["losses"] = [page.embedded(figures.save(figures.losses(records), folder / "losses.png"))]
        return Run(workdir, record, config, result, images, page.speed(records))

    @property
    def task(self) -> Task:
        """What was learnt."""
        return tasks.build(self.config.task)

    @property
    def rows(self) -> list[Row]:
        """All metrics, the main one first."""
        stated = self.task.metric(Target.from_json(self.result["target"])).quantities
        return [
            Row(name, value, self.result["constant"][name], stated[name])
            for name, value in self.result["scores"].items()
        ]

    @property
    def column(self) -> str:
        """The main score in the table of classes, where there is one: its first column that holds no counts."""
        return next((name for name, of in self.result["classes"].items() if any(isinstance(x, float) for x in of)), "")

    @property
    def constant(self) -> str:
        """What the constant answer is."""
        return " ".join(inspect.getdoc(type(self.task).constant).split())


def newest(workdir: Path) -> dict[str, Any]:
    """The record of the newest checkpoint.

    Raises:
        DataError: there is none.
    """
    checkpointer = Checkpointer.open(str(workdir))
    record = checkpointer.record()
    checkpointer.close()
    return record


def of_run(workdir: Path, record: Mapping) -> str:
    """The page of a run as text.

    Args:
        workdir: its folder.
        record: of its newest checkpoint.

    Raises:
        UserError: it cannot be scored.
    """
    run = Run.load(workdir, record)
    return page.render("task.html.j2", **_shared(run), findings=[*_compared(run), *_cautions(run)])


def of_seeds(workdir: Path) -> str:
    """The page of several seeds as text.

    Args:
        workdir: folder with `scoring.SEEDS` and a run for each.

    Raises:
        DataError: a run is missing, or went on after the scores were joined.
    """
    joined = json.loads((workdir / scoring.SEEDS).read_text())
    runs = {seed: Run.load(workdir / f"seed{seed}") for seed in joined["seeds"]}
    for (seed, run), before in zip(runs.items(), joined["runs"], strict=True):
        if run.record["step"] != before["step"]:
            raise DataError(
                f"{workdir / scoring.SEEDS} is of step {before['step']}, but seed {seed} is at {run.record['step']}: "
                f"run experiments.finetune --seeds {' '.join(map(str, runs))} again"
            )
    first = next(iter(runs.values()))
    findings = [_over_seeds(joined["scores"], list(runs.values())), *_cautions(first)]
    return page.render(
        "seeds.html.j2", **_shared(first), findings=findings, name=str(workdir), runs=runs, means=joined["scores"]
    )


def _shared(run: Run) -> dict[str, Any]:
    """What both templates name."""
    versions = {"trained with": run.record["versions"], "scored with": run.result["versions"]}
    return {
        "run": run,
        "result": run.result,
        "setup": dict(_setup(run)),
        "captions": CAPTIONS,
        "verdicts": VERDICTS,
        "versions": {k: ", ".join(f"{name} {v}" for name, v in of.items()) for k, of in versions.items()},
        "parts": {"model": run.record["encoder"]["model"]} | {k: run.record["config"].get(k) or {} for k in PARTS},
        "settings": json.dumps(run.record["config"], indent=2),
    }


def _compared(run: Run) -> Iterator[str]:
    """What the scores say of the model."""
    (main, *others), table = run.rows, run.result["classes"]
    said = f"The model's {main.metric} is {page.score(main.model)}, the best constant answer's "
    said += page.score(main.constant) + (" (less is better)" if main.less else "")
    count = f"{run.result['samples']:,} samples"
    yield {
        BETTER: f"{said}: the intervals lie apart, so the model beats an answer that looks at no image.",
        WORSE: f"{said}: the intervals lie apart, and the model is worse than an answer that looks at no image.",
        OPEN: f"{said}: the intervals overlap, so these {count} do not show that the model beats an answer that looks "
        "at no image.",
        "": f"{said}: without both intervals this cannot be judged.",
    }[main.verdict]
    for verdict in (BETTER, OPEN, WORSE):
        odd = [row.metric for row in others if row.verdict == verdict != main.verdict]
        if odd:
            yield f"By {page.listed(odd)} it is {VERDICTS[verdict]}."
    if run.column:
        _, counts, *_ = table.values()
        rows = zip(table["class"], counts, table[run.column], strict=True)
        if missed := [name for name, count, score in rows if count and score == 0]:
            yield f"Nothing is right of {page.listed(missed)} ({run.column} 0)."


def _over_seeds(means: Mapping[str, Mapping], runs: Sequence[Run]) -> str:
    """What the scores of several runs say of the training."""
    name = next(iter(means))
    rows = [run.rows[0] for run in runs]
    better = sum(row.verdict == BETTER for row in rows)
    beat = f"{better} of {len(rows)} runs beat the best answer that looks at no image (intervals over samples apart)"
    return f"The mean {name} over {len(rows)} seeds is {page.score(means[name])}; {beat}."


def _cautions(run: Run) -> Iterator[str]:
    """What a reader must know before believing the numbers."""
    result, steps = run.result, run.config.train.steps
    if result["dataset"]["simulated"]:
        yield (
            "SIMULATED data: pixels of at least one sensor were computed, not measured. The scores show that the parts "
            "work together, and nothing about real scenes."
        )
    if result["step"] < steps:
        yield f"The training was stopped at step {result['step']:,} of {steps:,}."
    if result["encoder"]["weights"] != CHECKPOINT:
        yield "The encoder was not pre-trained, so this says nothing about a pre-training."
    if result["blocks"] < FEW:
        yield f"{result['blocks']} blocks of samples are too few for the intervals to be trusted."
    if result["split"] == "validation":
        yield "Scores are of the validation split: settings that were chosen by them make them look too good."


def _setup(run: Run) -> Iterator[tuple[str, str]]:
    """What was trained on what, {term: sentence}."""
    result, config = run.result, run.config
    target, dataset, encoder = result["target"], result["dataset"], result["encoder"]
    (stream,) = config.data.streams.values()
    of = f", {len(target['names'])} classes" if target["names"] else ""
    yield "task", f"{result['task']} of {target['name']}{of}"
    origin = {
        (True, True): f"pre-trained: step {encoder['step']:,} of {encoder['from']}",
        (True, False): f"the one of {encoder['from']} with fresh weights, as if it had not been pre-trained",
        (False, False): "new, not pre-trained",
    }[bool(encoder["from"]), encoder["weights"] == CHECKPOINT]
    yield "encoder", f"{encoder['model']}, {origin}"
    yield "adaptation", _adaptation(config.adaptation)
    spec = run.task.head_spec(Target.from_json(target))
    head = {"name": spec.head} | config.head
    chosen = ", ".join(f"{k} {page.setting(v)}" for k, v in head.items() if k != "name")
    yield "head", head["name"] + (f" ({chosen})" if chosen else "")
    trained, total = result["parameters"]["trained"], result["parameters"]["total"]
    yield "trained", f"{trained:,} of {total:,} parameters ({100 * trained / total:.3g} %)"
    shown = [name for name in stream.sensors if name != target["sensor"] or target["kind"] != tasks.SENSOR]
    sizes = {config.data.size(name) for name in shown}
    fused = f", fused by {config.neck.fusion}" if len(shown) > 1 else ""
    yield "sensors", f"{', '.join(shown)}{fused}; images of {' and '.join(map(str, sorted(sizes)))} px"
    counts = ", ".join(f"{count:,} {split}" for split, count in dataset["samples"].items())
    yield "data set", f"{dataset['name']} ({dataset['directory']}): {counts} samples"
    yield "licence", f"{dataset['licence']}; source: {dataset['source']}"
    part = f"{100 * stream.fraction:g} % of " if stream.fraction < 1 else ""
    yield (
        "training",
        f"{result['step']:,} steps of {config.data.batch_size} samples from {part}the split {stream.split}",
    )
    hidden = f", without {page.listed(result['without'])}" if result["without"] else ""
    apart = result["blocks"] == result["samples"]
    drawn = "each drawn by itself" if apart else f"drawn in {result['blocks']:,} blocks of neighbours"
    yield "scored on", f"{result['samples']:,} samples of the split {result['split']}{hidden}; for intervals, {drawn}"


def _adaptation(config: AdaptationConfig) -> str:
    """What of the encoder was trained."""
    kept = "the encoder stays as it is"
    said = {
        "full": "full: all of the encoder is trained",
        "frozen": f"frozen: {kept}, only neck and head are trained",
        "lora": f"LoRA: {kept} but for changes of rank {config.rank} to the kernels that match {config.targets}",
        "convpass": f"Convpass: {kept} but for convolutional bypasses of width {config.hidden} in every block",
    }[config.method]
    return said + (f"; and parameters that match {config.also} are trained" if config.also else "")
