"""Frozen features of a split, one row a tile, from any number of encoders in one pass over the data."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np

from ringmoe_jax.contracts import moments_of_cells
from ringmoe_jax.evaluate.bootstrap import blocks
from ringmoe_jax.parallel import processes

# Maps {"sensors": ...} of a batch to {sensor: [B, D]}, and {"<sensor>, stage <i>": [B, D_i]} where it gives stages.
Encoder = Callable[[Mapping], Mapping[str, np.ndarray]]
# Levels of features beside the single stages.
POOLED, JOINED, SPREAD = "pooled", "all stages", "all stages and their spread"


@dataclasses.dataclass(frozen=True)
class Features:
    """N tiles of a split.

    Attributes:
        values: {encoder: {sensor: [N, D] float32}}; stages under the names that `at` gives.
        observed: {sensor: [N] bool}, whether the tile has a valid pixel of the sensor.
        labels: {label: [N, ...]}, as the data set stores them.
        groups: [N] int64, spatial block of each tile; see `bootstrap.blocks`.
    """

    values: dict[str, dict[str, np.ndarray]]
    observed: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    groups: np.ndarray

    def levels(self, encoder: str, sensors: Sequence[str]) -> list[str]:
        """What `joined` gives of an encoder: "pooled", every stage that all these sensors have, and all of them."""
        stages = [stage(i) for i in range(self._stages(encoder, sensors))]
        return [POOLED, *stages, *[JOINED] * (len(stages) > 1), *[SPREAD] * bool(stages)]

    def _stages(self, encoder: str, sensors: Sequence[str]) -> int:
        """How many stages all these sensors have."""
        has = lambda i: all(at(sensor, stage(i)) in self.values[encoder] for sensor in sensors)  # noqa: E731
        return next(i for i in itertools.count() if not has(i))

    def joined(self, encoder: str, sensors: Sequence[str], level: str = POOLED) -> np.ndarray:
        """Features of several sensors, and of all stages for levels of all, side by side, [N, sum of D].

        Probes z-score every channel on the tiles that they fit, so that no stage outweighs another by its scale.
        """
        parts = [level]
        if level in (JOINED, SPREAD):
            moments = (stage, spread) if level == SPREAD else (stage,)
            parts = [moment(i) for moment in moments for i in range(self._stages(encoder, sensors))]
        return np.concatenate([self.values[encoder][at(sensor, part)] for part in parts for sensor in sensors], axis=1)


def stage(index: int) -> str:
    """Name of a stage; that of index 0 is "stage 1", the finest."""
    return f"stage {index + 1}"


def spread(index: int) -> str:
    """Name of the spread of a stage's cells."""
    return f"spread {index + 1}"


def at(kind: str, level: str) -> str:
    """Name of features of a sensor, or of a fusion, at a level: "rgb" where they are pooled, else "rgb, stage 2"."""
    return kind if level == POOLED else f"{kind}, {level}"


def stage_moments(outputs: Mapping, batch: Mapping) -> dict[str, jax.Array]:
    """Mean and standard deviation over the valid cells of every stage and sensor, [B, D_i] float32.

    Named "<sensor>, stage <i>" and "<sensor>, spread <i>". How much a channel varies within a tile tells textures
    apart that are alike in their mean (our choice).

    Args:
        outputs: of the model.
        batch: that it was shown; a tile without valid cells is 0.
    """
    moments = {}
    for name, maps in outputs["stages"].items():
        valid = batch["sensors"][name]["valid"]
        for i, cells in enumerate(maps):
            mean, deviation = moments_of_cells(cells, valid)
            moments |= {at(name, stage(i)): mean, at(name, spread(i)): deviation}
    return moments


def collect(batches: Iterable[Mapping], encoders: Mapping[str, Encoder], limit: int | None = None) -> Features:
    """Runs every encoder over the batches, each read once.

    Args:
        batches: as `ringmoe_jax.contracts` describes them, of co-registered sensors, with "labels" and
            "real" [B] bool where batches are filled up; of several processes each gives its `processes.turns`.
        encoders: by name.
        limit: tiles to read at most; None reads all.
    """

    def look(batch: Mapping) -> tuple[dict[str, dict], dict, dict, np.ndarray]:
        first = next(iter(batch["sensors"].values()))
        real = np.asarray(batch.get("real", np.ones(len(first["pixels"]), bool)))
        keep = lambda tree: jax.tree.map(lambda x: np.asarray(x)[real], tree)  # noqa: E731
        values = {name: dict(encoder({"sensors": batch["sensors"]})) for name, encoder in encoders.items()}
        observed = {s: np.any(e["valid"], axis=(1, 2, 3)) for s, e in batch["sensors"].items()}
        location = first.get("location", np.full((len(real), 2), np.nan))
        return keep((values, observed, dict(batch.get("labels", {})), location))

    found, count = [], 0
    for tiles in processes.in_turn(map(look, batches)):
        found.append(tiles)
        count += len(tiles[-1])
        if limit is not None and count >= limit:
            break
    values, observed, labels, location = jax.tree.map(lambda *rows: np.concatenate(rows)[:limit], *found)
    return Features({name: values[name] for name in encoders}, observed, labels, blocks(location))
