"""One page that shows a run: what was trained on what, how it went, what came out, beside what it has to beat.

    python -m experiments.report --workdir runs/micro
    python -m experiments.report --workdir runs/seg     # fine-tuned runs, and folders of several seeds, too

Writes `<workdir>/report.html`, which needs no other file and no network, and PNG files to `<workdir>/report`. A run
whose newest checkpoint was not evaluated yet is evaluated first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import common, page, scoring, task_report
from experiments.compression import report as compression_report
from experiments.evaluate import evaluate
from experiments.evaluation_output import GRID
from experiments.probing import PLAIN, TRAINED
from ringmoe_jax.contracts import FUSED
from ringmoe_jax.evaluate import figures, reconstruction, routing
from ringmoe_jax.training import metrics

EVALUATION = "evaluation.json"
KINDS = (
    "losses",
    "collapse",
    "reconstruction",
    "comparison",
    "locations",
    "similarity",
    "probes",
    "labels",
    "routers",
    "experts",
)
LOSSES = {
    "self_distillation": "self-distillation: cross-entropy in nats from the teacher's targets to the student's "
    "predictions, mean over the pairs that both views show",
    "alignment": "alignment: InfoNCE in nats between features of two sensors at one location",
    "balance": "the balance loss: a sum over layers and router groups, with 1 for each that is perfectly balanced",
}  # what the curves are; all other objectives look at hidden pixels


def report(workdir: str) -> Path:
    """Writes the report of a pre-training run, of a fine-tuned run, of several seeds, or of a compressed checkpoint.

    Args:
        workdir: folder of a run with at least one checkpoint, or one that `experiments.finetune --seeds` filled.

    Returns:
        The page.

    Raises:
        UserError: there is no checkpoint, or it cannot be evaluated.
    """
    folder = Path(workdir)
    if (folder / scoring.SEEDS).exists():
        text = task_report.of_seeds(folder)
    else:
        record = task_report.newest(folder)
        if "encoder" in record:
            text = task_report.of_run(folder, record)
        elif (numbers := folder / "report" / compression_report.RESULT).exists():
            text = compression_report.render(folder, json.loads(numbers.read_text()))
        else:
            text = _pretraining(folder, record)
    written = folder / "report.html"
    written.write_text(text)
    return written


def render(workdir: Path, record: Mapping, records: Sequence[Mapping], evaluation: Mapping) -> str:
    """The page of a pre-training run as text.

    Args:
        workdir: folder of the run, with the figures in `report/`.
        record: of the checkpoint, see `ringmoe_jax.training.checkpoint`.
        records: metrics of the run.
        evaluation: what `experiments.evaluate` wrote.
    """
    evaluation = {"ranks": [], "locations": [], "likelihood": []} | dict(evaluation)  # older ones lack some
    images = {
        kind: [page.embedded(workdir / "report" / name) for name in names]
        for kind, names in (dict.fromkeys(KINDS, ()) | evaluation["figures"]).items()
    }
    return page.render(
        "pretraining.html.j2",
        workdir=str(workdir),
        record=record,
        config=record["config"],
        pretext=record["config"].get("pretext", {"name": "masked"})["name"],
        losses=_losses(record["config"], evaluation),
        grid=GRID,
        settings=json.dumps(record["config"], indent=2),
        evaluation=evaluation,
        images=images,
        findings=_findings(evaluation),
        speed=page.speed(records),
        probes=_probe_tables(evaluation["probes"]),
        ranks=_rank_table(evaluation["ranks"]),
        predictors=(reconstruction.MODEL, *reconstruction.TRIVIAL),
        meanings=reconstruction.TRIVIAL,
        trained=TRAINED,
    )


def _pretraining(workdir: Path, record: Mapping) -> str:
    """Evaluates a pre-training run where that is due, draws its curves and renders its page."""
    folder = workdir / "report"
    found = page.current(folder / EVALUATION, record["step"])
    if found is None:
        print(f"step {record['step']} of {workdir} was not evaluated yet: that comes first")
        evaluate(str(workdir))
        found = json.loads((folder / EVALUATION).read_text())
    records = metrics.read(workdir)
    found["figures"]["losses"] = [figures.save(figures.losses(records), folder / "losses.png").name]
    history = routing.history(records)
    found["figures"]["routers"] = [
        figures.save(figures.routers(group, series, found["modalities"]), folder / f"routers_{group}.png").name
        for group, series in history.items()
    ]
    if terms := _distilled(record["config"], records):
        found["figures"]["collapse"] = [figures.save(figures.collapse(records, terms), folder / "collapse.png").name]
    return render(workdir, record, records, found)


def _findings(evaluation: Mapping) -> list[str]:
    """What the numbers say, in sentences: a difference counts where its interval leaves out zero."""
    sentences = []
    compared = evaluation["reconstruction"]
    if compared:
        better = [r["objective"] for r in compared if r["difference"]["high"] < 0]
        worse = [r["objective"] for r in compared if r["difference"]["low"] > 0]
        others = [r["objective"] for r in compared if r["objective"] not in better + worse]
        parts = [f"better for {page.listed(better)}"] if better else []
        parts += [f"worse for {page.listed(worse)}"] if worse else []
        parts += [f"not to be told apart for {page.listed(others)}"] if others else []
        sentences.append(f"Masked reconstruction, against the best trivial predictor: {'; '.join(parts)}.")
    for found in evaluation.get("locations", ()):
        every = found["agreement"][0]
        if every["within"] is not None and every["between"] is not None:
            sentences.append(
                f"{found['dataset']}: frames that the model sees one at a time have a mean centred cosine of "
                f"{every['within']:.2f} where they show one place and of {every['between']:.2f} where they show "
                f"different ones ({len(found['tiles'])} places).".replace("-", page.MINUS)
            )
    for dataset, label in dict.fromkeys((r["dataset"], r["label"]) for r in evaluation["probes"]):
        rows = [r for r in evaluation["probes"] if (r["dataset"], r["label"]) == (dataset, label)]
        main = next(iter(rows[0]["scores"]))
        rows.sort(key=lambda r: -r["scores"][next(iter(r["scores"]))]["value"])
        told = FUSED if any(r["features"] == PLAIN for r in rows) else ""  # where a tile lies: no merit of features
        ours = next(r for r in rows if r["encoder"] == TRAINED and r["features"] != told)
        base = next(r for r in rows if r["encoder"] != TRAINED)
        sentences.append(
            f"{dataset}, {label}: the best probe of the pre-trained encoder reaches {main} "
            f"{page.score(ours['scores'][main])} ({ours['features']}, {ours['protocol']}), the best baseline "
            f"{page.score(base['scores'][main])} ({base['encoder']}, {base['features']}, {base['protocol']})."
        )
    return sentences


def _distilled(config: Mapping, records: Sequence[Mapping]) -> dict[str, tuple[str, str]]:
    """{label: (stream, level)} of the logged objectives that compare a student with its teacher."""
    logged = {name for record in records for name in record}
    terms = {label: term for label, term in config["objectives"].items() if term["name"] == "self_distillation"}
    return {k: (term["stream"], term["level"]) for k, term in terms.items() if f"{k}/usage" in logged}


def _losses(config: Mapping, evaluation: Mapping) -> str:
    """Caption of the loss curves: what each kind of objective of the run is."""
    names = {term["name"] for term in config["objectives"].values()}
    parts = [text for name, text in LOSSES.items() if name in names]
    if evaluation["reconstruction"]:
        parts.insert(0, "reconstruction: means over hidden, valid pixels in standardised units")
    described = "; ".join(parts)
    return f"Loss by optimiser step: the weighted total, and every objective. {described[:1].upper()}{described[1:]}."


def _rank_table(results: Sequence[Mapping]) -> dict[str, Any]:
    """Rows are kinds of features, columns encoders."""
    rows: dict[tuple[str, str], dict[str, Mapping]] = {}
    for r in results:
        rows.setdefault((r["dataset"], r["features"]), {})[r["encoder"]] = r
    return {"encoders": list(dict.fromkeys(r["encoder"] for r in results)), "rows": rows}


def _probe_tables(results: Sequence[Mapping]) -> list[dict[str, Any]]:
    """One table a label: rows are (sensors, encoder), columns are protocols; the best of a column is marked."""
    tables = []
    for dataset, label in dict.fromkeys((r["dataset"], r["label"]) for r in results):
        chosen = [r for r in results if (r["dataset"], r["label"]) == (dataset, label)]
        metric = next(iter(chosen[0]["scores"]))
        protocols = list(dict.fromkeys(r["protocol"] for r in chosen))
        rows: dict[tuple[str, str], dict[str, Mapping]] = {}
        for r in chosen:
            rows.setdefault((r["features"], r["encoder"]), {})[r["protocol"]] = r["scores"][metric]
        best = {p: max(row[p]["value"] for row in rows.values()) for p in protocols}
        tables.append(
            {"title": f"{dataset}: {label}", "metric": metric, "protocols": protocols, "rows": rows, "best": best}
            | {key: chosen[0][key] for key in ("train", "test", "blocks", "near", "left_out")}
        )
    return tables


@common.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True, help="folder of a run")
    workdir = Path(parser.parse_args(arguments).workdir)
    print(f"\nreport       {report(str(workdir))}  (open it in a browser)")
    if (workdir / scoring.SEEDS).exists():
        print(f"numbers      {workdir / scoring.SEEDS}, and the runs in sub-folders")
        return 0
    results = (scoring.RESULT, compression_report.RESULT, EVALUATION)
    found = next(name for name in results if (workdir / "report" / name).exists())
    print(
        f"pictures     {workdir / 'report'}/*.png, numbers in {found}\n"
        f"checkpoints  {workdir / 'checkpoints'}\n"
        f"metrics      {workdir / 'metrics.jsonl'} and {workdir / 'tensorboard'}"
    )
    if found == EVALUATION:
        python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else "python"
        print(
            "\nnext: train longer, or swap a loss or a sensor in a copy of the run's configuration as README.md shows\n"
            f"    {python} -m experiments.pretrain --config configs/<file>.py --workdir runs/long "
            f"--config.train.steps=5000"
        )
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
