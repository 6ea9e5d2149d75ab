"""What verbs measure: dataclasses, written as JSON in one way, beside the run that they are about."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ringmoe_jax.training.checkpoint import versions


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


def parse(kind: Any, value: Any) -> Any:
    """Inverse of `plain`.

    Args:
        kind: type of the result: a dataclass, dict, tuple, array or scalar; null becomes NaN where it says float.
        value: JSON types.

    Raises:
        TypeError: a field is missing or too much.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        kinds = typing.get_type_hints(kind)
        return kind(**{name: parse(kinds.get(name), v) for name, v in value.items()})
    if origin is dict:
        return {k: parse(arguments[1], v) for k, v in value.items()}
    if origin is tuple:
        return tuple(parse(arguments[0], v) for v in value)
    if kind is np.ndarray:
        return np.array(value)
    return math.nan if kind is float and value is None else value


def write(path: Path, result: Any) -> dict[str, Any]:
    """Writes a result whole or not at all, makes its folder, and returns the JSON types that it holds."""
    values = plain(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    draft.write_text(json.dumps(values, indent=1) + "\n")
    draft.replace(path)
    return values


def read(path: Path, step: int | None = None) -> dict[str, Any] | None:
    """What `write` wrote; None where there is nothing, or where it is about another step than the one asked for."""
    values = json.loads(path.read_text()) if path.exists() else None
    return values if values is not None and (step is None or values.get("step") == step) else None


def folder_of(report: Path, datasets: Sequence[str] = (), split: str = "", without: Sequence[str] = ()) -> Path:
    """Where results lie that were asked for other data than the run's own, so that no result replaces another.

    Args:
        report: folder of the results on the run's own data sets and default split.
        datasets: folders of data sets that were asked for; none are the run's own.
        split: that was asked for; "" is the default one.
        without: sensors that were hidden.

    Returns:
        `report`, or a folder in it, for example `report/mine,train,without s1_grd`.
    """
    asked = [Path(directory).name for directory in datasets] + [split] * bool(split)
    return report / ",".join([*asked, *(f"without {name}" for name in sorted(without))])


def provenance() -> dict[str, Any]:
    """When, on what and with what something is computed: JSON types."""
    return {
        "versions": versions(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "devices": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
    }
