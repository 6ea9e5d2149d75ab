"""What verbs measure: dataclasses, written as JSON in one way, beside the run that they are about."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from ringmoe_jax import files
from ringmoe_jax.errors import DataError
from ringmoe_jax.parallel import processes
from ringmoe_jax.training.checkpoint import versions

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """When, on what and with what a result was computed, see `provenance`.

    Attributes:
        versions: of the packages that decide about numbers.
        date: of the day and minute, UTC.
        devices: how many of which kind.
    """

    versions: dict[str, str]
    date: str
    devices: str


@dataclasses.dataclass(frozen=True)
class Parameters:
    """How many parameters a model has.

    Attributes:
        total: all.
        trained: those that training changed.
        parts: by part of the model; of an encoder's features "encoder", "decoders" and the like.
    """

    total: int
    trained: int = 0
    parts: dict[str, int] = dataclasses.field(default_factory=dict)


def plain(value: Any) -> Any:
    """JSON types of dataclasses, arrays and nested containers; what is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def write(path: Path, result: Any) -> dict[str, Any]:
    """Writes a result whole or not at all, makes its folder, and returns the JSON types that it holds.

    Of several processes the first one writes.
    """
    values = plain(result)
    if processes.number() == 0:
        files.write_text(path, json.dumps(values, indent=1) + "\n")
    return values


def from_first(kind: Any, make: Callable[[], T]) -> T:
    """A result that process 0 makes, on all of them; `kind` is its type, see `parse`."""
    return make() if processes.count() == 1 else parse(kind, processes.from_first(lambda: plain(make())))


def read(path: Path, step: int | None = None) -> dict[str, Any] | None:
    """What `write` wrote; None where there is nothing, or where it is about another step than the one asked for."""
    values = files.read_json(path, "results of this library") if path.exists() else None
    return values if values is not None and (step is None or values.get("step") == step) else None


def load(kind: type[T], path: Path, step: int | None = None, advice: str = "evaluate the run again") -> T | None:
    """The dataclass that was given to `write`; None where there is nothing, or where it is about another step.

    Args:
        kind: what `parse` makes.
        path: of the file.
        step: that it must be about.
        advice: what to do where the file is of another version.

    Raises:
        DataError: the file lacks a field without a default, as one of another version may.
    """
    values = read(path, step)
    try:
        return None if values is None else parse(kind, values)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} was written by another version of this library: {advice} ({error})") from error


def parse(kind: Any, value: Any) -> Any:
    """Inverse of `plain`. What is said beyond a dataclass's fields is passed over; null is NaN where it says float.

    Args:
        kind: type of the result: a dataclass, dict, tuple, array or scalar.
        value: JSON types.

    Raises:
        TypeError: a field without a default is missing, or a value is of another kind.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else parse(arguments[0], value)
    if dataclasses.is_dataclass(kind):
        kinds = typing.get_type_hints(kind)
        known = [field.name for field in dataclasses.fields(kind) if field.name in value]
        return kind(**{name: parse(kinds[name], value[name]) for name in known})
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(parse(k, v) for k, v in zip(kinds, value, strict=True))
    if origin is dict:
        return {key: parse(arguments[1], v) for key, v in value.items()}
    if kind is np.ndarray:
        values = np.array(value)
        return values if values.dtype != object else values.astype(np.float64)  # null is NaN
    return math.nan if kind is float and value is None else value


def folder_of(
    report: Path,
    datasets: Sequence[str] = (),
    split: str = "",
    without: Sequence[str] = (),
    sensors: Sequence[str] = (),
) -> Path:
    """Where results lie that were asked for other data than the run's own, so that no result replaces another.

    Args:
        report: folder of the results on the run's own data sets and default split.
        datasets: folders of data sets that were asked for; none are the run's own.
        split: that was asked for; "" is the default one.
        without: sensors that were hidden.
        sensors: that were not there in training.

    Returns:
        `report`, or a folder in it, for example `report/mine,train,without s1_grd`.
    """
    asked = [Path(directory).name for directory in datasets] + [split] * bool(split)
    asked += [f"with {name.rpartition(':')[2]}" for name in sorted(sensors)]
    return report / ",".join([*asked, *(f"without {name}" for name in sorted(without))])


def every(report: Path, name: str) -> list[Path]:
    """All results of one kind of a run: on its own data first, then those that `folder_of` put into folders.

    Args:
        report: as of `folder_of`.
        name: of the file.
    """
    return [path for path in (report / name, *sorted(report.glob(f"*/{name}"))) if path.exists()]


def provenance() -> dict[str, Any]:
    """The fields of a `Provenance` of now."""
    return {
        "versions": versions(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "devices": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
    }
