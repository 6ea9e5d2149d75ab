"""Fixed random subsets of a split, for training and evaluation with few labels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from input_pipeline import example, schema
from input_pipeline.dataset import Dataset
from input_pipeline.records import Records
from ringmoe_jax.errors import ConfigError, DataError, nearest

SAMPLES, SCENES = "samples", "scenes"
_TILE = re.compile(r"(.+)/\d+/\d+")  # as tiles of a scene are called: its own id, then their left and upper pixel
_AT_ONCE = 64  # records in memory while labels are read


def subset(
    dataset: Dataset, split: str, fraction: float, label: str, seed: int, *, of: str = SAMPLES, max_bad: int = 0
) -> np.ndarray:
    """Chooses a share of a split: a pure function of the data set and these arguments.

    Of all n samples, or of the n of every class, the first max(1, round(fraction n)) of a random order are taken: a
    larger fraction holds the smaller ones (our choice). Of scenes, the tiles of the first so many are taken: those of
    one scene are alike, and a share of all tiles knows nearly every place.

    Args:
        dataset: whose split it is.
        split: name of the split.
        fraction: above 0, at most 1.
        label: of kind CLASSES: the share is taken of every class, and samples of unknown class are left out. "" takes
            it of all samples, and reads nothing.
        seed: 0 or more.
        of: "samples", or "scenes": what tiles were cut from, see `scene_of`; then there is no label.
        max_bad: broken records that are tolerated where labels are read; they are left out.

    Returns:
        Positions in the split, int64, ascending.

    Raises:
        ConfigError: the fraction is out of its range, or the label is not of classes.
        DataError: there is no such split, or a class has no sample in it.
    """
    size = dataset.size(split)
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction = {fraction}: wanted a share above 0, at most 1")
    rng = np.random.Generator(np.random.Philox(seed))
    if of == SCENES:
        _, scene = np.unique(read_scenes(dataset, split, max_bad), return_inverse=True)
        count = scene.max() + 1
        return np.flatnonzero(np.isin(scene, rng.permutation(count)[: max(1, round(fraction * count))]))
    groups = _by_class(dataset, split, label, max_bad) if label else [np.arange(size)]
    taken = [rng.permutation(group)[: max(1, round(fraction * len(group)))] for group in groups]
    return np.sort(np.concatenate(taken))


def _by_class(dataset: Dataset, split: str, label: str, max_bad: int) -> list[np.ndarray]:
    """Positions of the samples of every class."""
    kinds = {name: info.kind for name, info in dataset.labels.items()}
    if kinds.get(label) != schema.CLASSES:
        known = [name for name, kind in kinds.items() if kind == schema.CLASSES]
        raise ConfigError(f'"{label}" is no label of classes of {dataset.directory}: {nearest(label, known)}')
    classes, names = read_classes(dataset, split, label, max_bad), dataset.labels[label].names
    groups = [np.flatnonzero(classes == i) for i in range(len(names))]
    if empty := [name for name, group in zip(names, groups, strict=True) if not len(group)]:
        raise DataError(
            f'{dataset.directory}: no sample of "{split}" has the {label} "{empty[0]}" ({len(empty)} such classes): '
            'a share of every class needs one; set fraction_label = "", or leave the class out of the data set'
        )
    return groups


def read_classes(dataset: Dataset, split: str, label: str, max_bad: int = 0) -> np.ndarray:
    """The class of every sample of a split, -1 where unknown or the record is broken: [size] int64.

    Records are read once, one after the other.

    Args:
        dataset: an opened data set.
        split: name of the split.
        label: of kind CLASSES.
        max_bad: broken records that are tolerated.
    """
    classes, key = np.full(dataset.size(split), schema.UNLABELLED), f"labels/{label}"
    for position, values in _read(dataset, split, max_bad):
        for number in values.get(key, ()):
            classes[position] = number
    return classes


def read_scenes(dataset: Dataset, split: str, max_bad: int = 0) -> np.ndarray:
    """What every sample of a split was cut from, [size] str, see `scene_of`; "" where the record is broken.

    The arguments are those of `read_classes`.
    """
    scenes = np.full(dataset.size(split), "", object)
    for position, values in _read(dataset, split, max_bad):
        for name in values.get("id", ()):
            scenes[position] = scene_of(name.decode())
    return scenes.astype(str)


def scene_of(sample: str) -> str:
    """The scene that a sample was cut from, by its id; the id itself where it is no tile of one."""
    tile = _TILE.fullmatch(sample)
    return tile[1] if tile else sample


def _read(dataset: Dataset, split: str, max_bad: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Position and values of every record, one after the other; a broken one has none."""
    size = dataset.size(split)
    records = Records(dataset.directory, split, dataset.files[split], dataset.counts[split], max_bad=max_bad)
    for start in range(0, size, _AT_ONCE):
        payloads = records.read(range(start, min(start + _AT_ONCE, size)))
        for position, payload in enumerate(payloads, start):
            yield position, example.parse(payload or b"")
