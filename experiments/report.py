r"""One page that shows a run: what was trained on what, how it went, what came out, beside what it has to beat.

    python -m experiments.report --workdir runs/micro
    python -m experiments.report --workdir runs/seg     # fine-tuned runs, and folders of several seeds, too
    python -m experiments.report --workdir runs/reference --leaderboard docs/leaderboard.csv \
        --config configs/reference.py     # only adds the scores of an evaluated run to a table of all

Writes `<workdir>/report.html`, which needs no other file and no network, and PNG files to `<workdir>/report`. A run
whose newest checkpoint was not evaluated yet is evaluated first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.run import cli
from ringmoe_jax import files, remote
from ringmoe_jax.parallel import processes


def report(workdir: str) -> Path:
    """Writes the report of a pre-training run, of a fine-tuned run, of several seeds, or of a compressed checkpoint.

    Args:
        workdir: folder of a run with at least one checkpoint, or one that `experiments.finetune --seeds` filled.

    Returns:
        The page.

    Raises:
        UserError: there is no checkpoint, or it cannot be evaluated.
    """
    from ringmoe_jax.run import COMPRESSED, IMPORTED, PRETRAINING, TASK, kind_of, read_record, results
    from ringmoe_jax.run.evaluation import SEED_SCORES, SeedScores

    folder = Path(workdir)
    if joined := results.load(SeedScores, folder / SEED_SCORES):
        text = _seeds(folder, joined)
    else:
        pages = {PRETRAINING: _pretraining, TASK: _task, COMPRESSED: _compressed, IMPORTED: _pretraining}
        text = pages[kind_of(read_record(folder))](folder)
    written = folder / "report.html"
    files.write_text(written, text)
    return written


def _pretraining(folder: Path) -> str:
    from experiments.reports import pretraining
    from experiments.run import evaluate

    evaluation = evaluate.current(str(folder))
    processes.leave_to_first()
    return pretraining.page_of(folder, evaluation)


def _task(folder: Path) -> str:
    from experiments.reports import task
    from experiments.run import score

    score.current(folder)
    processes.leave_to_first()
    return task.of_run(folder)


def _seeds(folder: Path, joined) -> str:
    from experiments.reports import task
    from experiments.run import score

    for seed in joined.seeds:
        score.current(task.seed_folder(folder, seed))
    processes.leave_to_first()
    return task.of_seeds(folder, joined)


def _compressed(folder: Path) -> str:
    """The page that `experiments.compress` wrote; that of a pre-training where it was not measured."""
    from experiments.reports import compression

    measured = processes.from_first(lambda: (folder / "report" / compression.RESULT).exists())
    if not measured:
        return _pretraining(folder)
    processes.leave_to_first()
    return compression.of_run(folder)


@cli.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=cli.folder, required=True, help="folder of a run")
    parser.add_argument("--leaderboard", type=Path, metavar="CSV", help="add the run's probe scores to it, no page")
    parser.add_argument("--config", help="with --leaderboard: the configuration file that the run was started from")
    cli.add_modules(parser)
    options = parser.parse_args(arguments)
    if bool(options.leaderboard) != bool(options.config):
        parser.error("--leaderboard and --config go together: the recipe is the file, and what differs from it")
    workdir = Path(remote.copied(options.workdir))
    if options.leaderboard:
        from experiments.reports import leaderboard

        count = leaderboard.append(options.leaderboard, workdir, options.config)
        print(f"{options.leaderboard}: {count} rows more")
        return 0
    cli.start()
    print(f"\nreport       {report(str(workdir))}  (open it in a browser)")
    remote.send()
    place = remote.place(workdir)
    for what, names in {
        "numbers": ("seeds.json", "report/*.json"),
        "pictures": ("report/*.png",),
        "checkpoints": ("checkpoints",),
        "metrics": ("metrics.jsonl", "tensorboard"),
    }.items():
        if there := [remote.shown(workdir / name) for name in names if any(place.glob(name))]:
            print(f"{what:<12} {', '.join(there)}")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
