"""Resampling that respects units, validity that never leaks, and geometry that sensors share."""

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from input_pipeline import augment, masking, rules
from input_pipeline.cpu_tf import tf
from input_pipeline.views import View
from ringmoe_jax import sensors
from ringmoe_jax.data_config import PhotometricConfig
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.sensors import Statistics

WHOLE = np.array([0, 0, 1, 1], np.float32)
RATIO = (3 / 4, 4 / 3)


def resized(pixels, valid=None, box=WHOLE, size=1, resampling="linear"):
    """`window` and `resample` of one [H, W] or [H, W, C] image; returns [size, size, C] and [size, size]."""
    pixels = np.asarray(pixels, np.float32)
    pixels = pixels[None, ..., None] if pixels.ndim == 2 else pixels[None]
    valid = np.ones(pixels.shape[:3], bool) if valid is None else np.asarray(valid, bool)[None]
    stored, valid, inner = augment.window(tf.constant(pixels), tf.constant(valid), tf.constant(box), size, resampling)
    out, ok = augment.resample(stored, valid, inner, size, resampling)
    return out.numpy()[0], ok.numpy()[0]


def test_halving_averages():
    out, _ = resized([[1, 3], [5, 11]])
    assert out.item() == pytest.approx(5)


def test_decibel_averages_power():
    # 0 dB and 10 dB are powers 1 and 10: mean 5.5, not 5 dB
    out, _ = resized([[0, 10], [10, 0]], resampling="decibel")
    assert out.item() == pytest.approx(10 * math.log10(5.5), abs=1e-4)


def test_enlarging_interpolates_at_pixel_centres():
    out, _ = resized([[0, 4], [0, 4]], size=4)
    np.testing.assert_allclose(out[0, :, 0], [0, 1, 3, 4], atol=1e-5)


@given(top=st.floats(0, 0.6), left=st.floats(0, 0.6), tall=st.floats(0.2, 0.4), wide=st.floats(0.2, 0.4))
@settings(deadline=None, max_examples=10)
def test_a_ramp_shows_where_a_pixel_comes_from(top, left, tall, wide):
    """Each pixel of a ramp names its own place: right to a fifth of a pixel, as far as a sampled kernel can be."""
    grid = 40
    centres = (np.arange(grid) + 0.5) / grid
    ramp = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1)
    out, ok = resized(ramp, box=np.array([top, left, tall, wide], np.float32), size=8)
    inner = (np.arange(8) + 0.5) / 8
    assert ok.all()
    inside = slice(1, -1)  # at the tile's border the kernel is cut
    np.testing.assert_allclose(out[inside, 4, 0], (top + inner * tall)[inside], atol=0.2 / grid)
    np.testing.assert_allclose(out[4, inside, 1], (left + inner * wide)[inside], atol=0.2 / grid)


