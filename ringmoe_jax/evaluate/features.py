"""Frozen features of a split, one row a tile, from any number of encoders in one pass over the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np

from ringmoe_jax.evaluate.bootstrap import blocks

# Maps {"sensors": ...} of a batch to {sensor: [B, D]}.
Encoder = Callable[[Mapping], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Features:
    """N tiles of a split.

    Attributes:
        values: {encoder: {sensor: [N, D] float32}}.
        observed: {sensor: [N] bool}, whether the tile has a valid pixel of the sensor.
        labels: {label: [N, ...]}, as the data set stores them.
        groups: [N] int64, spatial block of each tile; see `bootstrap.blocks`.
    """

    values: dict[str, dict[str, np.ndarray]]
    observed: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    groups: np.ndarray

    def joined(self, encoder: str, sensors: Sequence[str]) -> np.ndarray:
        """Features of several sensors side by side, [N, sum of D]."""
        return np.concatenate([self.values[encoder][sensor] for sensor in sensors], axis=1)


def collect(batches: Iterable[Mapping], encoders: Mapping[str, Encoder], limit: int | None = None) -> Features:
    """Runs every encoder over the batches, each read once.

    Args:
        batches: as `ringmoe_jax.contracts` describes them, of co-registered sensors, with "labels" and
            "real" [B] bool where batches are filled up.
        encoders: by name.
        limit: tiles to read at most; None reads all.
    """
    values, observed, labels, location, count = {name: [] for name in encoders}, [], [], [], 0
    for batch in batches:
        first = next(iter(batch["sensors"].values()))
        real = np.asarray(batch.get("real", np.ones(len(first["pixels"]), bool)))
        if limit is not None:
            real = real & (count + np.cumsum(real) <= limit)
        keep = lambda tree, real=real: jax.tree.map(lambda x: np.asarray(x)[real], tree)  # noqa: E731
        for name, encoder in encoders.items():
            values[name].append(keep(dict(encoder({"sensors": batch["sensors"]}))))
        observed.append(keep({s: np.any(e["valid"], axis=(1, 2, 3)) for s, e in batch["sensors"].items()}))
        labels.append(keep(dict(batch.get("labels", {}))))
        location.append(keep(first.get("location", np.full((len(real), 2), np.nan))))
        count += int(real.sum())
        if limit is not None and count >= limit:
            break
    return Features(
        {name: _join(rows) for name, rows in values.items()},
        _join(observed),
        _join(labels),
        blocks(np.concatenate(location)),
    )


def _join(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
