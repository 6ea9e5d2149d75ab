"""Evaluates a checkpoint: probes beside baselines, masked reconstruction, locations, routing; tables and pictures.

Models see whole tiles, see `input_pipeline.evaluation`. The split "test" is scored where a data set has one: probes are
fitted on "train", choose their penalty on "validation" and are refitted on both. Else "validation" is scored, and the
penalty is chosen on a part of "train". Nothing is fitted on the split that is scored.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments.reports import evaluation as report
from experiments.reports.evaluation import Pictures, Places
from experiments.run import data as run_data
from experiments.run import probe
from experiments.run.data import TRAIN
from experiments.run.experts import Experts
from experiments.run.masked import Masked
from experiments.run.probe import Protocol
from experiments.run.tiles import Tiles
from input_pipeline.dataset import Dataset
from ringmoe_jax import remote
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.contracts import FUSED
from ringmoe_jax.evaluate import baselines, locations, quicklook, reconstruction, routing
from ringmoe_jax.evaluate.features import POOLED, Features, collect
from ringmoe_jax.models import Params
from ringmoe_jax.parallel import processes
from ringmoe_jax.run import FEATURES, Run, read_record, results
from ringmoe_jax.run.evaluation import (
    EVALUATION,
    TRAINED,
    EvaluatedData,
    Evaluation,
    Lattice,
    LocationRow,
    PlaceSummary,
    ProbeRow,
    RankRow,
)

PLACES = 6  # tiles whose locations and frames are looked at
FRAMES = 24  # in a matrix of similarities, but at least those of one tile
MAX_TILES = 30_000  # of a split that are read


def evaluate(
    checkpoint: str,
    datasets: Sequence[str] = (),
    *,
    protocol: str = "all",
    fractions: Sequence[float] = (1.0,),
    draws: int = probe.DRAWS,
    split: str = "",
    without: Sequence[str] = (),
    sensors: Sequence[str] = (),
    seed: int = 0,
    features: str = POOLED,
    neighbours: Sequence[int] = probe.NEIGHBOURS,
    out: str | None = None,
    max_tiles: int = MAX_TILES,
    brief: bool = False,
    beside: Sequence[str] = (),
) -> Evaluation:
    """Evaluates the newest checkpoint of a pre-training run.

    Args:
        checkpoint: folder of the run.
        datasets: folders; default those that the run was trained on, with the sensors that the model knows.
        protocol: "knn", "linear" or "all".
        fractions: shares of the labels that probes are fitted on, above 0, at most 1.
        draws: how many draws of each share below 1; see `ringmoe_jax.evaluate.probes.Probe`.
        split: the one to score; default "test" where a data set has one, else "validation".
        without: sensors that the model is not shown in that split: their pixels are taken for not observed.
        sensors: that were not there in training, see `Run.with_sensors`, normalised as the data sets that hold them.
        seed: of random baselines, inner splits, draws and the bootstrap.
        features: "pooled", or "stages" to probe every stage and all of them side by side as well.
        neighbours: of knn probes, one each.
        out: default `<checkpoint>/report`, or a folder in it for other data and splits than the default ones.
        max_tiles: the first so many tiles of a split are read.
        brief: only the model, without baselines beside its probes and without pictures.
        beside: folders of other runs whose features are probed on the same tiles, each shown as its own run says.

    Raises:
        UserError: no checkpoint, no such protocol, split or sensor, or data that the model cannot read.
    """
    rules = Protocol(
        protocol, tuple(sorted(set(fractions))), draws, split, tuple(without), seed, features, tuple(neighbours)
    )
    started = time.perf_counter()
    run = run_data.meets(Run.open(checkpoint, kinds=FEATURES), sensors, datasets).frozen
    run_data.check_hidden(without, run.sensors)
    folder = Path(out) if out else results.folder_of(Path(checkpoint) / "report", datasets, split, without, sensors)
    devices = f"{processes.count()} x {jax.devices()[0].device_kind}"
    print(f"checkpoint  {remote.shown(checkpoint)} at step {run.step}, on {devices}")
    inspect = reconstruction.inspector(run.model, reconstruction.reconstructions(run.parts.objectives))
    random = None if brief else jax.device_put(baselines.random_params(run.model, seed))
    others = {name: Run.open(other, kinds=FEATURES).frozen for name, other in run_data.by_name(beside).items()}
    opened = run_data.open_for(run, datasets)
    parts = [_Part(run, dataset, rules, max_tiles, inspect, random, others) for dataset in opened]

    def conclude() -> Evaluation:
        evaluation = _joined(run, others, rules, parts, started)
        if not brief:
            evaluation = report.draw(folder, evaluation, _pictures(run, parts))
        results.write(folder / EVALUATION, evaluation)
        report.show(evaluation)
        return evaluation

    return results.from_first(Evaluation, conclude)


def _pictures(run: Run, parts: Sequence[_Part]) -> Pictures:
    """What there is to draw."""
    return Pictures(
        [strips for part in parts for strips in part.masked.strips],
        {part.data.name: part.places[0] for part in parts if part.places},
        {(part.data.name, group): liked for part in parts for group, liked in part.experts.atlas.items()},
        {name: quicklook.caption(sensor) for name, sensor in run.parts.sensors.items()},
    )


def _joined(run: Run, others: Mapping[str, Run], rules: Protocol, parts: Sequence[_Part], started: float) -> Evaluation:
    """The numbers of all data sets; `started` is of `time.perf_counter`."""
    probes = [row for part in parts for row in part.probes]
    tokens = [statistics for part in parts for statistics in part.masked.routing]
    return Evaluation(
        checkpoint=str(run.folder),
        step=run.step,
        origins={name: r.origin for name, r in {TRAINED: run, **others}.items() if r.origin},
        protocol=rules.text,
        seed=rules.seed,
        parameters=run.parameters,
        modalities=_modalities(run),
        without=rules.without,
        datasets=tuple(part.data for part in parts),
        probes=tuple(row for row in probes if row.fraction == rules.fractions[-1]),
        few_labels=tuple(row for row in probes if row.fraction < rules.fractions[-1]),
        ranks=tuple(row for part in parts for row in part.ranks),
        reconstruction=tuple(row for part in parts for row in part.masked.comparisons),
        likelihood=tuple(row for part in parts for row in part.masked.likelihoods),
        locations=tuple(part.places[1] for part in parts if part.places),
        routing=routing.summarise(routing.add(tokens)) if tokens else {},
        specialisation=tuple(row for part in parts for row in part.experts.rows),
        seconds=time.perf_counter() - started,
        **results.provenance(),
    )


def current(checkpoint: str) -> Evaluation:
    """The evaluation of a run's newest checkpoint on its own data; evaluates where that was not done yet."""
    step = read_record(checkpoint, FEATURES)["step"]
    path = Path(checkpoint) / "report" / EVALUATION
    evaluation = results.from_first(Evaluation | None, lambda: results.load(Evaluation, path, step))
    if evaluation is None:
        print(f"step {step} of {checkpoint} was not evaluated yet: that comes first")
    return evaluation or evaluate(checkpoint)


