"""What runs make of a sensor's bands, those that they know and those that they never saw: masked errors by band."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.run import data as run_data
from experiments.run.tables import table, with_interval
from input_pipeline.dataset import Dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax.contracts import PIXELS, pixel_mask, restore
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.evaluate import baselines, bootstrap
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.models import Params
from ringmoe_jax.run import FEATURES, Run, results
from ringmoe_jax.run.results import Provenance

BATCH = 16  # tiles
RESULT = "bands.json"  # a `BandScores`
RANDOM = "random weights"  # of the first run's model
MEAN = "training mean"  # a predictor that looks at nothing
TOLD, FILLED, LACKED = "told", "filled with the mean", "interpolated"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BandRow:
    """How well one model says hidden pixels of some bands.

    Attributes:
        encoder: the folder of a run, `RANDOM` or `MEAN`.
        error: mean over bands and tiles of |prediction - truth| at hidden pixels, in standard deviations of the band.
        difference: to the first row, paired tile by tile; below 0 this one is better.
        by_band: the error of every band.
        missing: how the model learns that bands are missing: "told" or "filled with the mean"; "" where none is.
        interpolated: bands that the model has no decoder of, so that they are taken linearly between the decoded ones
            that are their neighbours in wavelength.
    """

    encoder: str
    error: Score
    difference: Score
    by_band: dict[str, float]
    missing: str = ""
    interpolated: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BandScores(Provenance):
    """Masked errors on one data set.

    Attributes:
        dataset: its name.
        split: that was scored.
        sensor: whose bands they are.
        tiles: number of tiles.
        shown: bands that models are shown.
        scored: bands that they are to say.
        rows: the first one is what the others are compared with.
    """

    dataset: str
    split: str
    sensor: str
    tiles: int
    shown: tuple[str, ...]
    scored: tuple[str, ...]
    rows: tuple[BandRow, ...]


def score(
    checkpoint: str,
    beside: Sequence[str] = (),
    *,
    dataset: str = "",
    sensor: str = "",
    show: Sequence[str] = (),
    scored: Sequence[str] = (),
    split: str = "",
    seed: int = 0,
    out: str = "",
) -> BandScores:
    """Scores reconstructions of hidden pixels by band.

    Args:
        checkpoint: folder of a pre-training run whose decoders say pixels.
        beside: folders of others.
        dataset: folder; default the run's.
        sensor: default the run's first.
        show: bands that models are shown; default all that the data set has.
        scored: bands that they are to say; default those that are shown.
        split: default "test" where there is one, else "validation".
        seed: of masks, random weights and intervals.
        out: folder for `RESULT`; default `<checkpoint>/report/bands`.

    Raises:
        UserError: no such run, sensor, band or split; or a run has no decoder of pixels.
    """
    runs = {folder: Run.open(folder, kinds=FEATURES) for folder in (checkpoint, *beside)}
    first = runs[checkpoint]
    name = sensor or next(iter(first.sensors))
    for folder, run in runs.items():
        if name not in run.sensors:
            raise ConfigError(f'{folder} has no sensor "{name}": {nearest(name, run.sensors)}')
    asked = dataclasses.replace(first.data, bands={}, shuffle_seed=seed)
    opened = _open(first, dataset, name)
    show = _known(opened, name, show or opened.sensors[name].band_names)
    scored = _known(opened, name, scored or show)
    split = run_data.scored_split(opened, split)
    sized = dict(split=split, batch_size=min(BATCH, opened.size(split)), masked=True)
    batches = EvalBatches.of(asked, opened.directory, (name,), **sized)
    random = {RANDOM: dataclasses.replace(first, params=baselines.random_params(first.model, seed))}
    readers = {label: _Reader(run, opened, name, show, scored) for label, run in (runs | random).items()}
    tiles = [tile for batch in batches for tile in _errors(batch, opened, name, scored, readers)]
    errors = {label: np.stack([tile[label] for tile in tiles]) for label in tiles[0]}  # [N, 1 + bands]
    found = BandScores(
        dataset=opened.metadata.name,
        split=split,
        sensor=name,
        tiles=len(tiles),
        shown=show,
        scored=scored,
        rows=tuple(_rows(errors, readers, scored, seed)),
        **results.provenance(),
    )
    results.write(Path(out or f"{checkpoint}/report/bands") / RESULT, found)
    return found


def show_scores(found: BandScores) -> None:
    """Prints a table."""
    print(f"{found.dataset}, {found.tiles} tiles of {found.split}, hidden pixels of {found.sensor}")
    print(f"shown       {' '.join(found.shown)}")
    print(f"scored      {' '.join(found.scored)}; errors in standard deviations of a band, with 95 % intervals\n")
    rows = []
    for row in found.rows:
        notes = [f"missing bands {row.missing}"] * bool(row.missing)
        notes += [f"{' '.join(row.interpolated)} interpolated"] * bool(row.interpolated)
        rows.append((row.encoder, with_interval(row.error), with_interval(row.difference), ", ".join(notes)))
    print(table(("model", "error", "difference to the first", ""), rows))


def _open(run: Run, directory: str, name: str) -> Dataset:
    from input_pipeline.dataset import open_dataset

    directories = [directory] if directory else [s.directory for s in run.data.streams.values() if name in s.sensors]
    if not directories:
        raise ConfigError(f'the run was trained on no data set with "{name}": give --dataset')
    return open_dataset(directories[0], (name,))


def _known(dataset: Dataset, name: str, bands: Sequence[str]) -> tuple[str, ...]:
    return dataset.sensors[name].select(bands).band_names


class _Reader:
    """A run that is shown some bands of a sensor and says others.

    Args:
        run: of features.
        dataset: whose bands and statistics they are.
        name: of the sensor.
        show: bands that it is shown.
        scored: bands that it says.
    """

    def __init__(self, run: Run, dataset: Dataset, name: str, show: Sequence[str], scored: Sequence[str]):
        whole, statistics = dataset.sensors[name], dataset.statistics(name)
        if run.model.told:
            union = [band for band in whole.band_names if band in {*show, *scored}]
            index = [whole.band_names.index(band) for band in union]
            chosen = dataclasses.replace(
                statistics,
                mean=tuple(statistics.mean[i] for i in index),
                std=tuple(statistics.std[i] for i in index),
            )
            run = run.with_sensors([whole.select(union)], {name: chosen})
        self.run, self.name = run.frozen, name
        self.bands = run.sensors[name].band_names
        self.index = np.array([whole.band_names.index(band) for band in self.bands])
        self.shown = np.array([band in show for band in self.bands])
        self.lacked = tuple(band for band in scored if band not in self.bands)
        self.mixing = self._mixing([whole.bands[whole.band_index(band)] for band in scored])
        self.missing = "" if self.shown.all() else TOLD if run.model.told else FILLED

    def _mixing(self, scored: Sequence[Any]) -> np.ndarray:
        """[bands of the model, bands that are scored] weights."""
        wavelengths = np.array([band.wavelength or np.nan for band in self.run.sensors[self.name].bands])
        order, mixing = np.argsort(wavelengths), np.zeros((len(self.bands), len(scored)))
        for j, band in enumerate(scored):
            if band.name in self.bands:
                mixing[self.bands.index(band.name), j] = 1
                continue
            if band.wavelength is None or np.isnan(wavelengths).any():
                raise ConfigError(f'{self.run.folder} knows nothing of "{band.name}", not even where it lies')
            for i, unit in enumerate(np.eye(len(order))):
                mixing[order[i], j] = np.interp(band.wavelength, wavelengths[order], unit)
        return mixing

    def __call__(self, entry: Mapping[str, np.ndarray]) -> np.ndarray:
        """What it says of the scored bands, [B, T, H, W, bands], in the sensor's unit."""
        pixels = entry["pixels"][..., self.index]
        own = {key: entry[key] for key in ("valid", "time", "location", "gsd", "mask")}
        if self.missing == TOLD:
            own["bands"] = np.broadcast_to(self.shown, (*pixels.shape[:2], len(self.shown)))
        else:
            mean = np.asarray(self.run.parts.statistics[self.name].mean, np.float32)
            pixels = np.where(self.shown, pixels, mean)
        said = _said(
            self.run.model.apply, self.name, self.run.params, {"sensors": {self.name: own | {"pixels": pixels}}}
        )
        if said is None:
            raise ConfigError(f'{self.run.folder} has no decoder of the pixels of "{self.name}"')
        return np.asarray(said) @ self.mixing


