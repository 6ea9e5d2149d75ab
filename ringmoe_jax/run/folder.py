"""A run is a folder: kind, configuration, sensors, statistics, model, parameters and step, for every verb."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ringmoe_jax import config as configuration
from ringmoe_jax import models, objectives, remote
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.compress import Network
from ringmoe_jax.data_config import DataConfig
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models import Model, Params, resampling
from ringmoe_jax.parallel import processes
from ringmoe_jax.run import build, results
from ringmoe_jax.run.build import Encoder, Parts, TaskSpec
from ringmoe_jax.run.config import FinetuneConfig, PretrainConfig
from ringmoe_jax.sensors import Sensor, Statistics
from ringmoe_jax.training.checkpoint import Checkpointer
from ringmoe_jax.training.state import TrainState

PRETRAINING, TASK, COMPRESSED, IMPORTED = "pre-training", "task", "compressed", "imported"
ORIGIN = "origin"  # in the record of a run that began with imported weights
FROZEN_ENGINE = "dropless"  # an answer does not depend on which images share a batch
FEATURES = (PRETRAINING, COMPRESSED, IMPORTED)  # kinds whose model is an encoder without a head
ADVICE = {  # what to do where a verb wants another kind
    PRETRAINING: "give the folder of an experiments.pretrain",
    COMPRESSED: "give the folder of an experiments.compress",
    IMPORTED: "give the folder of an experiments.convert",
    TASK: "give the folder of an experiments.finetune",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A checkpoint of a run, ready to use on one device. What is expensive is made when it is first asked for.

    Attributes:
        record: JSON types that lie beside the arrays: "config", "statistics", "step", "versions"; of a task also
            "encoder" and "subject"; of a compressed run "compressed", of imported weights "imported".
        params: what `model` takes: trained parameters, or those that the pretext task exports (a teacher's).
        trained: number of parameters that training changed.
        folder: where it lies; None for one that is in memory only.
    """

    record: dict[str, Any]
    params: Params
    trained: int = 0
    folder: Path | None = None

    @staticmethod
    def open(
        folder: str | Path,
        step: int | None = None,
        *,
        engine: str = "",
        kinds: Collection[str] = (),
        sensors: Sequence[str | Sensor] = (),
    ) -> Run:
        """Opens the newest checkpoint of a run, or the one of `step`.

        Args:
            folder: of `experiments.pretrain`, `finetune`, `compress` or `convert`; also `gs://bucket/folder`.
            step: optimiser steps of the checkpoint.
            engine: that computes the experts, default the run's; see `ringmoe_jax.moe.engines`.
            kinds: what is wanted: `PRETRAINING`, `TASK`, `COMPRESSED`, `IMPORTED`; any by default.
            sensors: that were not there in training, or show other bands, see `with_sensors`.

        Raises:
            DataError: there is no checkpoint, or one of another kind; see also `Checkpointer.record`.
        """
        checkpointer = Checkpointer.open(folder)
        try:
            record = checkpointer.record(step)
            _check_kind(folder, record, kinds)
            params, state = checkpointer.restore_model(record["step"])
        finally:
            checkpointer.close()
        where = remote.place(folder) if remote.is_remote(folder) else Path(folder)
        run = Run(record, params, models.count(params), where).with_engine(engine)
        return dataclasses.replace(run, params=run.parts.pretext.export(params, state)).with_sensors(sensors)

    # ---- What the record says ---------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """`PRETRAINING`, `TASK`, `COMPRESSED` or `IMPORTED`."""
        return kind_of(self.record)

    @property
    def step(self) -> int:
        """Optimiser steps that were taken."""
        return self.record["step"]

    @functools.cached_property
    def config(self) -> PretrainConfig | FinetuneConfig:
        """Of the run, checked."""
        return (FinetuneConfig if self.kind == TASK else PretrainConfig).of(self.record["config"])

    @functools.cached_property
    def statistics(self) -> dict[str, Statistics]:
        """Normalisation by sensor."""
        return {name: Statistics(**s) for name, s in self.record["statistics"].items()}

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder by itself; of a task, the one that its head was put on."""
        if self.kind == TASK:
            return Encoder.from_json(self.record["encoder"])
        bands = {name: tuple(chosen) for name, chosen in self.config.data.bands.items()}
        return Encoder(self.record["config"]["model"], bands, self.statistics, self.step, self.origin)

    @property
    def origin(self) -> dict[str, Any]:
        """Where imported weights come from, also those that training began with: source, file, sha256, licence,
        citation; {} of weights of our own."""
        return origin_of(self.record)

    @functools.cached_property
    def spec(self) -> TaskSpec:
        """What the head of a task was built for."""
        return TaskSpec.from_json(self.record["subject"])

    # ---- What it builds ---------------------------------------------------------------------------

    @functools.cached_property
    def parts(self) -> Parts:
        """Model, objectives and the rest, on one device."""
        return self.build()

    def build(self, mesh: jax.sharding.Mesh | None = None) -> Parts:
        """The parts on a mesh."""
        if self.kind == TASK:
            return build.finetuning(self.config, self.encoder, self.spec, self.statistics, mesh)
        if self.kind == IMPORTED:
            return build.encoding(self.config, self.statistics, mesh)
        return build.pretraining(self.config, self.statistics, mesh)

    @property
    def model(self) -> Model:
        """Pure functions; `model.apply(run.params, batch)` gives what `ringmoe_jax.contracts` describes."""
        return self.parts.model

    @property
    def sensors(self) -> dict[str, Sensor]:
        """That the model is shown, by name, with the bands that it reads."""
        return self.parts.sensors if self.kind == TASK else self.config.sensors

    @property
    def data(self) -> DataConfig:
        """What the run reads, with the bands that the model reads."""
        return self.encoder.data(self.config.data)

    @property
    def network(self) -> Network:
        """What `ringmoe_jax.compress` works on: `config.model` and the encoder's parameters."""
        return Network(self.record["config"]["model"], self.params)

    # ---- Other runs of it -------------------------------------------------------------------------

    @functools.cached_property
    def frozen(self) -> Run:
        """The run as features are taken from it: no expert drops a token, whatever the run was trained with.

        With buffers of a given size it would depend on the other images of a batch which tokens find an expert.
        """
        return self.with_engine(FROZEN_ENGINE)

    def with_engine(self, engine: str) -> Run:
        """The same with experts that another engine computes; as it is for ""."""
        if not engine:
            return self
        where = "encoder" if self.kind == TASK else "config"
        model = models.with_engine(self.record[where]["model"], engine)
        return dataclasses.replace(self, record={**self.record, where: {**self.record[where], "model": model}})

    def with_sensors(self, sensors: Sequence[str | Sensor], statistics: Mapping[str, Statistics] | None = None) -> Run:
        """The same that takes sensors that were not there in training, or other bands of those that were.

        Patch kernels and decoders are made of what is known of their bands, see `ringmoe_jax.bands`.

        Args:
            sensors: names of the sensor table, `module:NAME` of your own file, or sensors themselves, which join the
                table. One that the run knows by its name shows these bands from now on.
            statistics: normalisation by sensor; default: of bands that the run knows its own, else the sensor's.

        Raises:
            ConfigError: the model's sensors have weights of their own; a fine-tuned run is to take a further sensor, on
                which its head was not put; or another sensor has the name.
        """
        known, said = self.encoder.sensors, {}
        for sensor in sensors:
            joined = _joined(sensor)
            said[joined.name] = (joined, sensor if isinstance(sensor, str) else joined.name)
        if statistics is None and (met := self._met.get(tuple(sensors))):
            return met
        new = [name for name in said if name not in known]
        changed = [name for name, (sensor, _) in said.items() if name in known and sensor != known[name]]
        if not new and not changed:
            return self
        if new and self.kind == TASK:
            raise ConfigError(
                f'the head of this run reads {", ".join(self.sensors)}, not "{new[0]}": fine-tune with '
                f'override = dict(unseen=("{said[new[0]][1]}",)) and a stream that shows it'
            )
        record = copy.deepcopy(self.record)
        where = record["encoder"] if self.kind == TASK else record["config"]
        where["model"] = models.with_unseen(where["model"], [said[name][1] for name in new], changed)
        shown = where if self.kind == TASK else where["data"]
        shown["bands"] = {
            **shown.get("bands", {}),
            **{name: list(said[name][0].band_names) for name in (*new, *changed)},
        }
        if new:
            config, table = models.read(where["model"]), known | {name: sensor for name, (sensor, _) in said.items()}
            stand_ins, fixed = config.stand_ins(table), config.image_sizes
            sizes = {name: fixed.get(name, self.config.data.size(stand_ins[name])) for name in new}
            shown["sizes"] = {**shown.get("sizes", {}), **sizes}
        for name in (*new, *changed):
            values = (statistics or {}).get(name) or _normalisation(said[name][0], known.get(name), self.statistics)
            record["statistics"][name] = values.to_json()
        run = dataclasses.replace(self, record=record)
        if statistics is None:
            self._met[tuple(sensors)] = run
        return run

    @functools.cached_property
    def _met(self) -> dict[tuple[str | Sensor, ...], Run]:
        """What `with_sensors` gave, so that features of one sensor are one program however often they are asked for."""
        return {}

    def with_patch(self, patch: int) -> Run:
        """The same for finer or coarser images: as many tokens of patches of another size, see `resampling.repatch`.

        Raises:
            ConfigError: the run is a task, or its model's patches cannot be resized.
        """
        if self.kind == TASK:
            raise ConfigError("the head of this run is made for its patches: resize those of the run before it")
        network = resampling.repatch(self.network, patch)
        record, old = copy.deepcopy(self.record), models.complete(self.network.model)["patch"]
        record["config"]["model"] = network.model
        data, scaled = record["config"]["data"], lambda pixels: pixels * patch // old
        data["image_size"], data["mask_unit"] = scaled(data["image_size"]), scaled(data.get("mask_unit", 32))
        data["sizes"] = {name: scaled(size) for name, size in data.get("sizes", {}).items()}
        return dataclasses.replace(self, record=record, params=network.params)

    @property
    def unseen(self) -> dict[str, str]:
        """What a reader has to know of the sensors that were not there in training, by name."""
        config, table = models.read(self.encoder.model), self.encoder.sensors
        return {
            name: f"not there in training ({table[name].modality}): {config.what_becomes(name, table)}"
            for name in config.unseen
        }

    def with_network(self, network: Network, steps: int = 0) -> Run:
        """The same run with another network, in memory: without the data and objectives of sensors that it lacks.

        Args:
            network: of `ringmoe_jax.compress`.
            steps: optimiser steps that it was trained for since.

        Raises:
            ConfigError: no stream or no objective of the run suits the sensors that are left.
        """
        config = _narrowed(self.record["config"], network.model)
        left = sensor_table.own_names(network.model["sensors"])
        statistics = {name: s for name, s in self.record["statistics"].items() if name in left}
        record = {**self.record, "config": config, "statistics": statistics, "step": self.step + steps}
        return Run(record, network.params, models.count(network.params))

    def save(self, folder: Path, origin: Mapping[str, Any], kind: str = COMPRESSED) -> Run:
        """Writes a checkpoint without an optimiser's state, and gives the run that lies there.

        Args:
            folder: of the run.
            origin: where it comes from, JSON types for the record.
            kind: of the run that lies there: `COMPRESSED` or `IMPORTED`.
        """
        params, state = jax.device_get(self.parts.pretext.init(self.params, jax.random.key(0)))  # as all processes have
        kept = {name: self.record[name] for name in ("config", "statistics")}
        record = {**kept, ORIGIN: self.origin, kind: results.plain(origin)}
        checkpointer = Checkpointer(folder)
        checkpointer.save(self.step, TrainState(np.int32(self.step), params, {}, state), record)
        checkpointer.wait()
        checkpointer.close()
        return dataclasses.replace(self, record={**self.record, **record}, folder=folder)

    @property
    def parameters(self) -> results.Parameters:
        """How many parameters the model has, and how many of them training changed."""
        parts = {name: models.count(part) for name, part in self.params.items()}
        return results.Parameters(sum(parts.values()), self.trained, parts)


