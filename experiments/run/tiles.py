"""The tiles of a data set that an evaluation reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from experiments.run import data as run_data
from experiments.run.probe import Protocol
from input_pipeline.dataset import Dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax.evaluate import reconstruction
from ringmoe_jax.parallel import processes
from ringmoe_jax.run import Run
from ringmoe_jax.run.evaluation import EvaluatedData, SensorSummary
from ringmoe_jax.sensors import Statistics

BATCH = 32  # tiles


class Tiles:
    """Batches of one data set's splits as the model wants them, at most `max_tiles` tiles of each.

    Attributes:
        splits: that are read, the one that is scored last.
        scored: that one; what the protocol hides is hidden there.
        objectives: reconstructions of the sensors that are shown there.
        ground: metres across a tile as it is shown.
    """

    def __init__(self, run: Run, dataset: Dataset, protocol: Protocol, max_tiles: int):
        self.run, self.dataset, self.protocol, self.max_tiles = run, dataset, protocol, max_tiles
        self.splits, self.scored = protocol.splits(dataset), protocol.scored(dataset)
        objectives = reconstruction.reconstructions(run.parts.objectives)
        self.objectives = {k: o for k, o in objectives.items() if o.sensor in protocol.shown(dataset)}
        self.ground = self._batches(self.scored, masked=False).ground

    def count(self, split: str) -> int:
        """Number of tiles that are read."""
        return min(self.dataset.size(split), self.max_tiles)

    def spread(self, count: int) -> set[int]:
        """Positions of some tiles to look at, spread over the split that is scored."""
        return set(np.linspace(0, self.count(self.scored) - 1, count).astype(int).tolist())

    def __call__(self, split: str, *, masked: bool = False) -> Iterable[Mapping]:
        """Those that are this process's turn, see `processes.in_turn`: the ones that a process by itself would see."""
        own = processes.turns(-(-self.count(split) // self._size))
        batches = self._batches(split, masked, host=processes.number(), hosts=processes.count())
        return (self._shown(batch, split) for _, batch in zip(own, batches, strict=False))

    def some(self, positions: Collection[int]) -> Iterable[Mapping]:
        """Batches of some tiles of the split that is scored, all of them."""
        batches = self._batches(self.scored, masked=False, positions=np.array(sorted(positions)))
        return (self._shown(batch, self.scored) for batch in batches)

    def _shown(self, batch: Mapping, split: str) -> Mapping:
        return run_data.hide(batch, self.protocol.without if split == self.scored else ())

    @property
    def _size(self) -> int:
        return min(BATCH, *map(self.count, self.splits))

    def _batches(self, split: str, masked: bool, **which: Any) -> EvalBatches:
        directory, sensors = self.dataset.directory, tuple(self.dataset.sensors)
        shown = dict(split=split, batch_size=self._size, masked=masked)
        return EvalBatches.of(self.run.data, directory, sensors, **shown, **which)

    def describe(self) -> EvaluatedData:
        """The data set in words; prints them."""
        dataset, name, shown = self.dataset, self.dataset.metadata.name, self.dataset.metadata.sensors
        sentence, notes = self.protocol.sentence(dataset), tuple(self._notes())
        print(f"data        {name}: {sentence}")
        for note in notes:
            print(f"note        {name}: {note}")
        return EvaluatedData(
            **dataset.about(),
            split=self.scored,
            protocol=sentence,
            sensors={
                key: SensorSummary(
                    bands=sensor.band_names,
                    unit=sensor.unit,
                    gsd=shown[key].gsd,
                    shape=tuple(dataset.shape(key)),
                    simulated=shown[key].simulated,
                )
                for key, sensor in dataset.sensors.items()
            },
            labels={label: info.description for label, info in dataset.labels.items()},
            notes=notes,
        )

    def _notes(self) -> Iterable[str]:
        dataset = self.dataset
        for split in self.splits:
            if self.count(split) < dataset.size(split):
                yield f"only the first {self.count(split)} of {dataset.size(split)} tiles of {split} were read"
        for name in dataset.sensors:
            if dataset.metadata.sensors[name].mean is not None and _differ(
                self.run.parts.statistics[name], dataset.statistics(name)
            ):
                yield f'the pixels of "{name}" are distributed differently than those the model was normalised with'
            if name in self.run.unseen:
                yield f'"{name}" was {self.run.unseen[name]}'
        first = next(iter(self(self.scored)))
        if not np.isfinite(next(iter(first["sensors"].values()))["location"]).any():
            yield "tiles have no coordinates: overlapping ones count as independent, so intervals are too narrow"


def _differ(used: Statistics, own: Statistics) -> bool:
    """Whether a band's mean lies half a deviation off, or its deviation is off by a factor of two (our choice)."""
    shift = np.abs(np.subtract(used.mean, own.mean)) / np.asarray(used.std)
    ratio = np.divide(own.std, used.std)
    return bool((shift > 0.5).any() or (ratio > 2).any() or (ratio < 0.5).any())
