"""What `experiments.evaluate` shows of its results: pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.common import Trained
from experiments.tables import table, with_interval
from ringmoe_jax.evaluate import figures, quicklook, reconstruction


def draw(folder: Path, trained: Trained, result: dict, summary, strips) -> None:
    """Writes every figure and lists the files in `result["figures"]`: {kind: [file name]}."""
    drawn: dict[str, list[str]] = {"reconstruction": [], "comparison": [], "probes": [], "experts": []}

    def add(kind: str, name: str, figure) -> None:
        drawn[kind].append(figures.save(figure, folder / f"{name}.png").name)

    for (dataset, label), rows in strips.items():
        sensor = trained.parts.sensors[trained.parts.objectives[label].sensor]
        caption = quicklook.view(sensor, np.zeros((1, 1, sensor.channels)))[1]
        (where,) = (data for data in result["datasets"] if data["name"] == dataset)
        caption += " (SIMULATED)" if where["sensors"][sensor.name]["simulated"] else ""
        add(
            "reconstruction",
            f"reconstruction_{dataset}_{label}",
            figures.reconstruction(f"{dataset}, {label}", caption, rows),
        )
    if result["reconstruction"]:
        add("comparison", "reconstruction_losses", figures.comparisons(result["reconstruction"]))
    for dataset, label in dict.fromkeys((r["dataset"], r["label"]) for r in result["probes"]):
        chosen = [r for r in result["probes"] if (r["dataset"], r["label"]) == (dataset, label)]
        add("probes", f"probes_{dataset}_{label}", figures.probes(f"{dataset}: {label}", chosen))
    for group, values in summary.items():
        add("experts", f"experts_{group}", figures.experts(group, values, result["modalities"]))
    result["figures"] = drawn


def show(result: Mapping) -> None:
    """Prints the tables."""
    if result["probes"]:
        _show_probes(result["probes"])
    if result["reconstruction"]:
        _show_reconstruction(result["reconstruction"])
    if result["likelihood"]:
        _show_likelihood(result["likelihood"])
    if result["routing"]:
        _show_routing(result["routing"], result["modalities"])


def _show_probes(probes: Sequence[Mapping]) -> None:
    print("\nFrozen-feature probes, main metric with 95 % interval")
    protocols = list(dict.fromkeys(r["protocol"] for r in probes))
    rows: dict[tuple, dict[str, str]] = {}
    for r in probes:
        metric, score = next(iter(r["scores"].items()))
        key = (f"{r['dataset']}/{r['label']}", metric, r["features"], r["encoder"])
        rows.setdefault(key, {})[r["protocol"]] = with_interval(score)
    head = ("data set/label", "metric", "sensors", "encoder", *protocols)
    print(table(head, [(*key, *(cells.get(p, "") for p in protocols)) for key, cells in rows.items()]))


def _show_reconstruction(compared: Sequence[Mapping]) -> None:
    print("\nMasked loss, model and trivial predictors, 95 % interval")
    predictors = (reconstruction.MODEL, *reconstruction.TRIVIAL)
    head = ("objective", "model", *reconstruction.TRIVIAL, "model - best trivial", "tiles (blocks)")
    rows = [
        (
            r["objective"],
            *(with_interval(r["losses"][name]) for name in predictors),
            with_interval(r["difference"]),
            f"{r['tiles']} ({r['blocks']})",
        )
        for r in compared
    ]
    print(table(head, rows))


def _show_likelihood(stated: Sequence[Mapping]) -> None:
    print("\nHeld-out -ln p of hidden pixels, nats a pixel in the sensor's unit, 95 % interval; smaller is better")
    rows = [
        (r["objective"], r["sensor"], with_interval(r["nats"]), f"{r['noise']:.3g}{' (border)' * r['at_border']}")
        for r in stated
    ]
    print(table(("objective", "sensor", "nats", "noise, fitted on training tiles"), rows))


def _show_routing(routing: Mapping[str, Mapping], modalities: Sequence[str]) -> None:
    print("\nRouting on masked validation tiles")
    rows = [
        (
            name,
            modality,
            f"{np.mean(group['drop_rate'][:, m]):.1%}",
            f"{np.mean(group['entropy'][:, m]):.2f}",
            f"{np.mean(group['gate'][:, m]):.2f}",
            f"{np.mean(np.nanmax(group['load'][:, m], axis=1)):.0%}",
            str(len(group["dead"])),
        )
        for name, group in routing.items()
        for m, modality in enumerate(modalities)
        if group["tokens"][m] > 0
    ]
    print(
        table(("group", "modality", "dropped", "entropy, nats", "mean gate", "busiest expert", "dead in group"), rows)
    )
