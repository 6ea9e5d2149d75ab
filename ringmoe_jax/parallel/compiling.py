"""What XLA compiles for nothing."""

from __future__ import annotations

from collections.abc import Callable

import jax


def run_once(function: Callable, **options) -> Callable:
    """`jax.jit` for a program that runs once, such as an initialisation: on a CPU it compiles little.

    The random numbers of a small model took 16 s to compile, and 3 s so; values differ by roundings of float32 (JAX
    0.10.2). Inside of another program, and elsewhere than on a CPU, it is `jax.jit`.

    Args:
        function: of a key and whatever else.
        options: of `jax.jit`.
    """
    emitters = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}  # gone since
    quick = {"xla_backend_optimization_level": 0, **emitters}
    inside, outside = jax.jit(function, **options), jax.jit(function, compiler_options=quick, **options)

    def call(key: jax.Array, *others):
        plain = isinstance(key, jax.core.Tracer) or jax.default_backend() != "cpu"
        return inside(key, *others) if plain else outside(key, *others)

    return call
