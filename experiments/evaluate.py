"""Evaluates a checkpoint: frozen-feature probes beside baselines, masked reconstruction, routing; tables and pictures.

    python -m experiments.evaluate --checkpoint runs/micro
    python -m experiments.evaluate --checkpoint runs/micro --dataset data/mine --protocol linear

Writes `evaluation.json` and PNG files to `<checkpoint>/report`. Models see whole tiles, see
`input_pipeline.evaluation`; nothing is fitted on the split that is scored.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import common
from experiments.common import Trained
from input_pipeline import schema
from input_pipeline.dataset import Dataset, open_dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.evaluate import baselines, bootstrap, features, figures, probes, quicklook, reconstruction, routing
from ringmoe_jax.models import count
from ringmoe_jax.moe.statistics import Statistics as RoutingStatistics
from ringmoe_jax.training.checkpoint import versions

PROTOCOLS = {"knn": probes.KNN, "linear": probes.LINEAR, "all": probes.KNN + probes.LINEAR}
TRAINED = "pre-trained"
BATCH = 32  # tiles
SHOWN = 3  # tiles in a figure
MAX_TILES = 10_000  # of a split that are read
TEXT = (
    "Frozen features: the mean token of each sensor, all cells visible. Features are z-scored on the training tiles. "
    "knn5, knn20: L2 neighbours. linear: L-BFGS logistic regression, C of 1e-6..1e4 chosen on a fifth of the training "
    "tiles, then refitted on all. Intervals: 95 % bootstrap over spatial blocks of the validation tiles, "
    f"{bootstrap.RESAMPLES} resamples; tiles within {bootstrap.BLOCK_DEGREES} degrees share a block."
)


def evaluate(
    checkpoint: str,
    datasets: Sequence[str] = (),
    *,
    protocol: str = "all",
    seed: int = 0,
    out: str | None = None,
    max_tiles: int = MAX_TILES,
) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run.

    Args:
        checkpoint: folder of the run.
        datasets: folders; default those that the run was trained on. Read: training and validation splits of the
            sensors that the model knows.
        protocol: "knn", "linear" or "all".
        seed: of random baselines, inner splits and the bootstrap.
        out: default `<checkpoint>/report`.
        max_tiles: the first so many tiles of a split are read.

    Returns:
        What `evaluation.json` holds.

    Raises:
        UserError: no checkpoint, no such protocol, or data that the model cannot read.
    """
    if protocol not in PROTOCOLS:
        raise ConfigError(f'--protocol "{protocol}" does not exist: {nearest(protocol, PROTOCOLS)}')
    started = time.perf_counter()
    trained = common.load(checkpoint)
    folder = Path(out) if out else Path(checkpoint) / "report"
    print(f"checkpoint  {checkpoint} at step {trained.step}, on {jax.devices()[0].device_kind}")
    inspect = reconstruction.inspector(trained.parts.model, reconstruction.reconstructions(trained.parts.objectives))
    random = jax.device_put(baselines.random_params(trained.parts.model, seed), jax.devices()[0])  # as the trained ones
    result = {"checkpoint": str(checkpoint), "step": trained.step, "protocol": TEXT, "seed": seed, "datasets": []}
    result |= {"probes": [], "reconstruction": [], "routing": {}}
    tokens: list[Mapping[str, RoutingStatistics]] = []
    strips: dict[tuple[str, str], list[quicklook.Strip]] = {}

    for dataset in _open(trained, datasets):
        reader = _Reader(trained, dataset, max_tiles)
        result["datasets"].append(_describe(trained, reader))
        means = reconstruction.training_means(trained.parts.model, reader.objectives, trained.params, reader("train"))
        encoders = _encoders(trained, random, partial(inspect, means=means), seed)
        result["probes"] += _probe(reader, encoders, PROTOCOLS[protocol], seed)
        masked = _Masked(trained, reader, partial(inspect, trained.params, means=means), seed)
        result["reconstruction"] += masked.comparisons
        tokens += masked.routing
        strips |= {(dataset.metadata.name, label): rows for label, rows in masked.strips.items() if rows}

    summary = routing.summarise(routing.add(tokens)) if tokens else {}
    result["routing"] = {name: dataclasses.asdict(group) for name, group in summary.items()}
    result["modalities"] = sensor_table.modalities(trained.parts.sensors)
    result |= {"versions": versions(), "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"}
    devices = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    result |= {"devices": devices, "seconds": time.perf_counter() - started}
    parts = {name: count(part) for name, part in trained.params.items()}
    result["parameters"] = {"total": sum(parts.values()), "parts": parts}
    _draw(folder, trained, result, summary, strips)
    (folder / "evaluation.json").write_text(json.dumps(_plain(result), indent=1) + "\n")
    _print(result)
    return result


