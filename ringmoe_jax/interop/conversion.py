"""From a file of weights to a run, and back to a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ringmoe_jax import models
from ringmoe_jax import sensors as sensor_table
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.files import write_safetensors
from ringmoe_jax.interop import files
from ringmoe_jax.interop.own import NAME as OWN
from ringmoe_jax.interop.source import SOURCES, Source
from ringmoe_jax.run import IMPORTED, PretrainConfig, Run
from ringmoe_jax.sensors import Statistics

BATCH = 32  # images of a step, where a verb does not say


def convert(
    source: Source,
    path: str | Path,
    *,
    changes: Mapping[str, Any] | None = None,
    image_size: int = 64,
    directory: str = "",
    statistics: Mapping[str, Statistics] | None = None,
    licence: str = "",
) -> Run:
    """The run, in memory, that a file's weights make; `Run.save` with its `origin` and `IMPORTED` writes it.

    Args:
        source: of `SOURCES`, with its choices.
        path: of the file.
        changes: fields of the model that tensors do not tell, over those that the source says.
        image_size: side in pixels of the images that verbs show a model that takes any size.
        directory: of the data set that verbs read unless told otherwise; "" is data/<source>.
        statistics: normalisation of sensors of which the source says nothing; default: the sensor table's.
        licence: of this file, where the source's is another or unknown.

    Raises:
        UserError: the file is not the source's, or does not fill the model to the last parameter.
    """
    path = Path(path)
    tensors = files.read(path)
    model = _merged(source.model(tensors, path), changes or {})
    name = next(name for name, cls in SOURCES.items() if cls is type(source))
    sizes = models.image_sizes(model)
    stream = {"directory": directory or f"data/{name}", "sensors": model["sensors"]}
    data = {"streams": {name: stream}, "batch_size": BATCH, "mask_unit": 0, "sizes": sizes}
    data["image_size"] = next(iter(sizes.values()), image_size)
    data |= source.data(path)
    config = PretrainConfig.of({"model": model, "objectives": {}, "data": data})
    fallback = lambda name: (statistics or {}).get(name) or sensor_table.get(name).statistics  # noqa: E731
    known = {name: source.statistics(sensor, path) or fallback(name) for name, sensor in config.sensors.items()}
    shapes = models.build(model, sensors=config.sensors, statistics=known).shapes()
    params = source.map(model).to_params(source.prepare(tensors, model), shapes)
    origin = source.about(path) | {"map": name, "file": path.name, "sha256": _digest(path)}
    origin |= {"licence": licence} if licence else {}
    values = {name: value.to_json() for name, value in known.items()}
    record = {"config": config.complete(), "statistics": values, "step": 0, IMPORTED: origin}
    return Run(record, params, models.count(params))


def write_tensors(run: Run, path: str | Path, source: str = "") -> Source:
    """Writes the weights of an encoder under the names of a source, float32 safetensors.

    Args:
        run: imported, or of a model that the source knows.
        path: of the file.
        source: of `SOURCES`; "" is the one that the run was imported from.

    Returns:
        The source.

    Raises:
        ConfigError: no source is said, or it does not know the model.
        DataError: a parameter has no name there.
    """
    name = source or run.origin.get("map", "")
    if name in ("", OWN):
        raise ConfigError(f"{run.folder} was not imported: say whose names its weights are to get, --source timm")
    chosen = SOURCES.build({"name": name}, "--source")
    write_safetensors(Path(path), chosen.map(run.network.model).to_tensors(run.params))
    return chosen


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, the second one's values over the first one's."""
    inner = lambda name, value: isinstance(value, Mapping) and isinstance(base.get(name), Mapping)  # noqa: E731
    return dict(base) | {k: _merged(base[k], v) if inner(k, v) else v for k, v in changes.items()}
