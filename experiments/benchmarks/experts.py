"""The experts' layer on an accelerator: how fast its engines are, and whether they are right there.

The layer and its dense twin are those of `moe`. Weights are drawn on the device in the layer's own dtype, so that the
figures are of the engines and not of casts; what casts cost shows in the train step.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import moe
from ringmoe_jax import clock
from ringmoe_jax.moe import parallel
from ringmoe_jax.moe.engines.dropless import choose
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing

# (dtype, precision of float32 products, largest error allowed). GPUs round the factors of float32 products to 10 bits
# (TF32) unless told otherwise, and bfloat16 has 7.
MODES = (("float32", "highest", 2e-5), ("float32", "default", 5e-3), ("bfloat16", "default", 3e-2))


def engines() -> tuple[str, ...]:
    """Engines that run on any device, and those whose package is installed."""
    return ("capacity", "blocks", "ragged", *(("tokamax",) if importlib.util.find_spec("tokamax") else ()))


def reason(error: Exception) -> str:
    """An error as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def together(jobs: Mapping[Any, Callable[[], Any]], threads: int) -> tuple[dict[Any, Any], dict[Any, str]]:
    """Runs jobs, most of which compile, side by side.

    Returns:
        What they return, and for those that fail the reason, one line.
    """
    done, failed = {}, {}
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = {name: pool.submit(run) for name, run in jobs.items()}
        for name, future in futures.items():
            try:
                done[name] = future.result()
            except Exception as error:
                failed[name] = reason(error)
    return done, failed


# ---- Speed --------------------------------------------------------------------------------------------


def speed(points: Sequence[moe.Point], peak: float, repeats: int, calls: int, threads: int) -> dict[str, Any]:
    """Times every engine at every point, forward alone and forward with backward.

    Points that differ in the popularity of experts alone share their programs.

    Args:
        points: layers.
        peak: FLOP/s of the device, measured; fractions refer to it.
        repeats: timed turns.
        calls: of a program in each turn.
        threads: that compile.

    Returns:
        {"dropless": the engine that it means here, "points": [{"point", "direction", "seconds", "ratio" over the dense
        layer, "peak" fraction of it that the active FLOPs reach}], "failures": {what: reason}}.
    """
    results, failures, programs = [], {}, {}
    for point in points:
        shape = dataclasses.replace(point, popularity="even")
        x, scores, router, weights = drawn(point)
        if shape not in programs:
            programs.clear()  # and with it the memory of an older one
            programs[shape], failed = together(_programs(shape, x, scores, router, weights), threads)
            failures |= {f"{point}, {engine} {direction}": text for (engine, direction), text in failed.items()}
        for direction, products in (("forward", 2), ("forward and backward", 6)):
            jobs = {}
            for (engine, way), program in programs[shape].items():
                dense = engine == moe.DENSE
                arguments = (_rows(x, point), _first(weights)) if dense else (x, router, weights, scores)
                if way == direction:
                    jobs[engine] = functools.partial(program, *arguments)
            # Once each, one after the other: what does not fit in memory is left out.
            runs, failed = together({name: functools.partial(_run, job) for name, job in jobs.items()}, 1)
            failures |= {f"{point}, {engine} {direction}": text for engine, text in failed.items()}
            seconds = clock.interleaved({name: jobs[name] for name in runs}, repeats, calls=calls)
            flops = products * point.tokens * point.top_k * 2 * point.width * 4 * point.width
            results.append(
                {
                    "point": dataclasses.asdict(point),
                    "direction": direction,
                    "seconds": seconds,
                    "ratio": {n: s / seconds[moe.DENSE] for n, s in seconds.items() if moe.DENSE in seconds},
                    "peak": {n: flops / s / peak for n, s in seconds.items()},
                }
            )
            print(describe(results[-1]), flush=True)
    return {"dropless": choose(platform()), "points": results, "failures": failures}


def describe(result: Mapping[str, Any]) -> str:
    """One line of a point's figures."""
    figures = [
        f"{n} {1e3 * s:.2f} ms"
        + (f" = {result['ratio'][n]:.2f}" if n in result["ratio"] else "")
        + f" ({100 * result['peak'][n]:.0f} %)"
        for n, s in result["seconds"].items()
    ]
    return f"{moe.Point(**result['point'])!s:<32} {result['direction']:<21} {'   '.join(figures)}"


def _run(job: Callable[[], Any]) -> None:
    jax.block_until_ready(job())


def platform() -> str:
    """The default device's, as engines know it."""
    name = jax.default_backend()
    return "gpu" if name in ("cuda", "rocm") else name


def drawn(point: moe.Point) -> tuple[jax.Array, jax.Array, jax.Array, Experts]:
    """Tokens [N, D], scores [N, E], router [D, E] and experts, made on the device."""

    @jax.jit
    def draw(key):
        n, d, e, f = point.tokens, point.width, point.experts, 4 * point.width
        keys = iter(jax.random.split(key, 7))
        normal = lambda *shape, scale=1.0: (scale * jax.random.normal(next(keys), shape)).astype(point.dtype)  # noqa: E731
        popularity = jnp.asarray(moe.POPULARITY[point.popularity](np.arange(1.0, e + 1)), jnp.float32)
        weights = Experts(normal(e, d, f, scale=d**-0.5), normal(e, f), normal(e, f, d, scale=f**-0.5), normal(e, d))
        scores = popularity + jax.random.gumbel(next(keys), (n, e))
        return normal(n, d), scores, normal(d, e, scale=0.01 * d**-0.5).astype(jnp.float32), weights

    return draw(jax.random.key(0))


