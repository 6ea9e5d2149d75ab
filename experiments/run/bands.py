"""What runs make of a sensor's bands, those that they know and those that they never saw.

Masked errors by band, what they state of hidden pixels in nats, and what their features are worth beside labels.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.run import data as run_data
from experiments.run import probe
from experiments.run.data import TRAIN
from experiments.run.tables import table, with_interval
from input_pipeline.dataset import Dataset
from input_pipeline.evaluation import EvalBatches
from ringmoe_jax.contracts import PIXELS, pixel_mask, restore
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError, nearest
from ringmoe_jax.evaluate import baselines, bootstrap, features
from ringmoe_jax.evaluate.metrics import Score
from ringmoe_jax.models import Params
from ringmoe_jax.run import FEATURES, Run, results
from ringmoe_jax.run.evaluation import ProbeRow
from ringmoe_jax.run.results import Provenance

BATCH = 16  # tiles
FITTED = 512  # training tiles at most that say how large errors are
RESULT = "bands.json"  # a `BandScores`
RANDOM = "random weights"  # of the first run's model
MEAN = "training mean"  # a predictor that looks at nothing
STATISTICS = "image statistics"  # features of the bands that are shown, which nobody learnt
TOLD, FILLED, LACKED = "told", "filled with the mean", "interpolated"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BandRow:
    """How well one model says hidden pixels of some bands.

    Attributes:
        encoder: the folder of a run, `RANDOM` or `MEAN`.
        error: mean over bands and tiles of |prediction - truth| at hidden pixels, in standard deviations of the band.
        difference: to the first row, paired tile by tile; below 0 this one is better.
        nats: mean -ln p of a hidden pixel over all scored bands, in the sensor's unit, of Laplacian errors whose scale
            by band is the mean error at hidden pixels of training tiles; differences between rows have a meaning.
        by_band: the error of every band.
        missing: how the model learns that bands are missing: "told" or "filled with the mean"; "" where none is.
        interpolated: bands that the model has no decoder of, so that they are taken linearly between the decoded ones
            that are their neighbours in wavelength.
    """

    encoder: str
    error: Score
    difference: Score
    nats: Score
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
        rows: the first one is what the others are compared with; none where a model has no decoder of pixels.
        probes: of mean tokens where these bands are shown and nothing is hidden, if the data set has class labels.
    """

    dataset: str
    split: str
    sensor: str
    tiles: int
    shown: tuple[str, ...]
    scored: tuple[str, ...]
    rows: tuple[BandRow, ...]
    probes: tuple[ProbeRow, ...] = ()


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
    """Scores reconstructions of hidden pixels by band, and features where tiles have class labels.

    Args:
        checkpoint: folder of a pre-training run.
        beside: folders of others.
        dataset: folder; default the run's.
        sensor: default the run's first.
        show: bands that models are shown; default all that the data set has.
        scored: bands that they are to say; default those that are shown.
        split: default "test" where there is one, else "validation".
        seed: of masks, random weights and intervals.
        out: folder for `RESULT`; default `<checkpoint>/report/bands`.

    Raises:
        UserError: no such run, sensor, band or split; or a run has no decoder of pixels, and the tiles no class labels.
    """
    runs = {folder: Run.open(folder, kinds=FEATURES) for folder in (checkpoint, *beside)}
    first = runs[checkpoint]
    name = sensor or next(iter(first.sensors))
    for folder, run in runs.items():
        if name not in run.sensors:
            raise ConfigError(f'{folder} has no sensor "{name}": {nearest(name, run.sensors)}')
    opened = _open(first, dataset, name)
    show = _known(opened, name, show or opened.sensors[name].band_names)
    scored = _known(opened, name, scored or show)
    random = {RANDOM: dataclasses.replace(first, params=baselines.random_params(first.model, seed))}
    readers = {label: _Reader(run, opened, name, show, scored) for label, run in (runs | random).items()}
    data = dataclasses.replace(first.data, bands={}, shuffle_seed=seed)
    protocol = probe.Protocol(split=run_data.scored_split(opened, split), neighbours=(5,), seed=seed)
    scoring = _Scoring(opened, data, name, show, scored, readers, protocol)
    labelled = bool(probe.labels_of(opened))
    try:
        rows = list(scoring.rows())
    except _NoDecoder as error:
        if not labelled:
            raise
        rows = []
        print(f"note        {error}: no errors at hidden pixels, probes alone")
    scores = BandScores(
        dataset=opened.metadata.name,
        split=protocol.split,
        sensor=name,
        tiles=opened.size(protocol.split),
        shown=show,
        scored=scored,
        rows=tuple(rows),
        probes=tuple(scoring.probes() if labelled else ()),
        **results.provenance(),
    )
    results.write(Path(out or f"{checkpoint}/report/bands") / RESULT, scores)
    return scores


