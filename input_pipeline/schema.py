"""What a stored sample is, and the metadata that travels with it.

A data set is a TFDS directory: `tfds.builder_from_directory(directory)` opens it. One example:

    id                        text, unique in the data set
    latitude, longitude       float32 degrees (WGS 84), NaN where unknown
    sensors/<name>/pixels     [T, H, W, C] in the provider's dtype
    sensors/<name>/valid      [T, H, W] bool, True where every band was observed
    sensors/<name>/time       [T] int32, days since 1970-01-01, NO_TIME where unknown
    labels/<name>             see `LabelInfo`

Dates of a series ascend (two may be equal), and those of unknown time come last. T, H, W and C are the same in every
sample of a data set; a shorter time series and an absent sensor
are filled up with zeros whose `valid` is False. `Metadata` is stored beside it as `metadata.json`, and where samples
were cut from as `scenes.npz`, see `input_pipeline.scenes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.config import build
from ringmoe_jax.contracts import (
    BOX,
    BOXES,
    CLASSES,
    MAP,
    MULTILABEL,
    NO_TIME,
    TRACK,
    TRACKS,
    UNLABELLED,
    VALUE,
)
from ringmoe_jax.errors import DataError, nearest
from ringmoe_jax.geo import PLAUSIBLE

SCHEMA_VERSION = 1

_COLUMNS = {BOXES: BOX, TRACKS: TRACK}


@dataclasses.dataclass(frozen=True)
class Image:
    """Pixels of one sensor.

    Attributes:
        pixels: [T, H, W, C], the provider's dtype.
        valid: [T, H, W] bool, or None for "all of them".
        time: [T] days since 1970-01-01 in ascending order, NO_TIME at the end where unknown, or None for "unknown".
    """

    pixels: np.ndarray
    valid: np.ndarray | None = None
    time: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a sample was cut from.

    Attributes:
        scene: text, unique in the data set: the whole image, or the series of them.
        date: the scene's date that is the sample's first one.
        row: of its upper left pixel in the scene, in pixels of the data set's first sensor.
        column: likewise.
        objects: by label of `BOXES` or `TRACKS` all rows of the scene from `date` on, as many dates as the sample has,
            in pixels of the whole scene and dates of the sample, and not clipped to it.
    """

    scene: str
    date: int
    row: int
    column: int
    objects: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sample:
    """One place, as handed to `input_pipeline.builder.write_dataset`.

    Attributes:
        id: text, unique in the data set.
        images: by sensor name; a sensor of the data set may be absent.
        latitude: degrees (WGS 84), NaN where unknown.
        longitude: degrees (WGS 84), NaN where unknown.
        labels: by label name; shapes as `LabelInfo` says. Every label of the data set must be there.
        origin: where it was cut from, None where it is all that there is.
    """

    id: str
    images: Mapping[str, Image]
    latitude: float = float("nan")
    longitude: float = float("nan")
    labels: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    origin: Origin | None = None


@dataclasses.dataclass(frozen=True)
class SensorInfo:
    """How one sensor is stored. The physical fields must equal the sensor table's to be read.

    Attributes:
        bands: names, in storage order.
        shape: T, H, W of every sample.
        unit: physical unit of `scale * stored + offset`.
        dtype: storage dtype, a NumPy name.
        scale: see `unit`.
        offset: see `unit`.
        gsd: ground sampling distance of the stored grid, in metres.
        no_data: stored value that means "not observed", or None.
        resampling: "linear", "decibel" or "complex".
        simulated: True where the values were computed and not measured.
        mean: per band, over valid pixels of the split "train", in `unit`; 0 for complex sensors.
            None as long as nothing was counted.
        std: as `mean`; complex sensors share one value, so that phase and polarimetric ratios
            stay untouched (our choice).
        pixels: number of pixels that `mean` and `std` are taken over.
    """

    bands: tuple[str, ...]
    shape: tuple[int, ...]
    unit: str
    dtype: str
    scale: float
    offset: float
    gsd: float
    no_data: float | None
    resampling: str
    simulated: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    pixels: int = 0

    @staticmethod
    def of(sensor: sensor_table.Sensor, shape: tuple[int, int, int], gsd: float, simulated=False) -> SensorInfo:
        """Storage of a sensor as the table describes it, with tiles of `shape` = T, H, W."""
        return SensorInfo(
            bands=sensor.band_names,
            shape=shape,
            unit=sensor.unit,
            dtype=sensor.dtype,
            scale=sensor.scale,
            offset=sensor.offset,
            gsd=float(gsd),
            no_data=None if sensor.no_data is None else float(sensor.no_data),
            resampling=sensor.resampling,
            simulated=simulated,
        )


