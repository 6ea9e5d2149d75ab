"""SkySense's encoders and fusion: sizes of the released model, and what may and may not change a feature."""

import dataclasses
import datetime

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import contracts as batches
from ringmoe_jax import models, sensors
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models import count, skysense, swin
from ringmoe_jax.models.layers import PixelDecoder
from ringmoe_jax.models.moe_ffn import MoEConfig, MoEFeedForward, Slots
from ringmoe_jax.models.transformer import TransformerConfig
from tests.helpers.parameters import stirred, stirred_module

SMALL = TransformerConfig(width=16, depth=2, heads=2, drop_path=0.0)
TINY = dict(image_size=16, width=8, depths=(1, 1), window=2, head_width=4, drop_path=0.0)
TINY |= dict(frame=SMALL, frame_patch=2, frame_size=4, fusion=SMALL)
SENSORS = ("rgb", "s2_10", "s1_grd")  # a location is one Sentinel pixel and 8 x 8 pixels of rgb
GRID = 2


def make(**changes):
    """A tiny model, compiled, and its parameters stirred: the blocks of a new one are close to identities."""
    model = skysense.SkySenseConfig(**TINY | changes).build()
    return jax.jit(model.apply, static_argnames="train"), stirred(model.shapes())


@pytest.fixture(scope="module")
def tiny():
    return make()


def sample(dates=(1, 3, 2), batch=2, seed=0):
    """Random images of all sensors; series of 3 and 2 dates."""
    rng = np.random.default_rng(seed)
    entries = {}
    for name, number in zip(SENSORS, dates, strict=True):
        side, channels = (8 * GRID if name == "rgb" else GRID), {"rgb": 3, "s2_10": 10, "s1_grd": 2}[name]
        values = rng.random((batch, number, side, side, channels)) - (12 if name == "s1_grd" else 0)
        entries[name] = {
            "pixels": values.astype(np.float32),
            "valid": np.ones(values.shape[:-1], bool),
            "time": np.sort(rng.integers(17200, 17500, (batch, number)), axis=1).astype(np.int32),
            "location": np.full((batch, 2), np.nan, np.float32),
        }
    return {"sensors": entries}


def without(data, *names):
    return {"sensors": {k: v for k, v in data["sensors"].items() if k not in names}}


def changed(data, name, **arrays):
    return {"sensors": data["sensors"] | {name: data["sensors"][name] | arrays}}


def test_parameters_of_the_released_model():
    shapes = skysense.SkySenseConfig().build().shapes()
    encoders = shapes["encoders"]
    assert count(encoders["rgb"]) == 655_074_704  # SwinV2-H
    assert count(encoders["s2_10"]["vit"]) == 302_738_432  # ViT-L, 10 bands
    assert count(encoders["s1_grd"]["vit"]) == 302_607_360  # ViT-L, 2 bands
    assert count(encoders["s2_10"]["up"]) == count(encoders["s1_grd"]["up"]) == 46_182_400
    assert count(shapes["fusion"]) == 305_195_008
    assert shapes["dates"].shape == (365, 2816)


def test_shapes_of_the_released_model():
    model = skysense.SkySenseConfig(remat="full").build()
    sides = {"rgb": (1, 512, 3), "s2_10": (20, 16, 10), "s1_grd": (10, 16, 2)}
    entries = {
        name: {
            "pixels": jax.ShapeDtypeStruct((1, t, n, n, c), jnp.float32),
            "valid": jax.ShapeDtypeStruct((1, t, n, n), jnp.bool_),
            "time": jax.ShapeDtypeStruct((1, t), jnp.int32),
        }
        for name, (t, n, c) in sides.items()
    }
    out = jax.eval_shape(model.apply, model.shapes(), {"sensors": entries})
    assert out["fused"].shape == (1, 16, 16, 1024)
    assert {n: x.shape for n, x in out["tokens"].items()} == {n: (1, t, 16, 16, 2816) for n, (t, *_) in sides.items()}
    assert [x.shape[2:] for x in out["stages"]["rgb"]] == [(128 >> i, 128 >> i, 352 << i) for i in range(4)]
    assert out["stages"]["s2_10"][0].shape == (1, 20, 4, 4, 1024)


