"""Soft assignments of equal column mass against Sinkhorn-Knopp on matrices in float64."""

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.pretext.sinkhorn import sinkhorn
from tests.helpers.references import sinkhorn_knopp

ROWS, COLUMNS = 12, 5
compiled = jax.jit(sinkhorn, static_argnames="iterations")
temperatures = st.floats(0.02, 1.0)
seeds = st.integers(0, 2**32 - 1)


def run(*arrays, **settings):
    return np.asarray(compiled(*arrays, **settings))


def case(seed, rows=ROWS):
    """Cosines, and masses of which some are 0 and one is not."""
    rng = np.random.default_rng(seed)
    weight = rng.random(rows) * (rng.random(rows) < 0.7)
    weight[rng.integers(rows)] += 0.1
    return rng.uniform(-1, 1, (rows, COLUMNS)).astype(np.float32), weight.astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(seed=seeds, temperature=temperatures, iterations=st.sampled_from([0, 1, 3]))
def test_equals_sinkhorn_knopp_on_matrices(seed, temperature, iterations):
    scores, weight = case(seed)
    ours = run(scores, weight, temperature=temperature, iterations=iterations)
    assert_allclose(ours, sinkhorn_knopp(scores, weight, temperature, iterations), rtol=1e-3, atol=1e-6)
    assert_allclose(ours.sum(axis=-1), 1.0, rtol=2e-6)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, temperature=temperatures)
def test_columns_become_even(seed, temperature):
    """No iteration raises the fullest column or lowers the emptiest one, and they meet."""
    scores, weight = case(seed)
    share = weight.sum() / COLUMNS
    marginals = [weight @ run(scores, weight, temperature=temperature, iterations=i) / share for i in (0, 3, 60)]
    low, high = (np.array([f(m) for m in marginals]) for f in (np.min, np.max))
    assert (np.diff(low) > -1e-4).all()
    assert (np.diff(high) < 1e-4).all()
    if temperature > 0.3:
        assert_allclose(marginals[-1], 1.0, rtol=1e-3)
    assert_allclose(marginals[-1].mean(), 1.0, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, temperature=temperatures)
def test_rows_without_mass_influence_no_other(seed, temperature):
    scores, weight = case(seed)
    other = np.where(weight[:, None] > 0, scores, np.random.default_rng(seed).normal(scale=1e3, size=scores.shape))
    a, b = (run(x, weight, temperature=temperature, iterations=3) for x in (scores, other.astype(np.float32)))
    assert_array_equal(a[weight > 0], b[weight > 0])
    assert_allclose(b.sum(axis=-1), 1.0, rtol=2e-6)
    some = weight > 0
    assert_allclose(a[some], sinkhorn_knopp(scores[some], weight[some], temperature), rtol=1e-3, atol=1e-6)


def test_a_batch_is_its_members_and_mass_is_1_by_default():
    scores, weight = zip(*(case(seed) for seed in range(3)), strict=True)
    both = run(np.stack(scores), np.stack(weight), temperature=0.1, iterations=3)
    alone = [run(s, w, temperature=0.1, iterations=3) for s, w in zip(scores, weight, strict=True)]
    assert_allclose(both, np.stack(alone), rtol=1e-5, atol=1e-7)
    assert_array_equal(
        run(scores[0], temperature=0.1, iterations=3),
        run(scores[0], np.ones(ROWS, np.float32), temperature=0.1, iterations=3),
    )


def test_rows_on_eight_devices_share_their_columns():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    scores, weight = case(0, rows=16)
    spread = jax.device_put((scores, weight), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
    assert_allclose(
        run(*spread, temperature=0.1, iterations=3), sinkhorn_knopp(scores, weight, 0.1), rtol=1e-3, atol=1e-6
    )


def test_nothing_overflows():
    scores, weight = case(0)
    for large in (1e4, 1e30):
        assert_allclose(run(large * scores, weight, temperature=1.0, iterations=3).sum(axis=-1), 1.0, rtol=2e-6)
    cold = run(scores, weight, temperature=1 / 300, iterations=3)
    assert_allclose(cold, sinkhorn_knopp(scores, weight, 1 / 300), rtol=1e-2, atol=1e-6)


def test_where_no_row_has_mass_all_are_distributions_still():
    empty = run(case(0)[0], np.zeros(ROWS, np.float32), temperature=0.02, iterations=3)
    assert_allclose(empty.sum(axis=-1), 1.0, rtol=2e-6)


def test_clear_assignments_stay_and_ties_are_shared():
    clear = run(np.repeat(np.eye(3, dtype=np.float32), 4, axis=0), temperature=0.02, iterations=3)
    assert_allclose(clear, np.repeat(np.eye(3), 4, axis=0), atol=1e-6)
    assert_allclose(run(np.zeros((6, 3), np.float32), temperature=0.02, iterations=3), 1 / 3, rtol=1e-6)


def test_no_gradient_passes():
    value = lambda s, w: (sinkhorn(s, w, temperature=0.1) * np.arange(COLUMNS)).sum()  # noqa: E731
    for gradient in jax.jit(jax.grad(value, (0, 1)))(*case(0)):
        assert_array_equal(gradient, 0)
