"""What the experts of a model tell apart on the tiles of a data set."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from experiments.run.tiles import Tiles
from input_pipeline import schema
from ringmoe_jax import models
from ringmoe_jax.evaluate.quicklook import paint, stretch, view
from ringmoe_jax.evaluate.specialisation import Choices, Specialisation, counter, specialisation
from ringmoe_jax.parallel import processes
from ringmoe_jax.run import Run
from ringmoe_jax.run.evaluation import MODALITY, SpecialisationRow
from ringmoe_jax.sensors import Sensor

LIKED = 6  # tiles of an expert that are shown


class Experts:
    """Mutual information of chosen experts with the labels of tiles and with the modality of tokens."""

    def __init__(self, run: Run, tiles: Tiles, seed: int):
        self.run, self.tiles, self.seed = run, tiles, seed
        self._choices: dict[str, Choices] = {}
        if models.read(run.config.model).has_experts:
            self._choices, self._labels, self._positions = self._count()

    @property
    def rows(self) -> list[SpecialisationRow]:
        """Numbers, by router group and kind."""
        name, rows = self.tiles.dataset.metadata.name, []
        for group, told in self._told.items():
            reached = int((self._choices[group].reach > 0).any(axis=(0, 1, 2)).sum())
            rows += [_row(name, group, kind, one, reached) for kind, one in told.items()]
        return rows

    @property
    def atlas(self) -> dict[str, tuple[int, list[list[np.ndarray]]]]:
        """{router group: (layer, from 1, and for every expert the tiles of which it got the largest share)}, of the
        layer that tells most of a kind."""
        atlas = {}
        for group, told in self._told.items():
            if told:
                layer = int(np.argmax(np.max([one.information for one in told.values()], axis=0)))
                atlas[group] = layer + 1, self._liked(self._choices[group].load[:, layer].sum(axis=1))
        return atlas

    def _count(self) -> tuple[dict[str, Choices], dict[str, np.ndarray], np.ndarray]:
        """Choices by router group that had tokens, labels, and positions in the split, of the scored tiles."""
        count = counter(self.run.model)

        def look(batch: Mapping) -> tuple[dict, dict, np.ndarray]:
            chosen = count(self.run.params, batch["sensors"])
            counted = (chosen, dict(batch.get("labels", {})), batch["index"])
            return jax.tree.map(lambda x: np.asarray(x)[batch["real"]], counted)

        found = list(processes.in_turn(map(look, self.tiles(self.tiles.scored))))
        choices, labels, positions = jax.tree.map(lambda *rows: np.concatenate(rows), *found)
        return {group: chosen for group, chosen in choices.items() if chosen.load.any()}, labels, positions

    @functools.cached_property
    def _told(self) -> dict[str, dict[str, Specialisation]]:
        return {group: dict(self._tell(chosen.load)) for group, chosen in self._choices.items()}

    def _tell(self, loads: np.ndarray) -> Iterator[tuple[str, Specialisation]]:
        """Of every label with one class a tile, and of modalities where several may choose the same experts."""
        for label, info in self.tiles.dataset.labels.items():
            if info.kind == schema.CLASSES:
                yield label, specialisation(loads.sum(axis=2), self._labels[label], self.seed)
        if ((loads.sum(axis=(0, 1)) > 0).sum(axis=0) > 1).any():
            count, layers, modalities, experts = loads.shape
            by_modality = loads.transpose(0, 2, 1, 3).reshape(count * modalities, layers, experts)
            yield MODALITY, specialisation(by_modality, np.tile(np.arange(modalities), count), self.seed)

    def _liked(self, loads: np.ndarray) -> list[list[np.ndarray]]:
        """Painted tiles for every expert, of loads [N, E]: those of which it got the largest share."""
        share = loads / np.maximum(loads.sum(axis=1, keepdims=True), 1)
        best = np.argsort(-share, axis=0, kind="stable")[:LIKED].T  # [E, tiles]
        positions, painted = self._positions[best], {}
        for batch in self.tiles.some({*positions.ravel().tolist()}):
            sensors = {name: self.run.parts.sensors[name] for name in batch["sensors"]}
            name = next((name for name, sensor in sensors.items() if _has_colours(sensor)), next(iter(sensors)))
            sensor, entry = sensors[name], batch["sensors"][name]
            for row in np.flatnonzero(batch["real"]):
                pixels, valid = view(sensor, np.asarray(entry["pixels"][row, 0]))[0], np.asarray(entry["valid"][row, 0])
                painted[int(batch["index"][row])] = paint(pixels, stretch(pixels, valid, sensor), valid)
        return [[painted[position] for position in of_expert] for of_expert in positions.tolist()]


def _has_colours(sensor: Sensor) -> bool:
    """Whether people recognise its images."""
    return {"red", "green", "blue"} <= {band.alias for band in sensor.bands}


def _row(dataset: str, group: str, kind: str, told: Specialisation, experts: int) -> SpecialisationRow:
    numbers = {name: tuple(np.asarray(value).tolist()) for name, value in told._asdict().items()}
    return SpecialisationRow(dataset=dataset, group=group, kind=kind, **numbers, experts=experts)