@dataclasses.dataclass(frozen=True)
class LabelInfo:
    """What a label is.

    Attributes:
        kind: `CLASSES` (int32 scalar, UNLABELLED = -1), `MULTILABEL` ([classes] float32 of 0 and 1),
            `VALUE` ([len(names)] float32), `MAP` ([H, W] int32, stored int16, on the grid of `sensor`, -1 unknown),
            `BOXES` ([count, 6] float32, columns `BOX`) or `TRACKS` ([count, 8] float32, columns `TRACK`).
        names: classes, or the components of a value.
        description: how it was made; unit and range of a value.
        sensor: for `MAP`, `BOXES` and `TRACKS`: whose grid.
        count: for `BOXES` and `TRACKS`: number of rows of every sample, used or not.
        colours: "#rrggbb" of every class, for maps and pictures; none where nobody said.
        change: for `MAP`: it says what differs between the first and the last date of its sensor.
        oriented: for `BOXES` and `TRACKS`: some are turned. Whoever writes the data set sees that and sets it.
        unscored: for `MAP`: classes that the data set's own scores leave out of their means.
        scoring: how published scores differ from those made here, for notes beside them.
    """

    kind: str
    names: tuple[str, ...]
    description: str
    sensor: str = ""
    count: int = 0
    colours: tuple[str, ...] = ()
    change: bool = False
    oriented: bool = False
    unscored: tuple[str, ...] = ()
    scoring: str = ""

    def shape(self, sensors: Mapping[str, SensorInfo]) -> tuple[int, ...]:
        """Shape of one sample's label, as it is stored.

        Args:
            sensors: of the data set, whose grids maps lie on.
        """
        if self.kind == MAP:
            return tuple(sensors[self.sensor].shape[1:])
        if self.kind in _COLUMNS:
            return self.count, len(_COLUMNS[self.kind])
        return () if self.kind == CLASSES else (len(self.names),)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a data set says of itself.

    Attributes:
        name: short name, snake_case.
        sensors: by sensor name.
        labels: by label name.
        description: where the pixels come from, how tiles were cut and how splits were made.
        licence: licence of the data.
        source: homepage or download address.
        citation: how to cite it.
        schema_version: of this file.
    """

    name: str
    sensors: dict[str, SensorInfo]
    description: str
    licence: str
    source: str
    labels: dict[str, LabelInfo] = dataclasses.field(default_factory=dict)
    citation: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict:
        """Returns a dict of JSON types; `Metadata.from_json` reads it back."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any], where: str) -> Metadata:
        """Checks and builds.

        Args:
            values: what `to_json` returned.
            where: file, for messages.

        Raises:
            DataError: another schema version.
            ConfigError: a key is unknown, missing or of the wrong type.
        """
        if values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{where} has schema version {values.get('schema_version')}, this program reads {SCHEMA_VERSION}: "
                "write the data set again with `python -m experiments.prepare`"
            )
        return build(Metadata, values, where)