def show_scores(found: BandScores) -> None:
    """Prints a table."""
    print(f"{found.dataset}, {found.tiles} tiles of {found.split}, {found.sensor}")
    print(f"shown       {' '.join(found.shown)}")
    if found.rows:
        _show_errors(found)
    if found.probes:
        print("\nwhat mean tokens say of labels where these bands are shown and nothing is hidden\n")
        rows = []
        for row in found.probes:
            metric, value = next(iter(row.scores.items()))
            rows.append((row.label, row.protocol, row.encoder, f"{metric} {with_interval(value)}"))
        print(table(("label", "probe", "features", ""), rows))


def _show_errors(found: BandScores) -> None:
    print(f"scored      {' '.join(found.scored)}; errors in standard deviations of a band, with 95 % intervals")
    print("-ln p       nats a pixel over these bands, of Laplacian errors whose scales are those of training tiles\n")
    rows = []
    for row in found.rows:
        notes = [f"missing bands {row.missing}"] * bool(row.missing)
        notes += [f"{' '.join(row.interpolated)} interpolated"] * bool(row.interpolated)
        numbers = (row.error, row.difference, row.nats)
        rows.append((row.encoder, *map(with_interval, numbers), ", ".join(notes)))
    print(table(("model", "error", "difference to the first", "-ln p", ""), rows))


def _open(run: Run, directory: str, name: str) -> Dataset:
    from input_pipeline.dataset import open_dataset

    directories = [directory] if directory else [s.directory for s in run.data.streams.values() if name in s.sensors]
    if not directories:
        raise ConfigError(f'the run was trained on no data set with "{name}": give --dataset')
    return open_dataset(directories[0], (name,))


def _known(dataset: Dataset, name: str, bands: Sequence[str]) -> tuple[str, ...]:
    return dataset.sensors[name].select(bands).band_names


class _NoDecoder(ConfigError):
    """A model says no pixels of a sensor, as one that was trained by contrast alone."""


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

    def _shown(self, entry: Mapping[str, np.ndarray]) -> dict[str, dict]:
        """A batch of the bands that it is shown."""
        pixels = entry["pixels"][..., self.index]
        own = {key: value for key, value in entry.items() if key in ("valid", "time", "location", "gsd", "mask")}
        if self.missing == TOLD:
            own["bands"] = np.broadcast_to(self.shown, (*pixels.shape[:2], len(self.shown)))
        else:
            mean = np.asarray(self.run.parts.statistics[self.name].mean, np.float32)
            pixels = np.where(self.shown, pixels, mean)
        return {"sensors": {self.name: own | {"pixels": pixels}}}

    def __call__(self, entry: Mapping[str, np.ndarray]) -> np.ndarray:
        """What it says of the scored bands, [B, T, H, W, bands], in the sensor's unit."""
        said = _seen(self.run.model.apply, self.name, self.run.params, self._shown(entry))["pixels"]
        if said is None:
            raise _NoDecoder(f'{self.run.folder} has no decoder of the pixels of "{self.name}"')
        return np.asarray(said) @ self.mixing

    def features(self, batch: Mapping) -> dict[str, jax.Array]:
        """Its mean tokens [B, D] where nothing is hidden, by sensor."""
        entry = batch["sensors"][self.name]
        shown = self._shown(entry | ({"mask": np.zeros_like(entry["mask"])} if "mask" in entry else {}))
        return {self.name: _seen(self.run.model.apply, self.name, self.run.params, shown)["pooled"]}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _seen(apply: Callable, name: str, params: Params, batch: Mapping) -> dict[str, jax.Array | None]:
    """A model's mean tokens, and what it says of all its bands in the sensor's unit; None without a decoder of them."""
    outputs = apply(params, batch)
    heads = outputs["heads"].get(name, {})
    said = restore(heads[PIXELS], outputs["statistics"][name]) if PIXELS in heads else None
    return {"pixels": said, "pooled": outputs["pooled"][name]}


