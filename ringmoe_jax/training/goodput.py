"""What the wall time of a run goes into: goodput is the share of its steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

STEPS = "steps"
STARTING = "starting"  # data, parameters, a checkpoint: all from the verb's first line to the first step
COMPILATION = "compilation"  # of the train step; that of validation is validation's
INPUT = "input"  # waiting for the next batch
SAVING = "saving"  # what of a checkpoint holds up the steps, and the end of the last one
LOST = "lost"  # logged by an attempt that ended before its next checkpoint: steps that had to be taken again


class Goodput:
    """Seconds of a run by what they were spent on, over all of its attempts.

    The clock starts when this is made: what Python imports before that, and the time between two attempts, are not
    counted. Steps get what nothing else took, and with it what slows them: the host copies, other processes are late,
    a checkpoint is being written meanwhile.
    """

    def __init__(self):
        self._began = time.perf_counter()
        self._spent: dict[str, float] = {}
        self._earlier: dict[str, float] = {}  # by attempts before this one
        self._called: Callable | None = None

    @contextlib.contextmanager
    def on(self, cause: str) -> Iterator[None]:
        """What is done meanwhile is no step. Not one in another."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spend(cause, time.perf_counter() - started)

    def calling(self, program: Callable) -> AbstractContextManager:
        """The first call of a jitted function compiles, and returns before the device has done anything."""
        new, self._called = program is not self._called, program
        return self.on(COMPILATION) if new else contextlib.nullcontext()

    def start(self) -> None:
        """The first step comes next."""
        self._spend(STARTING, self._rest)

    def resume(self, saved: Mapping[str, float], logged: float) -> None:
        """Goes on from the clock of a checkpoint.

        Args:
            saved: `seconds` of then; {} of a checkpoint without them.
            logged: seconds in all of the newest metrics, 0 without any; those since the checkpoint are lost.
        """
        self._earlier = {**saved, LOST: saved.get(LOST, 0.0) + max(0.0, logged - sum(saved.values()))}

    @property
    def seconds(self) -> dict[str, float]:
        """By cause so far, steps first."""
        now = {STEPS: self._rest, **self._spent}
        return {cause: now.get(cause, 0.0) + self._earlier.get(cause, 0.0) for cause in {**now, **self._earlier}}

    @property
    def scalars(self) -> dict[str, float]:
        """For the metrics."""
        seconds = self.seconds
        total = sum(seconds.values())
        by_cause = {f"perf/seconds/{cause}": value for cause, value in seconds.items()}
        return {"perf/goodput": seconds[STEPS] / total, "perf/seconds": total, **by_cause}

    def __str__(self) -> str:
        """For people, for example "62.5 s: 80.0% in steps, 15.0% compilation, 5.0% saving"."""
        (_, steps), *others = self.seconds.items()
        total = steps + sum(value for _, value in others)
        shares = [f"{value / total:.1%} {cause}" for cause, value in sorted(others, key=lambda item: -item[1]) if value]
        return f"{total:.1f} s: " + ", ".join([f"{steps / total:.1%} in steps", *shares])

    @property
    def _rest(self) -> float:
        """Seconds of this attempt that nothing took."""
        return time.perf_counter() - self._began - sum(self._spent.values())

    def _spend(self, cause: str, seconds: float) -> None:
        self._spent[cause] = self._spent.get(cause, 0.0) + seconds