def features(metadata: Metadata, sensors: Iterable[str] | None = None):
    """The TFDS features of a data set, or of some sensors of it (what is left out is not parsed)."""
    from input_pipeline.cpu_tf import tfds

    def array(shape, dtype):
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)

    def image(info: SensorInfo):
        return {
            "pixels": array((*info.shape, len(info.bands)), np.dtype(info.dtype)),
            "valid": array(info.shape, np.bool_),
            "time": tfds.features.Tensor(shape=info.shape[:1], dtype=np.int32),
        }

    def label(info: LabelInfo):
        shape = info.shape(metadata.sensors)
        if info.kind == MAP:
            return array(shape, np.int16)
        return tfds.features.Tensor(shape=shape, dtype=np.int32 if info.kind == CLASSES else np.float32)

    wanted = metadata.sensors if sensors is None else sensors
    labels = metadata.labels
    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "latitude": tfds.features.Scalar(np.float32),
            "longitude": tfds.features.Scalar(np.float32),
            "sensors": {name: image(metadata.sensors[name]) for name in wanted},
            **({"labels": {name: label(info) for name, info in labels.items()}} if labels else {}),
        }
    )


def to_example(sample: Sample, metadata: Metadata) -> dict:
    """A sample as the nested dict that `features(metadata)` encodes: checked, filled up, right dtypes.

    Raises:
        DataError: a sensor or label is unknown or has another shape or dtype than the metadata says, a series is
            empty, not sorted or of impossible dates, or the place is not on Earth.
    """
    where = f'sample "{sample.id}" of "{metadata.name}"'
    _check_place(sample.latitude, sample.longitude, where)
    for kind, given, known in (
        ("sensor", sample.images, metadata.sensors),
        ("label", sample.labels, metadata.labels),
    ):
        for name in given:
            if name not in known:
                raise DataError(f'{where}: {kind} "{name}" is not in the metadata: {nearest(name, known)}')
    if missing := set(metadata.labels) - set(sample.labels):
        raise DataError(f"{where}: the label {sorted(missing)[0]} is missing: use {UNLABELLED} or NaN where unknown")
    example = {
        "id": sample.id,
        "latitude": np.float32(sample.latitude),
        "longitude": np.float32(sample.longitude),
        "sensors": {
            name: _fill_up(sample.images.get(name), info, f'{where}: sensor "{name}"')
            for name, info in metadata.sensors.items()
        },
    }
    if metadata.labels:
        example["labels"] = {
            name: _label(sample.labels[name], info, metadata, f'{where}: label "{name}"')
            for name, info in metadata.labels.items()
        }
    return example


def serialiser(metadata: Metadata):
    """Returns a function from what `to_example` gives to a serialised tf.train.Example, the same bytes every time."""
    from input_pipeline.cpu_tf import tfds

    encoder = features(metadata)
    fill = tfds.core.example_serializer.ExampleSerializer(encoder.get_serialized_info()).get_tf_example
    # TFDS serialises the map of features in whatever order it lies in memory.
    return lambda example: fill(encoder.encode_example(example)).SerializeToString(deterministic=True)


def blank(metadata: Metadata) -> Sample:
    """A sample that holds nothing: no sensor, labels unknown or zero."""
    empty = {MULTILABEL: 0, VALUE: 0}
    labels = {
        name: np.full(info.shape(metadata.sensors), empty.get(info.kind, UNLABELLED))
        for name, info in metadata.labels.items()
    }
    return Sample("", {}, labels=labels)


def _fill_up(image: Image | None, info: SensorInfo, where: str) -> dict:
    times, height, width = info.shape
    pixels = np.zeros((*info.shape, len(info.bands)), info.dtype)
    valid = np.zeros(info.shape, np.bool_)
    time = np.full((times,), NO_TIME, np.int32)
    if image is not None:
        got, count = image.pixels, len(image.pixels)
        if not count:
            raise DataError(f"{where} has no date (T = 0): leave the sensor out of this sample's images")
        if got.dtype != info.dtype or got.shape[1:] != pixels.shape[1:] or count > times:
            raise DataError(
                f"{where} has pixels {got.dtype}{got.shape}, wanted {info.dtype}"
                f"[T <= {times}, {height}, {width}, {len(info.bands)}] for the bands {', '.join(info.bands)}"
            )
        pixels[:count] = got
        valid[:count] = True if image.valid is None else image.valid
        time[:count] = NO_TIME if image.time is None else _checked_times(np.asarray(image.time), count, where)
    return {"pixels": pixels, "valid": valid, "time": time}