def test_the_order_of_dates_does_not_matter(tiny):
    apply, params = tiny
    data = sample()
    mixed = {k: v[:, [2, 0, 1]] for k, v in data["sensors"]["s2_10"].items() if k != "location"}
    out, other = apply(params, data), apply(params, changed(data, "s2_10", **mixed))
    assert_allclose(other["fused"], out["fused"], atol=1e-4)
    assert_allclose(other["tokens"]["s2_10"], out["tokens"]["s2_10"][:, [2, 0, 1]], atol=1e-4)


def test_the_dates_themselves_do(tiny):
    apply, params = tiny
    data = sample()
    shifted = changed(data, "s2_10", time=data["sensors"]["s2_10"]["time"] + 30)
    assert np.abs(apply(params, shifted)["fused"] - apply(params, data)["fused"]).max() > 1e-3
    next_year = changed(data, "s2_10", time=data["sensors"]["s2_10"]["time"] + 365)  # 2017 to 2018, no leap years
    assert_array_equal(apply(params, next_year)["fused"], apply(params, data)["fused"])


def test_only_dated_sensors_carry_dates():
    apply, params = make(dated=("s2_10",))
    data = sample()
    shifted = changed(data, "s1_grd", time=data["sensors"]["s1_grd"]["time"] + 30)
    assert_array_equal(apply(params, shifted)["fused"], apply(params, data)["fused"])


def test_an_unknown_date_adds_nothing(tiny):
    apply, params = tiny
    data = sample()
    unknown = changed(data, "s1_grd", time=np.full((2, 2), batches.NO_TIME, np.int32))
    blank = params | {"dates": jnp.zeros_like(params["dates"])}
    others = without(data, "rgb", "s2_10")
    assert_allclose(
        apply(params, without(unknown, "rgb", "s2_10"))["fused"], apply(blank, others)["fused"], rtol=1e-4, atol=1e-5
    )


def test_locations_do_not_see_each_other_in_the_fusion(tiny):
    _, params = tiny
    fusion = skysense.SkySenseConfig(**TINY)
    tokens = np.random.default_rng(0).normal(size=(1, 4, GRID, GRID, fusion.token_width)).astype(np.float32)
    seen = np.ones((1, 4), bool)
    out, other = (run_fusion(fusion, params["fusion"], t, seen) for t in (tokens, _touched(tokens)))
    moved = np.abs(out - other).max(axis=-1)[0]
    assert moved[0, 1] > 1e-3
    assert_array_equal(moved.ravel() > 0, [False, True, False, False])


def _touched(tokens):
    tokens = tokens.copy()
    tokens[:, 2, 0, 1] += 1.0
    return tokens


def run_fusion(config, params, tokens, seen):
    make = lambda: skysense.Fusion(config, 3, nnx.Rngs(0), constrain=lambda x: x, dtype=jnp.float32)  # noqa: E731
    graph, abstract = nnx.split(nnx.eval_shape(make))
    nnx.replace_by_pure_dict(abstract, params)
    run = lambda tokens: nnx.merge(graph, abstract)(tokens, seen, (1, 2, 2, 3), key=None, train=False, mesh=None)[0]  # noqa: E731
    return np.asarray(jax.jit(run)(tokens))


def test_a_missing_sensor_is_one_that_is_masked_out(tiny):
    apply, params = tiny
    data = sample()
    for name in SENSORS:
        entry = data["sensors"][name]
        blank = changed(data, name, pixels=np.zeros_like(entry["pixels"]), valid=np.zeros_like(entry["valid"]))
        gone, masked = apply(params, without(data, name)), apply(params, blank)
        assert_allclose(masked["fused"], gone["fused"], atol=1e-5)
        assert_array_equal(masked["pooled"][name], 0)
    alone = without(data, "rgb", "s2_10")
    nothing = apply(params, changed(alone, "s1_grd", valid=np.zeros((2, 2, GRID, GRID), bool)))
    assert np.isfinite(nothing["fused"]).all()