@pytest.mark.parametrize("resampling", ["linear", "decibel"])
@pytest.mark.parametrize("size", [3, 5, 7, 11, 16])
def test_invalid_pixels_reach_nobody(resampling, size):
    """What is valid in the result does not change with the values of invalid pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(11, 11))
    valid = rng.random((11, 11)) > 0.05
    base, ok = resized(np.where(valid, pixels, 0), valid, size=size, resampling=resampling)
    assert 0 < ok.sum() < size * size
    assert (base[~ok] == 0).all()
    full, _ = resized(pixels, size=size, resampling=resampling)
    np.testing.assert_allclose(base[ok], full[ok], rtol=2e-4, atol=2e-4)


def test_complex_crops_only_move_samples():
    rng = np.random.default_rng(1)
    pixels = rng.normal(size=(12, 10, 4))
    for seed in range(10):
        box = augment.random_sample_box([seed, 0], 12, 10, 6).numpy()
        out, _ = resized(pixels, box=box, size=6, resampling="complex")
        top, left = round(float(box[0]) * 12), round(float(box[1]) * 10)
        np.testing.assert_array_equal(out, pixels[top : top + 6, left : left + 6].astype(np.float32))


def test_complex_crops_reach_every_corner():
    places = {tuple(np.round(augment.random_sample_box([s, 0], 7, 6, 5).numpy()[:2] * [7, 6])) for s in range(100)}
    assert places == {(i, j) for i in range(3) for j in range(2)}


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_random_boxes_have_the_area_and_stay_inside(seed):
    top, left, tall, wide = augment.random_box(tf.constant([seed, 1]), (0.2, 0.5), RATIO, 64, 64).numpy()
    assert 0.2 - 1e-5 <= tall * wide <= 0.5 + 1e-5
    assert 3 / 4 - 1e-4 <= wide / tall <= 4 / 3 + 1e-4
    assert min(top, left) >= 0
    assert max(top + tall, left + wide) <= 1 + 1e-5


def test_box_is_a_function_of_its_seed():
    first, same, other = (augment.random_box(tf.constant([s, 1]), (0.2, 0.5), RATIO, 8, 8).numpy() for s in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(5, 5, 2), (3, 5, 5, 2)])
def test_turns_are_numpys(mirrored, quarters, shape):
    image = np.arange(np.prod(shape)).reshape(shape)
    axes = (-3, -2)
    wanted = np.rot90(np.flip(image, -2) if mirrored else image, quarters, axes)
    out = augment.turn(tf.constant(image), tf.constant(mirrored), tf.constant(quarters))
    np.testing.assert_array_equal(out, wanted)


def test_a_mirror_flips_the_sign_of_cross_polarised_channels():
    """S' = R S R with R = diag(-1, 1), of a scattering matrix with rows and columns H, V."""
    quad = sensors.get("slc_quad")
    matrix = np.arange(1, 5).reshape(2, 2) + 1j * np.arange(5, 9).reshape(2, 2)
    mirror = np.diag([-1, 1])
    seen = mirror @ matrix @ mirror
    channels = lambda s: np.stack([s.real, s.imag], -1).ravel()  # noqa: E731
    assert quad.band_names[::2] == ("HH_re", "HV_re", "VH_re", "VV_re")
    np.testing.assert_array_equal(channels(matrix) * rules.mirror_signs(quad), channels(seen))
    assert rules.mirror_signs(sensors.get("slc_dual")) == (1, 1, -1, -1)
    assert rules.mirror_signs(sensors.get("s1_grd")) == (1, 1)  # powers have no sign


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_views_turn_the_scattering_matrix_with_the_image(mirrored, quarters):
    """Phases between HH and VV stay, those between HH and HV turn by pi in a mirror; powers only move."""
    quad = sensors.get("slc_quad")
    pixels = np.random.default_rng(0).normal(size=(1, 4, 4, 8)).astype(np.float32)
    view = View(WHOLE, {}, 4, turned=(tf.constant(mirrored), tf.constant(quarters)))
    moved, shown = (move(tf.constant(pixels)).numpy()[0] for move in (view.move, lambda x: view.move_values(x, quad)))
    hh, hv, vh, vv = (shown[..., i] + 1j * shown[..., i + 1] for i in (0, 2, 4, 6))
    own = [moved[..., i] + 1j * moved[..., i + 1] for i in (0, 2, 4, 6)]
    sign = -1 if mirrored else 1
    np.testing.assert_allclose(hh * vv.conj(), own[0] * own[3].conj(), rtol=1e-6)
    np.testing.assert_allclose(hh * hv.conj(), sign * own[0] * own[1].conj(), rtol=1e-6)
    np.testing.assert_allclose(hv * vh.conj(), own[1] * own[2].conj(), rtol=1e-6)
    np.testing.assert_allclose(np.abs(shown), np.abs(moved))


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_ground_says_where_turned_pixels_come_from(mirrored, quarters):
    box = np.array([0.1, 0.2, 0.5, 0.25], np.float32)
    centres = (np.arange(6) + 0.5) / 6
    points = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1)
    turned = augment.turn(tf.constant(box[:2] + points * box[2:]), tf.constant(mirrored), tf.constant(quarters))
    matrix = augment.ground(tf.constant(box), tf.constant(mirrored), tf.constant(quarters)).numpy()
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], turned, atol=1e-6)


