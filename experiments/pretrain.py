"""Pre-trains a model, or goes on where a stopped run left off.

python -m experiments.pretrain --config configs/ringmoe_micro.py --workdir runs/micro
python -m experiments.pretrain --config ... --workdir ... --config.optimizer.learning_rate=1e-4
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
    arguments, values = cli.read_run(parser)
    from experiments.run.pretrain import pretrain
    from ringmoe_jax.run import PretrainConfig

    state = pretrain(values, arguments.workdir)
    if int(state.step) == PretrainConfig.of(values).train.steps:
        print(f"\ncheckpoints and metrics are in {arguments.workdir}; next:")
        print(f"    python -m experiments.evaluate --checkpoint {arguments.workdir}")
    return 0


if __name__ == "__main__":
    main()
