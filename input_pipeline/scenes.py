"""Which larger image every sample was cut from, and where: `scenes.npz`, beside the records.

    SPLIT/names         [S] str, images or series, in the order in which they were cut
    SPLIT/origins       [N, 4] int32, by position in the split: scene (a row of names), first date, row and column of
                        the upper left pixel, in pixels of the data set's first sensor; -1 for a sample of its own
    SPLIT/LABEL/scene   [n] int32, where every object lies
    SPLIT/LABEL/rows    [n, 6 or 8] float32, `BOX` or `TRACK`: objects as a scene holds them, not as borders of tiles
                        clip them; in pixels of the label's sensor, dates counted from the first one of the series

Data sets of versions before this file are read without it.
"""

from __future__ import annotations

import array
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.schema import TRACK, Origin
from ringmoe_jax import files

SCENES = "scenes.npz"
ALONE = (-1, -1, -1, -1)  # origin of a sample that was not cut from anything


@dataclasses.dataclass(frozen=True)
class Scenes:
    """What the samples of a split were cut from, see the module's text.

    Attributes:
        names: [S] str.
        origins: [N, 4] int32.
        objects: by label the scenes [n] and the rows [n, 6 or 8].
    """

    names: np.ndarray
    origins: np.ndarray
    objects: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def joinable(self) -> bool:
        """Whether every sample is a part of a scene, and some scene has several of them."""
        return bool((self.origins[:, 0] >= 0).all()) and len(np.unique(self.origins[:, 0])) < len(self.origins)

    def rows(self, label: str, scene: int) -> np.ndarray | None:
        """Objects of a scene; None of a label that has none."""
        if label not in self.objects:
            return None
        where, rows = self.objects[label]
        return rows[where == scene]


class Writer:
    """Collects where samples come from, in the order in which they are read."""

    def __init__(self):
        self._splits: dict[str, _Split] = {}

    def add(self, split: str, origin: Origin | None) -> None:
        """The next sample of a split."""
        self._splits.setdefault(split, _Split()).add(origin)

    def save(self, directory: Path, shards: int) -> None:
        """Writes the file of a data set whose sample i of a split is in shard i modulo `shards`."""
        found = {split: kept.arrays(shards) for split, kept in self._splits.items()}
        arrays = {f"{split}/{name}": x for split, kept in found.items() for name, x in kept.items()}
        with open(directory / SCENES, "wb") as file:
            np.savez(file, **arrays)


class _Split:
    def __init__(self):
        self.names: dict[str, int] = {}
        self.origins = array.array("i")  # 4 a sample: data sets have millions
        self.objects: dict[str, list[np.ndarray]] = {}  # by label: the scene's number before every row
        self._read: set[tuple[int, int]] = set()  # scenes and dates whose objects are known

    def add(self, origin: Origin | None) -> None:
        if origin is None:
            self.origins.extend(ALONE)
            return
        scene = self.names.setdefault(origin.scene, len(self.names))
        self.origins.extend((scene, origin.date, origin.row, origin.column))
        if (scene, origin.date) in self._read:
            return
        self._read.add((scene, origin.date))
        for label, rows in origin.objects.items():
            rows = np.array(rows, np.float32)
            if rows.shape[1] == len(TRACK):
                rows[:, TRACK.index("date")] += origin.date
            self.objects.setdefault(label, []).append(np.insert(rows.astype(np.float64), 0, scene, axis=1))

    def arrays(self, shards: int) -> dict[str, np.ndarray]:
        origins = np.array(self.origins, np.int32).reshape(-1, len(ALONE))
        origins = np.concatenate([origins[shard::shards] for shard in range(shards)])
        found = {"names": np.array(list(self.names), str), "origins": origins}
        for label, several in self.objects.items():
            rows = np.concatenate(several)
            found |= {f"{label}/scene": rows[:, 0].astype(np.int32), f"{label}/rows": rows[:, 1:].astype(np.float32)}
        return found


def read(folder: Any, split: str) -> Scenes | None:
    """What the samples of a split were cut from; None where the data set does not say.

    Args:
        folder: of the data set, a path, local or `gs://`.
        split: that it has.

    Raises:
        DataError: the file is missing, or not what was written.
    """
    manifest = files.read_manifest(folder)
    if manifest is None or SCENES not in manifest:
        return None
    stored = np.load(io.BytesIO(files.checked_bytes(folder, SCENES, manifest)))
    own = {name.removeprefix(f"{split}/"): stored[name] for name in stored if name.startswith(f"{split}/")}
    labels = [name.removesuffix("/rows") for name in own if name.endswith("/rows")]
    objects = {label: (own[f"{label}/scene"], own[f"{label}/rows"]) for label in labels}
    return Scenes(own["names"], own["origins"], objects)