@functools.cache
def disturber(config, resampling, statistics):
    """As a graph, as the reader runs it: hundreds of draws take a while operation by operation."""
    return tf.function(
        lambda pixels, valid, seed: augment.disturb(pixels, valid, seed, config, resampling, statistics),
        autograph=False,
    )


def disturbed(pixels, resampling, seed=0, valid=None, **changes):
    valid = np.ones(pixels.shape[:3], bool) if valid is None else valid
    pixels = tf.constant(np.where(valid[..., None], pixels, 0), tf.float32)
    channels = np.arange(1, pixels.shape[-1] + 1)
    statistics = Statistics(tuple(0.1 * channels), tuple(0.5 * channels), "made up")
    run = disturber(PhotometricConfig(**changes), resampling, statistics)
    return [a.numpy() for a in run(pixels, tf.constant(valid), tf.constant([seed, 5]))]


def test_gain_multiplies_power():
    """The same draw multiplies reflectance by g, amplitude by sqrt(g) and adds 10 log10(g) decibel."""
    pixels = np.random.default_rng(0).uniform(0.1, 1, (3, 4, 4, 2))
    linear = disturbed(pixels, "linear", gain=0.3)[0] / pixels
    np.testing.assert_allclose(linear, np.broadcast_to(linear[:1, :1, :1], linear.shape), rtol=1e-5)  # one a band
    assert abs(np.log(linear[0, 0, 0, 0] / linear[0, 0, 0, 1])) > 1e-3
    np.testing.assert_allclose(disturbed(pixels, "amplitude", gain=0.3)[0], pixels * np.sqrt(linear), rtol=1e-5)
    np.testing.assert_allclose(disturbed(pixels, "decibel", gain=0.3)[0], pixels + 10 * np.log10(linear), atol=1e-5)


def test_illumination_is_one_gain_for_all_bands():
    ones = np.ones((2, 3, 3, 4))
    drawn = np.stack([disturbed(ones, "linear", seed, illumination=0.3)[0] for seed in range(200)])
    assert np.ptp(drawn, axis=(1, 2, 3, 4)).max() == 0
    assert np.log(drawn).std() == pytest.approx(0.3, rel=0.1)
    both = np.log([disturbed(ones, "linear", seed, illumination=0.3, gain=0.1)[0][0, 0, 0] for seed in range(200)])
    assert np.corrcoef(both.T)[0, 1] == pytest.approx(0.9, abs=0.05)  # 0.3^2 of 0.3^2 + 0.1^2 in common


def test_gain_is_log_normal():
    ones = np.ones((1, 1, 1, 4))
    logs = np.log(np.stack([disturbed(ones, "linear", seed, gain=0.3)[0] for seed in range(200)]))
    assert logs.std() == pytest.approx(0.3, rel=0.1)
    assert abs(logs.mean()) < 0.04


def test_offset_adds_in_standard_deviations_of_the_band():
    """Band i deviates by i / 2, so its shifts do by 0.3 i / 2; they hold for all dates and pixels of it."""
    pixels = np.random.default_rng(0).uniform(0, 1, (2, 3, 3, 4)).astype(np.float32)
    valid = np.ones((2, 3, 3), bool)
    valid[1, 0, 0] = False
    draws = np.stack([disturbed(pixels, "linear", seed, valid, offset=0.3)[0] - pixels for seed in range(300)])
    assert (draws[:, ~valid] == -pixels[~valid]).all()  # 0 they stay
    shifts = draws[:, valid]
    np.testing.assert_allclose(shifts, np.broadcast_to(shifts[:, :1], shifts.shape), atol=1e-6)
    np.testing.assert_allclose(shifts[:, 0].std(0), 0.3 * 0.5 * np.arange(1, 5), rtol=0.15)
    assert (abs(shifts[:, 0].mean(0)) < 0.15 * shifts[:, 0].std(0) * 1.7).all()  # 4 deviations of a mean of 300


