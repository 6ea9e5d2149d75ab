"""What the experts of a model tell apart on the tiles of a data set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from experiments.run.tiles import Tiles
from input_pipeline import schema
from ringmoe_jax import models
from ringmoe_jax.evaluate.quicklook import paint, stretch, view
from ringmoe_jax.evaluate.specialisation import Specialisation, counter, specialisation
from ringmoe_jax.run import Run
from ringmoe_jax.run.evaluation import MODALITY, SpecialisationRow

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
        for group, loads in self._loads.items():
            told = dict(self._told(group, loads, tiles, seed))
            self.rows += [_row(tiles.dataset.metadata.name, group, kind, one, loads) for kind, one in told.items()]
            if told:
                layer = int(np.argmax(np.max([one.information for one in told.values()], axis=0)))
                self.atlas[group] = layer + 1, self._liked(run, tiles, loads[:, layer].sum(axis=1))

    def _count(self, run: Run, tiles: Tiles) -> None:
        """Choices [N, L, M, E] by router group, and labels, of the scored tiles."""
        count, loads, labels = counter(run.model), [], []
        for batch in tiles(tiles.scored):
            chosen = count(run.params, batch["sensors"])
            loads.append({group: np.asarray(x)[batch["real"]] for group, x in chosen.items()})
            labels.append({name: np.asarray(x)[batch["real"]] for name, x in batch.get("labels", {}).items()})
        join = lambda parts: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}  # noqa: E731
        self._loads, self._labels = join(loads), join(labels)

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
            name, entry = next(iter(batch["sensors"].items()))
            sensor = run.parts.sensors[name]
            for row in np.flatnonzero(batch["real"]):
                if first + row in wanted:
                    pixels, valid = view(sensor, np.asarray(entry["pixels"][row, 0]))[0], entry["valid"][row, 0]
                    painted[first + row] = paint(pixels, stretch(pixels, np.asarray(valid), sensor), np.asarray(valid))
            first += int(batch["real"].sum())
        return [[painted[i] for i in indices] for indices in best]


def _row(dataset: str, group: str, kind: str, told: Specialisation, loads: np.ndarray) -> SpecialisationRow:
    numbers = {name: tuple(np.asarray(value).tolist()) for name, value in told._asdict().items()}
    return SpecialisationRow(dataset=dataset, group=group, kind=kind, **numbers, experts=loads.shape[-1])
