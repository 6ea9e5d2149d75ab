"""What pre-training is worth on a task: four ways of training it, with few labels and with all, on one budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reports import arms
from experiments.run import data as run_data
from experiments.run.encoder import encoder_of
from experiments.run.finetune import finetune
from experiments.run.fit import once
from input_pipeline.subset import SAMPLES
from ringmoe_jax import files
from ringmoe_jax.contracts import CLASSES
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.evaluate import seeds as over_seeds
from ringmoe_jax.evaluate import style
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.evaluate.seeds import ArmScores, FewLabels
from ringmoe_jax.parallel import processes
from ringmoe_jax.run import CHECKPOINT, RANDOM, FinetuneConfig, results
from ringmoe_jax.run.evaluation import TaskScore

# arm -> what differs from the configuration
ARMS: dict[str, dict[str, Any]] = {
    "pre-trained, fine-tuned": dict(adaptation=dict(method="full")),
    "pre-trained, frozen": dict(adaptation=dict(method="frozen")),
    "from scratch": dict(weights=RANDOM, adaptation=dict(method="full")),
    "random, frozen": dict(weights=RANDOM, adaptation=dict(method="frozen")),
}
CONSTANT = "constant answer"
RESULT = "few_labels_run.json"  # the score of a finished run
SHOWN = 2  # metrics in the picture


def study(
    values: Mapping[str, Any],
    out: str,
    fractions: Sequence[float],
    seeds: Sequence[int],
    beside: Sequence[str] = (),
    of: str = SAMPLES,
) -> FewLabels:
    """Trains every arm on every share of the labels with every seed.

    All have the same encoder, head, steps and batches. A seed chooses the labels, their order and new parameters;
    all arms see the same labels. Random and scratch arms normalise as the checkpoint does.

    Args:
        values: nested dict of a fine-tuning configuration with `init_from`.
        out: folder.
        fractions: shares of the training samples, above 0, at most 1; of every class where the target is a class.
        seeds: of the runs.
        beside: folders of further encoders, each with arms of its own, frozen and fine-tuned.
        of: what the shares are of: "samples", or "scenes" that tiles were cut from, of all classes.

    Returns:
        What `few_labels.json` holds: each metric a mean over seeds with its interval.

    Raises:
        UserError: a bad configuration, or a run failed; finished ones are kept.
    """
    config = FinetuneConfig.of(values)
    if not config.init_from:
        raise ConfigError("few_labels compares a pre-trained encoder with a new one: give --config.init_from=runs/...")
    subset = dict(fraction_label=_stratified(config) if of == SAMPLES else "", fraction_of=of)
    compared = ARMS | anchors(beside)
    rows: list[ArmScores] = []
    for fraction in fractions:
        scored: dict[str, list[TaskScore]] = {arm: [] for arm in compared}
        for seed in seeds:
            for arm, changes in compared.items():
                own = _values(values, changes, seed, subset | dict(fraction=fraction))
                workdir = Path(out) / arm.replace(", ", "_").replace(" ", "_") / f"{fraction:g}" / f"seed{seed}"
                scored[arm].append(_run(own, workdir))
        rows += [_mean(arm, fraction, [run.scores for run in runs]) for arm, runs in scored.items()]
        rows.append(_mean(CONSTANT, fraction, [run.constant for run in scored[next(iter(ARMS))]]))
    title = f"{config.task['name']} of {config.task['target']}, {len(seeds)} seeds"
    summary = FewLabels(title=title, seeds=tuple(seeds), config=dict(values), results=tuple(rows))
    processes.from_first(lambda: _write(Path(out), summary))
    return summary


def anchors(folders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Arms of other encoders, as `ARMS`, by the names of their folders.

    Raises:
        ConfigError: two folders have one name.
    """
    ways = {"fine-tuned": "full", "frozen": "frozen"}
    return {
        f"{name}, {way}": dict(adaptation=dict(method=method), init_from=folder)
        for name, folder in run_data.by_name(folders).items()
        for way, method in ways.items()
    }


def _stratified(config: FinetuneConfig) -> str:
    """The target where a share is taken of each of its classes, "" else."""
    target = run_data.task_spec(config, run_data.open_labelled(config, encoder_of(config))).target
    return target.name if target.kind == CLASSES else ""


def _run(values: dict[str, Any], workdir: Path) -> TaskScore:
    """Trains and scores one run, unless that was done."""
    once(values, workdir, RESULT, lambda: results.write(workdir / RESULT, finetune(values, str(workdir))))
    return results.from_first(TaskScore, lambda: results.load(TaskScore, workdir / RESULT))


def _values(values: Mapping, changes: Mapping, seed: int, subset: Mapping[str, Any]) -> dict[str, Any]:
    own = copy.deepcopy(dict(values))
    own["adaptation"] = dict(own.get("adaptation", {})) | changes["adaptation"]
    own["weights"] = changes.get("weights", CHECKPOINT)
    own["init_from"] = changes.get("init_from", own["init_from"])
    own.setdefault("train", {})["seed"] = seed
    own["data"]["shuffle_seed"] = seed
    for stream in own["data"]["streams"].values():
        stream.update(**subset, subset_seed=seed)
    return own


def _mean(arm: str, fraction: float, runs: Sequence[Mapping[str, Score]]) -> ArmScores:
    means = {name: over_seeds.mean([scores[name].value for scores in runs]) for name in runs[0]}
    return ArmScores(arm=arm, fraction=fraction, scores=means)


def _write(out: Path, summary: FewLabels) -> None:
    results.write(out / "few_labels.json", summary)
    files.write_text(out / "few_labels.md", markdown(summary))
    shown = list(summary.results[0].scores)[:SHOWN]
    style.save(arms.labels(summary.title, summary.results, shown), out / "few_labels.png")


def markdown(summary: FewLabels) -> str:
    """The table of the main metric: arms by fractions, mean and 95 % t interval over seeds."""
    fractions = list(dict.fromkeys(row.fraction for row in summary.results))
    shares = " | ".join(f"{100 * fraction:g} % of labels" for fraction in fractions)
    lines = [f"| {summary.metric}, {summary.title} | {shares} |", "|" + "---|" * (1 + len(fractions))]
    for arm in dict.fromkeys(row.arm for row in summary.results):
        cells = [_cell(row.scores[summary.metric]) for row in summary.results if row.arm == arm]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(score: Score) -> str:
    value = f"{score.value:.3f}"
    return value if math.isnan(score.low) else f"{value} [{score.low:.3f}, {score.high:.3f}]"  # NaN of one seed
