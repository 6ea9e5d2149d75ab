"""A grid of arms and seeds: what is missing of it is trained and probed, then summarised."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reports import arms
from experiments.run.evaluate import evaluate
from experiments.run.fit import once, require_done
from experiments.run.pretrain import pretrain
from experiments.run.tables import with_interval
from ringmoe_jax import config as configuration
from ringmoe_jax import files
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.evaluate import seeds as over_seeds
from ringmoe_jax.evaluate import style
from ringmoe_jax.evaluate.features import POOLED
from ringmoe_jax.evaluate.reconstruction import MODEL
from ringmoe_jax.evaluate.seeds import Ablation, Summary
from ringmoe_jax.parallel import processes
from ringmoe_jax.run import FEATURES, PretrainConfig, build_objectives, read_record, results
from ringmoe_jax.run.evaluation import TRAINED, Evaluation, chosen

RESULT = "ablation_run.json"  # scores of a finished run


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        objectives: replaces those of the study's configuration; {} keeps them.
        pretext: replaces that of the study's configuration; {} keeps it.
        override: what else differs, by group: `dict(model=dict(hidden_ratio=4))`.
    """

    objectives: dict[str, Any] = dataclasses.field(default_factory=dict)
    pretext: dict[str, Any] = dataclasses.field(default_factory=dict)
    override: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
    """Arms that differ in nothing but what each says.

    Attributes:
        config: of the experiment.
        baseline: the arm that the others are compared with.
        arms: by name.
        features: that are probed, see `evaluate.evaluate`; of several levels the one that validation tiles like best.
        split: that is scored; default: see there.
    """

    config: dict[str, Any]
    baseline: str
    arms: dict[str, Arm]
    features: str = POOLED
    split: str = ""

    def __post_init__(self):
        if self.baseline not in self.arms:
            raise ConfigError(f'baseline "{self.baseline}" is no arm: {nearest(self.baseline, self.arms)}')
        object.__setattr__(self, "arms", {self.baseline: self.arms[self.baseline]} | self.arms)  # the baseline first

    def values(self, arm: str, seed: int) -> dict[str, Any]:
        """The experiment configuration of a run; the seed is that of parameters, masks and the order of data."""
        own = self.arms[arm]
        values = copy.deepcopy(configuration.merged(self.config, own.override))
        values["objectives"] = copy.deepcopy(own.objectives) or values.get("objectives", {})
        values["pretext"] = copy.deepcopy(own.pretext) or values.get("pretext", {"name": "masked"})
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


def ablate(
    values: Mapping[str, Any], out: str, *, studies: Sequence[str] = (), seeds: Sequence[int] = ()
) -> dict[str, Ablation]:
    """Runs what is missing of a grid and summarises it.

    Args:
        values: nested dict of a configuration file, see `AblationConfig`.
        out: folder; runs lie in `<out>/<study>/<arm>/seed<n>`, tables and figures in `<out>`.
        studies: names; all by default.
        seeds: instead of the configuration's.

    Returns:
        What `ablation.json` holds, by study.

    Raises:
        UserError: a bad configuration (found before anything runs), or a run failed; finished ones are kept.
    """
    config = configuration.build(AblationConfig, values)
    chosen = _choose(config.studies, studies)
    runs = seeds or config.seeds
    for study in chosen.values():  # a mistake in the last arm should not cost the first ones
        for arm in study.arms:
            checked = PretrainConfig.of(study.values(arm, 0))
            build_objectives(checked)
            for begins in filter(None, (checked.init_from, checked.teacher)):
                read_record(begins, FEATURES)
    studied = {}
    for name, study in chosen.items():
        scores = {}
        for seed in runs:
            for arm in study.arms:
                scores[arm, seed] = _run(study, arm, seed, Path(out) / name / arm / f"seed{seed}")
        studied[name] = summarise(scores, study, runs)
        processes.from_first(lambda: _write(Path(out), studied))
    return studied


