"""Tables, pictures and pages of what `experiments.compress` made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.reports import compression_figures, page
from experiments.run.tables import table, with_interval
from ringmoe_jax import files
from ringmoe_jax.compress.results import PART, RESULT, Compression, Front
from ringmoe_jax.evaluate import style
from ringmoe_jax.evaluate.metrics.base import Score
from ringmoe_jax.run import results

PAGE = "report.html"
MEANINGS = {
    "frequency": "share of the modality's tokens that chose the expert",
    "gate": "sum of the gates with which the modality's tokens chose the expert, per token",
    "norm": "mean length of what the expert added to the modality's tokens",
}


# ---- One network --------------------------------------------------------------------------------------


def of_run(folder: Path) -> str:
    """The page of a compressed checkpoint as text, from the numbers that lie in its folder.

    Raises:
        DataError: another version of this library wrote them.
    """
    advice = "give the experiments.compress that made it once more, which keeps the checkpoint"
    return render(folder, results.load(Compression, folder / "report" / RESULT, advice=advice))


def write(folder: Path, result: Compression) -> Path:
    """Writes the page of a compressed checkpoint, and its pictures to `report/`."""
    path = folder / PAGE
    files.write_text(path, render(folder, result))
    return path


def render(folder: Path, result: Compression) -> str:
    """The page of a compressed checkpoint as text; its pictures are drawn to `<folder>/report`.

    Args:
        folder: of the checkpoint.
        result: what was measured.
    """
    by = result.recipe.importance
    images = {}
    for group, kept in result.experts.items():
        title = f"{group} experts: share of the importance in a layer ({by})"
        figure = compression_figures.experts(title, kept.importance, kept.before, kept.kept, result.modalities)
        images[group] = page.embedded(style.save(figure, folder / "report" / f"experts_{group}.png"))
    return page.render(
        "compression.html.j2",
        folder=str(folder),
        result=result,
        title=result.recipe.title,
        last=list(result.costs)[-1],
        simulated=any(quality.simulated for quality in result.quality.values()),
        findings=list(_findings(result)),
        scores={name: quality.headline() for name, quality in result.quality.items()},
        images=images,
        meaning=MEANINGS[by],
        settings=json.dumps(results.plain(result.recipe), indent=2),
    )


def _findings(result: Compression) -> Iterator[str]:
    """What the numbers say, in sentences; a score differs where the intervals lie apart."""
    whole, *_, small = result.costs.values()
    yield (
        f"The encoder has {page.short(small.parameters)} of {page.short(whole.parameters)} parameters left "
        f"({100 * small.parameters / whole.parameters:.0f} %), and takes {small.ratio:.2f} times the time and "
        f"{small.flops / whole.flops:.2f} times the products for an image of the sensors that stay."
    )
    if result.gap.largest:
        yield (
            f"Features of sub-model and full network differ by at most {result.gap.largest:.2g} where they go up to "
            f"{result.gap.scale:.2g}."
        )
    else:
        yield "Features of the sub-model are those of the full network, bit for bit."
    before = result.quality[PART]
    for name, after in result.quality.items():
        if after is before:
            continue
        left = after.gain_left(before).value
        if math.isfinite(left):
            yield f"{name}: {100 * left:.0f} % of the reconstruction gain over the best trivial predictor is left."
        yield from _lost(name, before.probe_scores(), after.probe_scores())


def _lost(name: str, before: Mapping[str, Score], after: Mapping[str, Score]) -> Iterator[str]:
    probes = [key for key in before if math.isfinite(before[key].low) and math.isfinite(after[key].low)]
    worse = [key for key in probes if after[key].high < before[key].low]
    better = [key for key in probes if after[key].low > before[key].high]
    for keys, word in ((worse, "worse"), (better, "better")):
        if keys:
            yield f"{name}: probes are {word} than those of the sub-model for {page.listed(keys)}."
    if probes and not worse + better:
        yield f"{name}: no probe can be told apart from that of the sub-model by its interval."


def show(result: Compression) -> None:
    """Prints what was gained and lost."""
    print(f"\nThe cost of encoding an image of {', '.join(result.sensors)} on {result.provenance['devices']}")
    head = ("network", "parameters", "bytes", "FLOPs", "ms an image", "ratio", "peak memory of a process")
    rows = [
        (
            name,
            f"{cost.parameters:,} + {cost.decoders:,} of decoders",
            f"{cost.bytes / 1e6:.2f} MB",
            f"{cost.flops / 1e6:.4g} M",
            f"{1e3 * cost.seconds:.3g}",
            f"{cost.ratio:.2f}",
            f"{cost.peak_bytes / 1e6:.0f} MB ({cost.idle_bytes / 1e6:.0f} idle)",
        )
        for name, cost in result.costs.items()
    ]
    print(table(head, rows))
    scores = {name: quality.headline() for name, quality in result.quality.items()}
    rows = [(key, *(with_interval(row[key]) for row in scores.values())) for key in scores[PART]]
    print("\nWhat is left of quality, 95 % intervals")
    print(table(("score", *scores), rows))


# ---- Many of them -------------------------------------------------------------------------------------


def write_front(folder: Path, front: Front) -> Path:
    """Writes the page of quality against size, and its picture to `report/`."""
    title = f"Quality and size of {' and '.join(front.sensors)} networks"
    image = style.save(compression_figures.front(title, _panels(front)), folder / "report" / "front.png")
    text = page.render(
        "compression_front.html.j2",
        folder=str(folder),
        result=front,
        scores=front.scores(),
        image=page.embedded(image),
        simulated=any(point.quality.simulated for point in front.points),
    )
    path = folder / PAGE
    files.write_text(path, text)
    return path


def _panels(front: Front) -> dict[str, list[dict[str, Any]]]:
    """{score: points as `compression_figures.front` takes them}."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for point, scores in zip(front.points, front.scores(), strict=True):
        recipe, parameters = point.recipe, point.size.parameters + point.size.decoders
        about = {"method": recipe.method, "distilled": bool(recipe.distil), "parameters": parameters}
        for name, score in scores.items():
            panels.setdefault(name, []).append(about | results.plain(score))
    return panels


def show_front(front: Front) -> None:
    """Prints quality and size."""
    scores = front.scores()
    rows = [
        (
            point.recipe.title,
            f"{point.size.parameters + point.size.decoders:,}",
            f"{point.size.flops / 1e6:.4g} M",
            *(with_interval(score) for score in row.values()),
        )
        for point, row in zip(front.points, scores, strict=True)
    ]
    print("\nQuality and size, 95 % intervals")
    print(table(("network", "parameters", "FLOPs an image", *scores[0]), rows))