# ---- One data set -------------------------------------------------------------------------------------


class _Part:
    """What one data set says of a run: passes over its tiles, which all processes share, then numbers of the first one.

    Args:
        run: of features.
        dataset: opened.
        rules: of the probes.
        max_tiles: of a split that are read.
        inspect: of `reconstruction.inspector`, one compiled pass for all data sets.
        random: fresh parameters of the model; None for the model alone, without baselines and pictures.
        others: further runs by name, whose features are probed as well.

    Attributes:
        data: the data set in words.
        masked: masked losses, likelihoods, routing and tiles to show.
        experts: what they tell apart.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        rules: Protocol,
        max_tiles: int,
        inspect,
        random: Params | None,
        others: Mapping[str, Run],
    ):
        self.run, self.rules, self.brief = run, rules, random is None
        self.tiles = tiles = Tiles(run, dataset, rules, max_tiles)
        self.data = results.from_first(EvaluatedData, tiles.describe)
        means = reconstruction.training_means(run.model, tiles.objectives, run.params, tiles(TRAIN))
        encoders = probe.encoders(run, random, partial(inspect, means=means), rules)
        self._features = {name: collect(tiles(name), encoders, max_tiles) for name in tiles.splits}
        for name, other in others.items():
            _add(self._features, name, other, dataset, rules, max_tiles)
        self.masked = Masked(run, tiles, partial(inspect, run.params, means=means), rules.seed)
        self.experts = Experts(run, tiles, rules.seed)

    @property
    def probes(self) -> list[ProbeRow]:
        """Of every share of the labels."""
        return probe.probe(self.tiles.dataset, self._features, self.rules)

    @property
    def ranks(self) -> list[RankRow]:
        """Of features."""
        return probe.ranks(self.tiles.dataset, self._features[self.tiles.scored], self.rules)

    @functools.cached_property
    def places(self) -> tuple[Places, LocationRow] | None:
        """Locations to show, and their numbers; None for a model without a fusion."""
        chosen = () if self.brief else self.tiles.spread(PLACES)
        shown = locations.collect(self.run.model, self.run.params, self.tiles.some(chosen), chosen) if chosen else []
        return _locations(self.tiles, shown) if shown else None


def _add(
    collected: dict[str, Features], name: str, other: Run, dataset: Dataset, rules: Protocol, max_tiles: int
) -> None:
    """Adds another run's features of the same tiles, which it is shown as it was trained; says where it knows none."""
    if not set(other.sensors) & set(dataset.metadata.sensors):
        print(f"note        {dataset.metadata.name}: {name} reads {', '.join(other.sensors)}, and is left out there")
        return
    (shown,) = run_data.open_for(other, [dataset.directory])
    tiles = Tiles(other, shown, rules, max_tiles)
    inspect = partial(reconstruction.inspector(other.model, {}), means={})
    encoder = {name: probe.encoders(other, None, inspect, rules)[TRAINED]}
    for split, known in collected.items():
        found = collect(tiles(split), encoder, max_tiles)
        observed = {s: known.observed.get(s, seen) for s, seen in found.observed.items()} | known.observed
        collected[split] = dataclasses.replace(known, values=known.values | found.values, observed=observed)


