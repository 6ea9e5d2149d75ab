"""What sources make of a file: the released SkySense by its shapes, kernels for other bands, files of other models."""

import dataclasses
import math
from pathlib import Path

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from ringmoe_jax import models, sensors
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.interop import OWN, SOURCES
from ringmoe_jax.interop.source import RGB, adapted
from tests.helpers import peers

SKYSENSE = SOURCES.build({"name": "skysense"}, "source")


def released():
    """Shapes of the released tensors at full size, {name: shape}."""
    shapes = {}

    def layer(name, *shape):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]

    for stage, (depth, heads) in enumerate(zip((2, 2, 18, 2), (8, 16, 32, 64), strict=True)):
        d = 352 * 2**stage
        at = f"backbone_gep.stages.{stage}"
        for block in range(depth):
            b = f"{at}.blocks.{block}"
            shapes[f"{b}.attn.w_msa.qkv.weight"] = (3 * d, d)
            shapes |= {f"{b}.attn.w_msa.{part}": (d,) for part in ("q_bias", "v_bias")}
            shapes |= {f"{b}.attn.w_msa.logit_scale": (heads, 1, 1), f"{b}.attn.w_msa.cpb_mlp.2.weight": (heads, 512)}
            shapes[f"{b}.attn.w_msa.relative_coords_table"] = (1, 15, 15, 2)
            shapes[f"{b}.attn.w_msa.relative_position_index"] = (64, 64)
            for name, shape in {
                "attn.w_msa.cpb_mlp.0": (512, 2),
                "attn.w_msa.proj": (d, d),
                "norm1": (d,),
                "norm2": (d,),
                "ffn.layers.0.0": (4 * d, d),
                "ffn.layers.1": (d, 4 * d),
            }.items():
                layer(f"{b}.{name}", *shape)
            if depth == 18 and block % 6 == 5:
                layer(f"{b}.norm3", d)
        if stage:
            shapes[f"{at}.downsample.reduction.weight"] = (d, 2 * d)
            layer(f"{at}.downsample.norm", d)
    layer("backbone_gep.patch_embed.projection", 352, 3, 4, 4)
    layer("backbone_gep.patch_embed.norm", 352)
    layer("backbone_gep.norm3", 2816)
    shapes["backbone_gep.mask_token"] = (1, 1, 352)
    for at, channels in {"backbone_s2": 10, "backbone_s1": 2, "fusion": 0}.items():
        for block in range(24):
            b = f"{at}.layers.{block}"
            shapes |= {f"{b}.attn.attn.in_proj_weight": (3072, 1024), f"{b}.attn.attn.in_proj_bias": (3072,)}
            layer(f"{b}.attn.attn.out_proj", 1024, 1024)
            layer(f"{b}.ln1", 1024)
            layer(f"{b}.ln2", 1024)
            layer(f"{b}.ffn.layers.0.0", 4096, 1024)
            layer(f"{b}.ffn.layers.1", 1024, 4096)
        shapes[f"{at}.cls_token"] = (1, 1, 1024)
        if channels:
            layer(f"{at}.patch_embed.projection", 1024, channels, 4, 4)
            layer(f"head_{at[-2:]}.decoder.0", 16 * 2816, 1024, 1, 1)
            shapes[f"{at}.pos_embed"] = (1, 257, 1024)
    layer("fusion.porj_linear", 1024, 2816)
    shapes["ctpe"] = (1, 365, 2816)
    return shapes


