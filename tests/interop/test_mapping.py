"""The language of weight maps: forms, names with numbers, and both directions, strictly."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from ringmoe_jax.errors import DataError
from ringmoe_jax.interop.mapping import Form, WeightMap, rows
from ringmoe_jax.models.paths import flatten, nest

TABLE = """
    layers.{stage}.blocks.{block}.qkv.weight   stage{stage}/run/query+key/kernel[{block}]   o i -> i o
    layers.{stage}.blocks.{block}.qkv.bias     stage{stage}/run/query+key/bias[{block}]
    layers.{stage}.blocks.{2*n+1}.extra        stage{stage}/norms[{n}]                      norm
    layers.{stage+1}.down                      merges/merge{stage}                          norm
    first                                      embed                                        patches 2
    up                                         up                                           shuffle 2
"""


def model():
    """Parameters that number their elements."""
    shapes = {f"stage{i}/run/{part}": shape for i in (0, 1) for part, shape in PARTS.items()}
    shapes |= {f"stage{i}/norms/{part}": (1, 2) for i in (0, 1) for part in ("scale", "bias")}
    shapes |= {"merges/merge0/scale": (2,), "merges/merge0/bias": (2,), "embed/kernel": (12, 2), "embed/bias": (2,)}
    shapes |= {"up/kernel": (2, 20), "up/bias": (20,)}
    rng = np.random.default_rng(0)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return nest(flat)


PARTS = {"query/kernel": (2, 3, 4), "query/bias": (2, 4), "key/kernel": (2, 3, 4), "key/bias": (2, 4)}


def test_forms_are_what_they_say():
    x = np.arange(24).reshape(2, 3, 2, 2)  # o c h w
    form = Form("o c h w -> (h w c) o; h=2 w=2")
    assert_array_equal(form(x), x.transpose(2, 3, 1, 0).reshape(12, 2))
    assert_array_equal(form(form(x), back=True), x)
    merged = np.arange(16).reshape(1, 16)  # channels, then neighbours
    assert_array_equal(Form("o (c h w) -> (h w c) o; h=2 w=2")(merged)[:4, 0], [0, 4, 8, 12])
    assert Form("1 n d -> n d")(np.zeros((1, 3, 4)), back=False).shape == (3, 4)
    assert Form("1 n d -> n d")(np.zeros((3, 4)), back=True).shape == (1, 3, 4)
    assert Form("k 1 1 -> k")(np.zeros(5), back=True).shape == (5, 1, 1)
    for wrong in (np.zeros((2, 2)), np.zeros((2, 3, 3, 2))):
        with pytest.raises(ValueError):  # noqa: PT011
            form(wrong)


def test_both_directions():
    params, table = model(), WeightMap(rows(TABLE))
    tensors = table.to_tensors(params)
    assert set(tensors) == {
        *(f"layers.{i}.blocks.{j}.qkv.{part}" for i in (0, 1) for j in (0, 1) for part in ("weight", "bias")),
        *(f"layers.{i}.blocks.1.extra.{part}" for i in (0, 1) for part in ("weight", "bias")),
        *("layers.1.down.weight", "layers.1.down.bias", "first.weight", "first.bias", "up.weight", "up.bias"),
    }
    fused = tensors["layers.1.blocks.0.qkv.weight"]
    assert_array_equal(fused[:4].T, params["stage1"]["run"]["query"]["kernel"][0])
    assert_array_equal(fused[4:].T, params["stage1"]["run"]["key"]["kernel"][0])
    assert tensors["first.weight"].shape == (2, 3, 2, 2)
    assert tensors["up.weight"].shape == (20, 2, 1, 1)
    again = flatten(table.to_params(tensors, params))
    for path, value in flatten(params).items():
        assert_array_equal(again[path], value)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_floating_point_of_any_width_becomes_float32(dtype):
    params, table = model(), WeightMap(rows(TABLE))
    tensors = {name: value.astype(dtype) for name, value in table.to_tensors(params).items()}
    for path, value in flatten(table.to_params(tensors, params)).items():
        assert value.dtype == np.float32, path


CHANGES = {
    "left over": (lambda t: t | {"head.weight": np.zeros(3)}, "1 tensors are left over, head.weight"),
    "beyond the model": (
        lambda t: t | {"layers.0.blocks.2.qkv.bias": np.zeros(8)},
        r"left over, layers\.0\.blocks\.2\.qkv\.bias",
    ),
    "even block": (
        lambda t: t | {"layers.0.blocks.0.extra.weight": np.zeros(2)},
        r"left over, layers\.0\.blocks\.0\.extra\.weight",
    ),
    "unset": (
        lambda t: {k: v for k, v in t.items() if k != "layers.0.blocks.1.qkv.bias"},
        r"2 parameters are left unset, stage0/run/key/bias\[1\], stage0/run/query/bias\[1\]",
    ),
    "shape": (
        lambda t: t | {"first.weight": np.zeros((2, 3, 4, 4))},
        r"first\.weight is \[2, 3, 4, 4\], which does not make the model's \[12, 2\]",
    ),
    "dtype": (lambda t: t | {"first.bias": np.zeros(2, int)}, r"first\.bias is int64, wanted floating point"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_strict(change, said):
    params, table = model(), WeightMap(rows(TABLE))
    with pytest.raises(DataError, match=said) as raised:
        table.to_params(change(table.to_tensors(params)), params)
    assert "\n" not in str(raised.value)


def test_what_is_left_out_is_named_by_the_start_of_its_name():
    params, table = model(), WeightMap(rows(TABLE), left_out={"head.": "the classifier"})
    tensors = table.to_tensors(params) | {"head.weight": np.zeros(3)}
    assert_array_equal(table.to_params(tensors, params)["up"]["bias"], params["up"]["bias"])


def test_a_parameter_without_a_line_cannot_go_out():
    with pytest.raises(DataError, match="left unset, other"):
        WeightMap(rows(TABLE)).to_tensors(model() | {"other": np.zeros(2)})
