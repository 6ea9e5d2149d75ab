"""The page of a fine-tuned run, and of several seeds of one: scores beside the best answer that looks at no image."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reports import arms, curves, page
from ringmoe_jax import tasks
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import style
from ringmoe_jax.evaluate.metrics import COUNT, Quantity, Score
from ringmoe_jax.evaluate.seeds import ArmScores
from ringmoe_jax.models.adaptation import AdaptationConfig
from ringmoe_jax.run import CHECKPOINT, TASK, FinetuneConfig, read_record, results
from ringmoe_jax.run.evaluation import SEED_SCORES, TASK_SCORE, SeedScores, TaskScore
from ringmoe_jax.tasks import Task
from ringmoe_jax.training import metrics

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
    "everywhere": "All splits that were scored, 95 % bootstrap intervals.",
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
    model: Score
    constant: Score
    quantity: Quantity

    @property
    def less(self) -> bool:
        """Whether less is better."""
        return not self.quantity.higher_is_better

    @property
    def title(self) -> str:
        """The metric, with its unit where it has one."""
        unit = self.quantity.unit
        return self.metric if unit in ("", COUNT) else f"{self.metric}, {unit}"

    @property
    def digits(self) -> int:
        """After the decimal point."""
        return 0 if self.quantity.unit == COUNT else 3

    @property
    def verdict(self) -> str:
        """Whether the model is `BETTER` or `WORSE` than the constant answer by intervals apart, or it is `OPEN`.

        "" where one has no interval, and for counts, which answer different questions.
        """
        ends = (self.model.low, self.model.high, self.constant.low, self.constant.high)
        if not self.quantity.comparable or any(map(math.isnan, ends)):
            return ""
        above, below = self.model.low > self.constant.high, self.model.high < self.constant.low
        if not (above or below):
            return OPEN
        return BETTER if below == self.less else WORSE


@dataclasses.dataclass(frozen=True)
class Scored:
    """A score with its pictures.

    Attributes:
        result: the score.
        quantities: what its metrics are.
        images: PNG files as text, by what they show.
    """

    result: TaskScore
    quantities: Mapping[str, Quantity]
    images: Mapping[str, Sequence[str]]

    @staticmethod
    def load(path: Path, step: int, task: Task) -> Scored | None:
        """Reads a score of a step and its pictures; None where it is about another step."""
        if (result := results.load(TaskScore, path, step)) is None:
            return None
        images: dict[str, list[str]] = {}
        for name, file in result.figures.items():
            images.setdefault(re.sub(r"_\d+$", "", name), []).append(page.embedded(path.parent / file))
        return Scored(result, task.metric(result.target).quantities, images)

    @property
    def title(self) -> str:
        """Data set and split, and what was hidden."""
        hidden = f" without {page.listed(self.result.without)}" if self.result.without else ""
        return f"{self.result.dataset.name}, {self.result.split} split{hidden}"

    @property
    def rows(self) -> list[Row]:
        """All metrics, the main one first."""
        scores, constant = self.result.scores.items(), self.result.constant
        return [Row(name, score, constant[name], self.quantities[name]) for name, score in scores]

    @property
    def column(self) -> str:
        """The main score in the table of classes, where there is one: its first column that holds no counts."""
        columns = self.result.classes.items()
        return next((name for name, cells in columns if any(isinstance(cell, float) for cell in cells)), "")


@dataclasses.dataclass(frozen=True)
class TaskRun:
    """A fine-tuned run with everything that was scored.

    Attributes:
        workdir: its folder.
        record: of its newest checkpoint.
        config: checked.
        own: its score on its own data.
        others: scores on other data and splits, or without a sensor.
        training: PNG files of the training as text, by what they show.
        speed: see `page.speed`.
    """

    workdir: Path
    record: Mapping[str, Any]
    config: FinetuneConfig
    own: Scored
    others: Sequence[Scored]
    training: Mapping[str, Sequence[str]]
    speed: Mapping[str, float] | None

    @staticmethod
    def load(workdir: Path) -> TaskRun:
        """Reads a run that was scored, and draws its losses and its scores everywhere."""
        record, folder = read_record(workdir, (TASK,)), workdir / "report"
        config = FinetuneConfig.of(record["config"])
        task = tasks.build(config.task)
        read = [Scored.load(path, record["step"], task) for path in results.every(folder, TASK_SCORE)]
        own, *others = [scored for scored in read if scored]
        records = metrics.read(workdir)
        figures = {"losses": curves.losses(records)} if any("loss" in line for line in records) else {}
        if others:
            everywhere = [ArmScores(arm=scored.title, scores=scored.result.scores) for scored in (own, *others)]
            figures["everywhere"] = arms.scores(f"{own.result.task} of {own.result.target.name}", everywhere)
        training = {name: [page.embedded(style.save(f, folder / f"{name}.png"))] for name, f in figures.items()}
        return TaskRun(workdir, record, config, own, others, training, page.speed(records))


def of_run(workdir: Path) -> str:
    """The page of a run that was scored, as text."""
    run = TaskRun.load(workdir)
    return page.render("task.html.j2", **_shared(run), findings=[*_compared(run.own), *_cautions(run)])


def of_seeds(workdir: Path, joined: SeedScores) -> str:
    """The page of several seeds as text.

    Args:
        workdir: folder with a run for each seed, all of them scored.
        joined: their scores.

    Raises:
        DataError: a run is missing, or went on after the scores were joined.
    """
    runs = {seed: TaskRun.load(seed_folder(workdir, seed)) for seed in joined.seeds}
    for (seed, run), before in zip(runs.items(), joined.runs, strict=True):
        if run.own.result.step != before.step:
            raise DataError(
                f"{workdir / SEED_SCORES} is of step {before.step}, but seed {seed} is at {run.own.result.step}: "
                f"run experiments.finetune --seeds {' '.join(map(str, runs))} again"
            )
    first = next(iter(runs.values()))
    findings = [_over_seeds(joined.scores, list(runs.values())), *_cautions(first)]
    return page.render(
        "seeds.html.j2", **_shared(first), findings=findings, name=str(workdir), runs=runs, means=joined.scores
    )


def seed_folder(workdir: Path, seed: int) -> Path:
    """Where the run of one of several seeds lies."""
    return workdir / f"seed{seed}"


def _shared(run: TaskRun) -> dict[str, Any]:
    """What both templates name."""
    used = {"model": run.record["encoder"]["model"]}  # not the file's where `init_from` brings another
    versions = {"trained with": run.record["versions"], "scored with": run.own.result.versions}
    return {
        "run": run,
        "result": run.own.result,
        "setup": dict(_setup(run)),
        "captions": CAPTIONS,
        "verdicts": VERDICTS,
        "constant": " ".join(inspect.getdoc(type(tasks.build(run.config.task)).constant).split()),
        "versions": {k: ", ".join(f"{name} {v}" for name, v in of.items()) for k, of in versions.items()},
        "parts": used | {k: run.record["config"].get(k) or {} for k in PARTS},
        "settings": json.dumps(run.record["config"] | used, indent=2),
    }


# ---- Sentences ----------------------------------------------------------------------------------------


def _compared(scored: Scored) -> Iterator[str]:
    """What the scores say of the model."""
    (main, *others), result = scored.rows, scored.result
    said = f"The model's {main.metric} is {page.score(main.model)}, the best constant answer's "
    said += page.score(main.constant) + (" (less is better)" if main.less else "")
    yield {
        BETTER: f"{said}: the intervals lie apart, so the model beats an answer that looks at no image.",
        WORSE: f"{said}: the intervals lie apart, and the model loses to an answer that looks at no image.",
        OPEN: f"{said}: the intervals overlap, so these {result.samples:,} samples do not show that the model beats an "
        "answer that looks at no image.",
        "": f"{said}: without both intervals this cannot be judged.",
    }[main.verdict]
    for verdict in (BETTER, OPEN, WORSE):
        odd = [row.metric for row in others if row.verdict == verdict != main.verdict]
        if odd:
            yield f"By {page.listed(odd)} it is {VERDICTS[verdict]}."
    if scored.column:
        _, counts, *_ = result.classes.values()
        cells = zip(result.classes["class"], counts, result.classes[scored.column], strict=True)
        if missed := [name for name, count, score in cells if count and score == 0]:
            yield f"Nothing is right of {page.listed(missed)} ({scored.column} 0)."


def _over_seeds(means: Mapping[str, Score], runs: Sequence[TaskRun]) -> str:
    """What the scores of several runs say of the training."""
    name = next(iter(means))
    rows = [run.own.rows[0] for run in runs]
    better = sum(row.verdict == BETTER for row in rows)
    beat = f"{better} of {len(rows)} runs beat the best answer that looks at no image (intervals over samples apart)"
    return f"The mean {name} over {len(rows)} seeds is {page.score(means[name])}; {beat}."


def _cautions(run: TaskRun) -> Iterator[str]:
    """What a reader must know before believing the numbers."""
    result, steps = run.own.result, run.config.train.steps
    if result.dataset.simulated:
        yield (
            "SIMULATED data: pixels of at least one sensor were computed, not measured. The scores show that the parts "
            "work together, and nothing about real scenes."
        )
    if result.step < steps:
        yield f"The training was stopped at step {result.step:,} of {steps:,}."
    if result.encoder.weights != CHECKPOINT:
        yield "The encoder was not pre-trained, so this says nothing about a pre-training."
    if result.blocks < FEW:
        yield f"{result.blocks} blocks of samples are too few for the intervals to be trusted."
    if result.split == "validation":
        yield "Scores are of the validation split: settings that were chosen by them make them look too good."


def _setup(run: TaskRun) -> Iterator[tuple[str, str]]:
    """What was trained on what, {term: sentence}."""
    result, config = run.own.result, run.config
    target, dataset, encoder, count = result.target, result.dataset, result.encoder, result.parameters
    (stream,) = config.data.streams.values()
    classes = f", {len(target.names)} classes" if target.names else ""
    yield "task", f"{result.task} of {target.name}{classes}"
    origin = {
        (True, True): f"pre-trained: step {encoder.step:,} of {encoder.init_from}",
        (True, False): f"the one of {encoder.init_from} with fresh weights, as if it had not been pre-trained",
        (False, False): "new, not pre-trained",
    }[bool(encoder.init_from), encoder.weights == CHECKPOINT]
    yield "encoder", f"{encoder.model}, {origin}"
    yield "adaptation", _adaptation(config.adaptation)
    head = {"name": tasks.build(config.task).head_spec(target).head} | config.head
    chosen = ", ".join(f"{k} {page.setting(v)}" for k, v in head.items() if k != "name")
    yield "head", head["name"] + (f" ({chosen})" if chosen else "")
    share = 100 * count.trained / count.total
    yield "trained", f"{count.trained:,} of {count.total:,} parameters ({share:.3g} %)"
    shown = [name for name in stream.sensors if name != target.sensor or target.kind != tasks.SENSOR]
    sizes = {config.data.size(name) for name in shown}
    fused = f", fused by {config.neck.fusion}" if len(shown) > 1 else ""
    yield "sensors", f"{', '.join(shown)}{fused}; images of {' and '.join(map(str, sorted(sizes)))} px"
    samples = ", ".join(f"{number:,} {split}" for split, number in dataset.samples.items())
    yield "data set", f"{dataset.name} ({dataset.directory}): {samples} samples"
    yield "licence", f"{dataset.licence}; source: {dataset.source}"
    part = f"{100 * stream.fraction:g} % of " if stream.fraction < 1 else ""
    steps = f"{result.step:,} steps of {config.data.batch_size} samples"
    yield "training", f"{steps} from {part}the split {stream.split}"
    hidden = f", without {page.listed(result.without)}" if result.without else ""
    apart = result.blocks == (result.scenes or result.samples)
    drawn = "each drawn by itself" if apart else f"drawn in {result.blocks:,} blocks of neighbours"
    whole = f", tiles of {result.scenes:,} scenes" if result.scenes else ""
    yield "scored on", f"{result.samples:,} samples of the split {result.split}{hidden}{whole}; for intervals, {drawn}"


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