def test_a_missing_date_is_one_that_is_masked_out(tiny):
    apply, params = tiny
    data = sample()
    entry = data["sensors"]["s2_10"]
    valid = entry["valid"].copy()
    valid[:, 1] = False
    shorter = {k: v[:, [0, 2]] for k, v in entry.items() if k != "location"}
    assert_allclose(
        apply(params, changed(data, "s2_10", valid=valid))["fused"],
        apply(params, changed(data, "s2_10", **shorter))["fused"],
        atol=1e-5,
    )


def test_one_encoder_alone(tiny):
    apply, params = tiny
    data = sample()
    alone = apply(params, without(data, "s2_10", "s1_grd"))
    assert set(alone["tokens"]) == {"rgb"}
    assert_allclose(alone["tokens"]["rgb"], apply(params, data)["tokens"]["rgb"], atol=1e-5)


@pytest.mark.slow
def test_modality_dropout_keeps_one_sensor():
    apply, params = make(modality_dropout=0.99)
    data = sample(batch=8)
    out = apply(params, data, key=jax.random.key(1), train=True)["fused"]
    singles = [apply(params, without(data, *(n for n in SENSORS if n != name)))["fused"] for name in SENSORS]
    nearest = np.stack([np.abs(out - single).max(axis=(1, 2, 3)) for single in singles]).min(axis=0)
    assert (nearest < 1e-3).sum() >= 6  # with 0.99, hardly a sample keeps two
    assert_allclose(apply(params, data, key=jax.random.key(1))["fused"], apply(params, data)["fused"], atol=1e-5)


@pytest.mark.slow
def test_a_mixture_of_experts_in_the_fusion():
    apply, params = make(moe=MoEConfig(specialised=2, collaborative=2, eval_capacity_factor=8.0, engine="dense"))
    out = apply(params, sample())
    assert out["routing"]["specialised"].load.shape == (2, 4, 8)  # layers, modalities with the fused token, experts
    tokens = out["routing"]["collaborative"].tokens
    assert_array_equal(tokens[0], np.array([1, 1, 3, 2]) * 2 * GRID * GRID)


def test_eight_devices_equal_one():
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "expert"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    config = skysense.SkySenseConfig(**TINY)
    one, eight = config.build(), config.build(mesh=mesh)
    params, data = stirred(one.shapes()), sample(batch=8)
    assert_allclose(
        jax.jit(eight.apply)(params, data)["fused"], jax.jit(one.apply)(params, data)["fused"], rtol=1e-4, atol=1e-5
    )


def stage(depth, **sizes):
    """A stage of cosine window attention as a function of params, tokens and how the second block shifts."""
    config = swin.SwinConfig(**dict(width=8, depths=(depth,), head_width=4, cosine=True) | sizes)
    dtype = jnp.float32
    ffn = lambda width, rngs, layer: MoEFeedForward(skysense.DENSE, 1, width, 2 * width, rngs, dtype=dtype)  # noqa: E731
    make = lambda: swin.SwinPyramid(config, ffn, nnx.Rngs(0), constrain=lambda x: x, dtype=jnp.float32)  # noqa: E731
    whole = stirred_module(make)[0].stages["stage0"]

    def blocks(x, shifted):
        for i in range(depth):
            block = nnx.merge(*_layer(nnx.split(whole.blocks["run0"]), i))
            x, _ = block(x, shifted if i % 2 else False, Slots((0,)), rate=0.0, key=None, train=False, mesh=None)
        return x

    settings = dict(rates=jnp.zeros(depth), key=None, train=False, mesh=None, remat="none")
    return jax.jit(lambda x: whole(x, Slots((0,)), **settings)[0]), jax.jit(blocks, static_argnums=1)