def _joined(sensor: str | Sensor) -> Sensor:
    """A sensor of the table, or one of one's own that joins it, or a choice of the bands of either."""
    if isinstance(sensor, str):
        return sensor_table.get(sensor)
    table = sensor_table.SENSORS.get(sensor.name)
    chosen = table is not None and set(sensor.band_names) <= set(table.band_names)
    return sensor if chosen and table.select(sensor.band_names) == sensor else sensor_table.register(sensor)


def _normalisation(sensor: Sensor, before: Sensor | None, known: Mapping[str, Statistics]) -> Statistics:
    """Of a sensor's bands: of those that a run knows under its name as it knows them, else the sensor's own."""
    own = sensor.statistics
    values = {band: (m, s) for band, m, s in zip(sensor.band_names, own.mean, own.std, strict=True)}
    if before is not None and sensor.name in known:
        trained = known[sensor.name]
        values |= {
            band: (m, s)
            for band, m, s in zip(before.band_names, trained.mean, trained.std, strict=True)
            if band in values
        }
        own = trained if set(sensor.band_names) <= set(before.band_names) else own
    means, deviations = zip(*values.values(), strict=True)
    return Statistics(means, deviations, own.source)


def kind_of(record: Mapping[str, Any]) -> str:
    """The kind of the run that a checkpoint's record is of."""
    return TASK if "encoder" in record else next((k for k in (COMPRESSED, IMPORTED) if k in record), PRETRAINING)