def _check_place(latitude: float, longitude: float, where: str) -> None:
    """Raises unless both are in range or NaN."""
    for name, value, limit in (("latitude", latitude, 90), ("longitude", longitude, 180)):
        if np.isnan(value) or -limit <= value <= limit:
            continue
        hint = "give degrees (WGS 84), or NaN where unknown"
        if name == "longitude" and limit < value <= 360:
            hint = f"longitudes are not counted 0..360 here: subtract 360, {value - 360:g}"
        elif name == "latitude" and limit < abs(value) <= 180 and not abs(longitude) > 90:
            hint = f"are latitude and longitude ({longitude:g}) swapped?"
        raise DataError(f"{where} has {name} {value:g}, wanted {-limit} to {limit}: {hint}")


def _checked_times(times: np.ndarray, count: int, where: str) -> np.ndarray:
    """The times, if there is one a date, and all are possible and in order."""
    if times.shape != (count,) or times.dtype.kind not in "iu":
        raise DataError(
            f"{where} has times {times.dtype}{list(times.shape)}, wanted [{count}] whole days since 1970-01-01"
        )
    times, first, last = times.astype(np.int64), *_plausible()
    known = np.flatnonzero(times != NO_TIME)
    for i in known[(times[known] < first) | (times[known] > last)]:
        raise DataError(
            f"{where} has time {times[i]} at position {i}, wanted days since 1970-01-01, {first} ({PLAUSIBLE[0]}) to "
            f"{last} ({PLAUSIBLE[1]}): {_what_time(int(times[i]))}"
        )
    if known.size and known[-1] >= known.size:
        i = np.flatnonzero(times == NO_TIME)[0]
        raise DataError(f"{where} has no time at position {i}, but one at {known[-1]}: sort dates of unknown time last")
    for i in np.flatnonzero(np.diff(times[: known.size]) < 0):
        raise DataError(
            f"{where} has {_iso(times[i])} at position {i} before {_iso(times[i + 1])}: sort its dates, oldest first"
        )
    return times


def _plausible() -> tuple[int, int]:
    first, last = (int(np.datetime64(date).astype(int)) for date in PLAUSIBLE)
    return first, last


def _iso(day: int) -> str:
    return str(np.datetime64(int(day), "D"))


def _what_time(value: int) -> str:
    """What an impossible day number may be."""
    digits, last = str(value), _plausible()[1]
    if len(digits) == 8:
        try:
            day = np.datetime64(f"{digits[:4]}-{digits[4:6]}-{digits[6:]}").astype(int)
            return f"it looks like yyyymmdd, {_iso(day)} is day {day}"
        except ValueError:
            pass
    for unit, length in (("seconds", 86_400), ("milliseconds", 86_400_000), ("nanoseconds", 86_400_000_000_000)):
        if 366 < value // length <= last:
            return f"it looks like {unit} since 1970-01-01, {_iso(value // length)} is day {value // length}"
    return f"it would be {_iso(value)}" if abs(value) < 3_000_000 else "it is no date"


def _label(value: Any, info: LabelInfo, metadata: Metadata, where: str) -> np.ndarray:
    wanted = info.shape(metadata.sensors)
    array = np.asarray(value, {MAP: np.int16, CLASSES: np.int32}.get(info.kind, np.float32))
    if array.shape != wanted:
        columns = f" of {', '.join(_COLUMNS[info.kind])}" if info.kind in _COLUMNS else ""
        raise DataError(f"{where} has shape {array.shape}, wanted {wanted}{columns}")
    classes = array[:, 0] if info.kind in _COLUMNS else array
    if info.kind not in (MULTILABEL, VALUE) and not ((classes >= UNLABELLED) & (classes < len(info.names))).all():
        top = len(info.names) - 1
        raise DataError(f"{where} holds {classes.min()} to {classes.max()}, wanted {UNLABELLED} to {top}")
    return array