@dataclasses.dataclass(frozen=True)
class _Scoring:
    """What is asked of several models about one data set.

    Attributes:
        dataset: opened.
        data: how its tiles are shown.
        name: of the sensor.
        show: bands that are shown.
        scored: bands that are to be said.
        readers: models.
        protocol: of probes, which names the split that is scored; its seed is that of intervals.
    """

    dataset: Dataset
    data: DataConfig
    name: str
    show: tuple[str, ...]
    scored: tuple[str, ...]
    readers: Mapping[str, _Reader]
    protocol: probe.Protocol

    def rows(self) -> Iterator[BandRow]:
        """Every model's scores, and those of the mean."""
        errors, fitted = self._errors(self.protocol.split), self._errors(TRAIN, FITTED)
        tiles = len(errors[MEAN])
        drawn = np.concatenate([np.ones((1, tiles)), bootstrap.draw(np.arange(tiles), seed=self.protocol.seed)])
        means = {label: drawn @ sums[:, 1:] / (drawn @ sums[:, :1]) for label, sums in errors.items()}
        first = next(iter(means.values())).mean(axis=1)
        of = lambda values: Score(float(values[0]), *bootstrap.interval(values[1:]))  # noqa: E731
        for label, by_band in means.items():
            scale = fitted[label][:, 1:].sum(axis=0) / fitted[label][:, 0].sum()
            yield BandRow(
                encoder=label,
                error=of(by_band.mean(axis=1)),
                difference=of(by_band.mean(axis=1) - first),
                nats=of((np.log(2 * scale * self._statistics[1]) + by_band / scale).sum(axis=1)),
                by_band=dict(zip(self.scored, by_band[0].tolist(), strict=True)),
                missing=self.readers[label].missing if label in self.readers else "",
                interpolated=self.readers[label].lacked if label in self.readers else (),
            )

    def probes(self) -> list[ProbeRow]:
        """Probes of every model's features beside statistics of the bands that are shown."""
        seen = {self.name: self.dataset.sensors[self.name].select(self.show)}
        index, plain = self._index(self.show), baselines.image_statistics(seen)

        def statistics(batch: Mapping) -> Mapping[str, np.ndarray]:
            entry = batch["sensors"][self.name]
            return plain({"sensors": {self.name: entry | {"pixels": entry["pixels"][..., index]}}})

        encoders = {label: reader.features for label, reader in self.readers.items()} | {STATISTICS: statistics}
        splits = self.protocol.splits(self.dataset)
        return probe.probe(
            self.dataset, {part: features.collect(self._batches(part), encoders) for part in splits}, self.protocol
        )

    def _index(self, bands: Sequence[str]) -> list[int]:
        return [self.dataset.sensors[self.name].band_index(band) for band in bands]

    @functools.cached_property
    def _statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the bands that are scored."""
        known, index = self.dataset.statistics(self.name), self._index(self.scored)
        return np.asarray(known.mean)[index], np.asarray(known.std)[index]

    def _batches(self, part: str) -> EvalBatches:
        sized = dict(split=part, batch_size=min(BATCH, self.dataset.size(part)), masked=True)
        return EvalBatches.of(self.data, self.dataset.directory, (self.name,), **sized)

    def _errors(self, part: str, limit: int | None = None) -> dict[str, np.ndarray]:
        """Of every tile by model, [N, 1 + bands]: number of hidden pixels, then the summed error of every band."""
        tiles = list(itertools.islice((tile for batch in self._batches(part) for tile in self._tiles(batch)), limit))
        return {label: np.stack([tile[label] for tile in tiles]) for label in tiles[0]}

    def _tiles(self, batch: Mapping) -> Iterator[dict[str, np.ndarray]]:
        entry, (mean, deviation) = batch["sensors"][self.name], self._statistics
        truth, said = entry["pixels"][..., self._index(self.scored)], {k: of(entry) for k, of in self.readers.items()}
        hidden = np.asarray(pixel_mask(entry))
        said[MEAN] = np.broadcast_to(mean, truth.shape)
        for row in np.flatnonzero(batch["real"]):
            seen = hidden[row][..., None]
            yield {
                label: np.append(seen.sum(), (np.abs(x[row] - truth[row]) / deviation * seen).sum(axis=(0, 1, 2)))
                for label, x in said.items()
            }
