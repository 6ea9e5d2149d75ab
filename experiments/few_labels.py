"""What pre-training is worth on a task: four ways of training it, with few labels and with all, on one budget.

    python -m experiments.few_labels --config configs/finetune/classification.py --out runs/few \\
        --config.init_from=runs/dense_simulated --fractions 0.01 0.1 1 --seeds 0 1 2

Writes `few_labels.json`, `few_labels.md` and `few_labels.png` to the folder; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import common, downstream, scoring
from experiments.downstream import RANDOM, DownstreamConfig
from experiments.finetune import complete, finetune
from experiments.fitting import once
from experiments.tables import plain
from ringmoe_jax.contracts import CLASSES
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.evaluate import comparison_figures, figures, seeds

# arm -> what differs from the configuration
ARMS: dict[str, dict[str, Any]] = {
    "pre-trained, fine-tuned": dict(adaptation=dict(method="full")),
    "pre-trained, frozen": dict(adaptation=dict(method="frozen")),
    "from scratch": dict(weights=RANDOM, adaptation=dict(method="full")),
    "random, frozen": dict(weights=RANDOM, adaptation=dict(method="frozen")),
}
CONSTANT = "constant answer"


def study(values: Mapping[str, Any], out: str, fractions: Sequence[float], runs: Sequence[int]) -> dict[str, Any]:
    """Trains every arm on every share of the labels with every seed.

    All have the same encoder, head, steps and batches. A seed chooses the labels, their order and new parameters;
    all arms see the same labels. Random and scratch arms normalise as the checkpoint does.

    Args:
        values: nested dict of a fine-tuning configuration with `init_from`.
        out: folder.
        fractions: shares of the training samples, above 0, at most 1; of every class where the target is a class.
        runs: seeds.

    Returns:
        What `few_labels.json` holds: results by arm and fraction, each metric a mean over seeds with its interval.

    Raises:
        UserError: a bad configuration, or a run failed; finished ones are kept.
    """
    config = DownstreamConfig.of(values)
    if not config.init_from:
        raise ConfigError("few_labels compares a pre-trained encoder with a new one: give --config.init_from=runs/...")
    stratified = _stratified(config)
    results = []
    for fraction in fractions:
        found: dict[str, list[dict]] = {}
        for seed in runs:
            for arm, changes in ARMS.items():
                own = _values(values, changes, fraction, seed, stratified)
                workdir = Path(out) / arm.replace(", ", "_").replace(" ", "_") / f"{fraction:g}" / f"seed{seed}"
                run = lambda own=own, workdir=workdir: finetune(own, str(workdir))  # noqa: E731
                once(own, workdir, "few_labels_run.json", run, complete)
                found.setdefault(arm, []).append(json.loads((workdir / "report" / scoring.RESULT).read_text()))
        results += [_summary(arm, fraction, [r["scores"] for r in of]) for arm, of in found.items()]
        constant = [r["constant"] for r in next(iter(found.values()))]
        results.append(_summary(CONSTANT, fraction, constant))
    title = f"{config.task['name']} of {config.task['target']}, {len(runs)} seeds"
    summary = plain({"title": title, "seeds": list(runs), "config": values, "results": results})
    _write(Path(out), summary)
    return summary


def _stratified(config: DownstreamConfig) -> str:
    """The target where a share is taken of each of its classes, "" else."""
    dataset = downstream.open_data(config, downstream.Encoder.of(config))
    target = config.task["target"]
    return target if target in dataset.labels and dataset.labels[target].kind == CLASSES else ""


def _values(values: Mapping, changes: Mapping, fraction: float, seed: int, stratified: str) -> dict[str, Any]:
    own = copy.deepcopy(dict(values))
    own["adaptation"] = dict(own.get("adaptation", {})) | changes["adaptation"]
    own["weights"] = changes.get("weights", downstream.CHECKPOINT)
    own.setdefault("train", {})["seed"] = seed
    own["data"]["shuffle_seed"] = seed
    for stream in own["data"]["streams"].values():
        stream.update(fraction=fraction, fraction_label=stratified, subset_seed=seed)
    return own


def _summary(arm: str, fraction: float, scores: Sequence[Mapping]) -> dict[str, Any]:
    means = {name: seeds.mean([s[name]["value"] for s in scores]) for name in scores[0]}
    return {"arm": arm, "fraction": fraction, "scores": {name: dataclasses.asdict(m) for name, m in means.items()}}


def _write(out: Path, summary: Mapping) -> None:
    (out / "few_labels.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / "few_labels.md").write_text(markdown(summary))
    figures.save(comparison_figures.labels(summary["title"], _main_metrics(summary["results"])), out / "few_labels.png")


def _main_metrics(results: Sequence[Mapping], count: int = 2) -> list[dict]:
    return [dict(r) | {"scores": dict(list(r["scores"].items())[:count])} for r in results]


def markdown(summary: Mapping) -> str:
    """The table of the main metric: arms by fractions, mean and 95 % t interval over seeds."""
    results = summary["results"]
    fractions = list(dict.fromkeys(r["fraction"] for r in results))
    metric = next(iter(results[0]["scores"]))
    lines = [f"| {metric}, {summary['title']} | " + " | ".join(f"{100 * f:g} % of labels" for f in fractions) + " |"]
    lines.append("|" + "---|" * (1 + len(fractions)))
    for arm in dict.fromkeys(r["arm"] for r in results):
        cells = [_cell(r["scores"][metric]) for r in results if r["arm"] == arm]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(score: Mapping[str, float | None]) -> str:
    if score["low"] is None:  # one seed
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


@common.entry_point
def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of all runs, the table and the figure")
    parser.add_argument("--fractions", nargs="+", type=float, default=(0.01, 0.1, 1.0), help="shares of the labels")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2), help="2 or more give intervals")
    arguments, values = common.read_run(parser)
    print(markdown(study(values, arguments.out, arguments.fractions, arguments.seeds)))
    print(f"runs, table and figure are in {arguments.out}")
    return 0


if __name__ == "__main__":
    main()
