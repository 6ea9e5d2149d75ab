"""Probes of a checkpoint's frozen features beside baselines: which tiles fit, which choose, which are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from experiments.run import data as run_data
from experiments.run.data import TRAIN, VALIDATION
from input_pipeline import schema
from input_pipeline.dataset import Dataset
from ringmoe_jax.contracts import FUSED
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.evaluate import baselines, bootstrap, features, probes, reconstruction
from ringmoe_jax.evaluate.rank import rankme
from ringmoe_jax.models import Params
from ringmoe_jax.models.geo_context import BANK
from ringmoe_jax.run import Run
from ringmoe_jax.run.evaluation import BASELINES, FEW_LABELS, PLAIN, TRAINED, ProbeRow, RankRow

PROTOCOLS = ("knn", "linear", "all")
STAGES = "stages"
FEATURES = (features.POOLED, STAGES)
NEIGHBOURS = (5, 20)
DRAWS = 5  # of shares of the labels
TEXT = (
    "Frozen features: the mean token of each sensor, all cells visible, and of a fusion where there is one; "
    "where stages are asked for, also the mean over valid cells of every stage, all stages side by side, and these "
    "with the standard deviation over cells beside the mean. "
    "Features are z-scored, channel by channel, on the tiles that are fitted. "
    "knn5 and the like: L2 neighbours among the training tiles. linear: L-BFGS logistic regression, C of 1e-6..1e4. "
    "Where a data set has a test split it is scored, with C chosen on the validation tiles and refitted on training "
    "and validation tiles; else the validation tiles are scored, with C chosen on a fifth of the training tiles and "
    "refitted on all. Intervals: 95 % bootstrap over spatial blocks of the tiles that are scored, "
    f"{bootstrap.RESAMPLES} resamples; tiles within {bootstrap.BLOCK_DEGREES} degrees share a block."
)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How features are probed.

    Attributes:
        name: "knn", "linear", or "all" for both.
        fractions: shares of the labels that are used, each above 0, at most 1.
        draws: how many draws of each share below 1.
        split: the one to score; "" for "test" where the data set has one, else "validation".
        without: sensors that are hidden in the split that is scored.
        seed: of inner splits, draws and intervals.
        features: "pooled", or "stages" for every stage, their concatenation and their spread as well.
        neighbours: of knn, one probe each.

    Raises:
        ConfigError: no such protocol or features, a number out of its range, or the training split is to be scored.
    """

    name: str = "all"
    fractions: tuple[float, ...] = (1.0,)
    draws: int = DRAWS
    split: str = ""
    without: tuple[str, ...] = ()
    seed: int = 0
    features: str = features.POOLED
    neighbours: tuple[int, ...] = NEIGHBOURS

    def __post_init__(self):
        for option, value, known in (("protocol", self.name, PROTOCOLS), ("features", self.features, FEATURES)):
            if value not in known:
                raise ConfigError(f'--{option} "{value}" does not exist: {nearest(value, known)}')
        if not self.neighbours or min(self.neighbours) < 1 or len(set(self.neighbours)) < len(self.neighbours):
            raise ConfigError(f"--neighbours {' '.join(map(str, self.neighbours))}: wanted numbers from 1, each once")
        if not self.fractions or not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ConfigError(f"--fractions {' '.join(map(str, self.fractions))}: wanted shares above 0, at most 1")
        if self.draws < 1:
            raise ConfigError(f"--draws {self.draws}: wanted 1 or more")
        if self.split == TRAIN:
            raise ConfigError(f"--split {TRAIN}: probes are fitted on it, give one that is not")

    @property
    def probes(self) -> tuple[str, ...]:
        """Names for `probes.probe`."""
        knn = tuple(f"knn{k}" for k in self.neighbours) if self.name != "linear" else ()
        return knn + (probes.LINEAR if self.name != "knn" else ())

    @property
    def text(self) -> str:
        """What is done, for a reader."""
        return f"{TEXT} {FEW_LABELS.format(draws=self.draws)}" if min(self.fractions) < 1 else TEXT

    def shown(self, dataset: Dataset) -> tuple[str, ...]:
        """The sensors of a data set that are not hidden.

        Raises:
            ConfigError: none is left.
        """
        left = tuple(name for name in dataset.sensors if name not in self.without)
        if not left:
            raise ConfigError(f"--without {' '.join(self.without)} leaves no sensor of {dataset.directory} to look at")
        return left

    def scored(self, dataset: Dataset) -> str:
        """The split of a data set that is scored.

        Raises:
            DataError: the data set does not have it.
        """
        return run_data.scored_split(dataset, self.split)

    def splits(self, dataset: Dataset) -> tuple[str, ...]:
        """What is read: training tiles, validation tiles where they only choose, the tiles that are scored."""
        scored = self.scored(dataset)
        return (TRAIN, VALIDATION, scored) if VALIDATION in dataset.counts and scored != VALIDATION else (TRAIN, scored)

    def sentence(self, dataset: Dataset) -> str:
        """Which tiles are used for what."""
        *_, chosen, scored = self.splits(dataset)
        choice = "a fifth of it" if chosen == TRAIN else f"{chosen} and refitted on both"
        hidden = f" without {', '.join(self.without)}" if self.without else ""
        return f"probes are fitted on {TRAIN}, with C chosen on {choice}, and scored on {scored}{hidden}"


