"""Gradients, frequencies and native resolution, each beside a loop or a closed form."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import sensors
from ringmoe_jax.objectives import NativeResolution
from ringmoe_jax.objectives.spatial import block_mean, differences
from tests.helpers.tiny_outputs import build, compiled, decoded, loss, scene

PLAIN = sensors.Statistics((0,) * 3, (1,) * 3, "test")
run_block_mean = jax.jit(block_mean, static_argnums=2)


def test_differences_are_forward_and_end_at_the_border():
    x = np.arange(12.0).reshape(3, 4, 1) ** 2
    got = np.asarray(differences(x))
    assert_allclose(got[:, :-1, 0], np.diff(x[..., 0], axis=1))
    assert_allclose(got[:-1, :, 1], np.diff(x[..., 0], axis=0))
    assert not got[:, -1, 0].any()
    assert not got[-1, :, 1].any()


def test_gradients_count_where_both_neighbours_do():
    rng = np.random.default_rng(0)
    mask = rng.random((5, 6)) < 0.7
    expected = [(i, j) for i in range(4) for j in range(5) if mask[i, j] and mask[i + 1, j] and mask[i, j + 1]]
    x = rng.normal(size=(5, 6, 3))
    outputs, batch = scene("rgb", x, hidden=mask, statistics=PLAIN)
    value, weight, _ = compiled(build("gradient_l1", "rgb"))(decoded(outputs, "rgb", pixels=np.zeros(3)), batch)
    assert weight == len(expected)
    by_hand = [abs(np.concatenate([x[i, j + 1] - x[i, j], x[i + 1, j] - x[i, j]])).mean() for i, j in expected]
    assert_allclose(value, sum(by_hand), rtol=1e-5)


def test_gradients_are_blind_to_an_offset():
    x = np.random.default_rng(0).normal(size=(4, 4, 3))
    shown = scene("rgb", x, statistics=PLAIN)
    assert loss(build("gradient_l1", "rgb"), shown, pixels=x[None, None] + 3.0) < 1e-6


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_one_cosine_has_one_frequency(exponent):
    """A cosine of amplitude A has A sqrt(N) / 2 at two of N frequencies, so the loss is A w(f) / N^(1/2) / ..."""
    height, width, amplitude, k = 8, 16, 0.6, 3
    wave = amplitude * np.cos(2 * np.pi * k * np.arange(width) / width)
    says = np.broadcast_to(wave[None, :, None], (1, 1, height, width, 3))
    term, shown = (
        build("fourier_l1", "rgb", exponent=exponent),
        scene("rgb", np.zeros((height, width, 3)), statistics=PLAIN),
    )
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
    weight = (k / width) ** exponent / np.mean(radius**exponent)
    n = height * width
    assert_allclose(loss(term, shown, pixels=says), 2 * weight * amplitude * np.sqrt(n) / 2 / n, rtol=1e-4)


@pytest.mark.parametrize("exponent", [0.0, 1.0])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_white_errors_give_the_constant_of_the_docstring(share, exponent):
    """sqrt(pi) / 2 = 0.886 times the standard deviation, however many pixels are hidden."""
    rng = np.random.default_rng(0)
    hidden = rng.random((2, 1, 64, 64)) < share
    shown = scene("rgb", np.zeros((2, 1, 64, 64, 3)), hidden=hidden, statistics=PLAIN)
    got = loss(build("fourier_l1", "rgb", exponent=exponent), shown, pixels=0.3 * rng.normal(size=(2, 1, 64, 64, 3)))
    assert_allclose(got, 0.3 * np.sqrt(np.pi) / 2, rtol=0.02)


def test_fourier_against_numpy_with_an_image_that_hides_nothing():
    rng = np.random.default_rng(0)
    x, says, hidden = rng.normal(size=(2, 1, 6, 5, 3)), rng.normal(size=(2, 1, 6, 5, 3)), rng.random((2, 1, 6, 5)) < 0.5
    hidden[1] = False
    outputs, batch = scene("rgb", x, hidden=hidden, statistics=PLAIN)
    term = build("fourier_l1", "rgb")
    value, weight, _ = compiled(term)(decoded(outputs, "rgb", pixels=says), batch)
    spectrum = abs(np.fft.fft2(np.where(hidden[..., None], says - x, 0), axes=(-3, -2), norm="ortho"))
    assert_allclose(value, (spectrum * term.weights(6, 5))[0].mean(axis=-1).sum(), rtol=1e-4)
    assert_allclose(weight, np.sqrt(30 * hidden[0].sum()), rtol=1e-6)
    assert_allclose(term.weights(6, 5).mean(), 1.0, rtol=1e-6)
    assert term.weights(6, 5)[0, 0, 0] == 0  # no weight on the mean


@pytest.mark.parametrize("side", [1, 2, 3, 6, 20])
def test_block_means_against_a_loop(side):
    rng = np.random.default_rng(side)
    x, mask = rng.normal(size=(2, 10, 13, 2)), rng.random((2, 10, 13)) < 0.4
    mask[0, :6, :6] = False
    by_hand = np.zeros_like(x)
    for image in range(2):
        for i in range(0, 10, side):
            for j in range(0, 13, side):
                block = np.s_[image, i : i + side, j : j + side]
                if mask[block].any():
                    by_hand[block] = x[block][mask[block]].mean(axis=0)
    dirty = np.where(mask[..., None], x, np.nan)
    assert_allclose(run_block_mean(np.float32(dirty), mask, side), by_hand, rtol=1e-4, atol=1e-6)


def test_native_factors_are_those_of_the_sensor():
    term, s2 = NativeResolution(sensor="s2_12"), sensors.get("s2_12")
    assert term.factors(s2) == (6, 1, 1, 1, 2, 2, 2, 1, 2, 6, 2, 2)
    assert NativeResolution(sensor="s2_12", gsd=5.0).factors(s2) == (12, 2, 2, 2, 4, 4, 4, 2, 4, 12, 4, 4)
    assert NativeResolution(sensor="s2_12", gsd=20.0).factors(s2) == (3, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1)
    assert set(NativeResolution(sensor="rgb").factors(sensors.get("rgb"))) == {1}


def test_native_resolution_asks_for_block_means_alone():
    """On 10 x 10 pixels, no multiple of 6: a checkerboard costs a 10 m band its size, a 20 m band nothing."""
    board = 0.5 * (-1.0) ** np.add.outer(np.arange(10), np.arange(10))
    term, shown = (
        build("native_resolution", "s2_12"),
        scene("s2_12", np.tile(sensors.get("s2_12").statistics.mean, (10, 10, 1))),
    )
    for band, cost in (("B02", 0.5), ("B05", 0.0), ("B01", 0.0)):
        says = np.zeros((1, 1, 10, 10, 12))
        says[..., sensors.get("s2_12").band_index(band)] = board
        assert_allclose(loss(term, shown, pixels=says), cost / 12, atol=1e-6)


def test_native_resolution_against_a_loop_over_bands():
    rng = np.random.default_rng(0)
    sensor = sensors.get("s2_12")
    x, says, hidden = rng.normal(size=(10, 10, 12)), rng.normal(size=(10, 10, 12)), rng.random((10, 10)) < 0.6
    plain = sensors.Statistics((0,) * 12, (1,) * 12, "test")
    outputs, batch = scene("s2_12", x, hidden=hidden, statistics=plain)
    term = build("native_resolution", "s2_12")
    value, weight, _ = compiled(term)(decoded(outputs, "s2_12", pixels=says[None, None]), batch)
    total = 0.0
    for band, k in enumerate(term.factors(sensor)):
        coarse = np.asarray(run_block_mean(np.float32((says - x)[..., band, None]), hidden, k))[..., 0]
        total += abs(coarse[hidden]).sum() / 12
    assert_allclose([value, weight], [total, hidden.sum()], rtol=1e-4)


def test_a_broken_pixel_does_not_take_its_block_along():
    sensor = sensors.get("s2_12")
    pixels = np.tile(np.asarray(sensor.statistics.mean), (6, 6, 1))
    pixels[0, 0] = np.nan
    outputs, batch = scene("s2_12", pixels)
    value, weight, _ = compiled(build("native_resolution", "s2_12"))(
        decoded(outputs, "s2_12", pixels=np.ones(12)), batch
    )
    assert_allclose([value, weight], [35, 35], rtol=1e-5)


def test_masks_of_gradients_do_not_wrap_around():
    grid = build("gradient_l1", "rgb").grid(jax.numpy.ones((1, 1, 3, 3), bool))
    assert_array_equal(grid[0, 0], [[True, True, False], [True, True, False], [False, False, False]])
