"""Pre-trains a model, or goes on where a stopped run left off.

python -m experiments.pretrain --config configs/ringmoe_micro.py --workdir runs/micro
python -m experiments.pretrain --config ... --workdir ... --config.optimizer.learning_rate=1e-4
python -m experiments.pretrain --config ... --workdir ... --dry_run    # hosts, mesh, memory, what each host reads

The same command on every host of a pod or cluster trains on all of them, see docs/launch.md.
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
    parser.add_argument("--dry_run", action="store_true", help="say what would be done on which hosts; writes nothing")
    arguments, values = cli.read_run(parser)
    if arguments.dry_run:
        from experiments.run.dry_run import dry_run

        dry_run(values, arguments.workdir)
        return 0
    from experiments.run.pretrain import pretrain
    from ringmoe_jax import remote
    from ringmoe_jax.run import PretrainConfig

    state = pretrain(values, remote.copied(arguments.workdir))
    if int(state.step) == PretrainConfig.of(values).train.steps:
        print(f"\ncheckpoints and metrics are in {arguments.workdir}; next:")
        print(f"    python -m experiments.evaluate --checkpoint {arguments.workdir}")
    return 0


if __name__ == "__main__":
    main()
