"""From a pre-trained checkpoint to a smaller one, with a report of what was gained and lost.

    python -m experiments.compress --checkpoint runs/micro --modality s2_12 --method submodel --out runs/s2
    python -m experiments.compress --checkpoint runs/micro --modality s2_12 --method prune --keep 0.25 --out runs/pruned
    python -m experiments.compress --checkpoint runs/micro --modality sar --method sum --distil 500 --out runs/small
    python -m experiments.compress --checkpoint runs/micro --modality s2_12 --curve --out runs/front   # all of them

`--modality` takes names of sensors and of modalities. "submodel" keeps what their images use, exactly. All other
methods start from there: "prune" takes experts away, the others merge those of every layer into one dense feed-forward,
after pruning where --keep is below 1. `--distil` then trains the result under the sub-model.

Writes to `--out` a checkpoint that `evaluate` and `finetune` take as any other, the statistics of the experts
(`usage/usage.npz`), the sub-model (`submodel/`), `report/compression.json` with pictures, and `report.html`. The same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.run import cli
from ringmoe_jax.parallel import processes


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; an option of a recipe that is not given is absent."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compress",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--checkpoint", type=cli.folder, required=True, help="folder of a pre-training run")
    parser.add_argument("--out", type=cli.folder, required=True, help="folder of the result")
    parser.add_argument("--modality", required=True, nargs="+", metavar="NAME", help="sensors and modalities to keep")
    parser.add_argument("--dataset", help="folder to count and score on; default: those of the run")
    parser.add_argument("--statistics", metavar="FILE", help="expert statistics that were counted before")
    parser.add_argument("--curve", action="store_true", default=False, help="all methods: quality against size")
    recipe = parser.add_argument_group("what is done")
    recipe.add_argument("--method", help="submodel, prune, sum, mean, weighted, svd or select")
    recipe.add_argument("--keep", type=float, help="share of the collaborative experts that stay")
    recipe.add_argument("--parameters", type=int, help="prune to at most so many parameters, instead of --keep")
    recipe.add_argument("--importance", help="of experts: frequency (default), gate or norm")
    recipe.add_argument("--scope", help="experts are ranked by layer (default) or all together: layer or global")
    recipe.add_argument("--tables", help="the same experts for all modalities (default) or not: shared or own")
    recipe.add_argument("--hidden-ratio", type=int, help="F / D of what svd and select merge; default: as it is")
    recipe.add_argument("--distil", type=int, metavar="STEPS", help="of distillation from the sub-model; default: 0")
    recipe.add_argument("--int8", action="store_true", help="also measure what eight-bit weights lose")
    cli.add_modules(parser)
    return parser.parse_args(arguments)


@cli.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = vars(parse(arguments))
    from pathlib import Path

    from experiments.reports import compression as report
    from experiments.run import compress
    from ringmoe_jax import remote
    from ringmoe_jax.compress.recipe import METHODS, Recipe
    from ringmoe_jax.errors import ConfigError

    cli.start(trains=True)
    checkpoint, shown, every = (options.pop(name) for name in ("checkpoint", "out", "curve"))
    out = remote.copied(shown)
    common = {name: options.pop(name) for name in ("modality", "dataset", "statistics") if name in options}
    if every:
        steps = options.pop("distil", compress.STEPS)
        if options:
            raise ConfigError(
                f"--curve tries every method by itself: leave out --{next(iter(options)).replace('_', '-')}"
            )
        front = compress.curve(checkpoint, out, steps=steps, **common)
        processes.leave_to_first()
        report.show_front(front)
        page = report.write_front(Path(out), front)
    elif "method" not in options:
        raise ConfigError(f"what is to be done? give --method ({', '.join(METHODS)}) or --curve")
    else:
        common["int8"] = options.pop("int8", False)
        result = compress.compress(checkpoint, out, Recipe(**options), **common)
        processes.leave_to_first()
        report.show(result)
        page = report.write(Path(out), result)
    print(f"\nreport      {page}  (open it in a browser)\nnumbers     {shown}/report/*.json")
    if not every:
        print(f"checkpoint  {shown}; next: python -m experiments.evaluate --checkpoint {shown}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
