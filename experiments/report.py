"""One page that shows a run: what was trained on what, losses, reconstructions, locations, probes, experts, speed.

    python -m experiments.report --workdir runs/micro

Writes `<workdir>/report.html`, which needs no other file and no network, and PNG files to `<workdir>/report`. A run
whose newest checkpoint was not evaluated yet is evaluated first.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from experiments import common
from experiments.evaluate import PLAIN, TRAINED, evaluate
from experiments.evaluation_output import GRID
from ringmoe_jax.batch import FUSED
from ringmoe_jax.evaluate import figures, reconstruction, routing
from ringmoe_jax.training import metrics
from ringmoe_jax.training.checkpoint import Checkpointer

TEMPLATE = "report.html.j2"
MINUS = "\u2212"
KINDS = (
    "losses",
    "collapse",
    "reconstruction",
    "comparison",
    "locations",
    "similarity",
    "probes",
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
    """Writes the report of a run.

    Args:
        workdir: folder of a run with at least one checkpoint.

    Returns:
        The page.

    Raises:
        UserError: there is no checkpoint, or it cannot be evaluated.
    """
    folder = Path(workdir) / "report"
    checkpointer = Checkpointer.open(workdir)
    record = checkpointer.record()
    checkpointer.close()
    found = _read(folder / "evaluation.json")
    if found is None or found["step"] != record["step"]:
        print(f"step {record['step']} of {workdir} was not evaluated yet: that comes first")
        evaluate(workdir)
        found = _read(folder / "evaluation.json")

    records = metrics.read(workdir)
    found["figures"]["losses"] = [figures.save(figures.losses(records), folder / "losses.png").name]
    history = routing.history(records)
    found["figures"]["routers"] = [
        figures.save(figures.routers(group, series, found["modalities"]), folder / f"routers_{group}.png").name
        for group, series in history.items()
    ]
    if terms := _distilled(record["config"], records):
        found["figures"]["collapse"] = [figures.save(figures.collapse(records, terms), folder / "collapse.png").name]
    page = Path(workdir) / "report.html"
    page.write_text(render(Path(workdir), record, records, found))
    return page


def render(workdir: Path, record: Mapping, records: Sequence[Mapping], evaluation: Mapping) -> str:
    """The page as text.

    Args:
        workdir: folder of the run, with the figures in `report/`.
        record: of the checkpoint, see `ringmoe_jax.training.checkpoint`.
        records: metrics of the run.
        evaluation: what `experiments.evaluate` wrote.
    """
    evaluation = {"ranks": [], "locations": [], "likelihood": []} | dict(evaluation)  # older ones lack some
    images = {
        kind: [base64.b64encode((workdir / "report" / name).read_bytes()).decode() for name in names]
        for kind, names in (dict.fromkeys(KINDS, ()) | evaluation["figures"]).items()
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = _score
    environment.filters["setting"] = _setting
    return environment.get_template(TEMPLATE).render(
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
        speed=_speed(records),
        probes=_probe_tables(evaluation["probes"]),
        ranks=_rank_table(evaluation["ranks"]),
        predictors=(reconstruction.MODEL, *reconstruction.TRIVIAL),
        meanings=reconstruction.TRIVIAL,
        trained=TRAINED,
        date=f"{datetime.datetime.now(datetime.UTC):%d %B %Y, %H:%M} UTC",
    )


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _score(value: Mapping[str, float | None], signed: bool = False) -> str:
    """For example "0.812 [0.774, 0.850]"; a dash where it is not defined."""
    number = lambda x: "–" if x is None else f"{x:+.3f}".replace("-", MINUS) if signed else f"{x:.3f}"  # noqa: E731, RUF001
    return f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"


def _setting(value: Any) -> str:
    """A value of the configuration as text."""
    if isinstance(value, Mapping):
        return f"({', '.join(f'{k} {_setting(v)}' for k, v in value.items())})"
    return ", ".join(map(_setting, value)) if isinstance(value, list | tuple) else str(value)


def _speed(records: Sequence[Mapping]) -> dict[str, float] | None:
    """Medians over the logged intervals, which leave compilation out."""
    timed = [record for record in records if "perf/images_per_second" in record]
    if not timed:
        return None
    names = ("images_per_second", "input_wait", "step_seconds")
    return {name: statistics.median(record[f"perf/{name}"] for record in timed) for name in names}


def _findings(evaluation: Mapping) -> list[str]:
    """What the numbers say, in sentences: a difference counts where its interval leaves out zero."""
    sentences = []
    compared = evaluation["reconstruction"]
    if compared:
        better = [r["objective"] for r in compared if r["difference"]["high"] < 0]
        worse = [r["objective"] for r in compared if r["difference"]["low"] > 0]
        others = [r["objective"] for r in compared if r["objective"] not in better + worse]
        parts = [f"better for {_list(better)}"] if better else []
        parts += [f"worse for {_list(worse)}"] if worse else []
        parts += [f"not to be told apart for {_list(others)}"] if others else []
        sentences.append(f"Masked reconstruction, against the best trivial predictor: {'; '.join(parts)}.")
    for found in evaluation.get("locations", ()):
        every = found["agreement"][0]
        if every["within"] is not None and every["between"] is not None:
            sentences.append(
                f"{found['dataset']}: frames that the model sees one at a time have a mean centred cosine of "
                f"{every['within']:.2f} where they show one place and of {every['between']:.2f} where they show "
                f"different ones ({len(found['tiles'])} places).".replace("-", MINUS)
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
            f"{_score(ours['scores'][main])} ({ours['features']}, {ours['protocol']}), the best baseline "
            f"{_score(base['scores'][main])} ({base['encoder']}, {base['features']}, {base['protocol']})."
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


def _list(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


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
    page = report(str(workdir))
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else "python"
    print(
        f"\nreport       {page}  (open it in a browser)\n"
        f"pictures     {workdir / 'report'}/*.png, numbers in evaluation.json\n"
        f"checkpoints  {workdir / 'checkpoints'}\n"
        f"metrics      {workdir / 'metrics.jsonl'} and {workdir / 'tensorboard'}\n"
        f"\nnext: train longer, or swap a loss or a sensor in a copy of the run's configuration as README.md shows\n"
        f"    {python} -m experiments.pretrain --config configs/<file>.py --workdir runs/long "
        f"--config.train.steps=5000"
    )
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
