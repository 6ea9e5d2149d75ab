"""The host's memory: what XLA on CPU asks for and gives back at every call."""

from __future__ import annotations

import ctypes
import sys

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