def encoders(run: Run, random: Params | None, inspect: Callable, protocol: Protocol) -> dict[str, features.Encoder]:
    """The model and, unless `random` is None, what it must beat; one compiled function with the masked passes.

    Args:
        run: the checkpoint.
        random: fresh parameters of its model.
        inspect: maps parameters and a batch to what `reconstruction.inspector` gives.
        protocol: which features; its seed is that of the random convolutions.
    """
    parts, data = run.parts, run.config.data
    cells = data.image_size // data.mask_unit if data.mask_unit else 1

    def means_of(params, batch):
        seen = inspect(params, reconstruction.unmasked(batch, cells))
        means = seen["pooled"] | (seen["stages"] if protocol.features == STAGES else {})
        if FUSED in means and BANK in params:
            means = means | {PLAIN: means[FUSED][:, : params[BANK]["prototypes"].shape[-1]]}
        return means

    model = {TRAINED: lambda batch: means_of(run.params, batch)}
    if random is None:
        return model
    statistics = {name: parts.statistics.get(name, sensor.statistics) for name, sensor in parts.sensors.items()}
    untrained = (
        lambda batch: means_of(random, batch),
        baselines.random_convolutions(statistics, seed=protocol.seed),
        baselines.image_statistics(parts.sensors),
    )
    return model | dict(zip(BASELINES, untrained, strict=True))


def labels_of(dataset: Dataset) -> dict[str, schema.LabelInfo]:
    """The labels that can be probed."""
    return {k: v for k, v in dataset.labels.items() if v.kind in (schema.CLASSES, schema.MULTILABEL)}


def probe(dataset: Dataset, parts: Mapping[str, features.Features], protocol: Protocol) -> list[ProbeRow]:
    """Probes every label, encoder, set of sensors and level of a data set, and what a fusion makes of them.

    Args:
        dataset: opened.
        parts: features by split, as `protocol.splits` lists them.
        protocol: how.
    """
    name, shown = dataset.metadata.name, protocol.shown(dataset)
    labels = labels_of(dataset)
    if not labels:
        print(f"note        {name}: no class labels, nothing to probe")
    sets = [(sensor,) for sensor in shown] + ([shown] if len(shown) > 1 else []) + [(FUSED,), (PLAIN,)]
    known, jobs = [], []
    for label, info in labels.items():
        for chosen in sets:
            where = {"dataset": name, "label": label, "features": " + ".join(chosen)}
            having = [e for e, values in parts[TRAIN].values.items() if set(chosen) <= set(values)]
            for encoder, level in ((e, level) for e in having for level in parts[TRAIN].levels(e, chosen)):
                known.append(where | {"encoder": encoder, "level": level})
                jobs.append(partial(_probes, parts, known[-1], chosen, info.names, protocol))
    results, notes = [], {}
    for where, fitted in zip(known, probes.side_by_side(jobs), strict=True):
        if isinstance(fitted, DataError):
            notes[f"note        {name}/{where['label']}: {fitted}"] = None
        else:
            results += [ProbeRow(**vars(row), **where) for row in fitted]
    for note in notes:
        print(note)
    return results


def ranks(dataset: Dataset, part: features.Features, protocol: Protocol) -> list[RankRow]:
    """How many directions the features of a split fill, by encoder and kind of features."""
    name = dataset.metadata.name
    return [
        RankRow(dataset=name, features=kind, encoder=encoder, width=x.shape[1], rank=rankme(x))
        for encoder, kinds in part.values.items()
        for kind, x in kinds.items()
        if kind.partition(", ")[0] not in protocol.without
    ]


def _probes(
    parts: Mapping[str, features.Features],
    where: Mapping[str, str],
    sensors: Sequence[str],
    names: Sequence[str],
    protocol: Protocol,
) -> list[probes.Probe]:
    """Every method with every share of the labels."""
    train, *validation, scored = (
        _split(part, where["encoder"], sensors, where["level"], where["label"]) for part in parts.values()
    )
    return [
        row
        for fraction in protocol.fractions
        for row in probes.probe(
            train,
            scored,
            names,
            protocol.probes,
            validation=validation[0] if validation else None,
            fraction=fraction,
            draws=protocol.draws,
            seed=protocol.seed,
        )
    ]


def _split(part: features.Features, encoder: str, sensors: Sequence[str], level: str, label: str) -> probes.Split:
    if sensors in ((FUSED,), (PLAIN,)):
        observed = np.any(list(part.observed.values()), axis=0)
    else:
        observed = np.all([part.observed[sensor] for sensor in sensors], axis=0)
    return probes.Split(part.joined(encoder, sensors, level), part.labels[label], part.groups).where(observed)
