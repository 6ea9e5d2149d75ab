"""From arrays to features in one call: a model by its name, and what it makes of pixels in physical units."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax import models, units
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.contracts import FUSED, NO_TIME, moments_of_cells
from ringmoe_jax.errors import ConfigError, DataError, nearest
from ringmoe_jax.models import Model, Params
from ringmoe_jax.sensors import Sensor, Statistics


@dataclasses.dataclass(frozen=True)
class Features:
    """What an encoder makes of B images, NumPy arrays in the model's `dtype`; without unit.

    Attributes:
        tokens: {sensor: [B, T, h, w, D]}, features of the last stage.
        stages: {sensor: tuple of [B, T, h_i, w_i, D_i]}, finest first, for dense heads.
        pooled: {sensor: [B, D] float32}, the mean of the tokens; "fused" too, where the model fuses sensors.
        moments: {sensor: [B, 2 sum of D_i] float32}, mean of every stage over its valid cells, then their standard
            deviations: what evaluation calls all stages and their spread. For neighbours and linear probes, z-scored
            on the images that these know; of shallow networks it says more than `pooled`.
        fused: [B, h, w, D], all sensors and dates of a location in one; None where the model does not fuse.
    """

    tokens: dict[str, np.ndarray]
    stages: dict[str, tuple[np.ndarray, ...]]
    pooled: dict[str, np.ndarray]
    moments: dict[str, np.ndarray]
    fused: np.ndarray | None = None


def build(
    model: str | Mapping[str, Any],
    sensors: Sequence[str | Sensor] | None = None,
    statistics: Mapping[str, Statistics] | None = None,
    **fields: Any,
) -> Model:
    """A model without trained parameters; `model.init(key)` draws them.

    Args:
        model: a name, such as "ringmoe" or "skysense", or a configuration's `model` group.
        sensors: that it takes: names of the sensor table, or sensors of your own; default the configuration's.
        statistics: normalisation by sensor; default the sensors' own.
        **fields: of the model's dataclass, for example `width=16`; they win over `model`.

    Raises:
        ConfigError: unknown model, sensor or field, or values that contradict each other; the message names the
            nearest.
    """
    if isinstance(model, str):
        config = {"name": model}
    else:
        config = model.to_dict() if hasattr(model, "to_dict") else dict(model)  # a `ConfigDict` holds more of them
    config |= fields
    known = {}
    if sensors is not None:
        if isinstance(sensors, str):
            raise ConfigError(f'sensors = "{sensors}" is a string: wanted a list, such as ["{sensors}"]')
        known = {s.name: s for s in (sensor_table.get(s) if isinstance(s, str) else s for s in sensors)}
        config["sensors"] = tuple(known)
    return models.build(config, sensors=known, statistics=statistics)


def encode(
    network: Any,
    images: Mapping[str | Sensor, Any],
    *,
    valid: Mapping[str | Sensor, Any] | None = None,
    days: Mapping[str | Sensor, Any] | None = None,
    location: Any = None,
    gsd: Mapping[str | Sensor, float] | None = None,
    batch_size: int = 64,
    check_units: bool = True,
) -> Features:
    """Features of images, from a model that is not trained any further.

    One program is compiled for each model and shape; more than `batch_size` images go through it in blocks, the last
    of which is filled up. The experts of a `Run` drop no token, see `Run.frozen`; those of `(model, params)` may
    (`engine="capacity"`), and then an image's features depend on the others of its block a little.

    Args:
        network: a `Run`; or `(model, params)`, or `(model, params, sensors)` with {name: `Sensor`} where the model
            takes sensors or bands that are not the sensor table's.
        images: {sensor: [B, H, W, C] or [B, T, H, W, C]}, any numbers, in the sensor's physical unit
            (`rm.sensors.get(name).unit`), bands in the order of its `band_names`. Any non-empty subset of the model's
            sensors; all have the same B and show the same places. A `Run` whose stem is made from what bands are also
            takes sensors that were not there in training: their names, `module:NAME`, or `Sensor` objects; see
            `Run.with_sensors`.
        valid: {sensor: [B, H, W] or [B, T, H, W] bool}, False where a pixel was not observed. Pixels with a band that
            is not finite never are valid; but a band without a finite value in a whole image counts as missing there,
            where the model can be told so.
        days: {sensor: [B] or [B, T]}, when each image was taken: `datetime64`, or days since 1970-01-01.
        location: [B, 2] latitude and longitude in degrees (WGS 84).
        gsd: {sensor: metres between pixels}, for models that are told; default the sensor's finest.
        batch_size: images of a block, > 0.
        check_units: whether values that look like another unit are an error; False takes them as they are.

    Returns:
        `Features`, on the host.

    Raises:
        ConfigError: a sensor was not there in training, and every sensor has weights of its own in this model.
        DataError: an unknown sensor, another number of bands, shapes that do not belong together, an image size that
            the model cannot take, or values that look like another unit.
    """
    model, params, sensors = _opened(network, images)
    given = (images, valid, days, gsd)
    images, valid, days, gsd = ({_name(key): x for key, x in (of or {}).items()} for of in given)
    if not images:
        raise DataError(f"images is empty: wanted pixels of at least one of {', '.join(sensors)}")
    for argument, given in (("valid", valid), ("days", days), ("gsd", gsd)):
        if extra := sorted(set(given) - set(images)):
            raise DataError(f'{argument} has "{extra[0]}", images has {", ".join(images)}: give pixels of it, too')
    entries = {}
    for name, pixels in images.items():
        if name not in sensors:
            raise DataError(f'images has "{name}", which the model does not take: {nearest(name, sensors)}')
        entries[name] = _entry(sensors[name], pixels, valid.get(name), days.get(name), check_units, model.told)
    rows = {name: len(entry["pixels"]) for name, entry in entries.items()}
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{name} {number}" for name, number in rows.items())
        raise DataError(f"sensors have different numbers of images: {listed}: row i of all shows place i")
    where = _location(location, next(iter(rows.values())))
    for name, entry in entries.items():
        metres = gsd.get(name, sensors[name].gsd)
        if not (isinstance(metres, int | float) and 0 < metres < np.inf):
            raise DataError(f'gsd["{name}"] = {metres!r}: wanted metres between pixels, above 0')
        entry |= {"location": where, "gsd": np.full(len(where), metres, np.float32)}
    batch = {"sensors": entries}
    blocks = [jax.device_get(_features(model.apply, params, block)) for block in _blocks(batch, batch_size)]
    total = next(iter(rows.values()))
    return Features(**jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *blocks))


@functools.partial(jax.jit, static_argnums=0)
def _features(apply, params: Params, batch: Mapping) -> dict:
    outputs = apply(params, batch)
    found = {name: outputs[name] for name in ("tokens", "stages", "pooled", FUSED) if name in outputs}
    return found | {"moments": {name: _moments(maps, batch["sensors"][name]) for name, maps in found["stages"].items()}}


def _moments(maps: Sequence[jax.Array], entry: Mapping) -> jax.Array:
    """The means of all stages side by side, then their standard deviations."""
    means, spreads = zip(*(moments_of_cells(cells, entry["valid"]) for cells in maps), strict=True)
    return jnp.concatenate([*means, *spreads], axis=1)


def _name(sensor: str | Sensor) -> str:
    return sensor.name if isinstance(sensor, Sensor) else sensor_table.own_names([sensor])[0]


def _opened(network: Any, asked: Iterable[str | Sensor]) -> tuple[Model, Params, dict[str, Sensor]]:
    """Model, parameters and sensors; of a run with those that are asked for and were not there in training."""
    if hasattr(network, "with_sensors"):
        table = sensor_table.SENSORS
        known = [s for s in asked if isinstance(s, Sensor) or ":" in s or (s in table and s not in network.sensors)]
        network = network.with_sensors(known)
    network = getattr(network, "frozen", network)
    if hasattr(network, "model"):
        return network.model, network.params, dict(network.sensors)
    if not isinstance(network, Sequence) or len(network) not in (2, 3):
        raise DataError(f"network is a {type(network).__name__}: wanted a Run, or (model, params)")
    model, params, *rest = network
    return model, params, dict(rest[0]) if rest else sensor_table.resolve([s for s in model.streams if s != FUSED])


def _blocks(batch: Mapping, size: int) -> Iterator[Mapping]:
    """Parts of a batch along B, all of one shape; images that fill up the last one are not observed anywhere."""
    if size < 1:
        raise DataError(f"batch_size = {size}: wanted at least 1")
    rows = len(jax.tree.leaves(batch)[0])
    size = min(size, rows)
    for start in range(0, rows, size):
        short = max(0, start + size - rows)
        fill = lambda x, a=start, n=short: np.pad(x[a : a + size], [(0, n)] + [(0, 0)] * (x.ndim - 1))  # noqa: E731
        yield jax.tree.map(fill, batch)


def _entry(sensor: Sensor, pixels: Any, valid: Any, days: Any, check_units: bool, told: bool) -> dict[str, np.ndarray]:
    """One sensor of a batch, see `ringmoe_jax.contracts`; `told`: bands may be missing."""
    pixels = _with_dates(sensor, np.asarray(pixels))
    pixels = np.asarray(pixels, np.float32)
    shape = pixels.shape[:-1]
    finite = np.isfinite(pixels)
    bands = finite.any(axis=(2, 3)) if told else np.ones((*shape[:2], sensor.channels), bool)
    seen = (finite | ~bands[:, :, None, None]).all(axis=-1) & bands.any(axis=-1)[:, :, None, None]
    if valid is not None:
        valid = np.asarray(valid)
        valid = valid[:, None] if valid.ndim == 3 else valid
        if valid.dtype != bool or valid.shape != shape:
            raise DataError(f'valid["{sensor.name}"] is {valid.dtype}{list(valid.shape)}, wanted bool{list(shape)}')
        seen &= valid
    if check_units:
        everywhere = bands.all(axis=(0, 1))
        kept = tuple(band for band, there in zip(sensor.bands, everywhere, strict=True) if there)
        _check_units(dataclasses.replace(sensor, bands=kept), pixels[seen][:, everywhere])
    time = np.full(shape[:2], NO_TIME, np.int32) if days is None else _days(sensor, days, shape[:2])
    observed = seen[..., None] & bands[:, :, None, None]
    entry = {"pixels": np.where(observed, pixels, 0), "valid": seen, "time": time}
    return entry | ({"bands": bands} if told else {})


def _with_dates(sensor: Sensor, pixels: np.ndarray) -> np.ndarray:
    """[B, T, H, W, C] of numbers, or a `DataError` that says what is wrong with the shape."""
    where, bands = f'images["{sensor.name}"]', f"{sensor.channels} bands {', '.join(sensor.band_names)}"
    if np.iscomplexobj(pixels) or not np.issubdtype(pixels.dtype, np.number):
        parts = " (complex values: re and im are bands of their own)" if np.iscomplexobj(pixels) else ""
        raise DataError(f"{where} holds {pixels.dtype}{parts}: wanted real numbers in {sensor.unit}")
    shown = f"{where} has shape {list(pixels.shape)}"
    if pixels.ndim == 3:
        raise DataError(f"{shown}, wanted [B, H, W, C]: one image is pixels[None]")
    if pixels.ndim not in (4, 5) or not pixels.size:
        raise DataError(f"{shown}, wanted [B, H, W, C] or [B, T, H, W, C] with at least one pixel")
    if pixels.shape[-1] != sensor.channels:
        if pixels.shape[-3] == sensor.channels:
            raise DataError(f"{shown}, wanted the bands last: give numpy.moveaxis(pixels, -3, -1)")
        raise DataError(f"{shown}, so {pixels.shape[-1]} bands; wanted the {bands}")
    return pixels[:, None] if pixels.ndim == 4 else pixels


def _days(sensor: Sensor, days: Any, shape: tuple[int, int]) -> np.ndarray:
    days = np.asarray(days)
    if np.issubdtype(days.dtype, np.datetime64):
        unknown, days = np.isnat(days), days.astype("datetime64[D]").astype(np.int64)
        days = np.where(unknown, NO_TIME, days)
    days = days[:, None] if days.ndim == 1 else days
    if days.shape != shape or not np.issubdtype(days.dtype, np.integer):
        raise DataError(
            f'days["{sensor.name}"] is {days.dtype}{list(days.shape)}, wanted datetime64, or whole days since '
            f"1970-01-01, of shape {list(shape)}"
        )
    return days.astype(np.int32)


def _location(location: Any, rows: int) -> np.ndarray:
    if location is None:
        return np.full((rows, 2), np.nan, np.float32)
    location = np.asarray(location, np.float32)
    if location.shape != (rows, 2):
        raise DataError(f"location has shape {list(location.shape)}, wanted {[rows, 2]}: latitude and longitude a row")
    if (np.abs(location) > (90, 360)).any():
        raise DataError(
            f"location has latitude {location[np.abs(location[:, 0]).argmax(), 0]:g} and longitude up to "
            f"{np.nanmax(np.abs(location[:, 1])):g}: wanted degrees, latitude (-90 to 90) first"
        )
    return location


def _check_units(sensor: Sensor, values: np.ndarray) -> None:
    """Raises a `DataError` where valid values [N, C] cannot be the sensor's unit, with what they look like."""
    where, (low, high) = f'images["{sensor.name}"]', sensor.valid_range
    if sensor.no_data is not None and not low <= sensor.no_data <= high and (values == sensor.no_data).any():
        run = f"{where} runs from {values.min():g} to {values.max():g}"
        raise DataError(
            f"{run}, and {sensor.no_data:g} means not observed: set those pixels to NaN, or mark them by valid"
        )
    units.check(sensor, values, where, "check_units=False takes values as they are")