# ---- Locations ----------------------------------------------------------------------------------------


def _locations(tiles: Tiles, places: Sequence[locations.Place]) -> tuple[Places, LocationRow]:
    """What to draw of places, and the numbers: components, prototypes, similarity of frames."""
    rows, explained = locations.rows(places, tiles.dataset.sensors)
    frames = [(place.index, frame) for place in places for frame in place.frames]
    indices = [index for index, _ in frames]
    similarity = locations.cosines(np.stack([frame.vector for _, frame in frames]))
    ends = np.cumsum([len(place.frames) for place in places])
    drawn = max(ends[0], *ends[ends <= FRAMES], 0)
    return Places(tiles.ground, rows), LocationRow(
        dataset=tiles.dataset.metadata.name,
        tiles=tuple(PlaceSummary(p.index, p.region, locations.used(p), p.offered) for p in places),
        explained=tuple(explained.tolist()),
        lattice=Lattice(*locations.lattice([p.fused for p in places])),
        frames=len(frames),
        labels=tuple(frame.label for _, frame in frames[:drawn]),
        places=tuple(indices[:drawn]),
        similarity=similarity[:drawn, :drawn],
        agreement=tuple(locations.agreement(similarity, indices, [frame.sensor for _, frame in frames])),
    )


def _modalities(run: Run) -> tuple[str, ...]:
    """Names along M of the model's routing statistics: a fusion routes by sensor, and its own token as the first."""
    sensors = run.parts.sensors
    return (FUSED, *sensors) if FUSED in run.model.streams else sensor_table.modalities(sensors)