def origin_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """`Run.origin` of a checkpoint's record."""
    if kind_of(record) == TASK:
        return record["encoder"].get(ORIGIN, {})
    return record.get(IMPORTED) or record.get(ORIGIN, {})


def read_record(folder: str | Path, kinds: Collection[str] = ()) -> dict[str, Any]:
    """The record of the newest checkpoint, without its arrays.

    Raises:
        DataError: there is no checkpoint, or one of another kind than `kinds`, where any are given.
    """
    checkpointer = Checkpointer.open(folder)
    try:
        record = checkpointer.record()
    finally:
        checkpointer.close()
    _check_kind(folder, record, kinds)
    return record


def claim(folder: Path, name: str, request: Mapping[str, Any]) -> bool:
    """Writes down what a folder is for.

    Args:
        folder: is made where it does not exist.
        name: of the file that keeps the request.
        request: JSON types; the same request may come back and find what was done.

    Returns:
        Whether the same request was there already.

    Raises:
        ConfigError: the folder is for something else.
    """
    path, request = folder / name, results.plain(request)
    before, taken = processes.from_first(lambda: (results.read(path), Checkpointer.exists(folder)))
    if before == request:
        return True
    if before is not None:
        key = next(k for k in sorted({*before, *request}) if before.get(k) != request.get(k))
        raise ConfigError(
            f"{folder} holds another run: {key} was {_short(before.get(key))}, is {_short(request.get(key))}: "
            "choose another folder, or delete it"
        )
    if taken:
        raise ConfigError(f"{folder} holds another run: choose another folder, or delete it")
    results.write(path, request)
    return False