def blank(shapes):
    """Tensors of these shapes that need no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def full():
    return blank(released())


def check(tensors, parameters):
    """Every tensor has a place and every parameter a tensor, and they are as many as those of the released model."""
    model = SKYSENSE.model(tensors, Path("x.pth"))
    shapes = models.build(model).shapes()
    assert models.count(shapes) == parameters
    assigned = SKYSENSE.map(model).assign(SKYSENSE.prepare(tensors, model), shapes)
    assert sum(math.prod(value.shape) for value in assigned.values()) == parameters
    return model


def test_the_whole_released_model_fits_by_its_shapes(full):
    model = check(full, 1_659_008_144)
    assert model["dated"] == ("s2_10",)


@pytest.mark.parametrize(
    ("start", "added", "parameters", "kind"),
    [
        ("backbone_gep.", "backbone.", 655_074_704, "swinv2"),
        ("backbone_s2.", "", 302_738_432, "vit"),
        ("backbone_s1.", "", 302_607_360, "vit"),
    ],
)
def test_the_file_of_one_encoder_fits_by_its_shapes(full, start, added, parameters, kind):
    part = {added + name.removeprefix(start): value for name, value in full.items() if name.startswith(start)}
    model = check(part, parameters)
    assert model["name"] == kind
    assert model["sensors"] == ({"gep": "rgb", "_s2": "s2_10", "_s1": "s1_grd"}[start[-4:-1]],)


def test_a_part_without_its_fusion_is_refused(full):
    with pytest.raises(DataError, match="only a part of SkySense"):
        SKYSENSE.model({k: v for k, v in full.items() if not k.startswith("fusion")}, Path("x.pth"))


@pytest.mark.parametrize("name", [name for name in SOURCES if name != OWN])  # whose files say whose they are
def test_files_of_other_models(name, tmp_path):
    source = SOURCES.build({"name": name}, "source")
    with pytest.raises(DataError, match=r"w\.pt is no .*first tensors are a, b"):
        source.model(dict.fromkeys("ab", np.zeros(3)), tmp_path / "w.pt")


def test_galileo_without_its_config(tmp_path):
    source = SOURCES.build({"name": "galileo"}, "source")
    with pytest.raises(DataError, match=r"config\.json is not what Galileo publishes beside w\.pt"):
        source.model({"s_t_channel_embed": np.zeros((7, 32))}, tmp_path / "w.pt")


def test_kernels_take_the_nearest_band():
    kernel = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32)
    assert_array_equal(adapted(kernel, RGB, sensors.get("rgb")), kernel)
    four = adapted(kernel, RGB, sensors.get("ms4"))  # blue, green, red, nir
    assert_allclose(four, 0.75 * kernel[:, [2, 1, 0, 0]])
    radar = adapted(kernel, RGB, sensors.get("s1_grd"))
    assert_allclose(radar, 1.5 * kernel.mean(axis=1, keepdims=True).repeat(2, axis=1), rtol=1e-6)
    with pytest.raises(ConfigError, match="has 3 bands, wanted 2"):
        adapted(kernel, RGB[:2], sensors.get("rgb"))


def test_a_vit_of_red_green_and_blue_for_sentinel_2():
    shapes, _ = peers.golden("vit_small")
    source = SOURCES.build({"name": "timm", "sensors": ("s2_10",)}, "source")
    tensors = peers.weights(shapes)
    model = source.model(tensors, Path("x"))
    params = source.map(model).to_params(source.prepare(tensors, model), models.build(model).shapes())
    pixels = np.full((1, 1, 32, 32, 10), 0.2, np.float32)
    shown = {"sensors": {"s2_10": dict(pixels=pixels, valid=pixels[..., 0] > 0)}}
    outputs = jax.jit(models.build(model).apply)(params, shown)
    assert np.isfinite(outputs["pooled"]["s2_10"]).all()


def test_names_and_weights_go_out_as_they_came():
    shapes, _ = peers.golden("skysense")
    tensors = peers.weights(shapes)
    model = SKYSENSE.model(tensors, Path("x"))
    table = SKYSENSE.map(model)
    new = jax.eval_shape(models.build(model | dict(window=6, image_size=96)).init, jax.random.key(0))
    again = table.to_tensors(table.to_params(tensors, new))
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in tensors.items() if "mask_token" not in k}
    for name, value in again.items():
        assert_array_equal(value, tensors[name])


def test_a_source_is_a_part_like_any():
    assert dataclasses.is_dataclass(SOURCES["timm"])
    with pytest.raises(ConfigError, match="timm"):
        SOURCES.build({"name": "tim"}, "--source")
