"""The leaderboard: a CSV file with a row for every kind of features of an evaluated run, beside its baselines."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.reports.evaluation import grouped
from experiments.run import cli
from experiments.run.checkout import COMMIT
from ringmoe_jax import files
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import probes
from ringmoe_jax.run import FEATURES, PretrainConfig, read_record, results
from ringmoe_jax.run.evaluation import BASELINES, EVALUATION, TRAINED, Evaluation, ProbeRow, chosen
from ringmoe_jax.training import metrics

FACTS = ("date", "commit", "recipe", "views", "minutes", "device", "seed", "data", "feature", "chosen by")
PROTOCOLS = (*probes.KNN, *probes.LINEAR)
COLUMNS = (*FACTS, *PROTOCOLS, *(f"{name} {protocol}" for name in BASELINES for protocol in PROTOCOLS))
SEED = "train.seed"  # has a column of its own


def append(path: Path, workdir: Path, config: str) -> int:
    """Adds the rows of a run, one a kind of features of the pre-trained encoder, and says how many.

    Args:
        path: of the CSV file, which is made where there is none.
        workdir: folder of an evaluated run.
        config: configuration file that it was started from, as `--config` says it.

    Raises:
        UserError: the newest checkpoint has no evaluation with probes, the file has other columns, or no such config.
    """
    rows = list(rows_of(workdir, config))
    text = files.read_text(path, "a leaderboard") if path.exists() else ""
    there = text.splitlines()
    if there and there[0] != ",".join(COLUMNS):
        raise DataError(f"{path} has the columns {there[0]}: wanted {','.join(COLUMNS)}")
    new = io.StringIO()
    writer = csv.DictWriter(new, COLUMNS, lineterminator="\n")
    if not there:
        writer.writeheader()
    writer.writerows(rows)
    files.write_text(path, text + new.getvalue())
    return len(rows)


def rows_of(workdir: Path, config: str) -> list[dict[str, Any]]:
    """What `append` writes, by column.

    The commit is that of the code that trained, see `checkout.commit`. Views are images that the model was shown in
    training; minutes are of training without compilation, validation and checkpoints. Baselines of a network have the
    same features, the others have one kind.
    """
    record = read_record(workdir, FEATURES)
    found = [results.load(Evaluation, file, record["step"]) for file in results.every(workdir / "report", EVALUATION)]
    evaluated = [evaluation for evaluation in found if evaluation and evaluation.probes]
    if not evaluated:
        raise DataError(f"step {record['step']} of {workdir} has no evaluation with probes: run experiments.evaluate")
    views, minutes = effort(metrics.read(workdir))
    facts = {
        "commit": record.get(COMMIT, ""),
        "recipe": recipe(config, record["config"]),
        "views": views,
        "minutes": f"{minutes:.1f}",
        "seed": PretrainConfig.of(record["config"]).train.seed,
    }
    rows = []
    for evaluation in evaluated:
        splits = {data.name: data.split for data in evaluation.datasets}
        for (dataset, label), group in grouped(evaluation.probes, "dataset", "label").items():
            where = {"date": evaluation.date[:10], "device": evaluation.devices}
            where["data"] = f"{dataset}/{label} {splits[dataset]}"
            rows += [facts | where | scores for scores in _scores(group)]
    return rows


def _scores(probes: Sequence[ProbeRow]) -> list[dict[str, str]]:
    """Of one label: a row for every kind of features that the pre-trained encoder gives."""
    by_place = {(row.encoder, row.features, row.level, row.protocol): row for row in probes}
    ours = [row for row in probes if row.encoder == TRAINED]
    picked = {(row.shown, row.protocol) for row in chosen(ours)}
    rows = []
    for (shown, features, level), group in grouped(ours, "shown", "features", "level").items():
        best = [row.protocol for row in group if (shown, row.protocol) in picked]
        row = {"feature": shown, "chosen by": " ".join(best)}
        row |= {row.protocol: f"{row.score.value:.4f}" for row in group if row.protocol in PROTOCOLS}
        for name in BASELINES:
            for protocol in PROTOCOLS:
                same = by_place.get((name, features, level, protocol))
                if base := same or by_place.get((name, features, "pooled", protocol)):
                    row[f"{name} {protocol}"] = f"{base.score.value:.4f}"
        rows.append(row)
    return rows


def effort(records: Sequence[Mapping[str, float]]) -> tuple[int, float]:
    """Images that were shown, and minutes of training, from what a run logged; the first step is the second's like."""
    lines = [line for line in records if "perf/step_seconds" in line]
    images = seconds = before = 0
    for line in lines:
        steps, before = line["step"] - before, line["step"]
        images += steps * line["perf/images_per_second"] * line["perf/step_seconds"]
        seconds += steps * line["perf/step_seconds"]
    return round(images), seconds / 60


def recipe(config: str, record: Mapping[str, Any]) -> str:
    """The configuration file and every value of a run that differs from it, but for the seed."""
    stated = _flat(PretrainConfig.of(cli.read_config(config)).complete())
    actual = _flat(PretrainConfig.of(record).complete())
    keys = (key for key in {**stated, **actual} if key != SEED and stated.get(key) != actual.get(key))
    return " ".join([config, *(f"{key}={actual.get(key)}" for key in sorted(keys))])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a.b": value} of a nested dict; sequences are lists, as JSON has them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: results.plain(value)}
    return flat
