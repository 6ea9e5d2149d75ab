"""Evaluates a checkpoint: probes beside baselines, masked reconstruction, locations, routing; tables and pictures.

Models see whole tiles, see `input_pipeline.evaluation`. The split "test" is scored where a data set has one: probes are
fitted on "train", choose their penalty on "validation" and are refitted on both. Else "validation" is scored, and the
penalty is chosen on a part of "train". Nothing is fitted on the split that is scored.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.run import data as run_data
from experiments.run import evaluation_output, probe
from experiments.run.data import TRAIN
from experiments.run.probe import Protocol
from input_pipeline.dataset import Dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.contracts import FUSED
from ringmoe_jax.evaluate import (
    baselines,
    bootstrap,
    features,
    likelihood,
    locations,
    quicklook,
    reconstruction,
    routing,
)
from ringmoe_jax.moe.statistics import RoutingStatistics
from ringmoe_jax.run import FEATURES, Run, results

BATCH = 32  # tiles
SHOWN = 3  # tiles in a figure
PLACES = 6  # tiles whose locations and frames are looked at
FRAMES = 24  # in a matrix of similarities, but at least those of one tile
MAX_TILES = 10_000  # of a split that are read
RESULT = "evaluation.json"


def evaluate(
    checkpoint: str,
    datasets: Sequence[str] = (),
    *,
    protocol: str = "all",
    fractions: Sequence[float] = (1.0,),
    draws: int = probe.DRAWS,
    split: str = "",
    without: Sequence[str] = (),
    seed: int = 0,
    out: str | None = None,
    max_tiles: int = MAX_TILES,
    brief: bool = False,
) -> dict[str, Any]:
    """Evaluates the newest checkpoint of a pre-training run.

    Args:
        checkpoint: folder of the run.
        datasets: folders; default those that the run was trained on, with the sensors that the model knows.
        protocol: "knn", "linear" or "all".
        fractions: shares of the labels that probes are fitted on, above 0, at most 1.
        draws: how many draws of each share below 1; see `ringmoe_jax.evaluate.probes.Probe`.
        split: the one to score; default "test" where a data set has one, else "validation".
        without: sensors that the model is not shown in that split: their pixels are taken for not observed.
        seed: of random baselines, inner splits, draws and the bootstrap.
        out: default `<checkpoint>/report`, or a folder in it for other data and splits than the default ones.
        max_tiles: the first so many tiles of a split are read.
        brief: only the model, without baselines beside its probes and without pictures.

    Returns:
        What `evaluation.json` holds; "probes" are those of the largest fraction, "few_labels" the others.

    Raises:
        UserError: no checkpoint, no such protocol, split or sensor, or data that the model cannot read.
    """
    rules = Protocol(protocol, tuple(sorted(set(fractions))), draws, split, tuple(without), seed)
    started = time.perf_counter()
    trained = Run.open(checkpoint, kinds=FEATURES)
    run_data.check_hidden(without, trained.sensors)
    report = Path(checkpoint) / "report"
    folder = Path(out) if out else results.folder_of(report, datasets, split, without)
    print(f"checkpoint  {checkpoint} at step {trained.step}, on {jax.devices()[0].device_kind}")
    parts = trained.parts
    inspect = reconstruction.inspector(parts.model, reconstruction.reconstructions(parts.objectives))
    random = None if brief else jax.device_put(baselines.random_params(parts.model, seed), jax.devices()[0])
    result = {"checkpoint": str(checkpoint), "step": trained.step, "protocol": rules.text, "seed": seed}
    result |= {"without": list(without), "datasets": [], "probes": [], "few_labels": [], "ranks": []}
    result |= {"reconstruction": [], "likelihood": [], "locations": [], "routing": {}}
    tokens: list[Mapping[str, RoutingStatistics]] = []
    strips: dict[tuple[str, str], list[quicklook.Strip]] = {}
    maps: dict[str, list[locations.Row]] = {}

    for dataset in run_data.open_for(trained, datasets):
        reader = _Reader(trained, dataset, rules, max_tiles)
        result["datasets"].append(_describe(trained, reader))
        means = reconstruction.training_means(parts.model, reader.objectives, trained.params, reader(TRAIN))
        encoders = probe.encoders(trained, random, partial(inspect, means=means), seed)
        collected = {name: features.collect(reader(name), encoders, max_tiles) for name in reader.splits}
        for found in probe.probe(dataset, collected, rules):
            result["probes" if found["fraction"] == rules.fractions[-1] else "few_labels"].append(found)
        result["ranks"] += probe.ranks(dataset, collected[reader.scored], rules)
        masked = _Masked(trained, reader, partial(inspect, trained.params, means=means), seed)
        result["reconstruction"] += masked.comparisons
        result["likelihood"] += masked.likelihoods
        tokens += masked.routing
        strips |= {(dataset.metadata.name, label): rows for label, rows in masked.strips.items() if rows}
        if not brief and (places := _places(trained, reader)):
            maps[dataset.metadata.name], numbers = _locations(reader, places)
            result["locations"].append(numbers)

    summary = routing.summarise(routing.add(tokens)) if tokens else {}
    result["routing"] = {name: dataclasses.asdict(group) for name, group in summary.items()}
    result |= {"modalities": _modalities(trained), "seconds": time.perf_counter() - started}
    result |= trained.describe()
    if not brief:
        evaluation_output.draw(folder, trained, result, summary, strips, maps)
    results.write(folder / RESULT, result)
    evaluation_output.show(result)
    return result


# ---- Data ---------------------------------------------------------------------------------------------


class _Reader:
    """Batches of one data set's splits as the model wants them, at most `max_tiles` tiles of each.

    Attributes:
        splits: that are read, the one that is scored last.
        scored: that one; what the protocol hides is hidden there.
        objectives: reconstructions of the sensors that are shown there.
    """

    def __init__(self, trained: Run, dataset: Dataset, protocol: Protocol, max_tiles: int):
        self.trained, self.dataset, self.protocol, self.max_tiles = trained, dataset, protocol, max_tiles
        self.splits, self.scored = protocol.splits(dataset), protocol.scored(dataset)
        objectives = reconstruction.reconstructions(trained.parts.objectives)
        self.objectives = {k: o for k, o in objectives.items() if o.sensor in protocol.shown(dataset)}

    def tiles(self, split: str) -> int:
        """Number of tiles that are read."""
        return min(self.dataset.size(split), self.max_tiles)

    def spread(self, count: int) -> set[int]:
        """Positions of some tiles to look at, spread over the split that is scored."""
        return set(np.linspace(0, self.tiles(self.scored) - 1, count).astype(int).tolist())

    def located(self) -> bool:
        """Whether the tiles that are scored come with coordinates."""
        batch = next(iter(self(self.scored)))
        return bool(np.isfinite(next(iter(batch["sensors"].values()))["location"]).any())

    def __call__(self, split: str, *, masked: bool = False) -> Iterable[Mapping]:
        size = min(BATCH, *map(self.tiles, self.splits))
        directory, sensors = self.dataset.directory, tuple(self.dataset.sensors)
        batches = EvalBatches.of(self.trained.data, directory, sensors, split=split, batch_size=size, masked=masked)
        hidden = self.protocol.without if split == self.scored else ()
        read = zip(batches, range(-(-self.tiles(split) // size)), strict=False)
        return (run_data.hide(batch, hidden) for batch, _ in read)


def _describe(trained: Run, reader: _Reader) -> dict[str, Any]:
    dataset = reader.dataset
    metadata = dataset.metadata
    notes = []
    for split in reader.splits:
        if reader.tiles(split) < dataset.size(split):
            notes.append(f"only the first {reader.tiles(split)} of {dataset.size(split)} tiles of {split} were read")
    for name in dataset.sensors:
        used, own = trained.parts.statistics[name], metadata.sensors[name]
        if own.mean is not None and _differ(used, dataset.statistics(name)):
            notes.append(f'the pixels of "{name}" are distributed differently than those the model was normalised with')
    if not reader.located():
        notes.append("tiles have no coordinates: overlapping ones count as independent, so intervals are too narrow")
    sentence = reader.protocol.sentence(dataset)
    print(f"data        {metadata.name}: {sentence}")
    for note in notes:
        print(f"note        {metadata.name}: {note}")
    return dataset.about() | {
        "split": reader.scored,
        "protocol": sentence,
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


# ---- Locations ----------------------------------------------------------------------------------------


def _places(trained: Run, reader: _Reader) -> list[locations.Place]:
    """Tiles spread over the split that is scored; none for a model without a fusion."""
    return locations.collect(trained.parts.model, trained.params, reader(reader.scored), reader.spread(PLACES))


def _locations(reader: _Reader, places: Sequence[locations.Place]) -> tuple[list[locations.Row], dict]:
    """What to draw of places, and the numbers: components, prototypes, similarity of frames."""
    rows, explained = locations.rows(places, reader.dataset.sensors)
    frames = [(place.index, frame) for place in places for frame in place.frames]
    indices = [index for index, _ in frames]
    similarity = locations.cosines(np.stack([frame.vector for _, frame in frames]))
    agreement = locations.agreement(similarity, indices, [frame.sensor for _, frame in frames])
    ends = np.cumsum([len(place.frames) for place in places])
    drawn = max(ends[0], *ends[ends <= FRAMES], 0)
    return rows, {
        "dataset": reader.dataset.metadata.name,
        "tiles": [
            {"index": p.index, "region": p.region, "used": locations.used(p), "offered": p.offered} for p in places
        ],
        "explained": explained,
        "lattice": dict(zip(("share", "period"), locations.lattice([p.fused for p in places]), strict=True)),
        "frames": len(frames),
        "labels": [frame.label for _, frame in frames[:drawn]],
        "places": indices[:drawn],
        "similarity": similarity[:drawn, :drawn],
        "agreement": [dataclasses.asdict(row) for row in agreement],
    }


# ---- Masked passes ------------------------------------------------------------------------------------


def _modalities(trained: Run) -> tuple[str, ...]:
    """Names along M of the model's routing statistics: a fusion routes by sensor, and its own token as the first."""
    sensors = trained.parts.sensors
    return (FUSED, *sensors) if FUSED in trained.parts.model.streams else sensor_table.modalities(sensors)


