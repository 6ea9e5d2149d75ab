"""The equivalent number of looks of simulated images whose looks are known."""

import numpy as np
import pytest

from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate.looks import estimate


def image(looks, seed, side=320, structured=False):
    rng = np.random.default_rng(seed)
    power = np.full((side, side), 0.05)
    if structured:  # fields, a town of bright points, and a textured forest
        fields = 0.02 * 4.0 ** rng.normal(size=(4, 4))
        power = fields.repeat(side // 4, axis=0).repeat(side // 4, axis=1)
        power[: side // 4, : side // 4] *= rng.gamma(0.5, 2.0, size=(side // 4, side // 4))
        power[-side // 4 :] *= rng.gamma(3.0, 1 / 3, size=(side // 4, side))
    return rng.gamma(looks, power / looks)


@pytest.mark.parametrize("structured", [False, True], ids=["homogeneous", "structured"])
@pytest.mark.parametrize("looks", [1, 3, 4.4, 10])
def test_looks_are_found_within_five_percent(looks, structured):
    found = [estimate(image(looks, seed, structured=structured)) for seed in range(4)]
    assert np.abs(np.asarray(found) / looks - 1).max() < 0.05, found


def test_scale_does_not_matter():
    x = image(4.4, 0)
    assert estimate(1e6 * x) == pytest.approx(estimate(x), rel=1e-3)


@pytest.mark.parametrize("poison", [0.0, -1.0, np.nan, np.inf])
def test_pixels_without_data_are_left_out(poison):
    x, valid = image(3, 0, side=256), np.ones((256, 256), bool)
    valid[:, :100] = False
    valid[np.random.default_rng(0).integers(256, size=20), np.random.default_rng(1).integers(256, size=20)] = False
    clean = estimate(x, valid)
    assert clean == pytest.approx(3, rel=0.08)
    dirty = np.where(valid, x, poison)
    assert estimate(dirty, valid) == clean
    assert estimate(dirty) == clean  # they show by themselves
    assert estimate(np.where(valid, x, 1e9), valid) == clean


def test_stacks_are_images_of_one_product():
    stack = np.stack([image(4.4, seed, side=96) for seed in range(16)]).reshape(4, 4, 96, 96)
    assert estimate(stack) == pytest.approx(4.4, rel=0.05)
    bright = stack * np.array([1, 10, 100, 1000])[:, None, None, None]  # windows do not mix images
    assert estimate(bright) == pytest.approx(estimate(stack), rel=1e-3)


def test_multilooking_raises_the_looks():
    x = image(1, 0, side=768)
    four = x.reshape(384, 2, 384, 2).mean(axis=(1, 3))
    assert estimate(four) == pytest.approx(4, rel=0.05)


def test_too_little_to_say():
    with pytest.raises(DataError, match="0 windows of 15 x 15 pixels are valid and vary, wanted at least 20"):
        estimate(np.zeros((100, 100)))
    with pytest.raises(DataError, match="are valid and vary"):
        estimate(np.full((100, 100), 0.3))  # no speckle at all
    with pytest.raises(DataError, match="use a smaller window or a larger image"):
        estimate(image(3, 0, side=32))
    with pytest.raises(DataError, match="0 windows of 15 x 15"):
        estimate(image(3, 0, side=8))
    assert 1.5 < estimate(image(3, 0, side=32), window=5) < 6