def _choose(studies: Mapping[str, Study], names: Sequence[str]) -> dict[str, Study]:
    for name in names:
        if name not in studies:
            raise ConfigError(f'study "{name}" does not exist: {nearest(name, studies)}')
    return {name: studies[name] for name in names or studies}


def _run(study: Study, arm: str, seed: int, workdir: Path) -> dict[str, float]:
    """Trains and evaluates one run, unless that was done, and reads its scores."""
    values = study.values(arm, seed)

    def run() -> None:
        require_done(pretrain(values, str(workdir)), PretrainConfig.of(values).train.steps, workdir)
        evaluation = evaluate(str(workdir), brief=True, features=study.features, split=study.split)
        results.write(workdir / RESULT, scores_of(evaluation, values["objectives"]))

    once(values, workdir, RESULT, run)
    return processes.from_first(lambda: results.read(workdir / RESULT))


def scores_of(evaluation: Evaluation, objectives: Mapping[str, Mapping]) -> dict[str, float]:
    """The numbers of an evaluation that arms are compared by: {metric: value}.

    Probes of the pre-trained encoder by their main metric, held-out nats a pixel by sensor, and masked losses of
    objectives, so that arms share a loss where they share label, objective and its fields.
    """
    scores = {}
    for row in chosen(evaluation.probes):
        if row.encoder == TRAINED:
            name = f"{row.dataset}/{row.label}, {row.features}, {row.protocol}, {row.metric}"
            scores[name] = row.score.value
    for row in evaluation.likelihood:
        name = f"-ln p of {row.sensor}, nats a pixel"
        scores[name] = min(row.nats.value, scores.get(name, float("inf")))
    for row in evaluation.reconstruction:
        fields = {k: v for k, v in objectives[row.objective].items() if k not in ("sensor", "scale")}
        terms = [f"masked loss {row.objective}", fields.pop("name"), *(f"{k} = {v}" for k, v in fields.items())]
        scores[", ".join(terms)] = row.losses[MODEL].value
    return scores


def summarise(scores: Mapping[tuple[str, int], Mapping[str, float]], study: Study, runs: Sequence[int]) -> Ablation:
    """Means and paired differences of a study, by metric and arm, for metrics that two arms or more have."""
    metrics: dict[str, dict[str, Summary]] = {}
    for metric in dict.fromkeys(metric for values in scores.values() for metric in values):
        by_arm = {arm: [scores[arm, seed].get(metric) for seed in runs] for arm in study.arms}
        known = {arm: values for arm, values in by_arm.items() if None not in values}
        if len(known) < 2:
            continue
        baseline = known.get(study.baseline)
        metrics[metric] = {
            arm: over_seeds.summarise(values, None if arm == study.baseline else baseline)
            for arm, values in known.items()
        }
    return Ablation(study.baseline, tuple(runs), metrics)


def _write(out: Path, studied: Mapping[str, Ablation]) -> None:
    results.write(out / "ablation.json", studied)
    files.write_text(out / "ablation.md", "\n".join(markdown(name, study) for name, study in studied.items()))
    for name, study in studied.items():
        style.save(arms.ablation(name, study), out / f"ablation_{name}.png")


def markdown(name: str, study: Ablation) -> str:
    """One table a study: a row an arm and metric, mean and paired difference with 95 % intervals over seeds."""
    numbers = ", ".join(map(str, study.seeds))
    lines = [f"### {name}", "", f"Seeds {numbers}; differences from `{study.baseline}` are paired by seed.", ""]
    lines += ["| metric | arm | mean | difference |", "|---|---|---|---|"]
    for metric, summaries in study.metrics.items():
        for arm, summary in summaries.items():
            difference = with_interval(summary.difference) if summary.difference else ""
            lines.append(f"| {metric} | {arm} | {with_interval(summary.mean)} | {difference} |")
    return "\n".join(lines) + "\n"
