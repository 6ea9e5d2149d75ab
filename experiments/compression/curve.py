"""The front of quality and size: every way to compress a sub-model, with and without distillation."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.compression import costs
from experiments.compression.quality import headline, kept, quality
from experiments.compression.recipe import PRUNE, SUBMODEL, Recipe, Version, select
from experiments.compression.report import PAGE, about
from experiments.compression.steps import claim, reduce, submodel
from experiments.compression.usage import load, measure
from experiments.fitting import once
from experiments.reports import page
from experiments.tables import plain, table, with_interval
from ringmoe_jax import compress
from ringmoe_jax.compress import Usage
from ringmoe_jax.evaluate import compression_figures, style

STEPS = 200  # of every distillation
GRID = (
    Recipe(PRUNE, keep=0.5),
    Recipe(PRUNE, keep=0.25),
    *(Recipe(method) for method in compress.MERGES),
)
RESULT, POINT, SIZE = "curve.json", "point.json", "size.json"
GAIN = "share of the reconstruction gain that is left"


def curve(
    checkpoint: str,
    out: str,
    *,
    modality: Sequence[str],
    dataset: str = "",
    statistics: str = "",
    steps: int = STEPS,
) -> dict[str, Any]:
    """Makes what is missing of the points of `GRID`, as they are and after distillation, and draws them.

    Args:
        checkpoint: folder of a pre-training run.
        out: folder; points lie in `<out>/<name>`, each a checkpoint.
        modality: sensors and modalities to keep.
        dataset: folder of a data set to count experts and to score on; default those of the run.
        statistics: file of statistics that were counted before; default: counts them.
        steps: of every distillation; 0 leaves these points out.

    Returns:
        What `<out>/report/curve.json` holds.

    Raises:
        UserError: see `experiments.compress.compress`; points that are finished are kept.
    """
    started, folder = time.perf_counter(), Path(out)
    source = Version.load(checkpoint)
    sensors = select(modality, source.sensors)
    claim(folder, checkpoint, source, sensors, dataset, {"curve": True})
    part = submodel(source, checkpoint, sensors, folder / SUBMODEL)
    usage = load(Path(statistics), part) if statistics else measure(part, folder, dataset)
    points = []
    for recipe in recipes(steps):
        where = folder / name_of(recipe)
        values = {"recipe": dataclasses.asdict(recipe), "step": part.step, "sensors": sensors}
        run = functools.partial(_point, part, recipe, usage, where, checkpoint, dataset)
        once(values, where, POINT, run)
        points.append(_read(where, recipe, dataset))
    result = {
        "from": str(checkpoint),
        "step": part.step,
        "sensors": list(sensors),
        "images": usage.images,
        "steps": steps,
        "points": points,
        "seconds": time.perf_counter() - started,
    }
    return _write(folder, plain(result | about()))


def recipes(steps: int) -> Iterator[Recipe]:
    """The sub-model, then every point without and with distillation."""
    yield Recipe(SUBMODEL)
    for recipe in GRID:
        yield recipe
        if steps:
            yield dataclasses.replace(recipe, distil=steps)


def name_of(recipe: Recipe) -> str:
    """Folder of a point, for example "prune-0.25-distil200"."""
    share = [f"{recipe.keep:g}"] if recipe.keep < 1 else []
    distilled = [f"distil{recipe.distil}"] if recipe.distil else []
    return "-".join([recipe.method, *share, *distilled])


def _point(part: Version, recipe: Recipe, usage: Usage, where: Path, checkpoint: str, dataset: str) -> None:
    """Makes, evaluates and weighs one point."""
    result = part if recipe.method == SUBMODEL else reduce(part, recipe, usage, where, checkpoint)
    quality(where, dataset)
    size = {
        "parameters": result.size,
        "bytes": compress.nbytes(result.params),
        "flops": costs.flops(result),
    }
    (where / SIZE).write_text(json.dumps(size, indent=1) + "\n")


def _read(where: Path, recipe: Recipe, dataset: str) -> dict[str, Any]:
    found, size = quality(where, dataset), json.loads((where / SIZE).read_text())
    about_it = {"name": name_of(recipe), "title": recipe.title, "method": recipe.method, "keep": recipe.keep}
    return about_it | {"distil": recipe.distil, "folder": str(where), "quality": found} | size


def _write(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The numbers, the picture and the page."""
    first = result["points"][0]
    for point in result["points"]:
        point["scores"] = {
            key: {name: row[name] for name in ("value", "low", "high")}
            for key, row in headline(point["quality"]).items()
            if "protocol" in row
        } | {GAIN: kept(point["quality"], first["quality"])}
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / RESULT).write_text(json.dumps(result, indent=1) + "\n")
    title = f"Quality and size of {' and '.join(result['sensors'])} networks"
    drawn = compression_figures.front(title, _panels(result["points"]))
    image = style.save(drawn, folder / "report" / "front.png")
    _show(result["points"])
    text = page.render(
        "compression_front.html.j2",
        folder=str(folder),
        result=result,
        image=page.embedded(image),
        simulated=any(point["quality"]["simulated"] for point in result["points"]),
    )
    (folder / PAGE).write_text(text)
    return result


def _panels(points: Sequence[Mapping]) -> dict[str, list[dict[str, Any]]]:
    """{score: points as `compression_figures.front` takes them}."""
    return {
        score: [
            {"method": p["method"], "distilled": bool(p["distil"]), "parameters": p["parameters"]} | p["scores"][score]
            for p in points
        ]
        for score in points[0]["scores"]
    }


def _show(points: Sequence[Mapping]) -> None:
    scores = list(points[0]["scores"])
    print("\nQuality and size, 95 % intervals")
    rows = [
        (
            p["title"],
            f"{p['parameters']:,}",
            f"{p['flops'] / 1e6:.4g} M",
            *(with_interval(p["scores"][s]) for s in scores),
        )
        for p in points
    ]
    print(table(("network", "parameters", "FLOPs an image", *scores), rows))
