"""Timing of several jobs against each other in one run: interleaved, medians, after warm-up."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping

import jax


def interleaved(
    jobs: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2, calls: int = 1
) -> dict[str, float]:
    """Median seconds of every job.

    The jobs take turns, so that a machine whose speed wanders slows all of them.

    Args:
        jobs: each does its work and returns JAX arrays, which are waited for, or anything else.
        repeats: timed turns.
        warmup: turns before, which compile and fill caches.
        calls: of a job in each turn. An accelerator works through them while the host prepares the next, so that short
            jobs are not timed by how fast the host can start them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    gc.collect()
    for turn in range(warmup + repeats):
        for name, job in jobs.items():
            started = time.perf_counter()
            for _ in range(calls):
                result = job()  # replaces the last one, whose memory is free again
            jax.block_until_ready(result)
            if turn >= warmup:
                seconds[name].append((time.perf_counter() - started) / calls)
            del result
    return {name: statistics.median(values) for name, values in seconds.items()}


def geometric_mean(values) -> float:
    """Geometric mean of positive numbers; NaN of none."""
    return statistics.geometric_mean(values) if values else float("nan")
