"""What a model makes of tiles of which it sees a part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from experiments.reports.evaluation import Strips
from experiments.run.data import TRAIN
from experiments.run.tiles import Tiles
from ringmoe_jax.evaluate import bootstrap, likelihood, quicklook, reconstruction
from ringmoe_jax.moe.statistics import RoutingStatistics
from ringmoe_jax.parallel import processes
from ringmoe_jax.run import Run
from ringmoe_jax.run.evaluation import ComparisonRow, LikelihoodRow

SHOWN = 3  # tiles in a figure


class _Seen(NamedTuple):
    """What was made of a batch.

    Attributes:
        sums: of `reconstruction.inspector`, of its real tiles.
        location: of these, [n, 2].
        routing: statistics of the routers.
        whole: whether no tile fills it up.
        strips: painted tiles, by objective.
    """

    sums: Mapping[str, Mapping[str, np.ndarray]]
    location: np.ndarray
    routing: Mapping[str, RoutingStatistics]
    whole: bool
    strips: Sequence[list[quicklook.Strip]] = ()


class Masked:
    """Masked passes over the tiles of a data set: losses, likelihoods, routing statistics and tiles to show.

    Of a run without masks there are only routing statistics, of tiles that are seen whole.

    Attributes:
        routing: statistics of the routers, a batch each.
        strips: tiles to show, by objective.
    """

    def __init__(self, run: Run, tiles: Tiles, inspect: Callable[[Mapping], dict], seed: int):
        self.run, self.tiles, self.inspect, self.seed = run, tiles, inspect, seed
        self.routing: list[Mapping[str, RoutingStatistics]] = []
        objectives = tiles.objectives
        painted = {(o.sensor, o.head): label for label, o in objectives.items()}.values()
        name = tiles.dataset.metadata.name
        self.strips = [Strips(name, label, objectives[label].sensor, tiles.ground, []) for label in painted]
        self._scored, self._groups, self._fitted = {}, np.zeros(0), {}
        if run.config.data.mask_unit:
            self._scored, self._groups = self._sums(tiles.scored)
            if any("nats" in sums for sums in self._scored.values()):
                self._fitted, _ = self._sums(TRAIN)
        else:
            self._route()

    @property
    def comparisons(self) -> list[ComparisonRow]:
        """Masked losses beside trivial predictors."""
        compare = partial(reconstruction.compare, groups=self._groups, seed=self.seed)
        return [ComparisonRow(**vars(compare(sums)), **self._where(label)) for label, sums in self._scored.items()]

    @property
    def likelihoods(self) -> list[LikelihoodRow]:
        """Of hidden pixels."""
        rows, dataset = [], self.tiles.dataset
        for label, sums in self._scored.items():
            if "nats" in sums:
                objective = self.tiles.objectives[label]
                told = likelihood.held_out(objective, self._fitted[label], sums, self._groups, seed=self.seed)
                unit = dataset.sensors[objective.sensor].unit
                rows.append(LikelihoodRow(**vars(told), **self._where(label), unit=unit))
        return rows

    def _where(self, label: str) -> dict[str, str]:
        sensor = self.tiles.objectives[label].sensor
        return {"dataset": self.tiles.dataset.metadata.name, "objective": label, "sensor": sensor}

    def _sums(self, split: str) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
        """{label: what `reconstruction.inspector` sums of every tile}, and the block of every tile."""
        found = []
        for seen in processes.in_turn(map(partial(self._look, split), self.tiles(split, masked=True))):
            found.append((seen.sums, seen.location))
            if split != TRAIN:
                self._count(seen)
                for strips, painted in zip(self.strips, seen.strips, strict=True):
                    strips.rows.extend(painted)
        sums, location = jax.tree.map(lambda *x: np.concatenate(x), *found)
        return {label: sums[label] for label in self.tiles.objectives}, bootstrap.blocks(location)

    def _look(self, split: str, batch: Mapping) -> _Seen:
        seen, real = self.inspect({"sensors": batch["sensors"]}), batch["real"]
        sums = jax.tree.map(lambda x: np.asarray(x)[real], seen["sums"])
        location = next(iter(batch["sensors"].values()))["location"][real]
        if split == TRAIN:
            return _Seen(sums, location, {}, real.all())
        shown = np.flatnonzero(np.isin(batch["index"], [*self.tiles.spread(SHOWN)])).tolist()
        strips = [[self._painted(strips, batch, seen, row) for row in shown] for strips in self.strips]
        return _Seen(sums, location, jax.device_get(seen["routing"]), real.all(), strips)

    def _route(self) -> None:
        def look(batch: Mapping) -> _Seen:
            routing = self.inspect(reconstruction.unmasked(batch, 1))["routing"]
            return _Seen({}, np.zeros(0), jax.device_get(routing), batch["real"].all())

        for seen in processes.in_turn(map(look, self.tiles(self.tiles.scored))):
            if not seen.routing:
                return
            self._count(seen)

    def _count(self, seen: _Seen) -> None:
        if seen.whole or not self.routing:  # tokens of filled-up tiles would count as well
            self.routing.append(seen.routing)

    def _painted(self, strips: Strips, batch: Mapping, seen: Mapping, row: int) -> quicklook.Strip:
        parts, label = self.run.parts, strips.objective
        entry, sensor = batch["sensors"][strips.sensor], parts.sensors[strips.sensor]
        tile = quicklook.Tile(
            int(batch["index"][row]),
            np.asarray(entry["pixels"][row, 0]),
            np.asarray(entry["valid"][row, 0]),
            np.asarray(entry["mask"][row]),
            np.asarray(seen["targets"][label][row, 0]),
            np.asarray(seen["predictions"][label][row, 0]),
        )
        statistics = parts.statistics.get(strips.sensor, sensor.statistics)
        return quicklook.strip(sensor, statistics, self.tiles.objectives[label], tile)
