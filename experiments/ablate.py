"""Pre-trains a grid of objectives and seeds, probes each run, and writes one table and one figure a study.

    python -m experiments.ablate --config configs/ablate_physics.py --out runs/ablation
    python -m experiments.ablate --config configs/ablate_physics.py --out runs/ablation --studies grd --seeds 0 1 2 3 4

A study is one experiment configuration, a baseline and other arms, which replace objectives and may replace the
pretext task. Runs that are finished are not run again and a run that was stopped goes on, so the same command
resumes after an interruption and takes in new arms and seeds.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import common, tables
from experiments.evaluate import evaluate
from experiments.fitting import once
from experiments.pretrain import complete, pretrain
from experiments.probing import TRAINED
from ringmoe_jax import config as configuration
from ringmoe_jax.errors import ConfigError, TrainingError, nearest
from ringmoe_jax.evaluate import figures, seeds


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        objectives: replaces those of the study's configuration.
        pretext: replaces that of the study's configuration; {} keeps it.
    """

    objectives: dict[str, Any]
    pretext: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms that differ in nothing but their objectives.

    Attributes:
        config: of the experiment, without objectives.
        baseline: the arm that the others are compared with.
        arms: by name.
    """

    config: dict[str, Any]
    baseline: str
    arms: dict[str, Arm]

    def __post_init__(self):
        if self.baseline not in self.arms:
            raise ConfigError(f'baseline "{self.baseline}" is no arm: {nearest(self.baseline, self.arms)}')
        object.__setattr__(self, "arms", {self.baseline: self.arms[self.baseline]} | self.arms)  # the baseline first

    def values(self, arm: str, seed: int) -> dict[str, Any]:
        """The experiment configuration of a run; the seed is that of parameters, masks and the order of data."""
        values = copy.deepcopy(self.config)
        values["objectives"] = copy.deepcopy(self.arms[arm].objectives)
        values["pretext"] = copy.deepcopy(self.arms[arm].pretext) or values.get("pretext", {"name": "masked"})
        values.setdefault("train", {})["seed"] = seed
        values["data"]["shuffle_seed"] = seed
        return values


@dataclasses.dataclass(frozen=True)
class AblationConfig:
    """All keys of a configuration file.

    Attributes:
        studies: by name.
        seeds: of the runs of every arm, at least 2 for intervals.
    """

    studies: dict[str, Study]
    seeds: tuple[int, ...] = (0, 1, 2)


def ablate(values: Mapping[str, Any], out: str, *, studies: Sequence[str] = (), seeds_: Sequence[int] = ()) -> dict:
    """Runs what is missing of a grid and summarises it.

    Args:
        values: nested dict of a configuration file, see `AblationConfig`.
        out: folder; runs lie in `<out>/<study>/<arm>/seed<n>`, tables and figures in `<out>`.
        studies: names; all by default.
        seeds_: instead of the configuration's.

    Returns:
        What `ablation.json` holds: {study: {"baseline", "seeds", "metrics": {metric: {arm: Summary}}}}.

    Raises:
        UserError: a bad configuration (found before anything runs), or a run failed; finished ones are kept.
    """
    config = configuration.build(AblationConfig, values)
    chosen = _choose(config.studies, studies)
    runs = seeds_ or config.seeds
    for study in chosen.values():  # a mistake in the last arm should not cost the first ones
        for arm in study.arms:
            common.build_objectives(common.ExperimentConfig.of(study.values(arm, 0)))
    results = {}
    for name, study in chosen.items():
        scores = {}
        for seed in runs:
            for arm in study.arms:
                scores[arm, seed] = _run(study.values(arm, seed), Path(out) / name / arm / f"seed{seed}")
        results[name] = summarise(scores, study, runs)
        _write(Path(out), results)
    return results


def _choose(studies: Mapping[str, Study], names: Sequence[str]) -> dict[str, Study]:
    for name in names:
        if name not in studies:
            raise ConfigError(f'study "{name}" does not exist: {nearest(name, studies)}')
    return {name: studies[name] for name in names or studies}


def _run(values: dict[str, Any], workdir: Path) -> dict[str, float]:
    """Trains and evaluates one run, unless that was done, and reads its scores."""

    def run() -> None:
        state = pretrain(values, str(workdir))
        if int(state.step) < common.ExperimentConfig.of(values).train.steps:
            raise TrainingError(f"{workdir} was stopped as asked: the same command goes on from there")
        evaluate(str(workdir), brief=True)

    once(values, workdir, "ablation_run.json", run, complete)
    return scores_of(json.loads((workdir / "report" / "evaluation.json").read_text()), values["objectives"])


def scores_of(result: Mapping[str, Any], objectives: Mapping[str, Mapping]) -> dict[str, float]:
    """The numbers of an evaluation that arms are compared by: {metric: value}.

    Probes of the pre-trained encoder by their main metric, held-out nats a pixel by sensor, and masked losses of
    objectives, so that arms share a loss where they share label, objective and its fields.
    """
    scores = {}
    for r in result["probes"]:
        if r["encoder"] == TRAINED:
            metric, score = next(iter(r["scores"].items()))
            scores[f"{r['dataset']}/{r['label']}, {r['features']}, {r['protocol']}, {metric}"] = score["value"]
    for r in result["likelihood"]:
        name = f"-ln p of {r['sensor']}, nats a pixel"
        scores[name] = min(r["nats"]["value"], scores.get(name, float("inf")))
    for r in result["reconstruction"]:
        fields = {k: v for k, v in objectives[r["objective"]].items() if k not in ("sensor", "scale")}
        name = ", ".join(
            [f"masked loss {r['objective']}", fields.pop("name"), *(f"{k} = {v}" for k, v in fields.items())]
        )
        scores[name] = r["losses"]["model"]["value"]
    return scores


def summarise(scores: Mapping[tuple[str, int], Mapping[str, float]], study: Study, runs: Sequence[int]) -> dict:
    """Means and paired differences of a study, by metric and arm, for metrics that two arms or more have."""
    metrics: dict[str, dict] = {}
    for metric in dict.fromkeys(metric for of in scores.values() for metric in of):
        by_arm = {arm: [scores[arm, seed].get(metric) for seed in runs] for arm in study.arms}
        known = {arm: values for arm, values in by_arm.items() if None not in values}
        if len(known) < 2:
            continue
        baseline = known.get(study.baseline)
        metrics[metric] = {
            arm: dataclasses.asdict(seeds.summarise(values, None if arm == study.baseline else baseline))
            for arm, values in known.items()
        }
    return {"baseline": study.baseline, "seeds": list(runs), "metrics": metrics}


def _write(out: Path, results: Mapping[str, Mapping]) -> None:
    (out / "ablation.json").write_text(json.dumps(tables.plain(results), indent=1) + "\n")
    (out / "ablation.md").write_text("\n".join(markdown(name, study) for name, study in results.items()))
    for name, study in results.items():
        figures.save(figures.ablation(name, study), out / f"ablation_{name}.png")


def markdown(name: str, study: Mapping) -> str:
    """One table a study: a row an arm and metric, mean and paired difference with 95 % intervals over seeds."""
    seeds_ = ", ".join(map(str, study["seeds"]))
    lines = [f"### {name}", "", f"Seeds {seeds_}; differences from `{study['baseline']}` are paired by seed.", ""]
    lines += ["| metric | arm | mean | difference |", "|---|---|---|---|"]
    for metric, arms in study["metrics"].items():
        for arm, summary in arms.items():
            difference = summary["difference"]
            lines.append(
                f"| {metric} | {arm} | {tables.with_interval(summary['mean'])} "
                f"| {tables.with_interval(difference) if difference else ''} |"
            )
    return "\n".join(lines) + "\n"


@common.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="configuration file; --config.<key>=<value> changes a value")
    parser.add_argument("--out", required=True, help="folder of the runs, tables and figures")
    parser.add_argument("--studies", nargs="+", default=(), help="names; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=(), help="instead of the configuration's")
    given, overrides = parser.parse_known_args(arguments)
    common.keep_compiled()
    results = ablate(common.read_config(given.config, overrides), given.out, studies=given.studies, seeds_=given.seeds)
    for name, study in results.items():
        print("\n" + markdown(name, study))
    print(f"tables and figures are in {given.out}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