@pytest.mark.parametrize(("resampling", "bands"), [("linear", 4), ("decibel", 4), ("complex", 2)])
def test_dropped_bands_hold_their_mean_and_one_is_kept(resampling, bands):
    pixels = np.random.default_rng(0).normal(5, 1, (2, 3, 3, 4)).astype(np.float32)
    valid = np.ones((2, 3, 3), bool)
    valid[0, 1, 1] = False
    counts = []
    for seed in range(200):
        out = disturbed(pixels, resampling, seed, valid, drop_band=0.5)[0]
        assert not out[~valid].any()
        dropped = (out[valid] != pixels[valid]).any(0)
        np.testing.assert_allclose(out[valid][:, dropped], np.tile(0.1 * np.arange(1, 5)[dropped], (17, 1)), rtol=1e-6)
        counts.append(dropped.reshape(bands, -1).all(1).sum())
        assert counts[-1] == dropped.reshape(bands, -1).any(1).sum()  # re and im go together
    chances = {4: [1, 4, 6, 5, 0], 2: [4, 12, 0, 0, 0]}[bands]  # of 16: all are never dropped
    np.testing.assert_allclose(np.bincount(counts, minlength=5) / 200, np.array(chances) / 16, atol=0.12)
    every = disturbed(pixels, resampling, drop_band=1)[0]
    assert (every == pixels).all((0, 1, 2)).sum() == 4 // bands


def test_gain_keeps_phase():
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(1, 5, 5, 4))
    valid = rng.random((1, 5, 5)) > 0.3
    out, same = disturbed(pixels, "complex", valid=valid, gain=0.5)
    before, after = (p[..., ::2] + 1j * p[..., 1::2] for p in (pixels, out))
    np.testing.assert_allclose(np.angle(after[valid]), np.angle(before[valid]), atol=1e-5)
    factors = np.abs(after[valid] / before[valid])
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:1], factors.shape), rtol=1e-5)
    assert abs(factors[0, 0] - factors[0, 1]) > 1e-3  # one a polarisation
    np.testing.assert_array_equal(same, valid)
    assert not out[~valid].any()


@pytest.mark.parametrize("resampling", ["linear", "decibel", "amplitude"])
@pytest.mark.parametrize(("sigma", "shape"), [(0.1, (9, 9)), (0.8, (3, 20)), (1.7, (30, 25))])
def test_blur_is_gaussian_in_power(resampling, sigma, shape):
    pixels = np.random.default_rng(1).uniform(0.1, 5, (2, *shape, 3))
    forth = {"linear": lambda x: x, "decibel": lambda x: 10 ** (x / 10), "amplitude": np.square}[resampling]
    back = {"linear": lambda x: x, "decibel": lambda x: 10 * np.log10(x), "amplitude": np.sqrt}[resampling]

    def kernel(size):
        distance = np.arange(size)[:, None] - np.arange(size)
        weights = np.exp(-0.5 * (distance / sigma) ** 2)
        return weights / weights.sum(1, keepdims=True)

    wanted = back(np.einsum("ij,kl,tjlc->tikc", kernel(shape[0]), kernel(shape[1]), forth(pixels)))
    valid = tf.ones([2, *shape], tf.bool)
    out, same = augment.blur(tf.constant(pixels, tf.float32), valid, tf.constant(sigma), resampling)
    np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=1e-4)
    assert same.numpy().all()


