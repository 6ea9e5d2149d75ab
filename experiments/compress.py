"""From a pre-trained checkpoint to a smaller one, with a report of what was gained and lost.

    python -m experiments.compress --checkpoint runs/micro --modality s2_12 --method submodel --out runs/s2
    python -m experiments.compress --checkpoint runs/micro --modality s2_12 --method prune --keep 0.25 --out runs/pruned
    python -m experiments.compress --checkpoint runs/micro --modality sar --method sum --distil 500 --out runs/small
    python -m experiments.compress --checkpoint runs/micro --modality s2_12 --curve --out runs/front   # all of them

`--modality` takes names of sensors and of modalities. "submodel" keeps what their images use, exactly. All other
methods start from there: "prune" takes experts away, the others merge those of every layer into one dense feed-forward,
after pruning where --keep is below 1. `--distil` then trains the result under the sub-model.

Writes to `--out` a checkpoint that `evaluate` and `finetune` take as any other, the statistics of the experts
(`usage.npz`), the sub-model (`submodel/`), `report/compression.json` with pictures, and `report.html`. The same command
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import common
from experiments.compression import costs, curve, quality, report
from experiments.compression.recipe import METHODS, SCOPES, SUBMODEL, TABLES, Recipe, Version, select
from experiments.compression.steps import claim, reduce, submodel
from experiments.compression.usage import load, measure
from ringmoe_jax.compress import IMPORTANCES
from ringmoe_jax.errors import ConfigError


def compress(
    checkpoint: str,
    out: str,
    recipe: Recipe,
    *,
    modality: Sequence[str],
    dataset: str = "",
    statistics: str = "",
) -> dict[str, Any]:
    """Compresses the newest checkpoint of a pre-training run, and measures before and after.

    Args:
        checkpoint: folder of the run.
        out: folder of the result.
        recipe: what is done.
        modality: sensors and modalities to keep.
        dataset: folder of a data set to count experts and to score on; default those of the run.
        statistics: file of statistics that were counted before; default: counts them.

    Returns:
        What `<out>/report/compression.json` holds.

    Raises:
        UserError: no checkpoint, a fine-tuned one, no such modality, or a folder that holds another run.
    """
    started, folder = time.perf_counter(), Path(out)
    source = Version.load(checkpoint)
    sensors = select(modality, source.sensors)
    claim(folder, checkpoint, source, sensors, dataset, dataclasses.asdict(recipe))
    small = folder if recipe.method == SUBMODEL else folder / SUBMODEL
    part = submodel(source, checkpoint, sensors, small)
    usage = None
    if recipe.needs_usage:
        usage = load(Path(statistics), part) if statistics else measure(part, folder, dataset)
    result = part if recipe.method == SUBMODEL else reduce(part, recipe, usage, folder, checkpoint)
    versions = {"checkpoint": source, "sub-model": part} | ({} if result is part else {recipe.method: result})
    compared, gap = costs.compare(versions)
    measured = {
        "costs": {name: dataclasses.asdict(of) for name, of in compared.items()},
        "gap": dataclasses.asdict(gap),
        "quality": {"sub-model": quality.quality(small, dataset)},
    }
    if result is not part:
        measured["quality"][recipe.method] = quality.quality(folder, dataset)
    if recipe.int8:
        measured["quality"]["int8"], measured["int8_bytes"] = quality.rounded(result, dataset)
    seconds = time.perf_counter() - started
    return report.write(folder, checkpoint, recipe, versions, usage, measured, seconds)


# ---- Command line -------------------------------------------------------------------------------------


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; an option of a recipe that is not given is absent."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compress",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--checkpoint", required=True, help="folder of a pre-training run")
    parser.add_argument("--out", required=True, help="folder of the result")
    parser.add_argument("--modality", required=True, nargs="+", metavar="NAME", help="sensors and modalities to keep")
    parser.add_argument("--dataset", default="", help="folder to count and score on; default: those of the run")
    parser.add_argument("--statistics", default="", metavar="FILE", help="expert statistics that were counted before")
    parser.add_argument("--curve", action="store_true", default=False, help="all methods: quality against size")
    recipe = parser.add_argument_group("what is done")
    recipe.add_argument("--method", help=", ".join(METHODS))
    recipe.add_argument("--keep", type=float, help="share of the collaborative experts that stay")
    recipe.add_argument("--parameters", type=int, help="prune to at most so many parameters, instead of --keep")
    recipe.add_argument("--importance", help=f"of experts: {', '.join(IMPORTANCES)}; default: frequency")
    recipe.add_argument("--scope", help=f"{' or '.join(SCOPES)}: experts are ranked by layer (default) or all together")
    recipe.add_argument("--tables", help=f"{' or '.join(TABLES)}: the same experts for all modalities (default) or not")
    recipe.add_argument("--hidden-ratio", type=int, help="F / D of what svd and select merge; default: as it is")
    recipe.add_argument("--distil", type=int, metavar="STEPS", help="of distillation from the sub-model; default: 0")
    recipe.add_argument("--int8", action="store_true", help="also measure what eight-bit weights lose")
    return parser.parse_args(arguments)


@common.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = vars(parse(arguments))
    common.keep_compiled()
    checkpoint, out, sweep = (options.pop(name) for name in ("checkpoint", "out", "curve"))
    common_options = {name: options.pop(name) for name in ("modality", "dataset", "statistics")}
    if sweep:
        steps = options.pop("distil", curve.STEPS)
        if options:
            raise ConfigError(
                f"--curve tries every method by itself: leave out --{next(iter(options)).replace('_', '-')}"
            )
        curve.curve(checkpoint, out, steps=steps, **common_options)
    elif "method" not in options:
        raise ConfigError(f"what is to be done? give --method ({', '.join(METHODS)}) or --curve")
    else:
        compress(checkpoint, out, Recipe(**options), **common_options)
    print(f"\nreport      {out}/report.html  (open it in a browser)\nnumbers     {out}/report/*.json")
    if not sweep:
        print(f"checkpoint  {out}; next: python -m experiments.evaluate --checkpoint {out}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
