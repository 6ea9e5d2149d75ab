"""The mixture-of-experts layer, forward and backward, over a dense layer of the same active FLOPs.

One layer: router, top-k, dispatch, experts (D -> 4D -> D with biases and GELU), combine, and the gradients
of tokens, router and experts. The dense layer is one such expert on N * K tokens, in the same framework,
so 1.00 would be an engine that costs nothing beside its experts' arithmetic. Choices are drawn once from a
popularity of experts (even, or 1 / rank) and enter as constants added to the router's scores.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ringmoe_jax import clock
from ringmoe_jax.moe import parallel, routing, table
from ringmoe_jax.moe.experts import Experts

ENGINES = ("capacity", "dropless")
CAPACITY_FACTOR = 1.25
DENSE = "dense layer"
IDEAL = "products alone"  # of the same loads, by the same compiler
DTYPES = ("float32", "bfloat16")
POPULARITY = {"even": np.zeros_like, "zipf": lambda rank: -np.log(rank)}  # logarithm, of ranks from 1 on


@dataclasses.dataclass(frozen=True)
class Point:
    """One layer to time.

    Attributes:
        tokens: N.
        width: D; experts have 4 D hidden units.
        experts: E.
        top_k: K.
        dtype: of tokens, "float32" or "bfloat16"; weights are float32.
        popularity: "even" or "zipf", probability of expert e equal or proportional to 1 / (e + 1).
    """

    tokens: int = 4096
    width: int = 256
    experts: int = 8
    top_k: int = 2
    dtype: str = "float32"
    popularity: str = "even"

    def __str__(self) -> str:
        return f"d{self.width} E{self.experts} top-{self.top_k} {self.dtype} {self.popularity}"


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Arrays of a point, NumPy float32, the same for every framework.

    Attributes:
        x: [N, D] tokens.
        upstream: [N, D] gradient of the layer's output.
        router: [D, E].
        scores: [N, E] added to the router's scores; decide the choices.
        experts: wi [E, D, F], bi [E, F], wo [E, F, D], bo [E, D].
    """

    x: np.ndarray
    upstream: np.ndarray
    router: np.ndarray
    scores: np.ndarray
    experts: tuple[np.ndarray, ...]


def inputs(point: Point, seed: int = 0) -> Inputs:
    """Draws the arrays of a point."""
    rng = np.random.default_rng(seed)
    n, d, e, f = point.tokens, point.width, point.experts, 4 * point.width
    normal = lambda *shape, scale=1.0: (scale * rng.standard_normal(shape, np.float32)).astype(np.float32)  # noqa: E731
    popularity = POPULARITY[point.popularity](np.arange(1.0, e + 1))
    return Inputs(
        normal(n, d),
        normal(n, d),
        normal(d, e, scale=0.01 * d**-0.5),
        (popularity + rng.gumbel(size=(n, e))).astype(np.float32),
        (normal(e, d, f, scale=d**-0.5), normal(e, f), normal(e, f, d, scale=f**-0.5), normal(e, d)),
    )


def layer(point: Point, engine: str, x: jax.Array, router: jax.Array, experts: Experts, scores: jax.Array) -> jax.Array:
    """The layer that is timed. [N, D] -> [N, D]."""
    allowed = table.collaborative(1, point.experts)
    (logits,) = routing.logits(x, [router])
    choice = routing.route(logits + scores, jnp.zeros(point.tokens, jnp.int32), allowed, k=point.top_k)
    rows = table.capacity(allowed, (point.tokens,), point.top_k, CAPACITY_FACTOR)
    return parallel.run(engine, x, [choice], [experts], [rows])[0]


def dense(x: jax.Array, weights: Experts) -> jax.Array:
    """One expert on all rows, written plainly. [R, D] -> [R, D]."""
    wi, bi, wo, bo = (w[0].astype(x.dtype) for w in weights)
    return jax.nn.gelu(x @ wi + bi) @ wo + bo


def loads(given: Inputs, top_k: int) -> list[int]:
    """Rows of every expert."""
    chosen = np.argsort(-(given.x @ given.router + given.scores), axis=1)[:, :top_k]
    return np.bincount(chosen.ravel(), minlength=given.scores.shape[1]).tolist()


def alone(rows: Sequence[int], x: jax.Array, experts: Sequence[Experts]) -> jax.Array:
    """Every expert on its rows, which lie in place and whose numbers the compiler knows. [R, D] -> [R, D]."""
    parts = jnp.split(x, np.cumsum(rows)[:-1])
    return jnp.concatenate([dense(part, weights) for part, weights in zip(parts, experts, strict=True)])


def programs(point: Point, engines: Sequence[str] = ENGINES) -> dict[str, tuple]:
    """Compiled forward and backward passes with their arguments: {name: (function, arguments)}."""
    given = inputs(point)
    x, upstream = (jnp.asarray(a, point.dtype) for a in (given.x, given.upstream))
    experts, router = Experts(*map(jnp.asarray, given.experts)), jnp.asarray(given.router)
    found = {}
    rows, above = jnp.tile(x, (point.top_k, 1)), jnp.tile(upstream, (point.top_k, 1))
    first = Experts(*(w[:1] for w in experts))
    found[DENSE] = _compiled(dense, above, rows, first)
    each = [Experts(*(w[i : i + 1] for w in experts)) for i in range(point.experts)]
    found[IDEAL] = _compiled(functools.partial(alone, loads(given, point.top_k)), above, rows, each)
    for engine in engines:
        function = functools.partial(layer, point, engine)
        found[engine] = _compiled(function, upstream, x, router, experts, jnp.asarray(given.scores))
    return found


def _compiled(function, upstream, *arguments):
    """The function's value and its gradients, but for the upstream gradient and for scores, with arguments."""

    def loss(upstream, *arguments):
        return jnp.sum((function(*arguments) * upstream).astype(jnp.float32))

    differentiate = jax.value_and_grad(loss, argnums=tuple(range(1, min(len(arguments), 3) + 1)))
    return jax.jit(differentiate).lower(upstream, *arguments).compile(), (upstream, *arguments)


def grid(widths, experts, top_k, dtypes, popularities, tokens: int) -> Iterator[Point]:
    """All combinations."""
    for e, k in itertools.product(experts, top_k):
        table.check(table.collaborative(1, e), k)
    for width, e, k, dtype, popularity in itertools.product(widths, experts, top_k, dtypes, popularities):
        yield Point(tokens, width, e, k, dtype, popularity)


def measure(point: Point, repeats: int, *, torch: bool, others: Mapping[str, Callable] | None = None) -> dict:
    """Times one point, and jobs of others beside it.

    Returns:
        {"point": ..., "seconds": {name: median}, "ratio": {name: over the dense layer of its framework},
        "memory": {name: bytes of temporaries, by XLA's own analysis}}.
    """
    found = programs(point)
    jobs = {name: functools.partial(program, *arguments) for name, (program, arguments) in found.items()}
    peers = {}
    if torch:
        from experiments.benchmarks import torch_moe

        peers = torch_moe.jobs(point, inputs(point))
    jobs |= others or {}
    seconds = clock.interleaved(jobs | peers, repeats)
    ratio = {name: seconds[name] / seconds[DENSE] for name in jobs if name != DENSE}
    ratio |= {name: seconds[name] / seconds[torch_moe.DENSE] for name in peers if name != torch_moe.DENSE}
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, (program, _) in found.items()}
    return {"point": dataclasses.asdict(point), "seconds": seconds, "ratio": ratio, "memory": memory}