@pytest.mark.parametrize("resampling", ["linear", "decibel", "amplitude"])
def test_invalid_pixels_reach_nobody_through_a_blur(resampling):
    rng = np.random.default_rng(0)
    pixels, valid = rng.uniform(0.1, 1, (1, 24, 24, 1)), np.ones((1, 24, 24), bool)
    valid[0, 3, 4] = valid[0, 20, 23] = False
    sizes = []
    for seed in range(8):
        out, ok = disturbed(pixels, resampling, seed, valid, blur=1)
        full, _ = disturbed(pixels, resampling, seed, blur=1)
        assert (out[~ok] == 0).all()
        assert not (ok & ~valid).any()
        np.testing.assert_allclose(out[ok], full[ok], rtol=2e-4, atol=2e-4)
        sizes.append(ok.sum())
    assert min(sizes) > 300
    assert len(set(sizes)) > 2  # a wider blur takes more


def test_probabilities_of_blur_and_solarisation():
    pixels = np.random.default_rng(0).uniform(0, 1, (1, 8, 8, 1)).astype(np.float32)
    draws = [disturbed(pixels, "linear", seed, blur=0.3)[0] for seed in range(200)]
    assert 40 <= sum((d != pixels).any() for d in draws) <= 80  # binomial(200, 0.3): deviation 6.5
    solarised = np.where(pixels > 0.5, 1 - pixels, pixels)
    draws = [disturbed(pixels, "linear", seed, solarise=0.3)[0] for seed in range(200)]
    changed = [d for d in draws if (d != pixels).any()]
    assert 40 <= len(changed) <= 80
    for draw in changed:
        np.testing.assert_allclose(draw, solarised, atol=1e-6)
    np.testing.assert_array_equal(disturbed(pixels, "linear")[0], pixels)
    assert disturbed(np.full((1, 1, 1, 1), 1.4), "linear", solarise=1)[0].item() == 0  # no reflectance below 0


def test_class_maps_take_the_class_at_the_centre():
    classes = tf.constant(np.arange(16).reshape(4, 4), tf.int32)
    np.testing.assert_array_equal(augment.crop_map(classes, WHOLE, 4), classes)
    np.testing.assert_array_equal(augment.crop_map(classes, np.array([0.5, 0, 0.5, 0.5]), 2), [[8, 9], [12, 13]])
    assert augment.crop_map(classes, WHOLE, 8).numpy()[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_complex_box():
    shapes = {"s2": (1, 48, 48), "slc": (1, 96, 96), "other": (1, 80, 80)}
    kinds = {"s2": "linear", "slc": "complex", "other": "complex"}
    assert rules.complex_box({"s2": shapes["s2"]}, kinds, 64, "x") is None
    assert rules.complex_box({n: shapes[n] for n in ("s2", "slc")}, kinds, 48, "x") == (0.5, 0.5)
    with pytest.raises(DataError, match=r'"slc" are 96 x 96 px, smaller than image_size = 97.*at most 96'):
        rules.complex_box({"slc": shapes["slc"]}, kinds, 97, "x")
    with pytest.raises(ConfigError, match="slc, other"):
        rules.complex_box(shapes, kinds, 48, "x")


@given(side=st.integers(1, 9), ratio=st.floats(0, 1), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_masks_hide_exactly_ceil_of_the_ratio(side, ratio, seed):
    mask = masking.random_mask(tf.constant([seed, 0]), side, side, ratio).numpy()
    assert mask.shape == (side, side)
    assert mask.sum() == math.ceil(round(ratio * side * side, 6))


def test_ringmoe_hides_22_of_36_cells_evenly():
    masks = np.stack([masking.random_mask(tf.constant([seed, 0]), 6, 6, 0.6).numpy() for seed in range(300)])
    assert (masks.sum((1, 2)) == 22).all()
    # binomial(300, 22 / 36): mean 183.3, standard deviation 8.4; 36 cells within 4.5 of them
    np.testing.assert_allclose(masks.sum(0), 183.3, atol=38)
    assert rules.hidden_cells(1, 5, 0.6) == 3
