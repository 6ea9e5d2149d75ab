"""Runs a full, compressed or fine-tuned model over a scene of any size, in the memory of some strips of windows.

    python -m experiments.predict --checkpoint runs/seg scene.tif --out map.tif
    python -m experiments.predict --checkpoint runs/seg s2_12=scene_s2.tif s1_grd=scene_s1.tif --out map.tif
    python -m experiments.predict --checkpoint runs/change before.tif after.tif --out map.tif
    python -m experiments.predict --checkpoint runs/micro scene.tif --out tokens.parquet
    python -m experiments.predict --checkpoint runs/boxes scene.tif --out boxes.parquet
    python -m experiments.predict --checkpoint runs/tracks first.tif second.tif --out tracks.parquet

Windows as large as the images that the run was trained on overlap; what they say of a place is averaged with weights
that fall smoothly towards a window's rim, and at the borders of the scene it is mirrored. Files need the bands, dtype
and units that `experiments.prepare` asks for. Several files of one sensor are its dates. Where a pixel was not
observed by one of the sensors, the map holds no data.

Maps are cloud-optimised GeoTIFFs: classes (uint8, 255 = no data, with colours and names), probabilities, heights in
metres, or embeddings (float32, NaN = no data). A classification is one answer a window, for the window's core;
embeddings are one vector a token, also as GeoParquet. Boxes and tracks are GeoParquet: a polygon in the scene's CRS,
class, score (of tracks: track and date), and x, y, width, height and angle in pixels of the scene. An object that
several windows show counts once; what a window's border cuts is left to the one that sees it whole. The same command
goes on where a killed one stopped, and writes the same bytes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.run import cli
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.files import check_local

SECONDS = 5.0  # between lines of progress


def by_sensor(arguments: Sequence[str], sensors: Iterable[str]) -> dict[str, list[str]]:
    """Files by sensor, of arguments SENSOR=FILE, or FILE for a model of one sensor.

    Raises:
        ConfigError: a file without a sensor, where the model has several.
    """
    sensors, files = tuple(sensors), {}
    for argument in arguments:
        name, equals, path = argument.partition("=")
        if not equals or Path(argument).exists():
            name, path = sensors[0], argument
            if len(sensors) > 1:
                raise ConfigError(
                    f'of which sensor is "{argument}"? Give SENSOR={argument}, a sensor of {", ".join(sensors)}'
                )
        files.setdefault(name, []).append(path)
    return files


class Progress:
    """Prints a line every few seconds."""

    def __init__(self):
        self._started = self._last = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, windows: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._started = done, now
        elif now - self._last > SECONDS or done == windows:
            self._last, rate = now, (done - self._first) / max(now - self._started, 1e-9)
            left = (windows - done) / max(rate, 1e-9)
            print(f"  {done} of {windows} windows, {rate:.1f} windows/s, {clock(left)} left", flush=True)


def clock(seconds: float) -> str:
    """For example "2 h 5 min", or "3 min 20 s"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", nargs="+", metavar="[SENSOR=]FILE", help="rasters; several of one sensor are dates")
    parser.add_argument("--checkpoint", type=cli.folder, required=True, help="folder of a run")
    parser.add_argument("--out", type=cli.local, required=True, help="file to write")
    parser.add_argument("--overlap", type=float, default=0.5, help="of neighbouring windows, a share (%(default)s)")
    parser.add_argument("--batch", type=int, help="windows at a time (default: by memory)")
    parser.add_argument("--output", default="", help="such as classes or probabilities; default: the run's first")
    parser.add_argument("--format", default="", help="cog or parquet; default: by the ending of --out")
    cli.add_modules(parser)
    return parser.parse_args(arguments)


@cli.entry_point
def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = parse(arguments)
    for path in options.scenes:
        check_local(path.partition("=")[2] or path)
    from ringmoe_jax.deploy.predict import predict
    from ringmoe_jax.deploy.windows import window_model
    from ringmoe_jax.run import Run

    cli.start()
    model = window_model(Run.open(options.checkpoint), options.output)
    files = by_sensor(options.scenes, model.sensors)
    print(f"{options.out}: {model.output} of {', '.join(files)} by {options.checkpoint} at step {model.facts['step']}")
    settings = dict(overlap=options.overlap, batch=options.batch, form=options.format)
    summary = predict(model, files, options.out, **settings, progress=Progress())
    if summary is None:
        print(f"{options.out}: is there already, from the same command")
        return 0
    for note in summary.notes:
        print(f"note: {note}")
    if summary.resumed:
        print(f"went on after {summary.resumed} strips of an earlier run")
    print(f"{summary.windows} windows in {clock(summary.seconds)}; {summary.empty} more hold no data", end="")
    print(f"; {summary.left_out} cells without data are left out" if summary.left_out else "", end="")
    print(f"; {summary.found} boxes" if model.objects else "")
    busy = ", ".join(f"{name} {clock(seconds)}" for name, seconds in summary.busy.items())
    print(f"of that, at the same time: {busy} for windows to be read; {summary.batch} windows at a time")
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
