"""Prototypes against the recursion in NumPy, and what may not move them."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.parallel import sharding
from ringmoe_jax.parallel.mesh import MeshConfig, batch_sharding, make
from ringmoe_jax.pretext import prototypes
from tests.helpers.references import sinkhorn_knopp

REGIONS, COUNT, WIDTH = 64, 4, 16
RULE = dict(momentum=0.9, temperature=0.05)
update = jax.jit(prototypes.update, static_argnames=("momentum", "temperature", "iterations"))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def case(region, seed=0, grid=(3, 4)):
    rng = np.random.default_rng(seed)
    bank = {
        "prototypes": unit(rng.normal(size=(REGIONS, COUNT, WIDTH))).astype(np.float32),
        "visits": rng.integers(0, 3, REGIONS).astype(np.float32),
    }
    features = (5 * rng.normal(size=(len(region), *grid, WIDTH))).astype(np.float32)
    return bank, features, rng.random((len(region), *grid)) < 0.7, np.asarray(region, np.int32)


def run(bank, features, seen, region, **changes):
    return jax.device_get(update(bank, features, seen, region, **RULE | changes))


def recursion(bank, features, seen, region, momentum, temperature):
    """One image after the other, in float64; only what is seen takes part."""
    new, visits = bank["prototypes"].astype(np.float64), bank["visits"].copy()
    for r in {r for r, s in zip(region, seen, strict=True) if r >= 0 and s.any()}:
        own, sums, mass = bank["prototypes"][r].astype(np.float64), 0, 0
        for f, s in zip(features[region == r], seen[region == r], strict=True):
            if s.any():
                x = unit(f[s].astype(np.float64))
                shares = sinkhorn_knopp(x @ own.T, np.ones(len(x)), temperature)
                sums, mass, visits[r] = sums + shares.T @ x, mass + shares.sum(axis=0), visits[r] + 1
        enough = mass > mass.sum() / (2 * COUNT)
        moved = unit(momentum * own + (1 - momentum) * sums / mass[:, None])
        new[r] = np.where(enough[:, None], moved, own)
    return {"prototypes": new, "visits": visits}


@pytest.mark.parametrize("seed", range(3))
def test_the_recursion(seed):
    """Two images of region 7, one of 0, one of the last, one of nowhere, one without a seen location."""
    bank, features, seen, region = case([7, -1, 0, 7, REGIONS - 1, 3], seed)
    seen[5] = False
    new, wanted = run(bank, features, seen, region), recursion(bank, features, seen, region, **RULE)
    assert_allclose(new["prototypes"], wanted["prototypes"], atol=1e-5)
    assert_array_equal(new["visits"], wanted["visits"])
    assert_array_equal(new["visits"] - bank["visits"], np.bincount([7, 0, 7, REGIONS - 1], minlength=REGIONS))
    assert_allclose(np.linalg.norm(new["prototypes"], axis=-1), 1.0, rtol=1e-5)
    moved = np.abs(new["prototypes"] - bank["prototypes"]).max(axis=(1, 2))
    assert_array_equal(np.flatnonzero(moved), [0, 7, REGIONS - 1])  # all others bit for bit


def test_images_of_one_region_move_it_once_and_in_any_order():
    bank, features, seen, region = case([7, 2, 7, 7, 9, 2])
    order = np.array([5, 3, 0, 4, 2, 1])
    a, b = run(bank, features, seen, region), run(bank, features[order], seen[order], region[order])
    assert_allclose(a["prototypes"], b["prototypes"], atol=1e-6)
    assert_array_equal(a["visits"], b["visits"])
    twice = [np.concatenate([x, x]) for x in (features, seen, region)]
    again = run(bank, *twice)
    assert_allclose(again["prototypes"], a["prototypes"], atol=1e-6)
    assert_array_equal(again["visits"] - bank["visits"], 2 * (a["visits"] - bank["visits"]))


def test_prototypes_with_little_mass_stay():
    """All locations look alike, and prototype 0 points away from them: a softmax gives it nothing, Sinkhorn a share."""
    bank, features, seen, region = case([5])
    features[:], seen[:] = np.eye(WIDTH)[1], True
    bank["prototypes"][5] = np.eye(WIDTH)[[1, 2, 2, 2]] * [[-1], [1], [1], [1]]
    soft, even = (run(bank, features, seen, region, iterations=i)["prototypes"][5] for i in (0, 3))
    assert_array_equal(soft[0], bank["prototypes"][5, 0])
    for moved in (soft[1:], even[1:]):
        assert_allclose(moved[:, 1:3], np.tile([0.1, 0.9], (3, 1)) / np.hypot(0.9, 0.1), rtol=1e-5)
    assert_allclose(even[0], bank["prototypes"][5, 0], atol=1e-6)  # unit(0.9 p - 0.1 p)


def test_momentum_of_one_keeps_and_of_zero_replaces():
    bank, features, seen, region = case([5])
    assert_allclose(run(bank, features, seen, region, momentum=1.0)["prototypes"], bank["prototypes"], atol=1e-6)
    features[:], seen[:] = np.eye(WIDTH)[3], True
    replaced = run(bank, features, seen, region, momentum=0.0)["prototypes"][5]
    assert_allclose(replaced, np.tile(np.eye(WIDTH)[3], (COUNT, 1)), atol=1e-5)


def test_unseen_locations_do_not_count():
    bank, features, seen, region = case([5, 6])
    other = np.where(seen[..., None], features, 100.0)
    jax.tree.map(assert_array_equal, run(bank, other, seen, region), run(bank, features, seen, region))


def test_no_gradient_passes():
    bank, features, seen, region = case([5, 6])
    moved = lambda b, f: update(b, f, seen, region, **RULE)["prototypes"][5].sum()  # noqa: E731
    assert_array_equal(jax.grad(moved, 1)(bank, features), 0)


def test_eight_devices_equal_one():
    mesh = make(MeshConfig(2, 4, 1))
    arrays = case([7, 2, 7, 7, -1, 2, 63, 7])
    placed = sharding.shardings({"geo_context": arrays[0]}, mesh)["geo_context"]
    assert placed["prototypes"].spec == jax.sharding.PartitionSpec("fsdp", None, None)
    spread = jax.device_put(arrays, (placed, *[batch_sharding(mesh)] * 3))
    with_mesh = jax.jit(lambda *x: prototypes.update(*x, **RULE), out_shardings=placed)
    assert_allclose(with_mesh(*spread)["prototypes"], run(*arrays)["prototypes"], atol=1e-6)
    assert_array_equal(with_mesh(*spread)["visits"], run(*arrays)["visits"])
