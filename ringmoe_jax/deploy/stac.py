"""What an exported model takes and gives, as a STAC Item.

Fields of the STAC Machine Learning Model extension 1.5.2 (github.com/stac-extensions/mlm) are used where they exist;
bands are those of STAC 1.1 with the eo and raster extensions 2.0. Our own fields start with "ringmoe:".
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ringmoe_jax.contracts import Meaning
from ringmoe_jax.deploy.program import PLATFORMS, Program
from ringmoe_jax.sensors import Sensor, Statistics

SCHEMA = 1
EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("mlm/v1.5.2", "file/v2.1.0", "eo/v2.0.0", "raster/v2.0.0")
)
# What a program reads of a sensor: axes behind the batch, and what the values are.
ENTRIES = {
    "pixels": (("time", "height", "width", "bands"), "in {unit}; anything where not valid"),
    "valid": (("time", "height", "width"), "boolean, True where every band was observed"),
    "time": (("time",), "days since 1970-01-01, -2147483648 where unknown"),
    "location": (("coordinate",), "latitude and longitude in degrees (WGS 84), NaN where unknown"),
    "gsd": ((), "metres between pixels, NaN where unknown"),
}


@dataclasses.dataclass(frozen=True)
class Card:
    """What nobody can read from a program.

    Attributes:
        name: of the model: letters, digits, ".", "_" and "-".
        description: one sentence.
        architecture: name that the literature uses.
        tasks: of mlm's enumeration; () where none fits.
        sensors: that the program reads, with their bands.
        statistics: their normalisation, which the program applies itself.
        outputs: {output: its meaning}.
        pretrained: what the encoder was pre-trained on; None for nothing.
        licence: of the weights, an SPDX identifier; "other" where nobody has said.
        facts: further fields of ours, {name without prefix: JSON types}.
    """

    name: str
    description: str
    architecture: str
    tasks: Sequence[str]
    sensors: Mapping[str, Sensor]
    statistics: Mapping[str, Statistics]
    outputs: Mapping[str, Meaning]
    pretrained: str | None = None
    licence: str = "other"
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def describe(program: Program, card: Card, parameters: int) -> dict[str, Any]:
    """A STAC Item of JSON types, whose assets `directory.save` fills in.

    Args:
        program: its inputs are named "<sensor>/<key of `ENTRIES`>", its outputs as in `card.outputs`.
        card: what else there is to say.
        parameters: number of parameters behind the program's weights, which may be packed.
    """
    now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    statistics = {name: values.to_json() for name, values in card.statistics.items()}
    facts = {"schema": SCHEMA, "statistics": statistics} | dict(card.facts)
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": list(EXTENSIONS),
        "id": card.name,
        "geometry": None,
        "properties": {
            "datetime": now,
            "created": now,
            "description": card.description,
            "license": card.licence,
            "mlm:name": card.name,
            "mlm:architecture": card.architecture,
            "mlm:tasks": list(card.tasks),
            "mlm:framework": "JAX",
            "mlm:framework_version": _semantic(importlib.metadata.version("jax")),
            "mlm:memory_size": sum(leaf.nbytes for leaf in program.weights.values()),
            "mlm:total_parameters": parameters,
            "mlm:pretrained": card.pretrained is not None,
            "mlm:pretrained_source": card.pretrained,
            "mlm:accelerator": None,
            "mlm:accelerator_summary": f"lowered for {', '.join(PLATFORMS)}",
            "mlm:input": [_input(name, x, card) for name, x in program.inputs.items()],
            "mlm:output": [_output(name, x, card) for name, x in program.outputs.items()],
            "bands": [_band(card, sensor, i) for sensor in card.sensors.values() for i in range(sensor.channels)],
        }
        | {f"ringmoe:{name}": value for name, value in facts.items()},
        "links": [],
        "assets": {},
    }


def _semantic(version: str) -> str:
    """Three numbers and, behind a plus sign, what follows them (semver.org)."""
    return re.sub(r"^(\d+\.\d+\.\d+)\.", r"\1+", version)


def _input(name: str, x: jax.ShapeDtypeStruct, card: Card) -> dict[str, Any]:
    sensor, entry = card.sensors[name.rpartition("/")[0]], name.rpartition("/")[2]
    axes, text = ENTRIES[entry]
    pixels = entry == "pixels"
    return {
        "name": name,
        "description": f"{sensor.name} {entry}, {text.format(unit=sensor.unit)}"
        + ("; the program standardises them itself by the bands' statistics" if pixels else ""),
        "bands": [f"{sensor.name}/{band}" for band in sensor.band_names] if pixels else [],
        "input": _array(x, axes),
        "value_scaling": None,
        "resize_type": None,
        "pre_processing_function": None,
    }


def _output(name: str, x: jax.ShapeDtypeStruct, card: Card) -> dict[str, Any]:
    meaning = card.outputs[name]
    classes = [
        {"value": i, "name": re.sub(r"[^0-9A-Za-z_-]+", "_", c), "description": c}
        for i, c in enumerate(meaning.classes)
    ]
    described = {"name": name, "description": meaning.description, "tasks": list(card.tasks)}
    return described | {"result": _array(x, meaning.axes)} | ({"classification:classes": classes} if classes else {})


def _array(x: jax.ShapeDtypeStruct, axes: Sequence[str]) -> dict[str, Any]:
    kind = np.dtype(x.dtype)
    if len(axes) != len(x.shape):
        raise ValueError(f"an array of shape {x.shape} cannot have the axes {', '.join(axes)}")
    return {
        "shape": [-1, *x.shape],
        "dim_order": ["batch", *axes],
        "data_type": "other" if kind == np.bool_ else kind.name,  # the raster extension has no boolean
    }


def _band(card: Card, sensor: Sensor, i: int) -> dict[str, Any]:
    """A band as the provider stores it; eo's wavelengths are optical ones, SAR's are ours."""
    band, statistics = sensor.bands[i], card.statistics[sensor.name]
    wavelength = "eo:center_wavelength" if sensor.looks is None else "ringmoe:wavelength"
    optional = {"nodata": sensor.no_data, "eo:common_name": band.alias or None, wavelength: band.wavelength}
    return {
        "name": f"{sensor.name}/{band.name}",
        "data_type": sensor.dtype,
        "unit": sensor.unit,
        "gsd": band.gsd,
        "raster:scale": sensor.scale,
        "raster:offset": sensor.offset,
        "statistics": {"mean": statistics.mean[i], "stddev": statistics.std[i]},
    } | {key: value for key, value in optional.items() if value is not None}