def _programs(point, x, scores, router, weights) -> dict[tuple[str, str], Callable[[], Any]]:
    """What compiles each engine and the dense layer, in both directions: {(engine, direction): thunk}."""
    jobs = {}
    for engine in engines():
        function = functools.partial(moe.layer, point, engine)
        jobs |= _directions(engine, function, 3, x, router, weights, scores)
    return _directions(moe.DENSE, moe.dense, 2, _rows(x, point), _first(weights)) | jobs


def _directions(name, function, differentiated, *arguments):
    """Compilers of function(*arguments) and of its gradients but for the arguments past `differentiated`."""

    def loss(*arguments):
        return jnp.sum(jnp.square(function(*arguments).astype(jnp.float32)))

    gradients = jax.value_and_grad(loss, argnums=tuple(range(differentiated)))
    return {
        (name, "forward"): lambda: jax.jit(function).lower(*arguments).compile(),
        (name, "forward and backward"): lambda: jax.jit(gradients).lower(*arguments).compile(),
    }


def _rows(x: jax.Array, point: moe.Point) -> jax.Array:
    return jnp.tile(x, (point.top_k, 1))


def _first(weights: Experts) -> Experts:
    return Experts(*(w[:1] for w in weights))


# ---- Values -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A small layer whose values are compared.

    Attributes:
        tokens: N.
        width: D; experts have 4 D hidden units.
        loads: choices of each expert, N at most; their sum is a multiple of N.
    """

    tokens: int
    width: int
    loads: tuple[int, ...]

    def __str__(self) -> str:
        return f"N {self.tokens}, D {self.width}, loads {' '.join(map(str, self.loads))}"


# The second: no load is a multiple of 64, one is 0, one 1.
CASES = (Case(256, 64, (128, 128, 128, 128)), Case(150, 40, (141, 0, 1, 77, 81)))


def values(cases: Sequence[Case], threads: int) -> dict[str, Any]:
    """Compares outputs and gradients of every engine with the dense reference in float64 on the CPU.

    Returns:
        {"errors": [{"case", "dtype", "precision", "limit", "error": {engine: largest error over the largest size, of
        the worst array}}], "failures": {what: reason}}; an error above its limit is a failure as well.
    """
    results, failures = [], {}
    for case in cases:
        arguments, wanted = reference(case)
        for dtype, precision, limit in MODES:
            jobs = {e: functools.partial(_evaluate, e, case, dtype, precision, arguments) for e in engines()}
            got, failed = together(jobs, threads)
            errors = {engine: largest_error(arrays, wanted) for engine, arrays in got.items()}
            failed |= {e: f"error {x:.2g}, wanted {limit:.2g} at most" for e, x in errors.items() if not x <= limit}
            where = f"{case}, {dtype}, {precision} precision"
            failures |= {f"{where}, {engine}": text for engine, text in failed.items()}
            results.append({"case": str(case), "dtype": dtype, "precision": precision, "limit": limit, "error": errors})
            print(
                f"{where:<62} {'   '.join(f'{n} {x:.1e}' for n, x in errors.items())}   limit {limit:.0e}", flush=True
            )
    return {"errors": results, "failures": failures}


def largest_error(got: Any, wanted: Any) -> float:
    """Largest difference over the largest size, of the worst array of a tree; NaN where one is not finite."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return float(np.max([np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max() for a, b in pairs]))


def reference(case: Case) -> tuple[tuple, Any]:
    """Arguments of a case in float64, and outputs with gradients of the dense engine in float64 on the CPU."""
    rng = np.random.default_rng(0)
    (n, d, e), f = (case.tokens, case.width, len(case.loads)), 4 * case.width
    k = sum(case.loads) // n
    # Experts in turn, a token's K choices N apart, so that they differ where no load is larger than N.
    chosen = np.repeat(np.arange(e), case.loads).reshape(k, n).T[rng.permutation(n)].astype(np.int32)
    tokens, upstream, gates = rng.standard_normal((n, d)), rng.standard_normal((n, d)), rng.uniform(0.1, 1, (n, k))
    weights = (
        rng.standard_normal((e, d, f)) * d**-0.5,
        rng.standard_normal((e, f)),
        rng.standard_normal((e, f, d)) * f**-0.5,
        rng.standard_normal((e, d)),
    )
    # Rounded as bfloat16 has them, so that every mode starts from the same numbers.
    rounded = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16).astype(np.float64), (tokens, gates, Experts(*weights), upstream)
    )
    arguments = (chosen, *rounded)
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        found = jax.jit(functools.partial(_with_gradients, "dense", case))(*arguments)
        return arguments, jax.tree.map(np.asarray, found)


def _evaluate(engine: str, case: Case, dtype: str, precision: str, arguments: tuple) -> Any:
    chosen, tokens, gates, weights, upstream = arguments
    cast = functools.partial(jnp.asarray, dtype=dtype)
    with jax.default_matmul_precision(precision):  # of this thread
        found = jax.jit(functools.partial(_with_gradients, engine, case))(
            chosen, cast(tokens), jnp.asarray(gates, jnp.float32), Experts(*map(cast, weights)), cast(upstream)
        )
    return jax.tree.map(np.asarray, found)


def _with_gradients(engine, case, chosen, tokens, gates, weights, upstream):
    """Outputs, and gradients of tokens, gates and experts, where nothing is dropped."""

    def loss(tokens, gates, weights):
        routing = Routing(chosen, gates, jnp.zeros((case.tokens, len(case.loads))))
        outputs = parallel.run(engine, tokens, [routing], [weights], [case.tokens])[0]
        return jnp.sum(outputs.astype(upstream.dtype) * upstream), outputs

    gradients, outputs = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(tokens, gates, weights)
    return outputs, gradients
