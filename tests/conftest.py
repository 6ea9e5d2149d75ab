"""Set before JAX is imported: CPU, eight fake devices, fast compilation, one compilation cache.

Tests compile much and compute little: without LLVM's optimisations, XLA's fusion emitters and parallel code generation
they take half of the CPU time (docs/benchmarks.md).
"""

import gc
import os

from tests.helpers import quick

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 {quick.FLAGS}"

import jax

jax.config.update("jax_compilation_cache_dir", str(quick.CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
gc.set_threshold(100_000, 50, 100)  # traced programs are many small objects that stay: looking for garbage takes 13 %

# Folders of tests that take longest.
LONG = ("multi_process", "experiments", "extend", "training", "compress", "planning", "deploy")


def pytest_collection_modifyitems(items):
    """Long files first, so that no worker is left with one at the end (Makefile: --no-loadscope-reorder)."""
    items.sort(key=lambda item: not set(LONG) & set(item.path.parts))
