"""Every engine gives the values and gradients of the dense reference where nothing is dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.moe import parallel
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing
from ringmoe_jax.parallel.mesh import MeshConfig, make

N, D, F, E = 24, 4, 8, 4


def random_experts(seed, experts=E):
    keys = jax.random.split(jax.random.key(seed), 4)
    shapes = ((experts, D, F), (experts, F), (experts, F, D), (experts, D))
    return Experts(*(jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)))


def chosen(experts, gates):
    experts, gates = jnp.asarray(experts, jnp.int32), jnp.asarray(gates, jnp.float32)
    return Routing(experts, gates, jnp.full((len(experts), E), 1 / E))


def value_and_gradients(engine, choice, rows, groups=1, mesh=None):
    tokens = jax.random.normal(jax.random.key(1), (N, D))

    def loss(tokens, gates, experts):
        y, _ = parallel.run(engine, tokens, choice._replace(gates=gates), experts, rows, groups=groups, mesh=mesh)
        return jnp.sum(jnp.sin(y)), y

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(tokens, choice.gates, random_experts(0))


def assert_same(a, b):
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=2e-5, atol=2e-5), a, b)


@st.composite
def routings(draw):
    """All tokens on one expert, unused experts, ties and anything between; two different choices a token."""
    pairs = [(i, j) for i in range(E) for j in range(E) if i != j]
    picked = draw(st.lists(st.sampled_from(pairs), min_size=N, max_size=N) | st.just([pairs[0]] * N))
    gates = draw(st.lists(st.floats(0, 1, width=32), min_size=2 * N, max_size=2 * N))
    return chosen(picked, np.asarray(gates).reshape(N, 2))


@settings(max_examples=15, deadline=None)
@given(routings())
def test_capacity_equals_dense(choice):
    assert_same(value_and_gradients("dense", choice, 0), value_and_gradients("capacity", choice, N))


@settings(max_examples=15, deadline=None)
@given(routings(), st.integers(1, N))
def test_capacity_drops_exactly_the_overflow(choice, rows):
    tokens = jax.random.normal(jax.random.key(1), (N, D))
    outputs, kept = parallel.run("capacity", tokens, choice, random_experts(0), rows)
    seen = np.zeros(E, int)
    expected = np.zeros((N, 2), bool)
    for k in range(2):  # first choices first, tokens in their order
        for n in range(N):
            e = int(choice.experts[n, k])
            expected[n, k] = seen[e] < rows
            seen[e] += 1
    assert_array_equal(kept, expected)
    reference, _ = parallel.run("dense", tokens, choice._replace(gates=choice.gates * expected), random_experts(0), 0)
    assert_allclose(outputs, reference, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 1, 4), (8, 1, 1), (1, 2, 4)])
@pytest.mark.parametrize("rows", [2, 6])
def test_expert_parallel_equals_one_device_drops_included(sizes, rows):
    rng = np.random.default_rng(0)
    picked = np.stack([rng.permutation(E)[:2] for _ in range(N)])
    choice = chosen(picked, rng.random((N, 2)))
    mesh = make(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    alone = value_and_gradients("capacity", choice, rows, groups=8)
    shared = value_and_gradients("capacity", choice, rows, groups=8, mesh=mesh)
    assert_same(alone, shared)


def test_dense_engine_runs_on_a_mesh():
    rng = np.random.default_rng(0)
    choice = chosen(np.stack([rng.permutation(E)[:2] for _ in range(N)]), rng.random((N, 2)))
    mesh = make(MeshConfig(2, 1, 4))
    assert_same(value_and_gradients("dense", choice, 0), value_and_gradients("dense", choice, 0, groups=8, mesh=mesh))


def test_rows_travel_by_all_to_all_only_where_experts_are_split():
    rng = np.random.default_rng(0)
    choice = chosen(np.stack([rng.permutation(E)[:2] for _ in range(N)]), rng.random((N, 2)))
    tokens = jnp.ones((N, D))

    def program(sizes):
        mesh = make(MeshConfig(*sizes))
        run = jax.jit(lambda t: parallel.run("capacity", t, choice, random_experts(0), 4, groups=8, mesh=mesh)[0])
        return run.lower(tokens).compile().as_text()

    assert program((2, 1, 4)).count("all-to-all(") == 2  # there and back
    assert program((8, 1, 1)).count("all-to-all(") == 0


def test_misfit_is_one_clear_line():
    choice = chosen([[0, 1]] * N, np.ones((N, 2)))
    with pytest.raises(ConfigError, match="unknown engine"):
        parallel.run("fast", jnp.ones((N, D)), choice, random_experts(0), 4)
    with pytest.raises(ConfigError, match="cannot split 24 tokens in 3 groups and 4 experts over 8 devices"):
        parallel.run(
            "capacity", jnp.ones((N, D)), choice, random_experts(0), 4, groups=3, mesh=make(MeshConfig(2, 1, 4))
        )
