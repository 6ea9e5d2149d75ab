"""The steps from a checkpoint to a smaller one: each leaves a checkpoint behind, and can be taken again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.compression.distil import distil
from experiments.compression.recipe import SUBMODEL, Recipe, Version
from ringmoe_jax import compress
from ringmoe_jax.errors import ConfigError

REQUEST = "compression_request.json"


def claim(folder: Path, checkpoint: str, source: Version, sensors: Sequence[str], dataset: str, what: Mapping) -> None:
    """Writes down what a folder is for, or raises where it holds something else."""
    asked = {"checkpoint": str(checkpoint), "step": source.step, "sensors": sensors, "dataset": dataset, "what": what}
    request, path = json.loads(json.dumps(asked)), folder / REQUEST
    if path.exists() and json.loads(path.read_text()) == request:
        return
    if path.exists() or (folder / "checkpoints").exists():
        raise ConfigError(f"--out {folder} holds another run: choose another folder, or delete it")
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(request, indent=1) + "\n")


def submodel(source: Version, checkpoint: str, sensors: Sequence[str], folder: Path) -> Version:
    """The part of a network that some sensors use, as a checkpoint in `folder`."""
    part = source.of(compress.submodel(source.network, sensors))
    part.save(folder, _about(source, part, checkpoint, Recipe(SUBMODEL)))
    print(f"sub-model   {' and '.join(sensors)}: {_size(source)} -> {_size(part)} parameters, in {folder}")
    return part


def reduce(part: Version, recipe: Recipe, usage: compress.Usage | None, folder: Path, checkpoint: str) -> Version:
    """The sub-model pruned, merged and distilled as a recipe says, as a checkpoint in `folder`."""
    result = part.of(recipe(part.network, usage))
    print(f"{recipe.method:<11} {recipe.title}: {_size(part)} -> {_size(result)} parameters")
    if recipe.distil:
        result = distil(result, part, recipe.distil, folder / "distillation")
    result.save(folder, _about(part, result, checkpoint, recipe))
    return result


def _about(before: Version, after: Version, checkpoint: str, recipe: Recipe) -> dict[str, Any]:
    """What a record says of where a compressed checkpoint comes from."""
    sizes = {"before": before.size, "after": after.size}
    settings = {name: value for name, value in dataclasses.asdict(recipe).items() if name != "method"}
    where = {"from": str(checkpoint), "step": before.step, "method": recipe.method}
    return where | {"settings": settings, "parameters": sizes}


def _size(version: Version) -> str:
    return f"{version.size:,}"