class _Masked:
    """Masked passes over the tiles of a data set: losses, likelihoods, routing statistics and tiles to show.

    Of a run without masks there are only routing statistics, of tiles that are seen whole.
    """

    def __init__(self, trained: Run, reader: _Reader, inspect, seed: int):
        self.trained, self.reader, self.inspect, self.objectives = trained, reader, inspect, reader.objectives
        self.comparisons: list[dict] = []
        self.likelihoods: list[dict] = []
        self.routing: list[Mapping[str, RoutingStatistics]] = []
        self.strips: dict[str, list[quicklook.Strip]] = {label: [] for label in self.objectives}
        if not trained.config.data.mask_unit:
            self._route()
            return
        found, groups = self._run(reader.scored)
        train, _ = self._run(TRAIN) if any("nats" in sums for sums in found.values()) else (None, None)
        for label, objective in self.objectives.items():
            where = {"dataset": reader.dataset.metadata.name, "objective": label, "sensor": objective.sensor}
            comparison = reconstruction.compare(found[label], groups, seed=seed)
            self.comparisons.append(where | dataclasses.asdict(comparison))
            if "nats" in found[label]:
                held_out = likelihood.held_out(objective, train[label], found[label], groups, seed=seed)
                unit = reader.dataset.sensors[objective.sensor].unit
                self.likelihoods.append(where | {"unit": unit} | dataclasses.asdict(held_out))

    def _run(self, split: str) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
        """{label: what `reconstruction.inspector` sums of every tile}, and the block of every tile."""
        reader, rows, location = self.reader, [], []
        shown = reader.spread(SHOWN)
        for batch in reader(split, masked=True):
            seen = self.inspect({"sensors": batch["sensors"]})
            rows.append(jax.tree.map(lambda x, real=batch["real"]: np.asarray(x)[real], seen["sums"]))
            location.append(next(iter(batch["sensors"].values()))["location"][batch["real"]])
            if split == TRAIN:
                continue
            if batch["real"].all() or not self.routing:  # tokens of filled-up tiles would count as well
                self.routing.append(jax.device_get(seen["routing"]))
            for row, index in enumerate(batch["index"]):
                if int(index) in shown:
                    self._paint(batch, seen, row, int(index))
        joined = jax.tree.map(lambda *x: np.concatenate(x), *rows)
        return joined, bootstrap.blocks(np.concatenate(location))

    def _route(self) -> None:
        for batch in self.reader(self.reader.scored):
            routing = self.inspect(reconstruction.unmasked(batch, 1))["routing"]
            if not routing:
                return
            if batch["real"].all() or not self.routing:
                self.routing.append(jax.device_get(routing))

    def _paint(self, batch: Mapping, seen: Mapping, row: int, index: int) -> None:
        parts = self.trained.parts
        for label, objective in {(o.sensor, o.head): (k, o) for k, o in self.objectives.items()}.values():
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
