"""What every objective about a sensor owes: finite values, true gradients, and nothing from pixels without data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax.objectives import Balance, Constraint
from ringmoe_jax.objectives.base import OBJECTIVES
from tests.helpers.tiny_outputs import build, decoded, decoders, pixels_of, scene

CASES = [
    ("masked_l1", "s2_12", {}),
    ("masked_l2", "s1_grd", {}),
    ("noise_weighted", "s2_12", {}),
    ("total_power", "slc_dual", {}),
    ("log_total_power", "slc_dual", {}),
    ("speckle", "s1_grd", {}),
    ("speckle", "sar_amplitude", {}),
    ("speckle", "test_intensity", {}),
    ("textured_speckle", "s1_grd", {}),
    ("textured_speckle", "slc_dual", {}),
    ("complex_gaussian", "slc_dual", {}),
    ("complex_gaussian", "slc_quad", {"basis": "pauli"}),
    ("wishart", "slc_dual", {"window": 2}),
    ("wishart", "slc_quad", {"window": 2, "reciprocal": True}),
    ("multilooked", "s1_grd", {"window": 3}),
    ("multilooked", "sar_amplitude", {"window": 3, "filter": "lee"}),
    ("part_independence", "slc_dual", {}),
    ("power_conservation", "slc_quad", {}),
    ("reciprocity", "slc_quad", {}),
    ("gradient_l1", "s2_12", {}),
    ("fourier_l1", "s2_12", {}),
    ("native_resolution", "s2_12", {}),
    ("spectral_indices", "s2_12", {}),
    ("spectral_angle", "s2_12", {}),
    ("reflectance_bounds", "s2_12", {}),
    ("brightness_temperature", "tirs", {}),
]
ELSEWHERE = {
    "latent_targets",
    "vicreg",
    "sigreg",
    "balance",
    "alignment",
    "self_distillation",
} | {  # about tokens and routers, or about labels
    "cross_entropy",
    "binary_cross_entropy",
    "dice",
    "lovasz",
    "height_regression",
    "bin_chamfer",
    "fcos",
    "feature_matching",  # and about a teacher
    "relation_matching",
    "prediction_matching",
    "logit_matching",
}
SHAPE = (2, 1, 7, 8)  # 7 is no multiple of the 2 or 6 pixels of a coarse band, nor of a window
every_objective = pytest.mark.parametrize(
    ("name", "sensor", "fields"), CASES, ids=lambda x: "-".join(map(str, x.values())) if isinstance(x, dict) else x
)


def test_every_objective_is_tested():
    own = {name for name, cls in OBJECTIVES.items() if cls.__module__.startswith("ringmoe_jax.")}
    assert own == {name for name, _, _ in CASES} | ELSEWHERE


@functools.lru_cache
def compiled(name, sensor, fields):
    """One compiled function (heads, pixels, valid, hidden) -> ((value, weight), gradient by heads)."""
    term = build(name, sensor, **dict(fields))

    def run(heads, pixels, valid, hidden):
        lost = np.arange(pixels.shape[-1]) % 2 == 1 if name == "part_independence" else None
        outputs, batch = scene(sensor, pixels, valid, hidden, lost=lost)
        return term(decoded(outputs, sensor, **heads), batch)[:2]

    return term, jax.jit(jax.value_and_grad(run, has_aux=True))


def prepare(name, sensor, fields, seed=0):
    term, run = compiled(name, sensor, tuple(fields.items()))
    rng = np.random.default_rng(seed)
    heads = {head: jnp.asarray(rng.normal(size=(*SHAPE, k)), jnp.float32) for head, k in decoders(term).items()}
    pixels = pixels_of(sensor, rng, SHAPE).astype(np.float32)
    hidden = np.ones(SHAPE, bool)
    hidden[..., :2, :] = False
    if name == "part_independence":
        hidden = ~hidden  # it looks at what is visible
    return term, run, heads, pixels, hidden


def finite(*trees):
    return all(np.isfinite(x).all() for x in jax.tree.leaves(trees))


@every_objective
def test_gradient_against_finite_differences(name, sensor, fields):
    _, run, heads, pixels, hidden = prepare(name, sensor, fields)
    if name == "reflectance_bounds":
        heads = jax.tree.map(lambda x: 5 * x, heads)  # else all are within bounds
    whole = np.ones(SHAPE, bool)
    (value, weight), gradient = run(heads, pixels, whole, hidden)
    assert weight > 0
    assert value != 0
    rng, errors, step = np.random.default_rng(1), [], 3e-3
    size = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
    for _ in range(8):
        way = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), heads)
        moved = [jax.tree.map(lambda x, w, s=s: x + s * w, heads, way) for s in (step, -step)]
        up, down = (float(run(x, pixels, whole, hidden)[0][0]) for x in moved)
        exact = sum(np.sum(g * w) for g, w in zip(*map(jax.tree.leaves, (gradient, way)), strict=True))
        errors.append(abs((up - down) / (2 * step) - exact) / size)
    assert np.median(errors) < 0.05, errors  # absolute errors have kinks within a step


POISON = [np.nan, np.inf, -np.inf, -7.0, 1e30, -1e30]


@every_objective
def test_pixels_without_data_add_nothing(name, sensor, fields):
    """Whatever is stored where nothing was observed, value, weight and gradient are those with zeros there."""
    _, run, heads, pixels, hidden = prepare(name, sensor, fields)

    @settings(max_examples=8, deadline=None, derandomize=True, database=None)
    @given(
        seed=st.integers(0, 2**16),
        share=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
        poison=st.lists(st.sampled_from(POISON), min_size=1, max_size=6),
    )
    def check(seed, share, poison):
        rng = np.random.default_rng(seed)
        valid = rng.random(SHAPE) >= share
        dirty = np.where(valid[..., None], pixels, rng.choice(poison, size=pixels.shape).astype(np.float32))
        (value, weight), gradient = run(heads, dirty, valid, hidden)
        clean = run(heads, np.where(valid[..., None], pixels, 0), valid, hidden)
        assert finite(value, weight, gradient)
        jax.tree.map(assert_array_equal, ((value, weight), gradient), clean)
        for g in jax.tree.leaves(gradient):
            assert not np.asarray(g)[~(valid & (hidden if name != "part_independence" else ~hidden))].any()
        if not valid.any():
            assert (value, weight) == (0, 0)

    check()


@every_objective
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_values_count_as_no_data_though_called_valid(name, sensor, fields, bad):
    term, run, heads, pixels, hidden = prepare(name, sensor, fields)
    if isinstance(term, Constraint):
        return  # says nothing of the data
    valid = np.random.default_rng(3).random(SHAPE) > 0.15
    broken = np.where(valid[..., None], pixels, np.float32(bad))
    got, expected = run(heads, broken, np.ones(SHAPE, bool), hidden), run(heads, broken, valid, hidden)
    assert finite(got)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, expected)


@every_objective
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_decoder_outputs_give_a_finite_loss_and_gradient(name, sensor, fields, size):
    _, run, heads, pixels, hidden = prepare(name, sensor, fields)
    whole = np.ones(SHAPE, bool)
    for says in (lambda x: jnp.full_like(x, size), lambda x: size * jnp.sign(x)):
        assert finite(run(jax.tree.map(says, heads), pixels, whole, hidden))


@every_objective
@pytest.mark.parametrize("value", [0.0, -0.3, 1e-25, 1e-18, 1e6])
def test_impossible_pixels_leave_loss_and_gradient_finite(name, sensor, fields, value):
    """No power at all, negative power or amplitude, hardly any, or an absurd amount."""
    _, run, heads, pixels, hidden = prepare(name, sensor, fields)
    pixels[0, 0, :, 1::2] = value
    assert finite(run(heads, pixels, np.ones(SHAPE, bool), hidden))
    assert finite(run(heads, np.full_like(pixels, value), np.ones(SHAPE, bool), hidden))


@every_objective
def test_a_sensor_that_the_batch_lacks_adds_nothing(name, sensor, fields):
    value, weight, metrics = build(name, sensor, **fields)({"heads": {}}, {"sensors": {}})
    assert (value, weight, metrics) == (0, 0, {})


@every_objective
def test_one_scale_and_schedule_for_all(name, sensor, fields):
    term = build(name, sensor, **fields, scale=3.0, start_step=10, ramp_steps=4, stop_step=20)
    by_hand = {0: 0, 9: 0, 10: 0.75, 11: 1.5, 13: 3, 19: 3, 20: 0, 1000: 0}
    assert_allclose([term.scale_at(jnp.int32(s)) for s in by_hand], list(by_hand.values()))


def test_schedule_by_default_is_the_scale():
    assert_allclose([Balance(scale=2.0).scale_at(jnp.int32(s)) for s in (0, 10**6)], 2.0)
    at_once = Balance(scale=2.0, start_step=5)
    assert_allclose([at_once.scale_at(jnp.int32(s)) for s in (4, 5, 6)], [0.0, 2.0, 2.0])
    for step, scale in ((0, 0.5), (1, 1.0), (3, 2.0), (100, 2.0)):
        assert Balance(scale=2.0, ramp_steps=4).scale_at(jnp.int32(step)) == scale
