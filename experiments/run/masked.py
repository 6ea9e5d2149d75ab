"""What a model makes of tiles of which it sees a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from experiments.reports.evaluation import Strips
from experiments.run.data import TRAIN
from experiments.run.tiles import Tiles
from ringmoe_jax.evaluate import bootstrap, likelihood, quicklook, reconstruction
from ringmoe_jax.moe.statistics import RoutingStatistics
from ringmoe_jax.run import Run
from ringmoe_jax.run.evaluation import ComparisonRow, LikelihoodRow

SHOWN = 3  # tiles in a figure


class Masked:
    """Masked passes over the tiles of a data set: losses, likelihoods, routing statistics and tiles to show.

    Of a run without masks there are only routing statistics, of tiles that are seen whole.

    Attributes:
        comparisons: masked losses beside trivial predictors.
        likelihoods: of hidden pixels.
        routing: statistics of the routers, a batch each.
        strips: tiles to show, by objective.
    """

    def __init__(self, run: Run, tiles: Tiles, inspect: Callable[[Mapping], dict], seed: int):
        self.run, self.tiles, self.inspect, self.objectives = run, tiles, inspect, tiles.objectives
        self.comparisons: list[ComparisonRow] = []
        self.likelihoods: list[LikelihoodRow] = []
        self.routing: list[Mapping[str, RoutingStatistics]] = []
        painted = {(o.sensor, o.head): label for label, o in self.objectives.items()}.values()
        name = tiles.dataset.metadata.name
        self.strips = [Strips(name, label, self.objectives[label].sensor, tiles.ground, []) for label in painted]
        if run.config.data.mask_unit:
            self._compare(seed)
        else:
            self._route()

    def _compare(self, seed: int) -> None:
        dataset = self.tiles.dataset
        scored, groups = self._sums(self.tiles.scored)
        fitted = self._sums(TRAIN)[0] if any("nats" in sums for sums in scored.values()) else {}
        for label, objective in self.objectives.items():
            where = {"dataset": dataset.metadata.name, "objective": label, "sensor": objective.sensor}
            comparison = reconstruction.compare(scored[label], groups, seed=seed)
            self.comparisons.append(ComparisonRow(**vars(comparison), **where))
            if "nats" in scored[label]:
                held_out = likelihood.held_out(objective, fitted[label], scored[label], groups, seed=seed)
                unit = dataset.sensors[objective.sensor].unit
                self.likelihoods.append(LikelihoodRow(**vars(held_out), **where, unit=unit))

    def _sums(self, split: str) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
        """{label: what `reconstruction.inspector` sums of every tile}, and the block of every tile."""
        tiles, rows, location = self.tiles, [], []
        shown = tiles.spread(SHOWN)
        for batch in tiles(split, masked=True):
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
        for batch in self.tiles(self.tiles.scored):
            statistics = self.inspect(reconstruction.unmasked(batch, 1))["routing"]
            if not statistics:
                return
            if batch["real"].all() or not self.routing:
                self.routing.append(jax.device_get(statistics))

    def _paint(self, batch: Mapping, seen: Mapping, row: int, index: int) -> None:
        parts = self.run.parts
        for strips in self.strips:
            entry, sensor = batch["sensors"][strips.sensor], parts.sensors[strips.sensor]
            tile = quicklook.Tile(
                index,
                np.asarray(entry["pixels"][row, 0]),
                np.asarray(entry["valid"][row, 0]),
                np.asarray(entry["mask"][row]),
                np.asarray(seen["targets"][strips.objective][row, 0]),
                np.asarray(seen["predictions"][strips.objective][row, 0]),
            )
            statistics = parts.statistics.get(strips.sensor, sensor.statistics)
            strip = quicklook.strip(sensor, statistics, self.objectives[strips.objective], tile)
            strips.rows.append(strip)
