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
from ringmoe_jax.models.adaptation import AdaptationConfig
from ringmoe_jax.tasks import Target, Task
from ringmoe_jax.training import metrics
from ringmoe_jax.training.checkpoint import Checkpointer

FEW = 10  # blocks below which a bootstrap interval says little (our choice)
BETTER, WORSE, OPEN = "better", "worse", "open"
VERDICTS = {BETTER: "better", WORSE: "worse", OPEN: "not to be told apart", "": "\N{EN DASH}"}
MEANINGS = {
    "accuracy": "share of images whose class is right",
    "macro": "recall, mean over classes",
    "top-5": "share of images whose class is among the five likeliest",
    "mAP micro": "average precision over all pairs of image and class",
    "mAP macro": "average precision, mean over classes",
    "F1 macro": "F1, mean over classes",
    "mIoU": "intersection over union, mean over classes",
    "mF1": "F1, mean over classes",
    "OA": "share of pixels whose class is right",
    "F1": "of changed pixels: harmonic mean of precision and recall",
    "IoU": "of changed pixels: intersection over union",
    "precision": "share of what was called changed that is",
    "recall": "share of what changed that was found",
    "AP": "average precision, mean over overlaps 0.50, 0.55, ... 0.95 and over classes",
    "AP50": "average precision at an overlap of 0.5",
    "AP75": "average precision at an overlap of 0.75",
    "AP50 (07)": "the same at 0.5 by the rules of PASCAL VOC 2007",
    "AP50 (12)": "the same at 0.5 by the rules of PASCAL VOC 2012",
    "HOTA": "geometric mean of detection and association, over overlaps",
    "DetA": "how well objects are found",
    "AssA": "how well they keep their identity",
    "MOTA": f"1 {page.MINUS} (missed + false + switches) / true positions; may be negative",
    "MOTP": "how closely matches meet the truth",
    "IDF1": "F1 of positions with the right identity",
    "ID switches": "true tracks that pass to another predicted one",
    "FP": "false positions",
    "FN": "missed positions",
    "RMSE": "root of the mean squared error, m",
    "MAE": "mean absolute error, m",
    "NRMSE": "RMSE as a share of the range of true heights",
    "REL": "mean error as a share of the true height",
    "delta 1": "share of pixels within a factor of 1.25 of the truth",
    "delta 2": "within 1.25²",
    "delta 3": "within 1.25³",
}
PARTS = ("neck", "adaptation", "objectives", "optimizer", "train")  # of the configuration, that settings list
COUNTS = ("ID switches", "FP", "FN")  # parts of MOTA; who says nothing has no false position
LESS = ("RMSE", "MAE", "NRMSE", "REL", *COUNTS)  # is better
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
        less: whether less is better.
    """

    metric: str
    model: Mapping[str, float | None]
    constant: Mapping[str, float | None]
    less: bool = False

    @property
    def meaning(self) -> str:
        """What is measured; "" of a metric that this page does not know."""
        return MEANINGS.get(self.metric, "")

    @property
    def digits(self) -> int:
        """After the decimal point."""
        return 0 if self.metric in COUNTS else 3

    @property
    def verdict(self) -> str:
        """Whether the model is `BETTER` or `WORSE` than the constant answer by intervals apart, or it is `OPEN`.

        "" where one has no interval, and for counts, which answer different questions.
        """
        ends = (self.model["low"], self.model["high"], self.constant["low"], self.constant["high"])
        if self.metric in COUNTS or None in ends:
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
        closer = ("MOTP",) if self.config.task.get("distance") else ()  # a distance then, not an overlap
        return [
            Row(name, value, self.result["constant"][name], name in (*LESS, *closer))
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
    purpose = run.task.purpose(Target.from_json(target))
    head = {"name": purpose.heads[0]} | config.head
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
