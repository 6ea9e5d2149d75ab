"""This library's encoders as one safetensors file: parameters under their own paths, what they are in its metadata.

    python -m experiments.convert runs/reference --out encoder.safetensors      # and back:
    python -m experiments.convert encoder.safetensors --out runs/reference

The metadata hold "ringmoe_jax", in JSON: the model's configuration, bands and normalisation of its sensors, steps of
training, and where the weights come from; and "sha256", of that text and of all parameters, which is compared before
they are used. Other readers of safetensors see a state dict like any other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import safetensors

from ringmoe_jax import models
from ringmoe_jax.config import check_modules
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.files import write_safetensors
from ringmoe_jax.interop.files import Tensors
from ringmoe_jax.interop.mapping import WeightMap, rows
from ringmoe_jax.interop.source import SOURCES, Source
from ringmoe_jax.models.paths import flatten
from ringmoe_jax.run import Run
from ringmoe_jax.sensors import Sensor, Statistics

NAME = "ringmoe_jax"  # of the source, and of the entry of the metadata
SEAL = "sha256"  # in the metadata, see `seal`
WIDTHS = ("float32", "bfloat16", "float16")
ENTRIES = ("model", "bands", "statistics", "about")  # of what a file says


@SOURCES.register(NAME)
@dataclasses.dataclass(frozen=True)
class Own(Source):
    """Files that `write_run` wrote; which sensors they are for stands in them."""

    title: ClassVar[str] = "ringmoe_jax"
    licence: ClassVar[str] = "other"
    citation: ClassVar[str] = ""

    def model(self, tensors: Tensors, path: Path) -> dict[str, Any]:
        """See `Source`; raises DataError where a file is not what was written."""
        model = described(path)["model"]
        metadata = _metadata(path)
        if SEAL not in metadata:
            raise DataError(f"{path} has no checksum, as files of older versions: convert the run to it again")
        if metadata[SEAL] != seal(metadata[NAME], tensors):
            raise DataError(f"{path} is not what was written (its checksum differs): copy it again")
        if self.sensors and tuple(self.sensors) != tuple(model["sensors"]):
            raise ConfigError(f"{path} is for {', '.join(model['sensors'])}: leave --sensors out")
        return model

    def map(self, model: Mapping[str, Any]) -> WeightMap:
        """See `Source`: every parameter under its own path."""
        paths = flatten(models.build(model).shapes())
        return WeightMap(rows("\n".join(f"{path} {path}" for path in paths)))

    def statistics(self, sensor: Sensor, path: Path) -> Statistics | None:
        """See `Source`."""
        known = described(path)["statistics"]
        return Statistics(**known[sensor.name]) if sensor.name in known else None

    def data(self, path: Path) -> dict[str, Any]:
        """See `Source`: the bands that the model reads."""
        return {"bands": described(path)["bands"]}

    def about(self, path: Path) -> dict[str, str]:
        """See `Source`."""
        return described(path)["about"]


def described(path: Path) -> dict[str, Any]:
    """What a file says of its encoder: "model", "bands", "statistics", "step" and "about".

    Raises:
        DataError: the file is not one of ours, does not say all of it, or names modules whose code nobody asked for.
    """
    try:
        said = json.loads(_metadata(path)[NAME])
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} was not written by experiments.convert: say whose it is, --source timm") from error
    entries = [said.get(name) for name in ENTRIES] if isinstance(said, dict) else [None]
    if not all(isinstance(entry, dict) for entry in entries) or "sensors" not in said["model"]:
        raise DataError(f'{path}: its metadata "{NAME}" do not hold {", ".join(ENTRIES)}: convert the run to it again')
    check_modules(said, path)
    return said


def seal(text: str, tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of what a file says of its encoder and of all its parameters, with their names, dtypes and shapes."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(str(path), framework="numpy") as file:
        return file.metadata() or {}


def is_own(path: str | Path) -> bool:
    """Whether a file is one that `write_run` wrote."""
    try:
        described(Path(path))
    except DataError:
        return False
    return True


def write_run(run: Run, path: str | Path, *, dtype: str = "float32", about: Mapping[str, str] | None = None) -> None:
    """Writes the encoder of a run to one file that `interop.convert` reads.

    Args:
        run: of pre-training, a compressed or an imported one.
        path: of the file, .safetensors.
        dtype: of the parameters: "float32" is exact; "bfloat16" and "float16" take half of the space, and come back as
            float32 values of that width.
        about: "source", "licence" and "citation", over what the run knows.

    Raises:
        ConfigError: no such dtype.
    """
    if dtype not in WIDTHS:
        raise ConfigError(f"--dtype {dtype}: choose from {', '.join(WIDTHS)}")
    known = {"source": f"{Own.title} {run.config.model['name']}", "licence": Own.licence, "citation": Own.citation}
    known |= {name: run.origin[name] for name in known if name in run.origin}
    said = {
        "model": run.config.complete()["model"],
        "bands": {name: list(bands) for name, bands in run.config.data.bands.items()},
        "statistics": {name: value.to_json() for name, value in run.statistics.items()},
        "step": run.step,
        "about": known | dict(about or {}),
    }
    model = models.build(said["model"], sensors=run.sensors, statistics=run.statistics)
    params = flatten(run.params)
    encoder = flatten(model.shapes())  # without decoders of an objective
    tensors = {name: np.asarray(params[name], jnp.dtype(dtype)) for name in encoder}
    text = json.dumps(said)
    write_safetensors(Path(path), tensors, {NAME: text, SEAL: seal(text, tensors)})