def _layer(split, i):
    return split[0], jax.tree.map(lambda p: p[i], split[1])


def test_windows_that_cover_a_small_grid_do_not_shift():
    run, blocks = stage(2, grid=8, window=4)
    x = np.random.default_rng(1).normal(size=(2, 1, 8, 8, 8)).astype(np.float32)
    small = x[:, :, :4, :4]
    assert_allclose(run(small), blocks(small, False), rtol=1e-4, atol=1e-5)
    assert_allclose(run(x), blocks(x, True), rtol=1e-4, atol=1e-5)
    for part in (small, x):
        assert np.abs(blocks(part, True) - blocks(part, False)).max() > 1e-3


def crop(side):
    """Images of rgb alone, side x side pixels."""
    pixels = np.random.default_rng(0).random((2, 1, side, side, 3)).astype(np.float32)
    return changed(without(sample(), *SENSORS[1:]), "rgb", pixels=pixels, valid=np.ones(pixels.shape[:-1], bool))


@pytest.mark.slow
def test_crops_that_windows_tile():
    """Grids are 8 and 4 tokens in an image, 4 and 2 in a crop of 16 px, 2 and 1 in one of 8 px: its window shrinks."""
    shape = dict(sensors=("rgb",), high_resolution="rgb", depths=(2, 2))
    apply, params = make(**shape, image_size=32)
    small = jax.jit(skysense.SkySenseConfig(**TINY | shape | dict(image_size=16)).build().apply)
    ours, wanted = (f(params, crop(16)) for f in (apply, small))
    assert_allclose(ours["tokens"]["rgb"], wanted["tokens"]["rgb"], rtol=1e-4, atol=1e-5)
    assert_allclose(ours["fused"], wanted["fused"], rtol=1e-4, atol=1e-5)
    for out, side in ((ours, 2), (apply(params, crop(8)), 1)):
        assert out["fused"].shape == (2, side, side, 16)
        assert np.isfinite(out["fused"]).all()
    for side in (12, 24, 40):
        message = (
            f'"rgb": images are {side} x {side} pixels, wanted multiples of 8 that windows of 2 tokens tile in eve'
        )
        with pytest.raises(DataError, match=message):
            jax.eval_shape(apply, params, crop(side))


def test_all_locations_of_a_patch_start_alike():
    """Otherwise features that are compared location by location would carry the grid of patches from the start."""
    decoder = PixelDecoder(6, 4, 5, nnx.Rngs(0), dtype=jnp.float32, alike=True)
    tokens = np.random.default_rng(0).normal(size=(2, 3, 3, 6)).astype(np.float32)
    blocks = np.asarray(decoder(tokens)).reshape(2, 3, 4, 3, 4, 5)
    assert_allclose(blocks, np.broadcast_to(blocks[:, :, :1, :, :1], blocks.shape), rtol=1e-6)
    assert blocks.std() > 0
    different = np.asarray(PixelDecoder(6, 4, 5, nnx.Rngs(0), dtype=jnp.float32)(tokens)).reshape(blocks.shape)
    assert np.ptp(different, axis=(2, 4)).min() > 0


