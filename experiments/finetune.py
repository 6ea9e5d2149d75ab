"""Trains any task on a pre-trained encoder, or goes on where a stopped run left off, and scores it.

python -m experiments.finetune --config configs/finetune/segmentation.py --workdir runs/seg
python -m experiments.finetune --config ... --workdir ... --config.init_from=runs/micro --config.adaptation.method=lora
python -m experiments.finetune --config ... --workdir ... --seeds 0 1 2
"""

from __future__ import annotations

import argparse

from experiments.run import cli


@cli.entry_point
def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--workdir", type=cli.folder, required=True, help="folder of the run: checkpoints, metrics, pictures"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="one run a seed, in sub-folders; mean and interval")
    arguments, values = cli.read_run(parser)
    from experiments.run import finetune, score
    from ringmoe_jax import remote

    workdir = remote.copied(arguments.workdir)
    if arguments.seeds:
        score.show_seeds(finetune.several(values, workdir, arguments.seeds))
    else:
        score.show(finetune.finetune(values, workdir))
        print(f"\nnumbers and pictures are in {arguments.workdir}/report; next:")
        print(f"    python -m experiments.report --workdir {arguments.workdir}")
    return 0


if __name__ == "__main__":
    main()
