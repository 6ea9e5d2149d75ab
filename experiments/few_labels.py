"""What pre-training is worth on a task: four ways of training it, with few labels and with all, on one budget.

    python -m experiments.few_labels --config configs/finetune/classification.py --out runs/few \\
        --config.init_from=runs/dense_simulated --fractions 0.01 0.1 1 --seeds 0 1 2

Writes `few_labels.json`, `few_labels.md` and `few_labels.png` to the folder; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse

from experiments.run import cli


@cli.entry_point
def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=cli.folder, required=True, help="folder of all runs, the table and the figure")
    parser.add_argument("--fractions", nargs="+", type=float, default=(0.01, 0.1, 1.0), help="shares of the labels")
    parser.add_argument(
        "--of", default="samples", help="what shares are of: samples, or scenes that tiles were cut from"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2), help="2 or more give intervals")
    parser.add_argument("--beside", nargs="+", default=(), metavar="RUN", help="further encoders, as arms of their own")
    arguments, values = cli.read_run(parser)
    from experiments.run import few_labels
    from ringmoe_jax import remote

    asked = (remote.copied(arguments.out), arguments.fractions, arguments.seeds, arguments.beside, arguments.of)
    print(few_labels.markdown(few_labels.study(values, *asked)))
    print(f"runs, table and figure are in {arguments.out}")
    return 0


if __name__ == "__main__":
    main()