@functools.partial(jax.jit, static_argnums=(0, 1))
def _said(apply: Callable, name: str, params: Params, batch: Mapping) -> jax.Array | None:
    """What a model says of all its bands, in the sensor's unit; None without a decoder of them."""
    outputs = apply(params, batch)
    heads = outputs["heads"].get(name, {})
    return restore(heads[PIXELS], outputs["statistics"][name]) if PIXELS in heads else None


def _errors(
    batch: Mapping, dataset: Dataset, name: str, scored: Sequence[str], readers: Mapping[str, _Reader]
) -> Iterator[dict[str, np.ndarray]]:
    """Of every real tile by model: number of hidden pixels, then the summed error of every band."""
    entry, whole, statistics = batch["sensors"][name], dataset.sensors[name], dataset.statistics(name)
    index = [whole.band_names.index(band) for band in scored]
    truth, deviation = entry["pixels"][..., index], np.asarray(statistics.std)[index]
    mean = np.asarray(statistics.mean)[index]
    hidden = np.asarray(pixel_mask(entry))
    said = {label: reader(entry) for label, reader in readers.items()} | {MEAN: np.broadcast_to(mean, truth.shape)}
    for row in np.flatnonzero(batch["real"]):
        seen = hidden[row][..., None]
        yield {
            label: np.append(hidden[row].sum(), (np.abs(x[row] - truth[row]) / deviation * seen).sum(axis=(0, 1, 2)))
            for label, x in said.items()
        }


def _rows(
    errors: Mapping[str, np.ndarray], readers: Mapping[str, _Reader], scored: Sequence[str], seed: int
) -> Iterator[BandRow]:
    tiles = len(next(iter(errors.values())))
    drawn = np.concatenate([np.ones((1, tiles)), bootstrap.draw(np.arange(tiles), seed=seed)])
    means = {label: drawn @ sums[:, 1:] / (drawn @ sums[:, :1]) for label, sums in errors.items()}
    first = next(iter(means.values())).mean(axis=1)
    of = lambda values: Score(float(values[0]), *bootstrap.interval(values[1:]))  # noqa: E731
    for label, by_band in means.items():
        reader = readers.get(label)
        yield BandRow(
            encoder=label,
            error=of(by_band.mean(axis=1)),
            difference=of(by_band.mean(axis=1) - first),
            by_band=dict(zip(scored, by_band[0].tolist(), strict=True)),
            missing=reader.missing if reader else "",
            interpolated=reader.lacked if reader else (),
        )
