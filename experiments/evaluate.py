"""Evaluates a checkpoint: probes beside baselines, masked reconstruction, locations, routing; tables and pictures.

    python -m experiments.evaluate --checkpoint runs/micro
    python -m experiments.evaluate --checkpoint runs/micro --dataset data/mine --protocol linear
    python -m experiments.evaluate --checkpoint runs/micro --features stages          # pooled, of every stage, of all
    python -m experiments.evaluate --checkpoint runs/micro --fractions 0.01 0.1 1     # few labels
    python -m experiments.evaluate --checkpoint runs/micro --beside runs/galileo_nano   # a released model's rows, too
    python -m experiments.evaluate --checkpoint runs/any --dataset data/dove --sensors own_sensor:DOVE  # never seen
    python -m experiments.evaluate --checkpoint runs/seg --split validation --without s1_grd     # a fine-tuned run

Writes `evaluation.json` and PNG files to `<checkpoint>/report`, and of other data sets, splits and hidden sensors than
the run's own to a folder in it. A fine-tuned run is scored by its task, which writes `task.json`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.run import cli

# Options that the score of a task does not have.
ONLY_PROBES = ("sensors", "protocol", "fractions", "draws", "max_tiles", "features", "neighbours", "beside")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line; an option that is not given is absent."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--checkpoint", type=cli.folder, required=True, help="folder of a run")
    parser.add_argument(
        "--dataset",
        dest="datasets",
        metavar="FOLDER",
        nargs="+",
        help="folders of data sets; default: those of the run",
    )
    parser.add_argument("--protocol", help="of probes: knn, linear or all (default)")
    parser.add_argument("--features", help="that are probed: pooled (default), or stages for every stage as well")
    parser.add_argument("--neighbours", nargs="+", type=int, help="of knn probes, one each; default: 5 20")
    parser.add_argument("--fractions", nargs="+", type=float, help="shares of the labels to fit probes on; default: 1")
    parser.add_argument("--draws", type=int, help="of each share below 1; default: 5")
    parser.add_argument("--split", help='the one to score; default: "test" where there is one, else "validation"')
    parser.add_argument("--beside", nargs="+", metavar="RUN", help="other runs that are probed on the same tiles")
    parser.add_argument("--without", nargs="+", help="sensors that are hidden in the split that is scored")
    parser.add_argument("--sensors", nargs="+", help="that were not there in training, or all bands of one that was")
    parser.add_argument("--seed", type=int, help="of baselines, inner splits, draws and intervals; default: 0")
    parser.add_argument(
        "--out", type=cli.folder, help="folder for the results; default: <checkpoint>/report, or a folder in it"
    )
    parser.add_argument("--max_tiles", type=int, help="tiles of a split that are read; default: 30,000")
    cli.add_modules(parser)
    return parser.parse_args(arguments)


@cli.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = vars(parse(arguments))
    from experiments.run import score
    from experiments.run.evaluate import evaluate
    from ringmoe_jax import remote
    from ringmoe_jax.errors import ConfigError
    from ringmoe_jax.run import TASK, Run, kind_of, read_record, results

    cli.start()
    options |= {name: remote.copied(options[name]) for name in ("checkpoint", "out") if name in options}
    checkpoint = options["checkpoint"]
    asked = {name: options[name] for name in ("datasets", "split", "without", "sensors") if name in options}
    folder = options.get("out") or results.folder_of(Path(checkpoint) / "report", **asked)
    if kind_of(read_record(checkpoint)) == TASK:
        if foreign := [name for name in options if name in ONLY_PROBES]:
            raise ConfigError(
                f"--{foreign[0]} is about probes, but {checkpoint} is a fine-tuned run, which its task scores: leave "
                "it out"
            )
        score.show(score.score(Run.open(options.pop("checkpoint")), **options))
    else:
        evaluate(**options)
    print(f"\nnumbers and pictures are in {remote.shown(folder)}; next:")
    print(f"    python -m experiments.report --workdir {remote.shown(checkpoint)}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
