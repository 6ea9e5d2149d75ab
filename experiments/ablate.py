"""Pre-trains a grid of arms and seeds, probes each run, and writes one table and one figure a study.

    python -m experiments.ablate --config configs/ablate_physics.py --out runs/ablation
    python -m experiments.ablate --config configs/ablate_physics.py --out runs/ablation --studies grd --seeds 0 1 2 3 4

A study is one experiment configuration, a baseline and other arms, which replace objectives or the pretext task, or
override anything else. Runs that are finished are not run again and a run that was stopped goes on, so the same command
resumes after an interruption and takes in new arms and seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.run import cli


@cli.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.ablate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="configuration file; --config.<key>=<value> changes a value")
    parser.add_argument("--out", type=cli.folder, required=True, help="folder of the runs, tables and figures")
    parser.add_argument("--studies", nargs="+", default=(), help="names; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=(), help="instead of the configuration's")
    given, overrides = parser.parse_known_args(arguments)
    values = cli.read_config(given.config, overrides)
    from experiments.run.ablate import ablate, markdown
    from ringmoe_jax import remote

    cli.start(trains=True)
    out = remote.copied(given.out)
    for name, study in ablate(values, out, studies=given.studies, seeds=given.seeds).items():
        print("\n" + markdown(name, study))
    print(f"tables and figures are in {given.out}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
