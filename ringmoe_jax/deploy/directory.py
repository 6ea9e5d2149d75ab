"""The folder of an exported model: model.safetensors, model.stablehlo, model.json, README.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from safetensors.numpy import load_file

from ringmoe_jax import files
from ringmoe_jax.deploy.program import Program
from ringmoe_jax.deploy.stac import SCHEMA
from ringmoe_jax.errors import ConfigError, DataError

WEIGHTS, PROGRAM, DESCRIPTION, README = "model.safetensors", "model.stablehlo", "model.json", "README.md"
ASSETS = {
    "weights": {
        "href": f"./{WEIGHTS}",
        "title": "Weights by path",
        "type": "application/octet-stream; framework=safetensors",
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": "safetensors.numpy.save_file",
    },
    "program": {
        "href": f"./{PROGRAM}",
        "title": "StableHLO, f(weights, inputs) -> outputs",
        "type": "application/octet-stream; framework=jax",
        "roles": ["mlm:model", "mlm:compiled"],
        "mlm:artifact_type": "jax.export",
        "mlm:compile_method": "jit",
    },
    "readme": {"href": f"./{README}", "title": "How to run it", "type": "text/markdown", "roles": ["metadata"]},
}
SHA256 = "1220"  # multihash: the function and the number of bytes, before the digest

TEXT = """# {name}

{description}

Weights: {licence}. What every input and output means, bands and statistics are in `{json}`, a STAC Item with the
Machine Learning Model extension. It needs `pip install jax flatbuffers safetensors`, written with JAX {jax}:

```python
import jax
import numpy as np
from jax import export
from safetensors.numpy import load_file

weights = load_file("{weights}")
with open("{program}", "rb") as file:
    program = export.deserialize(file.read())
inputs = {{  # any number of images, here 1; pixels in physical units
{inputs}
}}
outputs = jax.jit(program.call)(weights, inputs)
print({{name: x.shape for name, x in outputs.items()}})
```

| output | shape | meaning |
|---|---|---|
{outputs}
"""


def check_target(out: str | Path) -> None:
    """Raises a `UserError` unless a folder is absent, empty or an export as it was written, which would be replaced."""
    out = files.check_local(out)
    if (out / files.MANIFEST).exists() and not _is_export(out):
        raise ConfigError(f"{out} exists and is not an exported model: give a new folder, or one to replace")
    files.check_replaceable(out, overwrite=True)


def save(out: str | Path, program: Program, item: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the folder: whole or not at all; an older export there is replaced.

    Args:
        out: folder.
        program: see `Program`.
        item: of `stac.describe`.

    Returns:
        What model.json holds: `item` with assets, their sizes and checksums.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    check_target(out)
    with files.draft_folder(Path(out), overwrite=True) as draft:
        (draft / PROGRAM).write_bytes(program.serialised)
        files.write_safetensors(draft / WEIGHTS, program.weights)
        (draft / README).write_text(_readme(item))
        assets = {name: asset | _facts(draft / asset["href"]) for name, asset in ASSETS.items()}
        text = json.dumps({**item, "assets": assets}, indent=1)
        (draft / DESCRIPTION).write_text(text + "\n")
    return json.loads(text)


def load(directory: str | Path) -> tuple[Callable[[Mapping[str, Any]], dict[str, jax.Array]], dict[str, Any]]:
    """Reads an exported model.

    Args:
        directory: of `save`.

    Returns:
        call: inputs to outputs, {name: array}, as `mlm:input` and `mlm:output` describe them, for any number of images;
            compiled once for each number.
        metadata: what model.json holds.

    Raises:
        DataError: not such a folder, a file that is missing or not what was written, or another schema; from `call`:
            inputs that are missing, unknown or of another shape or dtype.
    """
    directory = Path(directory)
    if not (directory / DESCRIPTION).is_file():
        raise DataError(f"no exported model in {directory}: give a folder that experiments.export wrote")
    described = files.checked_bytes(directory, DESCRIPTION, files.read_manifest(directory))
    if not _is_export(directory):
        raise DataError(f"no exported model in {directory}: give a folder that experiments.export wrote")
    metadata = json.loads(described)
    if (schema := metadata["properties"]["ringmoe:schema"]) != SCHEMA:
        raise DataError(f"{directory / DESCRIPTION} has schema {schema}, this program reads {SCHEMA}: export it again")
    for asset in metadata["assets"].values():
        _check(directory / asset["href"], asset)
    program = jax.jit(jax.export.deserialize((directory / PROGRAM).read_bytes()).call)
    weights = jax.device_put(load_file(directory / WEIGHTS))
    wanted = {entry["name"]: entry["input"] for entry in metadata["properties"]["mlm:input"]}

    def call(inputs: Mapping[str, Any]) -> dict[str, jax.Array]:
        inputs = {name: jnp.asarray(x) for name, x in inputs.items()}
        _check_inputs(inputs, wanted)
        return program(weights, inputs)

    return call, metadata


def _is_export(directory: Path) -> bool:
    try:
        return "ringmoe:schema" in json.loads((directory / DESCRIPTION).read_text())["properties"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _facts(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file:size": path.stat().st_size, "file:checksum": SHA256 + digest}


def _check(path: Path, asset: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise DataError(f"{path} is missing: copy the whole folder, or export the model again")
    for name, value in _facts(path).items():
        if value != asset[name]:
            raise DataError(f"{path} has {name} {value}, was written with {asset[name]}: copy or export it again")


def _check_inputs(inputs: Mapping[str, jax.Array], wanted: Mapping[str, Mapping[str, Any]]) -> None:
    if inputs.keys() != wanted.keys():
        raise DataError(f"got the inputs {', '.join(inputs) or 'none'}, wanted {', '.join(wanted)}")
    size = next(iter(inputs.values())).shape[:1]
    for name, x in inputs.items():
        shape, kind = wanted[name]["shape"][1:], wanted[name]["data_type"]
        kind = "bool" if kind == "other" else kind
        if size == (0,) or x.shape != (*size, *shape) or x.dtype != kind:
            text = f"{kind}[{', '.join(map(str, ['b', *shape]))}]"
            raise DataError(
                f'input "{name}" is {x.dtype}{list(x.shape)}, wanted {text} with the same b >= 1 for all inputs'
            )


def _readme(item: Mapping[str, Any]) -> str:
    facts = item["properties"]
    rows = [
        (o["name"], _shape(o["result"]), f"{', '.join(o['result']['dim_order'])}: {o['description']}")
        for o in facts["mlm:output"]
    ]
    return TEXT.format(
        name=facts["mlm:name"],
        description=facts["description"],
        licence="licence not stated" if facts["license"] == "other" else facts["license"],
        json=DESCRIPTION,
        weights=WEIGHTS,
        program=PROGRAM,
        jax=facts["mlm:framework_version"],
        inputs="\n".join(map(_example, facts["mlm:input"])),
        outputs="\n".join(f"| `{name}` | {shape} | {meaning} |" for name, shape, meaning in rows),
    )


def _shape(array: Mapping[str, Any]) -> str:
    return f"[{', '.join(['b', *map(str, array['shape'][1:])])}]"


def _example(entry: Mapping[str, Any]) -> str:
    """A line of Python: an input for one image, with what it means."""
    boolean = entry["input"]["data_type"] == "other"
    value = "ones" if boolean else "zeros"
    shape = ", ".join(map(str, (1, *entry["input"]["shape"][1:])))
    kind = "bool" if boolean else f"np.{entry['input']['data_type']}"
    return f'    "{entry["name"]}": np.{value}(({shape}), {kind}),  # {entry["description"].split("; the program")[0]}'
