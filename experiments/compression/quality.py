"""What a compressed network is still worth: probes of its features, and reconstruction of what it did not see."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.compression.recipe import Version
from experiments.evaluate import evaluate
from experiments.reports import page
from experiments.task_report import newest
from ringmoe_jax import compress

EVALUATION = "evaluation.json"
LINEAR = "linear"  # the protocol of the headline


def quality(folder: Path, dataset: str = "") -> dict[str, Any]:
    """Evaluates a checkpoint, unless that was done.

    Args:
        folder: of the checkpoint; what `experiments.evaluate` writes and prints goes to `<folder>/report/brief`.
        dataset: to score on; default those of the run.

    Returns:
        "probes": rows of every label, kind of features and protocol, with the main metric's name under "metric" and
        its "value", "low" and "high"; "reconstruction": rows of every objective, with the "gain" over the best
        trivial predictor, in the unit of the loss, above 0 where the model is better; "protocol" and "splits".
    """
    where = folder / "report" / "brief"
    found = page.current(where / EVALUATION, newest(folder)["step"])
    if found is None:
        print(f"scoring     {folder}", flush=True)
        where.mkdir(parents=True, exist_ok=True)
        with (where / "log.txt").open("w") as log, contextlib.redirect_stdout(log):
            evaluate(str(folder), [dataset] if dataset else (), brief=True, out=str(where))
        found = json.loads((where / EVALUATION).read_text())
    return {
        "probes": [_probe(row) for row in found["probes"]],
        "reconstruction": [_gain(row) for row in found["reconstruction"]],
        "protocol": found["protocol"],
        "splits": [
            f"{data['name']}: {data['samples'][data['split']]} {data['split']} tiles" for data in found["datasets"]
        ],
        "simulated": any(sensor["simulated"] for data in found["datasets"] for sensor in data["sensors"].values()),
    }


def rounded(version: Version, dataset: str = "") -> tuple[dict[str, Any], int]:
    """The quality with eight-bit kernels, and the bytes that they and all else then take."""
    small = compress.quantise(version.params)
    with tempfile.TemporaryDirectory() as folder:
        dataclasses.replace(version, params=compress.dequantise(small)).save(Path(folder), {"method": "int8"})
        return quality(Path(folder), dataset), compress.nbytes(small)


def headline(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The numbers to compare versions by: {name: row with "value", "low", "high"}.

    Of every label the linear probe (or the first) of all sensors together, and of every objective the gain.
    """
    rows = {}
    for row in found["probes"]:
        key = f"{row['dataset']}: {row['label']}, {row['metric']}"
        rows[key] = max(rows.get(key, row), row, key=_weight)
    return rows | {f"{row['dataset']}: {row['objective']}, gain": row["gain"] for row in found["reconstruction"]}


def kept(found: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float | None]:
    """Share of the reconstruction gain that is left: the mean over objectives that had one, with scaled bounds."""
    pairs = [
        (row["gain"], old["gain"]["value"])
        for row, old in zip(found["reconstruction"], before["reconstruction"], strict=True)
        if old["gain"]["value"] > 0
    ]
    return {
        key: sum(gain[key] / old for gain, old in pairs) / len(pairs) if pairs else None
        for key in ("value", "low", "high")
    }


def _weight(row: Mapping[str, Any]) -> tuple[bool, int]:
    return row["protocol"] == LINEAR, row["features"].count("+")


def _probe(row: Mapping[str, Any]) -> dict[str, Any]:
    metric, score = next(iter(row["scores"].items()))
    about = {key: row[key] for key in ("dataset", "label", "features", "protocol", "test", "blocks")}
    return about | {"metric": metric} | {key: score[key] for key in ("value", "low", "high")}


def _gain(row: Mapping[str, Any]) -> dict[str, Any]:
    less = row["difference"]
    gain = {"value": -less["value"], "low": -less["high"], "high": -less["low"]}
    about: Sequence[str] = ("dataset", "objective", "best", "tiles", "blocks")
    return {key: row[key] for key in about} | {"loss": row["losses"]["model"], "gain": gain}
