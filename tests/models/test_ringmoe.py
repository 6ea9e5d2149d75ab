"""RingMoE as a whole: sensors, slots, masks, sub-models, precision, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import models, sensors
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models.layers import ConvolutionalStem, with_power
from tests.helpers.parameters import stirred, stirred_module

SENSORS = ("rgb", "s1_grd", "slc_dual")
TINY = dict(name="ringmoe", sensors=SENSORS, width=8, depths=(2, 2), image_size=16, window=2, head_width=4)
DENSE = dict(engine="dense")
SMALL = {**TINY, "sensors": ("rgb",), "stem": "convolutional", "moe": dict(specialised=0, collaborative=0)}


def batch(rows=2, names=SENSORS, seed=0, dates=1):
    rng = np.random.default_rng(seed)
    rows = rows if isinstance(rows, dict) else dict.fromkeys(names, rows)
    return {
        "sensors": {
            name: {
                "pixels": jnp.asarray(
                    rng.normal(size=(rows[name], dates, 16, 16, sensors.get(name).channels)), jnp.float32
                ),
                "valid": jnp.ones((rows[name], dates, 16, 16), bool),
            }
            for name in names
        }
    }


def test_new_blocks_are_the_identity():
    model = models.build({**TINY, "sensors": ("rgb",), "depths": (2,), "moe": DENSE | {"specialised": 0}})
    params, data, apply = model.init(jax.random.key(0)), batch(names=("rgb",)), jax.jit(model.apply)
    out = apply(params, data)["stages"]["rgb"][0]
    params["backbone"] = stirred(params["backbone"])
    blocks = params["backbone"]["stages"]["stage0"]["blocks"]["run0"]
    for norm in ("attention_norm", "ffn_norm"):
        blocks[norm] = jax.tree.map(jnp.zeros_like, blocks[norm])
    assert_allclose(apply(params, data)["stages"]["rgb"][0], out, atol=1e-6)


@pytest.fixture(scope="module")
def dense():
    model = models.build({**TINY, "moe": DENSE}, heads={"rgb": {"pixels": 3}})
    return model, stirred(model.shapes()), jax.jit(model.apply)


def test_output_contract(dense):
    _, params, apply = dense
    out = apply(params, batch({"rgb": 4, "s1_grd": 2, "slc_dual": 2}))
    assert out["tokens"]["rgb"].shape == (4, 1, 2, 2, 16)
    assert [s.shape for s in out["stages"]["s1_grd"]] == [(2, 1, 4, 4, 8), (2, 1, 2, 2, 16)]
    assert out["pooled"]["slc_dual"].shape == (2, 16)
    assert out["heads"]["rgb"]["pixels"].shape == (4, 1, 16, 16, 3)
    assert set(out["heads"]) == {"rgb"}
    assert out["routing"]["specialised"].load.shape == (4, 3, 12)
    assert out["routing"]["collaborative"].load.shape == (4, 3, 4)
    # 4 images of optical and 2 of the others: 16 tokens an image in stage 1, 4 in stage 2.
    assert_array_equal(out["routing"]["collaborative"].tokens, [[64, 32, 32]] * 2 + [[16, 8, 8]] * 2)


def test_a_sensor_does_not_see_what_else_is_in_the_batch(dense):
    """Attention stays within an image and nothing is dropped, so a sub-model equals the full model."""
    _, params, apply = dense
    together = batch({"rgb": 4, "s1_grd": 2, "slc_dual": 2})
    everything = apply(params, together)
    for name in SENSORS:
        alone = apply(params, {"sensors": {name: together["sensors"][name]}})
        assert_allclose(alone["tokens"][name], everything["tokens"][name], rtol=1e-4, atol=1e-5)
        for field in ("load", "probability"):
            got, full = (getattr(o["routing"]["specialised"], field) for o in (alone, everything))
            row = SENSORS.index(name)
            assert_allclose(got[:, row], full[:, row], rtol=1e-4, atol=1e-3)


def test_what_was_not_observed_is_not_pooled(dense):
    """A date without a valid pixel, and a corner, count for nothing in the pooled features."""
    _, params, apply = dense
    shown = batch({"s1_grd": 2}, names=("s1_grd",), dates=2)
    entry = shown["sensors"]["s1_grd"]
    entry["valid"] = entry["valid"].at[:, 1].set(False).at[:, 0, :8, :8].set(False)
    out = apply(params, shown)
    seen = np.asarray(out["tokens"]["s1_grd"])[:, 0].reshape(2, 4, -1)[:, 1:]  # 2 x 2 tokens, the first is the corner
    assert_allclose(out["pooled"]["s1_grd"], seen.mean(axis=1), rtol=1e-5, atol=1e-6)


def test_images_that_show_nothing_choose_no_expert(dense):
    """They count in no statistic, so in no balance loss, and take no row that an image could have had."""
    _, params, apply = dense
    data = batch(4, names=("rgb",))
    entry = data["sensors"]["rgb"]
    some = jax.tree.map(lambda leaf: leaf[1::2], entry)
    entry["valid"] = entry["valid"] & jnp.array([False, True, False, True])[:, None, None, None]
    out, alone = apply(params, data), apply(params, {"sensors": {"rgb": some}})
    assert_allclose(out["tokens"]["rgb"][1::2], alone["tokens"]["rgb"], rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-5), out["routing"], alone["routing"])
    assert out["routing"]["specialised"].tokens[0, 0] == 2 * 16

    tight = models.build({**TINY, "moe": dict(engine="capacity", eval_capacity_factor=0.5)})
    both, half = jax.jit(tight.apply)(params, data), jax.jit(tight.apply)(params, {"sensors": {"rgb": some}})
    assert both["routing"]["collaborative"].dropped.sum() < half["routing"]["collaborative"].dropped.sum()


def test_dates_are_independent_images(dense):
    _, params, apply = dense
    series = batch(names=("rgb",), dates=2)
    entry = series["sensors"]["rgb"]
    out = apply(params, series)["tokens"]["rgb"]
    second = apply(params, {"sensors": {"rgb": {k: v[:, 1:] for k, v in entry.items()}}})["tokens"]["rgb"]
    assert_allclose(out[:, 1:], second, rtol=1e-4, atol=1e-5)


def test_hidden_and_invalid_pixels_never_reach_the_encoder(dense):
    _, params, apply = dense
    first = batch(names=("rgb",))
    entry = first["sensors"]["rgb"]
    mask = jnp.zeros((2, 4, 4), bool).at[:, 1, 2].set(True)
    entry |= {"mask": mask, "valid": entry["valid"].at[:, :, 0, 0].set(False)}
    pixels = entry["pixels"].at[:, :, 4:8, 8:12].set(7.0).at[:, :, 0, 0].set(jnp.nan)
    second = {"sensors": {"rgb": entry | {"pixels": pixels}}}
    a, b = apply(params, first), apply(params, second)
    assert_array_equal(a["tokens"]["rgb"], b["tokens"]["rgb"])
    expected = np.zeros((2, 1, 16, 16), bool)
    expected[:, :, 4:8, 8:12] = True
    assert_array_equal(a["pixel_mask"]["rgb"], expected)
    assert np.isfinite(np.asarray(b["standardised"]["rgb"])).all()


def test_masked_cells_share_one_token(dense):
    model, params, apply = dense
    everything_hidden = batch(names=("rgb",))
    everything_hidden["sensors"]["rgb"]["mask"] = jnp.ones((2, 4, 4), bool)
    out = apply(params, everything_hidden)["stages"]["rgb"][0]
    assert_allclose(out[0], out[1], atol=1e-6)  # nothing of the image is left
    gradient = jax.jit(jax.grad(lambda p: model.apply(p, everything_hidden)["pooled"]["rgb"][0, 0]))(params)
    assert np.abs(gradient["mask_token"]).max() > 0
    assert np.abs(gradient["stems"]["rgb"]["project"]["kernel"]).max() == 0


@pytest.mark.slow
def test_capacity_engine_equals_dense_where_nothing_overflows(dense):
    _, params, apply = dense
    roomy = models.build({**TINY, "moe": dict(eval_capacity_factor=100.0)}, heads={"rgb": {"pixels": 3}})
    data = batch()
    for a, b in zip(
        jax.tree.leaves(apply(params, data)), jax.tree.leaves(jax.jit(roomy.apply)(params, data)), strict=True
    ):
        assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_parameters_and_losses_in_float32(dense):
    _, params, apply = dense
    half = models.build({**TINY, "moe": DENSE, "dtype": "bfloat16"}, heads={"rgb": {"pixels": 3}})
    assert {leaf.dtype for leaf in jax.tree.leaves(half.shapes())} == {jnp.dtype("float32")}
    data = batch()
    a, b = apply(params, data), jax.jit(half.apply)(params, data)
    assert b["tokens"]["rgb"].dtype == jnp.bfloat16
    assert b["heads"]["rgb"]["pixels"].dtype == jnp.float32
    assert b["routing"]["specialised"].probability.dtype == jnp.float32
    assert_allclose(a["pooled"]["rgb"], b["pooled"]["rgb"], atol=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_nothing(dense, remat):
    model, params, _ = dense
    again = models.build({**TINY, "moe": DENSE, "remat": remat}, heads={"rgb": {"pixels": 3}})
    data = batch(names=("rgb",))
    a, b = (jax.jit(jax.grad(lambda p, m=m: m.apply(p, data)["pooled"]["rgb"].sum()))(params) for m in (model, again))
    jax.tree.map(lambda x, y: assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)


def test_drop_path_needs_train_and_a_key():
    model = models.build({**SMALL, "stem": "linear", "drop_path": 0.5})
    params, data = stirred(model.shapes()), batch(names=("rgb",))
    apply = jax.jit(model.apply, static_argnames="train")
    plain = apply(params, data)["pooled"]["rgb"]
    assert_array_equal(plain, apply(params, data, key=jax.random.key(1), train=False)["pooled"]["rgb"])
    dropped = apply(params, data, key=jax.random.key(1), train=True)["pooled"]["rgb"]
    assert np.abs(dropped - plain).max() > 1e-3
    assert_array_equal(dropped, apply(params, data, key=jax.random.key(1), train=True)["pooled"]["rgb"])


def test_sensors_of_one_modality_share_experts():
    model = models.build({**TINY, "sensors": ("s2_10", "ms4", "rgb"), "moe": DENSE})
    assert model.shapes()["backbone"]["stages"]["stage0"]["blocks"]["run0"]["ffn"]["specialised"]["wi"].shape == (
        2,
        8,
        8,
        32,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(width=6), r"width = 6 is not a multiple of head_width = 4"),
        (dict(image_size=20), r"image_size = 20 must be a multiple of 8 pixels, .*: use 16 or 32 px"),
        (
            dict(image_size=24, window=4),
            r"stage 1 has 6 tokens a side, no multiple of window = 4: set .* one of 1, 3, 6, .* 16 or 32 px",
        ),
        (dict(sensors=("rgbb",)), r'unknown sensor "rgbb": did you mean "rgb"\?'),
        (dict(sensors=()), r"model.sensors is empty"),
        (dict(widht=6), r'config.model.widht does not exist: did you mean "width"\?'),
        (dict(dtype="float16"), r'"float16": wanted "float32" or "bfloat16"'),
        (dict(moe=dict(top_k=5)), r"top-5 routing, but modality 0 may choose 4 of"),
        (dict(moe=dict(specialised=0, collaborative=0, shared=False)), "has no experts"),
        (dict(remat="ful"), r'model.remat = "ful" does not exist: did you mean "full"'),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ConfigError, match=message):
        models.build({**TINY, **change})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda b: b["sensors"].clear(), "holds no sensor"),
        (lambda b: b["sensors"].update(dem=b["sensors"]["rgb"]), 'holds "dem", which the model does not know'),
        (
            lambda b: b["sensors"]["rgb"].update(pixels=jnp.zeros((2, 1, 16, 16, 4))),
            r"shape \(2, 1, 16, 16, 4\), wanted \[B, T, H, W, 3\] for the bands red, green, blue",
        ),
        (
            lambda b: b["sensors"]["rgb"].update(pixels=b["sensors"]["rgb"]["pixels"].astype(jnp.uint8)),
            "pixels are uint8, wanted float32",
        ),
        (lambda b: b["sensors"]["rgb"].update(valid=jnp.ones((2, 16, 16), bool)), r"valid is bool\(2, 16, 16\)"),
        (
            lambda b: b["sensors"].update(
                rgb={"pixels": jnp.zeros((2, 1, 32, 32, 3)), "valid": jnp.ones((2, 1, 32, 32), bool)}
            ),
            "images are 32 x 32 pixels, the model takes 8 x 8 or 16 x 16",
        ),
    ],
)
def test_bad_batches(dense, edit, message):
    model, params, _ = dense
    data = batch()
    edit(data)
    with pytest.raises(DataError, match=message):
        jax.eval_shape(model.apply, params, data)


def test_power_channels_of_complex_sensors():
    """Single-look speckle of the mean power has a logarithm of zero mean and unit variance; no power counts as mean."""
    rng = np.random.default_rng(0)
    speckle = rng.normal(size=(200_000, 4)).astype(np.float32)  # standardised: unit variance in re and im
    shown = with_power(jnp.asarray(speckle))
    assert_allclose(shown[:, :4], speckle)
    assert_allclose(shown[:, 4:].mean(axis=0), 0, atol=0.01)
    assert_allclose(shown[:, 4:].std(axis=0), 1, atol=0.01)
    power = (speckle[0, 2] ** 2 + speckle[0, 3] ** 2) / 2
    assert_allclose(shown[0, 5], (np.log(power) + 0.577216) / 1.282550, rtol=1e-4)
    empty = jnp.zeros((3, 4))
    assert_allclose(with_power(empty), np.zeros((3, 6)))
    assert np.isfinite(jax.grad(lambda x: with_power(x).sum())(empty)).all()


def test_power_input_widens_the_stems_of_complex_sensors_alone():
    plain, powered = (models.build({**TINY, "power_input": on}).shapes()["stems"] for on in (False, True))
    kernel = {k: [stems[k]["project"]["kernel"].shape for stems in (plain, powered)] for k in SENSORS}
    assert kernel == {"rgb": [(48, 8)] * 2, "s1_grd": [(32, 8)] * 2, "slc_dual": [(64, 8), (96, 8)]}


def test_the_convolutional_stem_is_convolutions():
    """Against `jax.lax.conv_general_dilated`; its finer levels are what they give."""
    stem, _ = stirred_module(lambda: ConvolutionalStem(3, 4, 16, nnx.Rngs(0), dtype=jnp.float32))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 16, 8, 3)), jnp.float32)

    def reference(x):
        y, levels, order = x.reshape(2, 16, 8, 3), [], ("NHWC", "HWIO", "NHWC")
        for convolution in stem.convolutions:
            kernel, bias = convolution.kernel[...], convolution.bias[...]
            kernel = kernel.reshape(3, 3, y.shape[-1], -1)
            y = jax.lax.conv_general_dilated(y, kernel, (2, 2), ((1, 0), (1, 0)), dimension_numbers=order)
            levels.append(y := jax.nn.gelu(y + bias))
        return stem.norm(stem.project(y)), tuple(levels)

    ours, theirs = jax.jit(stem)(x), jax.jit(reference)(x)
    jax.tree.map(lambda a, b: assert_allclose(a[:, 0], b, rtol=1e-4, atol=1e-4), ours, theirs)
    assert [level.shape[1:] for level in theirs[1]] == [(8, 4, 8), (4, 2, 16)]


def test_a_pyramid_decoder_adds_what_all_stages_say_and_paints_patches():
    heads = {"rgb": {"pixels": 3}}
    model = models.build(TINY | {"sensors": ("rgb",), "decoder": "pyramid", "moe": DENSE}, heads=heads)
    params = stirred(model.shapes())
    outputs = jax.jit(model.apply)(params, batch(names=("rgb",)))
    decoder, total = params["decoders"]["rgb"]["pixels"], 0
    for i, x in enumerate(outputs["stages"]["rgb"]):
        norm, project = decoder["norms"][str(i)], decoder["project"][str(i)]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * norm["scale"] + norm["bias"]
        total += np.kron(x @ project["kernel"] + project["bias"], np.ones((2**i, 2**i, 1)))
    painted = jax.nn.gelu(total) @ decoder["pixels"]["project"]["kernel"] + decoder["pixels"]["project"]["bias"]
    wanted = np.moveaxis(np.reshape(painted, (2, 1, 4, 4, 4, 4, 3)), 4, 3).reshape(2, 1, 16, 16, 3)
    assert_allclose(outputs["heads"]["rgb"]["pixels"], wanted, rtol=1e-3, atol=1e-3)


def test_levels_of_a_convolutional_stem_are_stages():
    """So decoders and probes see them; the model says how wide they are."""
    model = models.build(SMALL)
    shapes = jax.eval_shape(model.apply, model.shapes(), batch(names=("rgb",)))["stages"]["rgb"]
    assert model.stages["rgb"] == tuple(stage.shape[-1] for stage in shapes)
    sides = [stage.shape[2] for stage in shapes]
    assert sides == sorted(sides, reverse=True)
    assert sides[0] == SMALL["image_size"] // 2


@pytest.mark.parametrize("order", [dict(pre_norm=True), dict(norm_gain=0.5), dict(cosine_attention=True)])
def test_smaller_images_are_the_same_network(order):
    """Windows shrink with the grid; parameters and widths stay, and what does not tile is refused."""
    model = models.build({**SMALL, "window": 4, **order})
    params, apply = stirred(model.shapes()), jax.jit(model.apply)
    for size in (8, 16):
        shown = batch(names=("rgb",))["sensors"]["rgb"]
        entry = {name: value[:, :, :size, :size] for name, value in shown.items()}
        out = apply(params, {"sensors": {"rgb": entry}})
        assert out["tokens"]["rgb"].shape == (2, 1, size // 8, size // 8, 16)
    assert models.read({**SMALL, "window": 4}).sizes == (8, 16)
    assert models.read({**SMALL, "window": 3, "image_size": 24}).sizes == (8, 24)
    entry = {name: value[:, :, :12, :12] for name, value in shown.items()}
    with pytest.raises(DataError, match="12 x 12 pixels, the model takes 8 x 8 or 16 x 16"):
        apply(params, {"sensors": {"rgb": entry}})


def test_hidden_pixels_reach_no_token_through_the_stem():
    model = models.build({**SMALL, "pre_norm": True})
    params, data = stirred(model.shapes()), batch(names=("rgb",))
    mask = jnp.zeros((2, 4, 4), bool).at[:, 1].set(True)
    entry = data["sensors"]["rgb"] | {"mask": mask}
    noisy = entry | {"pixels": entry["pixels"].at[:, :, 4:8].add(5.0)}
    apply = jax.jit(model.apply)
    tokens = [apply(params, {"sensors": {"rgb": e}})["tokens"]["rgb"] for e in (entry, noisy)]
    assert_array_equal(*tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(stem="conv"), 'model.stem = "conv" does not exist'),
        (dict(stem="convolutional", patch=3, image_size=24), "wants a power of 2"),
        (dict(decoder="piramid"), 'did you mean "pyramid"'),
        (dict(pre_norm=True, norm_gain=0.1), "norms behind branches"),
    ],
)
def test_bad_geometry_of_the_new_parts(fields, message):
    with pytest.raises(ConfigError, match=message):
        models.read({**TINY, **fields})


def test_sensors_of_one_pass_have_one_size():
    data = batch(names=("rgb", "s1_grd"))
    data["sensors"]["rgb"] = {name: value[:, :, :8, :8] for name, value in data["sensors"]["rgb"].items()}
    model = models.build({**TINY, "moe": DENSE})
    with pytest.raises(DataError, match=r'images of 2 sizes .*"rgb" 8x8, "s1_grd" 16x16'):
        jax.eval_shape(model.apply, model.shapes(), data)
