"""Writes data sets: the default sample, your own files, a published one, or simulated scenes whose truth is known.

python -m experiments.prepare --sample --out data/sample
python -m experiments.prepare --source images --out data/mine --sensors s2_12 s1_grd --tile 128 --stride 64
python -m experiments.prepare --list
python -m experiments.prepare --source LEVIR-CD --dataset levir_cd --out data/levir --tile 256 --stride 256
python -m experiments.prepare --source EuroSAT_RGB.zip --dataset eurosat_rgb --splits spatial --out data/eurosat
python -m experiments.prepare --source TreeSatAI --dataset treesatai_ts --out data/treesatai --max-frames 48
python -m experiments.prepare --source images --out data/mine --ignore 0
python -m experiments.prepare --simulate 200 --out data/simulated --size 96 --dates 2
python -m experiments.prepare --source images --out data/mine --workers 16 --max-bad 10
python -m experiments.prepare --source images --out /shared/mine --runner FlinkRunner -- --flink_master=host:8081
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.run import cli
from ringmoe_jax import files
from ringmoe_jax.config import import_modules
from ringmoe_jax.errors import DataError

PREVIEWS = 3  # scenes in the picture beside a simulated data set


@cli.entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    prepare(arguments)
    return 0


def prepare(arguments: Sequence[str] | None = None) -> None:
    """What the command does, for notebooks: errors are exceptions, and the program goes on.

    Args:
        arguments: of the command line.

    Raises:
        UserError: a file is not as it should be.
        SystemExit: an option is not.
    """
    parser = _parser()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:given])
    options.pipeline = arguments[given + 1 :]
    if options.dataset and options.source is None:
        parser.error(f"--dataset {options.dataset} needs --source, the zip or the folder of its files")
    if options.ignore is not None and (options.dataset or options.source is None):
        parser.error("--ignore is for masks of your own files: it needs --source without --dataset")
    if options.splits and not options.dataset:
        parser.error("--splits names published splits: it needs --dataset")
    if options.max_frames is not None and not options.dataset:
        parser.error("--max-frames needs --dataset: your own files have one date each")
    if options.out is None and not options.list:
        parser.error("--out is missing: where to write")
    if options.pipeline and not options.runner:
        parser.error(f"{options.pipeline[0]} after -- is an option of a pipeline: it needs --runner")
    if options.sample and (options.workers or options.runner or options.max_bad is not None):
        parser.error("--sample is written by one program: leave --workers, --runner and --max-bad out")
    if (options.workers or 0) < 0 or (options.max_bad or 0) < 0:
        parser.error(f"--workers {options.workers}, --max-bad {options.max_bad}: wanted 0 or more")
    if options.out is not None:
        options.out = files.check_local(options.out)
    import_modules(options.modules)
    if options.list:
        _list()
        return
    write = _sample if options.sample else _simulated if options.simulate is not None else _files
    _report(write(options), options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sample", action="store_true", help="download and write the default sample data")
    what.add_argument(
        "--source", type=Path, help="files to read: a folder of your own, or what --dataset is, zip or folder"
    )
    what.add_argument("--list", action="store_true", help="print the published data sets that --dataset knows")
    what.add_argument("--simulate", type=int, metavar="N", help="draw and render N scenes, and N / 5 for validation")
    parser.add_argument("--dataset", help="published data set that --source holds as distributed, see --list")
    parser.add_argument(
        "--splits", default="", metavar="NAME", help="published splits other than the usual, see --list"
    )
    parser.add_argument("--out", help="where to write; local")
    parser.add_argument("--overwrite", action="store_true", help="replace data sets that are there")
    parser.add_argument("--cache", type=Path, default=Path("data/cache"), help="where --sample keeps its downloads")
    parser.add_argument("--pip", help='command that downloads for --sample, for example "python3 -m pip"')
    parser.add_argument("--sensors", nargs="+", help="sensors to read from --source, or to simulate")
    parser.add_argument("--modules", nargs="+", default=(), help="Python modules that register sensors of your own")
    parser.add_argument(
        "--tile",
        type=int,
        help="tile side in pixels of the first sensor (the data set's; of your files 128, or what fits them)",
    )
    parser.add_argument("--stride", type=int, help="pixels from tile to tile (the data set's, or --tile)")
    parser.add_argument(
        "--ignore",
        nargs="+",
        metavar="VALUE",
        help="values of your masks that nobody labelled, or none (255, -1 and declared no-data)",
    )
    parser.add_argument(
        "--any-unit", action="store_true", help="take values of your files as they are, such as uncalibrated radar"
    )
    parser.add_argument("--max-frames", type=int, metavar="T", help="longest series, or window of a video")
    parser.add_argument("--size", type=int, default=96, help="side of a simulated scene in pixels (%(default)s)")
    parser.add_argument("--gsd", type=float, default=2.5, help="metres a pixel of a simulated scene (%(default)s)")
    parser.add_argument("--dates", type=int, default=1, help="dates of a simulated scene (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated scenes (%(default)s)")
    parser.add_argument("--shards", type=int, default=8, help="files a split (%(default)s); 8 a host or more")
    parser.add_argument("--licence", default="unknown", help="licence of your own files")
    several = parser.add_argument_group("for many files, by Apache Beam (docs/scale.md)")
    several.add_argument("--workers", type=int, metavar="N", help="processes that share the work")
    several.add_argument("--runner", help="of a cluster: DataflowRunner, FlinkRunner, ...; its options come after --")
    several.add_argument("--max-bad", type=int, metavar="N", help="places that may be left out if they cannot be read")
    return parser


def _sample(options: argparse.Namespace) -> list[Path]:
    folders = [options.out / name for name in ("aerial", "sentinel")]
    if not options.overwrite and all((folder / "dataset_info.json").exists() for folder in folders):
        print(f"{options.out}: the sample data is there already (write it again with --overwrite)")
        return folders
    from input_pipeline import sample  # TensorFlow takes seconds to load: only where something is written

    print(f"{options.out}: writing the sample data", flush=True)
    sample.prepare(options.out, options.cache, pip=options.pip, overwrite=options.overwrite, progress=_Progress())
    return folders


def _files(options: argparse.Namespace) -> list[Path]:
    if not options.overwrite and (options.out / "dataset_info.json").exists():
        print(f"{options.out}: is there already (write it again with --overwrite)")
        return [options.out]
    print(f"{options.out}: reading {options.source}", flush=True)
    from input_pipeline import catalog, folder
    from input_pipeline.places import Report

    report = Report()
    common = dict(sensors=options.sensors, shards=options.shards, overwrite=options.overwrite, progress=_Progress())
    common |= dict(stride=options.stride, report=report, workers=_workers(options))
    if options.dataset:
        cut = dict(tile=options.tile, max_frames=options.max_frames, splits=options.splits)
        metadata = catalog.prepare(options.dataset, options.source, options.out, **cut, **common)
    else:
        own = dict(tile=options.tile, licence=options.licence, ignored=_ignored(options.ignore))
        own |= dict(check_units=not options.any_unit)
        metadata = folder.prepare(options.source, options.out, **own, **common)
    for line in report.lines(metadata.labels):
        print(f"note: {line}")
    return [options.out]


def _workers(options: argparse.Namespace):
    """Who shares the work; None where nothing of it was asked for."""
    if options.workers is None and options.runner is None and options.max_bad is None:
        return None
    from input_pipeline.parts import Workers, alone

    each = alone
    if options.workers is not None or options.runner is not None:
        from input_pipeline import beam

        each = beam.over(options.runner or beam.LOCAL, options.workers or 0, options.pipeline)
    others = "workers runner max_bad pipeline overwrite out shards cache pip".split()  # decide no record
    command = {name: str(value) for name, value in sorted(vars(options).items()) if name not in others}
    return Workers(each, options.max_bad or 0, str(command))


def _ignored(values: Sequence[str] | None) -> tuple[int, ...] | None:
    """Whole numbers of --ignore; none for the word, None where it was not said."""
    if values is None or values == ["none"]:
        return None if values is None else ()
    try:
        return tuple(int(value) for value in values)
    except ValueError:
        raise DataError(f"--ignore {' '.join(values)}: wanted whole numbers, or none") from None


def _list() -> None:
    """Prints the table of published data sets."""
    from input_pipeline.catalog import CATALOG

    for entry in CATALOG.values():
        print(f"{entry.name:<18}{entry.task}: {entry.title}")
        facts = {
            "sensors": ", ".join(entry.layout.sensors),
            "classes": f"{len(entry.classes)}: {', '.join(entry.classes)}" if entry.classes else "",
            "splits": entry.layout.rule,
            **{f"--splits {name}": division.rule for name, division in entry.divisions.items()},
            "licence": entry.licence,
            "source": entry.source,
            "note": entry.note,
            "evidence": entry.evidence,
        }
        for name, fact in facts.items():
            if fact:
                print(textwrap.fill(f"{name:<9}{fact}", 120, initial_indent=" " * 4, subsequent_indent=" " * 13))


def _simulated(options: argparse.Namespace) -> list[Path]:
    if not options.overwrite and (options.out / "dataset_info.json").exists():
        print(f"{options.out}: is there already (write it again with --overwrite)")
        return [options.out]
    from experiments.reports import figures
    from input_pipeline import synthetic
    from input_pipeline.synthetic import dataset, preview
    from ringmoe_jax.evaluate import style

    print(f"{options.out}: drawing scenes", flush=True)
    dataset.prepare(
        options.out,
        scenes=options.simulate,
        size=options.size,
        seed=options.seed,
        sensors=options.sensors or dataset.SENSORS,
        dates=options.dates,
        gsd=options.gsd,
        shards=options.shards,
        overwrite=options.overwrite,
        progress=_Progress(),
        workers=_workers(options),
    )
    size = preview.fitting(options.size, options.gsd)
    scenes = [synthetic.draw([options.seed, i], size=size, gsd=options.gsd) for i in range(PREVIEWS)]
    sheet = figures.contact_sheet([preview.pictures(scene) for scene in scenes])
    picture = style.save(sheet, options.out / "preview.png")
    files.seal(options.out, [picture.name])
    print(f"{picture}: scenes of this kind")
    return [options.out]


class _Progress:
    """Prints a line every few seconds."""

    def __init__(self):
        self._last = time.monotonic()

    def __call__(self, what: str, count: int) -> None:
        if time.monotonic() - self._last > 2:
            self._last = time.monotonic()
            print(f"  {what}: {count} so far", flush=True)


def _report(folders: list[Path], options: argparse.Namespace) -> None:
    """Prints what is there, from the metadata files alone, and the commands that use it."""
    import json

    from experiments import starters

    print(f"\n{'data set':<28}{'split':<12}{'samples':>8}  {'MB':>7}  sensors (T x H x W)")
    for folder in folders:
        info = json.loads((folder / "dataset_info.json").read_text())
        sensors = json.loads((folder / "metadata.json").read_text())["sensors"]
        listed = ", ".join(
            f"{name} ({' x '.join(map(str, s['shape']))}{', simulated' if s['simulated'] else ''})"
            for name, s in sensors.items()
        )
        for split in info["splits"]:
            count, size = sum(map(int, split["shardLengths"])), int(split["numBytes"]) / 1e6
            print(f"{folder!s:<28}{split['name']:<12}{count:>8}  {size:>7.1f}  {listed}")
    print("\nnext, by configurations that lie beside the data and are yours to change:")
    for folder in folders:
        for command in starters.write(folder, options.modules, options.sensors or ()):
            print(f"    {command}")
    if options.sample:
        print("    python -m experiments.pretrain --config configs/demo.py --workdir runs/demo    # all of it")


if __name__ == "__main__":
    main(sys.argv[1:])
