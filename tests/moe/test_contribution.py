"""What experts add, against each expert run on each token by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from ringmoe_jax.moe import contribution, statistics
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing

EXPERTS, WIDTH, HIDDEN, TOKENS = 3, 4, 5, 6


def drawn():
    keys = jax.random.split(jax.random.key(0), 6)
    shapes = [(EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN), (EXPERTS, HIDDEN, WIDTH), (EXPERTS, WIDTH)]
    experts = Experts(*(jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=False)))
    chosen = jnp.array([[0, 1], [0, 2], [2, 0], [0, 1], [2, 1], [0, 2]])  # expert 1 is nobody's first
    gates = jax.random.uniform(keys[4], chosen.shape)
    return jax.random.normal(keys[5], (TOKENS, WIDTH)), Routing(chosen, gates, jnp.zeros((TOKENS, EXPERTS))), experts


def test_sums_over_tokens_and_modalities_by_hand():
    tokens, routing, experts = drawn()
    modality = np.array([0, 0, 0, 1, 1, 1])
    found = jax.jit(contribution.measure, static_argnums=4)(tokens, routing, experts, jnp.asarray(modality), 2)
    norm, hidden = np.zeros((2, EXPERTS)), np.zeros((2, EXPERTS, HIDDEN))
    wi, bi, wo, bo = (np.asarray(leaf, np.float64) for leaf in experts)
    for n in range(TOKENS):
        for gate, e in zip(np.asarray(routing.gates)[n], np.asarray(routing.experts)[n], strict=True):
            active = np.asarray(jax.nn.gelu(np.asarray(tokens, np.float64)[n] @ wi[e] + bi[e]))
            norm[modality[n], e] += gate * np.linalg.norm(active @ wo[e] + bo[e])
            hidden[modality[n], e] += gate * np.abs(active)
    assert_allclose(found.norm, norm, rtol=1e-5)
    assert_allclose(found.hidden, hidden, rtol=1e-4, atol=1e-6)


def test_statistics_of_some_experts_are_put_back_among_all():
    tokens, routing, experts = drawn()
    found = statistics.layer(routing, routing.gates > 0, jnp.zeros(TOKENS, jnp.int32), np.ones((1, EXPERTS), bool))
    found = found._replace(contribution=contribution.measure(tokens, routing, experts, jnp.zeros(TOKENS, jnp.int32), 1))
    wide = statistics.expand(found, np.array([0, 2, 3]), 5)
    for name in ("load", "gate"):
        value = np.asarray(getattr(wide, name))
        assert_allclose(value[:, [0, 2, 3]], getattr(found, name))
        assert not value[:, [1, 4]].any()
    assert wide.contribution.hidden.shape == (1, 5, HIDDEN)
    assert_allclose(wide.contribution.hidden[:, [0, 2, 3]], found.contribution.hidden)
    nothing = statistics.nothing(1, 5, HIDDEN)
    assert jax.tree.map(jnp.shape, nothing) == jax.tree.map(jnp.shape, wide)
