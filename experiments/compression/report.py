"""Numbers, pictures and the page of a compressed checkpoint."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.compression.quality import headline, kept
from experiments.compression.recipe import Recipe, Version
from experiments.reports import page
from experiments.tables import plain, table, with_interval
from ringmoe_jax import compress
from ringmoe_jax.compress import Usage
from ringmoe_jax.evaluate import compression_figures, style
from ringmoe_jax.training.checkpoint import versions as packages

RESULT = "compression.json"
PAGE = "report.html"
MEANINGS = {
    "frequency": "share of the modality's tokens that chose the expert",
    "gate": "sum of the gates with which the modality's tokens chose the expert, per token",
    "norm": "mean length of what the expert added to the modality's tokens",
}


def write(
    folder: Path,
    checkpoint: str,
    recipe: Recipe,
    versions: Mapping[str, Version],
    usage: Usage | None,
    measured: Mapping[str, Any],
    seconds: float,
) -> dict[str, Any]:
    """Writes `<folder>/report/compression.json`, pictures and `<folder>/report.html`, and prints the tables.

    Args:
        folder: of the result.
        checkpoint: where it comes from.
        recipe: what was done.
        versions: "checkpoint", "sub-model" and, unless that is all, the result by its method.
        usage: of the sub-model's experts, where it was counted.
        measured: "costs" {version: fields of `Costs`}, "gap" between the first two, "quality" {version: of `quality`},
            and "int8_bytes" where eight-bit weights were tried.
        seconds: that all this took.

    Returns:
        What the file holds.
    """
    part = versions["sub-model"]
    result = {
        "from": str(checkpoint),
        "step": part.step,
        "recipe": dataclasses.asdict(recipe) | {"title": recipe.title},
        "sensors": list(part.sensors),
        "modalities": list(part.modalities),
        "dropped": [name for name in versions["checkpoint"].sensors if name not in part.sensors],
        "simulated": any(of["simulated"] for of in measured["quality"].values()),
        "experts": _experts(part, recipe, usage) if usage else {},
        "images": usage.images if usage else {},
        "seconds": seconds,
    }
    result = plain(result | dict(measured) | about())
    result["figures"] = {
        group: style.save(_picture(group, of, result), folder / "report" / f"experts_{group}.png").name
        for group, of in result["experts"].items()
    }
    (folder / "report" / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    (folder / PAGE).write_text(render(folder, result))
    return result


def render(folder: Path, result: Mapping[str, Any]) -> str:
    """The page of a compressed checkpoint as text.

    Args:
        folder: with the pictures in `report/`.
        result: of `write`.
    """
    return page.render(
        "compression.html.j2",
        folder=str(folder),
        result=result,
        last=list(result["costs"])[-1],
        findings=list(_findings(result)),
        scores={name: headline(of) for name, of in result["quality"].items()},
        images={group: page.embedded(folder / "report" / name) for group, name in result["figures"].items()},
        meaning=MEANINGS[result["recipe"]["importance"]],
        settings=json.dumps(result["recipe"], indent=2),
    )


def about() -> dict[str, Any]:
    """When and on what something was computed."""
    return {
        "versions": packages(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "devices": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
    }


def _experts(part: Version, recipe: Recipe, usage: Usage) -> dict[str, Any]:
    """{router group: importance [L, M, E], and who could be chosen before and still can}."""
    model = part.network.model
    if recipe.prunes:
        model = compress.pruned_config(model, recipe.allowed(part.network, usage))
    before, after = (_tables(part, of) for of in (part.network.model, model))
    found = compress.importance(usage, recipe.importance)
    return {
        group: {"importance": found[group], "before": before[group], "kept": after[group]}
        for group in before
        if before[group].any()
    }


def _tables(part: Version, model: dict[str, Any]) -> dict[str, np.ndarray]:
    """{router group: who may choose whom [L, M, E] bool} of a model with the sub-model's modalities."""
    config = compress.Network(model, {}).config
    layers = [config.moe.tables(len(part.modalities), layer) for layer in range(sum(config.depths))]
    return {group: np.stack([layer[group] for layer in layers]) for group in layers[0]}


def _picture(group: str, found: Mapping[str, Any], result: Mapping[str, Any]):
    arrays = [np.array(found[key]) for key in ("importance", "before", "kept")]
    title = f"{group} experts: share of the importance in a layer ({result['recipe']['importance']})"
    return compression_figures.experts(title, *arrays, result["modalities"])


def _findings(result: Mapping[str, Any]) -> Iterator[str]:
    """What the numbers say, in sentences; a score differs where the intervals lie apart."""
    whole, *_, small = result["costs"].values()
    yield (
        f"The encoder has {page.short(small['parameters'])} of {page.short(whole['parameters'])} parameters left "
        f"({100 * small['parameters'] / whole['parameters']:.0f} %), and takes {small['ratio']:.2f} times the time and "
        f"{small['flops'] / whole['flops']:.2f} times the products for an image of the sensors that stay."
    )
    gap = result["gap"]
    if gap["largest"]:
        yield (
            f"Features of sub-model and full network differ by at most {gap['largest']:.2g} where they go up to "
            f"{gap['scale']:.2g}."
        )
    else:
        yield "Features of the sub-model are those of the full network, bit for bit."
    before = result["quality"]["sub-model"]
    for name, after in result["quality"].items():
        if after is before:
            continue
        share = kept(after, before)["value"]
        if share is not None:
            yield f"{name}: {100 * share:.0f} % of the reconstruction gain over the best trivial predictor is left."
        yield from _lost(name, headline(before), headline(after))


def _lost(name: str, before: Mapping[str, Mapping], after: Mapping[str, Mapping]) -> Iterator[str]:
    probes = [key for key in before if "protocol" in before[key] and _known(before[key]) and _known(after[key])]
    worse = [key for key in probes if after[key]["high"] < before[key]["low"]]
    better = [key for key in probes if after[key]["low"] > before[key]["high"]]
    for keys, word in ((worse, "worse"), (better, "better")):
        if keys:
            yield f"{name}: probes are {word} than those of the sub-model for {page.listed(keys)}."
    if probes and not worse + better:
        yield f"{name}: no probe can be told apart from that of the sub-model by its interval."


def _known(row: Mapping[str, Any]) -> bool:
    return row["low"] is not None


def show(result: Mapping[str, Any]) -> None:
    """Prints what was gained and lost."""
    print(f"\nThe cost of encoding an image of {', '.join(result['sensors'])} on {result['devices']}")
    head = ("network", "parameters", "bytes", "FLOPs", "ms an image", "ratio", "peak memory of a process")
    rows = [
        (
            name,
            f"{of['parameters']:,} + {of['decoders']:,} of decoders",
            f"{of['bytes'] / 1e6:.2f} MB",
            f"{of['flops'] / 1e6:.4g} M",
            f"{1e3 * of['seconds']:.3g}",
            f"{of['ratio']:.2f}",
            f"{of['peak_bytes'] / 1e6:.0f} MB ({of['idle_bytes'] / 1e6:.0f} idle)",
        )
        for name, of in result["costs"].items()
    ]
    print(table(head, rows))
    scores = {name: headline(of) for name, of in result["quality"].items()}
    rows = [(key, *(with_interval(of[key]) for of in scores.values())) for key in next(iter(scores.values()))]
    print("\nWhat is left of quality, 95 % intervals")
    print(table(("score", *scores), rows))
