"""Kernels as int8: error bounds, what is left alone, bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.testing import assert_array_equal

from ringmoe_jax.compress import Quantised, dequantise, nbytes, quantise
from tests.helpers.tiny import batch
from tests.helpers.tiny_networks import HEADS, network, outputs

KERNELS = hnp.arrays(
    np.float32,
    st.sampled_from([(3, 4), (1, 1), (2, 3, 5, 2)]),
    elements=st.floats(-1e6, 1e6, width=32).map(lambda x: 0.0 if abs(x) < 1e-20 else x),
)


@settings(max_examples=100, deadline=None)
@given(KERNELS)
def test_half_a_step_at_most(w):
    values, scale = quantise({"kernel": w})["kernel"]
    assert values.dtype == jnp.int8
    assert scale.shape == (*w.shape[:-2], 1, w.shape[-1])
    error = np.abs(np.float64(w) - np.float64(values) * np.float64(scale))
    assert (error <= np.asarray(scale, np.float64) * (0.5 + 1e-4)).all()  # float32 division rounds
    assert np.abs(np.asarray(values, int)).max() <= 127


def test_by_hand():
    kernel = np.array([[1.27, 0.0, -254.0], [-0.635, 0.0, 3.0]], np.float32)
    values, scale = quantise({"kernel": kernel})["kernel"]
    np.testing.assert_allclose(scale, [[0.01, 0.0, 2.0]], rtol=1e-6)
    assert_array_equal(values, [[127, 0, -127], [-64, 0, 2]])  # -63.5 and 1.5 go to even


def test_what_is_a_kernel():
    params = network(heads=HEADS).params
    tree = quantise(params)
    block = tree["backbone"]["stages"]["stage0"]["blocks"]["run0"]
    assert block["ffn"]["collaborative"]["wi"].scale.shape == (2, 3, 1, 32)  # of each layer and expert
    assert block["ffn"]["shared"]["wo"]["kernel"].scale.shape == (2, 1, 8)
    for left in (block["ffn"]["collaborative"]["router"], block["attention"]["relative_position_bias"]):
        assert left.dtype == np.float32
    assert_array_equal(tree["mask_token"], params["mask_token"])
    back = dequantise(tree)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), back) == jax.tree.map(lambda a: (a.shape, a.dtype), params)


def test_bytes():
    tree = {"kernel": np.zeros((2, 30, 5), np.float32), "bias": np.zeros(7, np.float32)}
    assert nbytes(tree) == 4 * (300 + 7)
    assert nbytes(quantise(tree)) == nbytes(jax.eval_shape(quantise, tree)) == 300 + 4 * 2 * 5 + 4 * 7
    assert isinstance(jax.eval_shape(quantise, tree)["kernel"], Quantised)


def test_a_rounded_model_says_nearly_the_same():
    whole = network(heads=HEADS)
    rounded = dequantise(quantise(whole.params))
    data = batch(whole.model)
    a, b = (outputs(n, data, HEADS)["pooled"]["slc_dual"] for n in (whole, whole._replace(params=rounded)))
    assert np.abs(a - b).max() > 0
    assert np.linalg.norm(a - b) == pytest.approx(0, abs=0.05 * float(np.linalg.norm(a)))
