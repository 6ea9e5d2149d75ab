"""XLA on CPU: the memory that it asks for and gives back at every call, and what it compiles for nothing."""

from __future__ import annotations

import ctypes
import sys

import jax

# Parameters of glibc's mallopt (man 3 mallopt).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Lets the allocator keep freed memory instead of returning it to the system.

    XLA on CPU allocates outputs and temporaries anew at every call. By default glibc maps large ones from
    the system each time, and touching every page again costs as much as the arithmetic of a small model:
    the products of a feed-forward layer run up to twice as fast without it (docs/benchmarks.md). The
    process then holds its peak memory until it ends. Call it before the first large array; Linux with
    glibc only.

    Returns:
        Whether it was done.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # No mmap for large blocks, no trimming, and one arena: others hold at most 64 MiB and then map again.
    done = [mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1), mallopt(_ARENA_MAX, 1)]
    return all(done)


def run_once() -> dict[str, int | bool]:
    """Options of `jax.jit` for programs that run once, such as an initialisation: compile little. Not inside a `jit`.

    On a CPU the random numbers of a small model took 16 s to compile, and 3 s so; values differ by roundings of
    float32 (JAX 0.10.2). {} elsewhere.
    """
    if jax.default_backend() != "cpu":
        return {}
    emitters = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}  # gone since
    return {"xla_backend_optimization_level": 0, **emitters}
