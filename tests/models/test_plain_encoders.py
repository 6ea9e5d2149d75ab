"""SwinV2, ViT, Galileo and Presto as encoders of this library; their values are held in tests/interop."""

import datetime

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import contracts, models, sensors
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models import channel_groups
from ringmoe_jax.models.transformer import TransformerConfig

BLOCKS = TransformerConfig(16, 2, 2, exact_gelu=True)
TINY = dict(blocks=BLOCKS, base_patch=4, patch=2)


def entry(name, side=4, dates=1, seed=0):
    """An entry of two places."""
    sensor, rng = sensors.get(name), np.random.default_rng(seed)
    z = rng.normal(size=(2, dates, side, side, sensor.channels))
    pixels = z * sensor.statistics.std + sensor.statistics.mean
    return {"pixels": pixels.astype(np.float32), "valid": np.ones(pixels.shape[:-1], bool)}


@pytest.fixture(scope="module")
def tiny():
    """A Galileo that gives every token its say."""
    model = models.build({"name": "galileo", **TINY})
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: np.float32(p + 0.3 * rng.normal(size=p.shape)), model.init(jax.random.key(0)))
    return jax.jit(model.apply), params


def test_months():
    days = np.arange(-400, 20_000, 17)
    known = [(datetime.date(1970, 1, 1) + datetime.timedelta(int(day))).month - 1 for day in days]
    assert_array_equal(contracts.month(days), known)


def test_sensors_feed_the_groups_whose_bands_they_have():
    groups = {name: list(channel_groups.fed(sensors.get(name))) for name in ("rgb", "s2_10", "ms4", "s1_grd", "dem")}
    assert groups == {
        "rgb": ["S2_RGB"],
        "s2_10": list(channel_groups.GROUPS)[1:],
        "ms4": ["S2_RGB", "S2_NIR_10m", "NDVI"],
        "s1_grd": ["S1"],
        "dem": [],
    }
    assert channel_groups.fed(sensors.get("rgb"))["S2_RGB"] == [2, 1, 0]  # blue, green, red


def test_what_was_not_observed_says_nothing(tiny):
    apply, params = tiny
    shown = {name: entry(name) for name in ("s1_grd", "s2_10")}
    hidden = shown["s1_grd"] | {"valid": np.zeros_like(shown["s1_grd"]["valid"])}
    alone = apply(params, {"sensors": {"s2_10": shown["s2_10"]}})
    both = apply(params, {"sensors": shown | {"s1_grd": hidden}})
    assert_allclose(both["fused"], alone["fused"], rtol=1e-4, atol=1e-5)
    seen = apply(params, {"sensors": shown})
    assert np.abs(seen["tokens"]["s2_10"] - alone["tokens"]["s2_10"]).max() > 1e-3


@pytest.mark.slow
def test_a_pixel_of_presto_knows_itself_alone():
    """Neither its neighbours, nor dates and sensors that do not show it, nor a place that is not known."""
    model = models.build({"name": "presto", "blocks": BLOCKS, "location": True})
    apply, params = jax.jit(model.apply), model.init(jax.random.key(0))
    shown = {name: entry(name, side=2, dates=3) for name in ("s1_grd", "s2_10")}
    whole = apply(params, {"sensors": shown})
    one = {name: {key: value[:, :, 1:, :1] for key, value in e.items()} for name, e in shown.items()}
    assert_allclose(apply(params, {"sensors": one})["fused"][:, 0, 0], whole["fused"][:, 1, 0], rtol=1e-5, atol=1e-5)
    valid = shown["s2_10"]["valid"].copy()
    valid[:, 2, 0, 0] = False
    less = apply(params, {"sensors": shown | {"s2_10": shown["s2_10"] | {"valid": valid}}})
    changed = np.abs(less["fused"] - whole["fused"]).max(axis=(0, 3)) > 1e-4
    assert_array_equal(changed, [[True, False], [False, False]])
    noise = shown["s2_10"]["pixels"] + 0.1 * ~valid[..., None]
    other = apply(params, {"sensors": shown | {"s2_10": dict(pixels=noise.astype(np.float32), valid=valid)}})
    assert_allclose(other["fused"], less["fused"], rtol=1e-5, atol=1e-5)
    located = {name: e | {"location": np.full((2, 2), np.nan, np.float32)} for name, e in shown.items()}
    assert_allclose(apply(params, {"sensors": located})["fused"], whole["fused"], rtol=1e-5, atol=1e-5)
    assert all(np.isfinite(value).all() for value in whole["pooled"].values())


def test_images_that_do_not_lie_on_one_grid_are_refused(tiny):
    apply, params = tiny
    with pytest.raises(DataError, match="s1_grd 2 of 8 x 8, s2_10 2 of 4 x 4 pixels"):
        apply(params, {"sensors": {"s1_grd": entry("s1_grd", side=8), "s2_10": entry("s2_10")}})
    with pytest.raises(DataError, match="3 x 3 pixels, wanted multiples of 2"):
        apply(params, {"sensors": {"s2_10": entry("s2_10", side=3)}})
    with pytest.raises(DataError, match="has 25 dates, Galileo takes 24"):
        apply(params, {"sensors": {"s2_10": entry("s2_10", dates=25)}})


WRONG = [
    (dict(name="galileo", sensors=("dem",)), "wanted those of one of S1"),
    (dict(name="presto", sensors=("rgb",)), "in relative radiance, .*: Presto takes dB .sigma0. or reflectance"),
    (dict(name="galileo", patch=9), "wanted 1 to model.base_patch = 8"),
    (dict(name="swinv2", sensors=("rgb", "ms4")), "SwinV2 takes the images of one sensor"),
    (dict(name="swinv2", window=7), "model.window = 7 does not tile"),
    (dict(name="vit", image_size=225), "wanted a multiple of a token's 16 px"),
    (dict(name="vit", resize="linear"), "positions cannot be resized"),
    (dict(name="skysense", frame_resize="linear"), "positions cannot be resized"),
]


@pytest.mark.parametrize(("config", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_cannot_be_built(config, said):
    with pytest.raises(ConfigError, match=said):
        models.build(config)


def test_objectives_of_pixels_find_no_decoders():
    for name in ("galileo", "vit"):
        with pytest.raises(ConfigError, match="no decoders"):
            models.build({"name": name}, heads={"rgb": {"pixels": 3}})


def test_images_of_other_sizes_are_refused():
    model = models.build(dict(name="vit", image_size=4, patch=2, blocks=TransformerConfig(8, 1, 1)))
    with pytest.raises(DataError, match="5 x 5 pixels, wanted multiples of 2"):
        model.apply(model.init(jax.random.key(0)), {"sensors": {"rgb": entry("rgb", side=5)}})
