"""Apache Beam as the one who shares the work of `parts`: processes of this machine, or a cluster by its runner.

Beam carries numbers of parts and nothing else. Records go through files of a folder that all workers see, so that the
memory of a worker is that of a place, whatever the runner keeps of what goes through it.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ringmoe_jax.errors import ConfigError, DataError, nearest

try:
    import apache_beam as beam
    from apache_beam.internal import pickler
    from apache_beam.options.pipeline_options import PipelineOptions
except ModuleNotFoundError as error:
    raise ConfigError(
        f'workers need Apache Beam, which is not installed ({error}): pip install "ringmoe_jax[beam]" (in a checkout: '
        "pip install -r requirements-beam.txt), or leave --workers and --runner out"
    ) from error

LOCAL = "DirectRunner"


def options(runner: str, workers: int, given: Sequence[str]) -> list[str]:
    """Options of a pipeline.

    Args:
        runner: Beam's name of it.
        workers: processes, for `LOCAL`; a cluster says by `given` how many it takes.
        given: further options, such as `--flink_master=host:8081`.

    Raises:
        ConfigError: an option is unknown to Beam, which would pass over it, or contradicts the others.
    """
    chosen = [f"--runner={runner}", "--default_sdk_harness_log_level=ERROR"]
    if runner == LOCAL:
        chosen += ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]
    elif workers:
        raise ConfigError(f"--workers {workers} is for processes of this machine: {runner} takes its own options")
    parsed = PipelineOptions([*chosen, *given])
    unknown = set(parsed.get_all_options(retain_unknown_options=True)) - (known := set(parsed.get_all_options()))
    if unknown:
        name = min(unknown)
        raise ConfigError(f'pipeline option "{name}" is unknown to Beam: {nearest(name, known)}')
    return [*chosen, *given]


def each(options: Sequence[str], task: Callable[[int], None], count: int, folder: Path) -> None:
    """Calls task(i) for every i below count in the workers of a pipeline, see `parts.Workers`.

    Raises:
        DataError: a worker failed or was killed.
    """
    path = folder / f"{type(task).__name__.lower()}.pickle"
    path.write_bytes(pickler.dumps(task))
    with _running(), beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        numbers = pipeline | "numbers" >> beam.Create(range(count)) | "share" >> beam.Reshuffle()
        _ = numbers | type(task).__name__ >> beam.ParDo(_Do(str(path)))


def over(runner: str, workers: int, given: Sequence[str]) -> Callable[[Callable[[int], None], int, Path], None]:
    """`each` of a runner; arguments and errors as those of `options`."""
    return functools.partial(each, options(runner, workers, given))


class _Do(beam.DoFn):
    """Does the task of a file; every worker reads it once."""

    def __init__(self, path: str):
        self._path = path

    def setup(self):
        """Reads the task."""
        self._task = pickler.loads(Path(self._path).read_bytes())

    def process(self, number: int):
        """Does one part of it."""
        self._task(number)


class _KilledError(Exception):
    """A process of this machine that shared the work is gone."""


@contextlib.contextmanager
def _running() -> Iterator[None]:
    """Within it, what ends a pipeline is one line, and so is what should: Beam waits forever for a killed process.

    The thread of Beam that watches a process raises where nobody listens. So it is heard here, and a signal wakes the
    main thread, which waits for Beam; in other threads nothing does.
    """
    usual, reason = threading.excepthook, "Worker subprocess exited"

    def heard(found: threading.ExceptHookArgs) -> None:
        if reason in str(found.exc_value):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)
        else:
            usual(found)

    def woken(*_) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # others end, too, once this one does
        raise _KilledError("one of its processes was killed, for want of memory perhaps")

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGUSR1, woken) if main else None
    threading.excepthook = heard if main else usual
    try:
        yield
    except Exception as error:  # runners raise types of their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        again = "run the same command again, what is done is kept"
        raise DataError(f"a worker failed ({lines[-1][:300]}): {again}") from error
    finally:
        threading.excepthook = usual
        if main:
            signal.signal(signal.SIGUSR1, before)