def test_day_of_year_against_the_calendar():
    days = np.arange(-200_000, 200_000, 37)
    epoch = datetime.date(1970, 1, 1).toordinal()
    wanted = [datetime.date.fromordinal(epoch + int(d)).timetuple().tm_yday - 1 for d in days]
    assert_array_equal(batches.day_of_year(jnp.asarray(days)), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sensors": ()}, "model.sensors is empty"),
        ({"high_resolution": "rbg"}, 'model.high_resolution names "rbg": did you mean "rgb"'),
        ({"dated": ("s2",)}, 'model.dated names "s2": '),
        ({"image_size": 20}, "model.image_size = 20 must be a multiple of a location's 8 px"),
        ({"image_size": 24, "patch": 2, "window": 4}, "model.image_size = 24 is not tiled by windows of 4"),
        ({"dtype": "float16"}, 'model.dtype = "float16"'),
        ({"fusion": TransformerConfig(width=10, heads=4)}, "model.fusion.width = 10 is not a multiple of heads = 4"),
        ({"modality_dropout": 1.0}, "model.modality_dropout = 1.0"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ConfigError, match=message):
        skysense.SkySenseConfig(**TINY | change)


def test_whose_encoder_an_unseen_sensor_takes():
    """That of its modality; of several, whose pixels are nearest in size. Its images are of the size of that one's."""
    config = skysense.SkySenseConfig(**TINY, stem="physics", unseen=("irrg", "s2_12", "sar_amplitude"))
    assert config.stand_ins() == {"irrg": "rgb", "s2_12": "s2_10", "sar_amplitude": "s1_grd"}
    assert config.image_sizes == {"rgb": 16, "irrg": 16}
    several = skysense.SkySenseConfig(**TINY, stem="physics", sensors=("rgb", "s2_8bit"), unseen=("rgbn",))
    assert several.stand_ins() == {"rgbn": "rgb"}
    coarse = dataclasses.replace(sensors.get("rgbn"), bands=(sensors.Band("red", 0.1, 0.1, 4.0, 0.6),))
    assert several.stand_ins(sensors.resolve(several.all_sensors, {"rgbn": coarse})) == {"rgbn": "s2_8bit"}
    with pytest.raises(ConfigError, match='"s2_8bit" has pixels of 10 m, as a series has, but the only optical images'):
        skysense.SkySenseConfig(**TINY, stem="physics", unseen=("s2_8bit",)).stand_ins()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(unseen=("dem",)), 'no encoder of the model was trained on the modality of "dem", elevation: it has rgb'),
        (dict(stem="linear", unseen=("s2_12",)), "the model was not trained on s2_12"),
        (dict(unseen=("s2_10",)), 'model.unseen names "s2_10", which model.sensors has'),
        (dict(sensors=("rgb", "s2_8bit")), 'sensor "s2_8bit": nothing but their names tells'),
        (dict(stem="convolutional"), 'model.stem = "convolutional" does not exist'),
        (dict(stem="linear", band_dropout=0.1), "model.band_dropout = 0.1"),
        (dict(band_dropout=1.0), "model.band_dropout = 1.0"),
        (dict(metadata=dict()), "config.model.metadata does not exist"),
    ],
)
def test_stems_bands_and_sensors_that_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        models.build({"name": "skysense", "stem": "physics"} | TINY | changes)
    assert "\n" not in str(caught.value)


def test_objectives_that_want_decoders():
    with pytest.raises(ConfigError, match="skysense has no decoders, but objectives ask for some of rgb"):
        models.build({"name": "skysense"} | TINY, heads={"rgb": {"pixels": 3}})


@pytest.mark.parametrize(
    ("sensor", "side", "message"),
    [
        ("rgb", 24, '"rgb": images are 24 x 24 pixels, wanted multiples of 8 that windows of 2 tokens tile in every'),
        ("s2_10", 3, '"s2_10": images are 3 x 3 pixels, wanted multiples of 2'),
        ("s1_grd", 4, "sensors do not show the same locations: rgb 2 x 2, s2_10 2 x 2, s1_grd 4 x 4"),
    ],
)
def test_images_that_do_not_fit(tiny, sensor, side, message):
    apply, params = tiny
    data = sample()
    entry = data["sensors"][sensor]
    channels, dates = entry["pixels"].shape[-1], entry["pixels"].shape[1]
    pixels = np.zeros((2, dates, side, side, channels), np.float32)
    with pytest.raises(DataError, match=message):
        apply(params, changed(data, sensor, pixels=pixels, valid=np.ones(pixels.shape[:-1], bool)))
