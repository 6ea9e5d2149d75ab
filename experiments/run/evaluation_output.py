"""What `experiments.evaluate` shows of its results: pictures and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.run.probe import FEW
from experiments.run.tables import table, with_interval
from ringmoe_jax.evaluate import comparison_figures, figures, quicklook, reconstruction
from ringmoe_jax.run import Run
from ringmoe_jax.sensors import Sensor

GRID = 0.1  # share of variance from which a grid is mentioned (our choice)


def draw(folder: Path, trained: Run, result: dict, summary, strips, maps) -> None:
    """Writes every figure and lists the files in `result["figures"]`: {kind: [file name]}."""
    kinds = ("reconstruction", "comparison", "locations", "similarity", "probes", "labels", "experts")
    drawn: dict[str, list[str]] = {kind: [] for kind in kinds}

    def add(kind: str, name: str, figure) -> None:
        drawn[kind].append(figures.save(figure, folder / f"{name}.png").name)

    for (dataset, label), rows in strips.items():
        sensor = trained.parts.sensors[trained.parts.objectives[label].sensor]
        caption = _caption(result, dataset, sensor)
        add(
            "reconstruction",
            f"reconstruction_{dataset}_{label}",
            figures.reconstruction(f"{dataset}, {label}", caption, rows),
        )
    for found in result["locations"]:
        name = found["dataset"]
        (where,) = (data for data in result["datasets"] if data["name"] == name)
        captions = {sensor: _caption(result, name, trained.parts.sensors[sensor]) for sensor in where["sensors"]}
        add("locations", f"locations_{name}", figures.locations(name, captions, maps[name]))
        places = [f"tile {index}" for index in found["places"]]
        figure = figures.similarity(name, found["similarity"], found["labels"], places)
        add("similarity", f"similarity_{name}", figure)
    if result["reconstruction"]:
        add("comparison", "reconstruction_losses", figures.comparisons(result["reconstruction"]))
    for dataset, label in dict.fromkeys((r["dataset"], r["label"]) for r in result["probes"]):
        chosen = [r for r in result["probes"] if (r["dataset"], r["label"]) == (dataset, label)]
        add("probes", f"probes_{dataset}_{label}", figures.probes(f"{dataset}: {label}", chosen))
        if curves := _curves(result, dataset, label):
            metric = next(iter(chosen[0]["scores"]))
            figure = comparison_figures.labels(f"{dataset}: {label}, {metric}", curves)
            add("labels", f"labels_{dataset}_{label}", figure)
    for group, values in summary.items():
        add("experts", f"experts_{group}", figures.experts(group, values, result["modalities"]))
    result["figures"] = drawn


def _caption(result: Mapping, dataset: str, sensor: Sensor) -> str:
    """Bands and unit of a quicklook, and whether the sensor is simulated."""
    (where,) = (data for data in result["datasets"] if data["name"] == dataset)
    simulated = where["sensors"][sensor.name]["simulated"]
    return quicklook.view(sensor, np.zeros((1, 1, sensor.channels)))[1] + " (SIMULATED)" * simulated


def _curves(result: Mapping, dataset: str, label: str) -> list[dict]:
    """Scores of one label by encoder and share of the labels, one for each set of sensors and protocol."""
    curves: dict[tuple[str, float], dict] = {}
    if result["few_labels"]:
        for r in (*result["few_labels"], *result["probes"]):
            if (r["dataset"], r["label"]) == (dataset, label):
                scores = curves.setdefault((r["encoder"], r["fraction"]), {})
                scores[f"{r['features']}, {r['protocol']}"] = next(iter(r["scores"].values()))
    return [{"arm": arm, "fraction": fraction, "scores": s} for (arm, fraction), s in curves.items()]


def show(result: Mapping) -> None:
    """Prints the tables."""
    if result["probes"]:
        _show_probes(result["probes"])
    if result["few_labels"]:
        _show_few_labels([*result["few_labels"], *result["probes"]])
    if result["ranks"]:
        _show_ranks(result["ranks"])
    if result["reconstruction"]:
        _show_reconstruction(result["reconstruction"])
    if result["likelihood"]:
        _show_likelihood(result["likelihood"])
    if result["locations"]:
        _show_locations(result["locations"])
    if result["routing"]:
        _show_routing(result["routing"], result["modalities"])


def _show_probes(probes: Sequence[Mapping]) -> None:
    fraction, draws = probes[0]["fraction"], probes[0]["draws"]
    few = f" of {100 * fraction:g} % of the labels, means over {draws} draws" if fraction < 1 else ""
    print(f"\nFrozen-feature probes{few}, main metric with 95 % interval")
    protocols = list(dict.fromkeys(r["protocol"] for r in probes))
    rows: dict[tuple, dict[str, str]] = {}
    for r in probes:
        metric, score = next(iter(r["scores"].items()))
        key = (f"{r['dataset']}/{r['label']}", metric, r["features"], r["encoder"])
        rows.setdefault(key, {})[r["protocol"]] = with_interval(score)
    head = ("data set/label", "metric", "sensors", "encoder", *protocols)
    print(table(head, [(*key, *(cells.get(p, "") for p in protocols)) for key, cells in rows.items()]))


def _show_few_labels(probes: Sequence[Mapping]) -> None:
    print("\n" + FEW.format(draws=probes[0]["draws"]))
    fractions = sorted({r["fraction"] for r in probes})
    rows: dict[tuple, dict[float, str]] = {}
    order = {key: i for i, key in enumerate(dict.fromkeys(map(_place, probes)))}
    for r in sorted(probes, key=lambda r: order[_place(r)]):  # encoders under each other
        metric, score = next(iter(r["scores"].items()))
        key = (f"{r['dataset']}/{r['label']}", metric, r["features"], r["protocol"], r["encoder"])
        rows.setdefault(key, {})[r["fraction"]] = f"{with_interval(score)} of {r['train']}"
    shares = (f"{100 * fraction:g} %, of tiles" for fraction in fractions)
    head = ("data set/label", "metric", "sensors", "probe", "encoder", *shares)
    print(table(head, [(*key, *(cells.get(f, "") for f in fractions)) for key, cells in rows.items()]))


def _place(result: Mapping) -> tuple[str, ...]:
    """What encoders are compared on."""
    return tuple(result[key] for key in ("dataset", "label", "features", "protocol"))


def _show_ranks(ranks: Sequence[Mapping]) -> None:
    print("\nEffective rank of the features of the scored tiles (RankMe); near 1 is a collapse")
    encoders = list(dict.fromkeys(r["encoder"] for r in ranks))
    rows: dict[tuple, dict[str, str]] = {}
    for r in ranks:
        rows.setdefault((r["dataset"], r["features"]), {})[r["encoder"]] = f"{r['rank']:.1f} of {r['width']}"
    print(
        table(("data set", "features", *encoders), [(*k, *(v.get(e, "") for e in encoders)) for k, v in rows.items()])
    )


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


def _show_locations(found: Sequence[Mapping]) -> None:
    print("\nFrames shown alone: mean cosine of fused features, minus their mean over all frames")
    rows = [
        (
            part["dataset"],
            " and ".join(row["sensors"]) or f"all {part['frames']} frames",
            *("-" if np.isnan(row[key]) else f"{row[key]:.2f}" for key in ("within", "between")),
        )
        for part in found
        for row in part["agreement"]
    ]
    print(table(("data set", "pairs of", "same place", "different places"), rows))
    for part in found:
        share, period = part["lattice"].values()
        if share > GRID:
            print(
                f"note        {part['dataset']}: a grid of {period} locations is {share:.0%} of what varies in a place"
            )


def _show_routing(routing: Mapping[str, Mapping], modalities: Sequence[str]) -> None:
    print("\nRouting on the scored tiles")
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