def _short(value: Any, most: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def _check_kind(folder: str | Path, record: Mapping[str, Any], kinds: Collection[str]) -> None:
    kind = kind_of(record)
    if kinds and kind not in kinds:
        advice = ADVICE[next(iter(kinds))]
        raise DataError(f"{folder} holds a {kind} run, wanted one of {' or '.join(kinds)}: {advice}")


def _narrowed(config: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config for a model with fewer sensors or experts."""
    left, data = set(sensor_table.own_names(model["sensors"])), config["data"]
    streams = {
        name: {**stream, "sensors": [sensor for sensor in stream["sensors"] if sensor in left]}
        for name, stream in data["streams"].items()
        if left & set(stream["sensors"])
    }
    if not streams:
        raise ConfigError(f"no stream of the run's data shows {', '.join(model['sensors'])}: keep another modality")
    by_sensor = {key: data[key] for key in ("bands", "sizes", "frames") if key in data}
    by_sensor = {key: {name: v for name, v in values.items() if name in left} for key, values in by_sensor.items()}
    before, routed = PretrainConfig.of(config), models.read(model).has_experts
    narrowed = objectives.without(config["objectives"], before.sensors.keys() - left)
    built = objectives.build(narrowed) if narrowed else {}
    kept = [label for label, term in built.items() if _looks_at(term, before.sensors) <= left]
    balances = {label for label in kept if isinstance(built[label], objectives.Balance)}
    terms = {label: narrowed[label] for label in kept if routed or label not in balances}
    if not set(terms) - balances:
        raise ConfigError(f"no objective of the run looks at {', '.join(model['sensors'])} alone: keep further sensors")
    data = {**data, **by_sensor, "streams": streams}
    if data.get("views"):
        data = {**data, "views": _narrowed_views(data)}
    config = {name: group for name, group in config.items() if name != "pruning"}  # of experts, while a run trains
    return {**config, "model": model, "data": data, "objectives": terms}


def _narrowed_views(data: Mapping[str, Any]) -> dict[str, Any]:
    """Views of the streams that are left: the first sensor that the rest allows stands in for one that went.

    Without such a sensor boxes are drawn by `crop_scale`, and there are no local crops.
    """
    views, reads = data["views"], [stream["sensors"] for stream in data["streams"].values()]
    shown = list(dict.fromkeys(name for sensors in reads for name in sensors))
    everywhere = [name for name in shown if all(name in sensors for sensors in reads)]
    photometric = {name: values for name, values in views.get("photometric", {}).items() if name in shown}
    grid, local = views.get("grid", ""), views.get("local_sensor", "")
    grids = [grid] if grid in ("", *everywhere) else [*everywhere, ""]
    crops = [{"local_sensor": name} for name in ([local] if local in ("", *shown) else shown)]
    for crop in [*crops, {"local_sensor": "", "local": 0}]:
        for name in grids:
            changed = {**views, "photometric": photometric, "grid": name, **crop}
            with contextlib.suppress(ConfigError):
                configuration.build(DataConfig, {**data, "views": changed}, "config.data")
                return changed
    return views  # was wrong before


def _looks_at(term: objectives.Objective, sensors: Mapping[str, Sensor]) -> set[str]:
    """The sensors that an objective cannot do without."""
    return set(term.heads(sensors)) | set(term.together()) | (set(term.projections()) & set(sensors))
