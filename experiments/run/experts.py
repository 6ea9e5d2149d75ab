"""What the experts of a model tell apart on the tiles of a data set."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from experiments.run.tiles import Tiles
from input_pipeline import schema
from ringmoe_jax import models
from ringmoe_jax.evaluate.quicklook import paint, stretch, view
from ringmoe_jax.evaluate.specialisation import Specialisation, counter, specialisation
from ringmoe_jax.run import Run
from ringmoe_jax.run.evaluation import MODALITY, SpecialisationRow
from ringmoe_jax.sensors import Sensor

LIKED = 6  # tiles of an expert that are shown


class Experts:
    """Mutual information of chosen experts with the labels of tiles and with the modality of tokens.

    Attributes:
        rows: numbers, by router group and kind.
        atlas: {router group: (layer, from 1, and for every expert the tiles of which it got the largest share)}, of the
            layer that tells most of a kind.
    """

    def __init__(self, run: Run, tiles: Tiles, seed: int):
        self.rows: list[SpecialisationRow] = []
        self.atlas: dict[str, tuple[int, list[list[np.ndarray]]]] = {}
        if not models.read(run.config.model).has_experts:
            return
        self._count(run, tiles)
        for group, (loads, reach) in self._choices.items():
            reached = int((reach > 0).any(axis=(0, 1, 2)).sum())
            told = dict(self._told(group, loads, tiles, seed))
            self.rows += [_row(tiles.dataset.metadata.name, group, kind, one, reached) for kind, one in told.items()]
            if told:
                layer = int(np.argmax(np.max([one.information for one in told.values()], axis=0)))
                self.atlas[group] = layer + 1, self._liked(run, tiles, loads[:, layer].sum(axis=1))

    def _count(self, run: Run, tiles: Tiles) -> None:
        """Choices by router group, and labels, of the scored tiles."""
        count, choices, labels = counter(run.model), [], []
        for batch in tiles(tiles.scored):
            chosen = count(run.params, batch["sensors"])
            choices.append(jax.tree.map(lambda x, real=batch["real"]: np.asarray(x)[real], chosen))
            labels.append({name: np.asarray(x)[batch["real"]] for name, x in batch.get("labels", {}).items()})
        join = lambda parts: jax.tree.map(lambda *rows: np.concatenate(rows), *parts)  # noqa: E731
        self._choices, self._labels = join(choices), join(labels)

    def _told(self, group: str, loads: np.ndarray, tiles: Tiles, seed: int) -> Iterator[tuple[str, Specialisation]]:
        """Of every label with one class a tile, and of modalities where several may choose the same experts."""
        for label, info in tiles.dataset.labels.items():
            if info.kind == schema.CLASSES:
                yield label, specialisation(loads.sum(axis=2), self._labels[label], seed)
        if ((loads.sum(axis=(0, 1)) > 0).sum(axis=0) > 1).any():
            count, layers, modalities, experts = loads.shape
            by_modality = loads.transpose(0, 2, 1, 3).reshape(count * modalities, layers, experts)
            yield MODALITY, specialisation(by_modality, np.tile(np.arange(modalities), count), seed)

    def _liked(self, run: Run, tiles: Tiles, loads: np.ndarray) -> list[list[np.ndarray]]:
        """Painted tiles for every expert, of loads [N, E]: those of which it got the largest share."""
        share = loads / np.maximum(loads.sum(axis=1, keepdims=True), 1)
        best = [np.argsort(-share[:, expert], kind="stable")[:LIKED].tolist() for expert in range(share.shape[1])]
        wanted, painted, first = {i for tiles_ in best for i in tiles_}, {}, 0
        for batch in tiles(tiles.scored):
            sensors = {name: run.parts.sensors[name] for name in batch["sensors"]}
            name = next((name for name, sensor in sensors.items() if _has_colours(sensor)), next(iter(sensors)))
            sensor, entry = sensors[name], batch["sensors"][name]
            for row in np.flatnonzero(batch["real"]):
                if first + row in wanted:
                    pixels, valid = view(sensor, np.asarray(entry["pixels"][row, 0]))[0], entry["valid"][row, 0]
                    painted[first + row] = paint(pixels, stretch(pixels, np.asarray(valid), sensor), np.asarray(valid))
            first += int(batch["real"].sum())
        return [[painted[i] for i in indices] for indices in best]


def _has_colours(sensor: Sensor) -> bool:
    """Whether people recognise its images."""
    return {"red", "green", "blue"} <= {band.alias for band in sensor.bands}


def _row(dataset: str, group: str, kind: str, told: Specialisation, experts: int) -> SpecialisationRow:
    numbers = {name: tuple(np.asarray(value).tolist()) for name, value in told._asdict().items()}
    return SpecialisationRow(dataset=dataset, group=group, kind=kind, **numbers, experts=experts)
