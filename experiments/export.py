"""Exports a run for other programs: weights, a program that needs only JAX, and a description of both.

    python -m experiments.export --checkpoint runs/small --out deploy/small
    python -m experiments.export --checkpoint runs/micro --out deploy/s2 --sensors s2_12     # an exact sub-model
    python -m experiments.export --checkpoint runs/seg --out deploy/seg --int8               # a quarter of the bytes

What was written is run on tiles of the run's data and compared with the model in float32; differences are printed and
kept. `ringmoe_jax.deploy.load` reads the folder; its README.md says how to run it without this package.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.run import cli

TILES = 8  # that an export is compared on
SPLITS = ("validation", "test", "train")  # where they are from: the first that a data set has


def first_tiles(run, sensors: Sequence[str]):
    """The first tiles of every data set of a run, as `ringmoe_jax.deploy.export.Tiles`.

    Args:
        run: a `Run`.
        sensors: that a pre-trained model is shown; a task reads its own.

    Raises:
        UserError: a data set is missing, or not what the run was trained on.
    """
    from experiments.run import data
    from input_pipeline.evaluation import EvalBatches
    from ringmoe_jax.deploy.export import Tiles
    from ringmoe_jax.run import TASK

    task = run.kind == TASK
    datasets = [data.open_labelled(run.config, run.encoder)] if task else data.open_streams(run.data, sensors)
    splits = [next(split for split in SPLITS if split in dataset.counts) for dataset in datasets]
    rows = min(TILES, *(dataset.size(split) for dataset, split in zip(datasets, splits, strict=True)))
    shown, source = {}, {}
    for dataset, split in zip(datasets, splits, strict=True):
        asked = dict(split=split, batch_size=rows)
        batches = EvalBatches.of(run.data, dataset.directory, tuple(dataset.sensors), **asked)
        shown = next(iter(batches))["sensors"] | shown
        source[dataset.metadata.name] = f"first {rows} of {split}"
    without_place = [{k: v for k, v in dataset.about().items() if k != "directory"} for dataset in datasets]
    return Tiles({"sensors": shown}, source, without_place)


def show(item: Mapping[str, Any], out: str) -> None:
    """Prints what was written and how far it is from the model."""
    from experiments.run.tables import table

    facts = item["properties"]
    stored, whole = (facts["ringmoe:bytes"][name] / 1e6 for name in ("stored", "float32"))
    print(f"{facts['mlm:name']}: {facts['mlm:total_parameters']:,} parameters, {stored:.2f} MB of weights in ", end="")
    print(facts["ringmoe:weights"] + (f" ({whole:.2f} in float32)" if stored < whole else ""))
    compared = facts["ringmoe:compared"]
    print(f"compared with the model on {', '.join(f'{name}: {tiles}' for name, tiles in compared['tiles'].items())}")
    rows = [
        (name, f"{100 * d['share']:.2f} % differ", "", "")
        if "share" in d
        else (name, *(f"{d[key]:.3g}" for key in ("max", "mean", "size")))
        for name, d in compared["outputs"].items()
    ]
    print(table(("output", "largest difference", "mean difference", "mean size"), rows))
    files = ", ".join(asset["href"].removeprefix("./") for asset in item["assets"].values())
    print(f"\n{out} holds {files} and model.json; how to run it without this package: {out}/README.md")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=cli.folder, required=True, help="folder of a run")
    parser.add_argument(
        "--out", type=cli.local, required=True, help="folder to write; an older export there is replaced"
    )
    parser.add_argument("--sensors", nargs="+", default=(), help="that are shown; default: all of the model")
    parser.add_argument("--int8", action="store_true", help="kernels as 8-bit integers")
    parser.add_argument("--licence", default="", help="of the weights, such as CC-BY-4.0; default: of imported ones")
    cli.add_modules(parser)
    return parser.parse_args(arguments)


@cli.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = parse(arguments)
    from ringmoe_jax.deploy import check_target
    from ringmoe_jax.deploy.export import export, select_sensors
    from ringmoe_jax.run import Run

    check_target(options.out)
    run = Run.open(options.checkpoint)
    tiles = first_tiles(run, tuple(select_sensors(run, options.sensors)))
    show(export(run, tiles, options.out, int8=options.int8, licence=options.licence), options.out)
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