# ---- Data ---------------------------------------------------------------------------------------------


def _open(trained: Trained, directories: Sequence[str]) -> Iterable[Dataset]:
    """The data sets with the sensors to read; by default those of the run's streams, each opened once."""
    if not directories:
        wanted: dict[str, list[str]] = {}
        for stream in trained.config.data.streams.values():
            wanted.setdefault(stream.directory, []).extend(stream.sensors)
        return [open_dataset(d, tuple(dict.fromkeys(s)), trained.config.data.bands) for d, s in wanted.items()]
    opened = []
    for directory in directories:
        known = open_dataset(directory, ()).metadata.sensors
        sensors = tuple(name for name in trained.parts.sensors if name in known)
        if not sensors:
            raise DataError(f"{directory} holds {', '.join(known)}, the model reads {', '.join(trained.parts.sensors)}")
        opened.append(open_dataset(directory, sensors, trained.config.data.bands))
    return opened


class _Reader:
    """Batches of one data set's splits as the model wants them, at most `max_tiles` tiles of each."""

    def __init__(self, trained: Trained, dataset: Dataset, max_tiles: int):
        self.trained, self.dataset, self.max_tiles = trained, dataset, max_tiles
        objectives = reconstruction.reconstructions(trained.parts.objectives)
        self.objectives = {k: o for k, o in objectives.items() if o.sensor in dataset.sensors}

    def tiles(self, split: str) -> int:
        """Number of tiles that are read."""
        return min(self.dataset.size(split), self.max_tiles)

    def located(self) -> bool:
        """Whether the validation tiles come with coordinates."""
        batch = next(iter(self("validation")))
        return bool(np.isfinite(next(iter(batch["sensors"].values()))["location"]).any())

    def __call__(self, split: str, *, masked: bool = False) -> Iterable[Mapping]:
        data = self.trained.config.data
        size = min(BATCH, self.tiles("train"), self.tiles("validation"))
        batches = EvalBatches(
            self.dataset.directory,
            tuple(self.dataset.sensors),
            split=split,
            image_size=data.image_size,
            batch_size=size,
            bands=data.bands,
            mask_unit=data.mask_unit if masked else 0,
            mask_ratio=data.mask_ratio,
            seed=data.shuffle_seed,
            max_bad_records=data.max_bad_records,
        )
        return (batch for batch, _ in zip(batches, range(-(-self.tiles(split) // size)), strict=False))


def _describe(trained: Trained, reader: _Reader) -> dict[str, Any]:
    dataset = reader.dataset
    metadata = dataset.metadata
    notes = []
    for split in ("train", "validation"):
        if reader.tiles(split) < dataset.size(split):
            notes.append(f"only the first {reader.tiles(split)} of {dataset.size(split)} tiles of {split} were read")
    for name in dataset.sensors:
        used, own = trained.parts.statistics[name], metadata.sensors[name]
        if own.mean is not None and _differ(used, dataset.statistics(name)):
            notes.append(f'the pixels of "{name}" are distributed differently than those the model was normalised with')
    if not reader.located():
        notes.append("tiles have no coordinates: overlapping ones count as independent, so intervals are too narrow")
    for note in notes:
        print(f"note        {metadata.name}: {note}")
    return {
        "name": metadata.name,
        "directory": dataset.directory,
        "description": metadata.description,
        "licence": metadata.licence,
        "source": metadata.source,
        "citation": metadata.citation,
        "tiles": {split: dataset.size(split) for split in dataset.counts},
        "sensors": {
            name: {
                "bands": list(sensor.band_names),
                "unit": sensor.unit,
                "gsd": metadata.sensors[name].gsd,
                "shape": list(dataset.shape(name)),
                "simulated": metadata.sensors[name].simulated,
            }
            for name, sensor in dataset.sensors.items()
        },
        "labels": {name: info.description for name, info in dataset.labels.items()},
        "notes": notes,
    }


def _differ(used, own) -> bool:
    """Whether a band's mean lies half a deviation off, or its deviation is off by a factor of two (our choice)."""
    shift = np.abs(np.subtract(used.mean, own.mean)) / np.asarray(used.std)
    ratio = np.divide(own.std, used.std)
    return bool((shift > 0.5).any() or (ratio > 2).any() or (ratio < 0.5).any())


# ---- Probes -------------------------------------------------------------------------------------------


def _encoders(trained: Trained, random, inspect, seed: int) -> dict[str, features.Encoder]:
    """The model and what it must beat; the first two share one compiled function with the masked passes."""
    parts, data = trained.parts, trained.config.data
    cells = data.image_size // data.mask_unit if data.mask_unit else 1

    def pooled(params, batch):
        return inspect(params, reconstruction.unmasked(batch, cells))["pooled"]

    statistics = {name: parts.statistics.get(name, sensor.statistics) for name, sensor in parts.sensors.items()}
    return {
        TRAINED: lambda batch: pooled(trained.params, batch),
        "random weights": lambda batch: pooled(random, batch),
        "random convolutions": baselines.random_convolutions(statistics, seed=seed),
        "image statistics": baselines.image_statistics(parts.sensors),
    }


def _probe(reader: _Reader, encoders, protocols: Sequence[str], seed: int) -> list[dict]:
    """Every label, encoder and set of sensors of a data set."""
    dataset, sensors = reader.dataset, tuple(reader.dataset.sensors)
    labels = {k: v for k, v in dataset.labels.items() if v.kind in (schema.CLASSES, schema.MULTILABEL)}
    if not labels:
        print(f"note        {dataset.metadata.name}: no class labels, nothing to probe")
        return []
    splits = [features.collect(reader(split), encoders, reader.max_tiles) for split in ("train", "validation")]
    sets = [(name,) for name in sensors] + ([sensors] if len(sensors) > 1 else [])
    results = []
    for label, info in labels.items():
        for chosen in sets:
            for encoder in encoders:
                train, test = (_split(part, encoder, chosen, label) for part in splits)
                try:
                    found = probes.probe(train, test, info.names, protocols, seed=seed)
                except DataError as error:
                    print(f"note        {dataset.metadata.name}/{label}: {error}")
                    break
                where = {"dataset": dataset.metadata.name, "label": label, "features": " + ".join(chosen)}
                results += [where | {"encoder": encoder} | dataclasses.asdict(probe) for probe in found]
    return results


def _split(part: features.Features, encoder: str, sensors: Sequence[str], label: str) -> probes.Split:
    observed = np.all([part.observed[sensor] for sensor in sensors], axis=0)
    return probes.Split(part.joined(encoder, sensors), part.labels[label], part.groups).where(observed)


# ---- Masked passes ------------------------------------------------------------------------------------


class _Masked:
    """One masked pass over the validation tiles of a data set: losses, routing statistics and tiles to show."""

    def __init__(self, trained: Trained, reader: _Reader, inspect, seed: int):
        self.trained, self.reader, self.inspect, self.objectives = trained, reader, inspect, reader.objectives
        self.comparisons: list[dict] = []
        self.routing: list[Mapping[str, RoutingStatistics]] = []
        self.strips: dict[str, list[quicklook.Strip]] = {label: [] for label in self.objectives}
        if not trained.config.data.mask_unit:
            return
        sums, groups = self._run()
        for label, objective in self.objectives.items():
            found = reconstruction.compare({k: v[label] for k, v in sums.items()}, groups, seed=seed)
            where = {"dataset": reader.dataset.metadata.name, "objective": label, "sensor": objective.sensor}
            self.comparisons.append(where | dataclasses.asdict(found))

    def _run(self):
        reader = self.reader
        wanted = set(np.linspace(0, reader.tiles("validation") - 1, SHOWN).astype(int).tolist())
        sums, location = [], []
        for batch in reader("validation", masked=True):
            seen = self.inspect({"sensors": batch["sensors"]})
            sums.append(jax.device_get(seen["sums"]))
            location.append(next(iter(batch["sensors"].values()))["location"])
            if batch["real"].all() or not self.routing:  # tokens of filled-up tiles would count as well
                self.routing.append(jax.device_get(seen["routing"]))
            for row, index in enumerate(batch["index"]):
                if int(index) in wanted:
                    self._paint(batch, seen, row, int(index))
        turned: dict[str, dict[str, np.ndarray]] = {}
        for label in self.objectives:
            for key in sums[0][label]:
                turned.setdefault(key, {})[label] = np.concatenate([part[label][key] for part in sums])
        return turned, bootstrap.blocks(np.concatenate(location))

    def _paint(self, batch: Mapping, seen: Mapping, row: int, index: int) -> None:
        parts = self.trained.parts
        for label, objective in self.objectives.items():
            name, entry = objective.sensor, batch["sensors"][objective.sensor]
            tile = quicklook.Tile(
                index,
                np.asarray(entry["pixels"][row, 0]),
                np.asarray(entry["valid"][row, 0]),
                np.asarray(entry["mask"][row]),
                np.asarray(seen["targets"][label][row, 0]),
                np.asarray(seen["predictions"][label][row, 0]),
            )
            statistics = parts.statistics.get(name, parts.sensors[name].statistics)
            self.strips[label].append(quicklook.strip(parts.sensors[name], statistics, objective, tile))


# ---- Output -------------------------------------------------------------------------------------------


def _draw(folder: Path, trained: Trained, result: dict, summary, strips) -> None:
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


def _plain(value: Any) -> Any:
    """JSON types; what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text, as wide as they need to be."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def with_interval(score: Mapping[str, float]) -> str:
    """For example "0.812 (0.774 to 0.850)"."""
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def _print(result: Mapping) -> None:
    if result["probes"]:
        print("\nFrozen-feature probes, main metric with 95 % interval")
        protocols = list(dict.fromkeys(r["protocol"] for r in result["probes"]))
        rows: dict[tuple, dict[str, str]] = {}
        for r in result["probes"]:
            metric, score = next(iter(r["scores"].items()))
            key = (f"{r['dataset']}/{r['label']}", metric, r["features"], r["encoder"])
            rows.setdefault(key, {})[r["protocol"]] = with_interval(score)
        head = ("data set/label", "metric", "sensors", "encoder", *protocols)
        print(table(head, [(*key, *(cells.get(p, "") for p in protocols)) for key, cells in rows.items()]))
    if result["reconstruction"]:
        print("\nMasked loss, model and trivial predictors, 95 % interval")
        head = ("objective", "model", *reconstruction.TRIVIAL, "model - best trivial", "tiles (blocks)")
        print(
            table(
                head,
                [
                    (
                        r["objective"],
                        *(with_interval(r["losses"][name]) for name in (reconstruction.MODEL, *reconstruction.TRIVIAL)),
                        with_interval(r["difference"]),
                        f"{r['tiles']} ({r['blocks']})",
                    )
                    for r in result["reconstruction"]
                ],
            )
        )
    if result["routing"]:
        print("\nRouting on masked validation tiles")
        rows = []
        for name, group in result["routing"].items():
            for m, modality in enumerate(result["modalities"]):
                if group["tokens"][m] > 0:
                    load = group["load"][:, m]
                    rows.append(
                        (
                            name,
                            modality,
                            f"{np.mean(group['drop_rate'][:, m]):.1%}",
                            f"{np.mean(group['entropy'][:, m]):.2f}",
                            f"{np.mean(group['gate'][:, m]):.2f}",
                            f"{np.mean(np.nanmax(load, axis=1)):.0%}",
                            str(len(group["dead"])),
                        )
                    )
        print(
            table(
                ("group", "modality", "dropped", "entropy, nats", "mean gate", "busiest expert", "dead in group"), rows
            )
        )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="folder of a run")
    parser.add_argument("--dataset", nargs="+", default=[], help="folders of data sets; default: those of the run")
    parser.add_argument("--protocol", default="all", help="knn, linear or all")
    parser.add_argument("--seed", type=int, default=0, help="of baselines, inner splits and intervals")
    parser.add_argument("--out", help="folder for the results; default: <checkpoint>/report")
    parser.add_argument("--max_tiles", type=int, default=MAX_TILES, help="tiles of a split that are read")
    return parser.parse_args(arguments)


@common.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    given = parse(arguments)
    jax.config.update("jax_compilation_cache_dir", str(Path(".cache/jax").absolute()))
    evaluate(
        given.checkpoint,
        given.dataset,
        protocol=given.protocol,
        seed=given.seed,
        out=given.out,
        max_tiles=given.max_tiles,
    )
    folder = given.out or f"{given.checkpoint}/report"
    print(f"\nnumbers and pictures are in {folder}; next: python -m experiments.report --workdir {given.checkpoint}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
