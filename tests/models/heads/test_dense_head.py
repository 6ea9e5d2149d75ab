"""Dense heads: pieces by hand, parameters by hand, any levels and grids, and that they can learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from numpy.testing import assert_allclose, assert_array_equal
from scipy.signal import correlate2d

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models.heads.dense import ConvBlock, DenseConfig, average_pool, resize
from tests.helpers.tiny_heads import FOUR, ONE, SIZE, build, fit, pyramid, with_another_second_row


def test_average_pool_by_hand():
    x = np.arange(5.0)[None, :, None, None] * np.ones((1, 1, 4, 2))
    rows = [0.5, 2.0, 3.5]  # rows 0-1, 1-3, 3-4
    assert_allclose(average_pool(x, 3)[0, :, :, 0], np.outer(rows, np.ones(3)), rtol=1e-6)
    assert_allclose(average_pool(x, 1)[0, 0, 0], [2, 2], rtol=1e-6)
    assert average_pool(x, 6).shape == (1, 5, 4, 2)  # no finer than the grid
    assert_allclose(average_pool(x, 6), x, rtol=1e-6)
    even = np.random.default_rng(0).normal(size=(2, 6, 12, 3)).astype(np.float32)
    assert_allclose(average_pool(even, 3), even.reshape(2, 3, 2, 3, 4, 3).mean(axis=(2, 4)), rtol=1e-5, atol=1e-6)


def test_resize_by_hand():
    x = np.array([0.0, 4.0])[None, None, :, None]
    assert_allclose(resize(x, (1, 4))[0, 0, :, 0], [0, 1, 3, 4], rtol=1e-6)  # pixel centres at 0.25, 0.75, 1.25, 1.75
    assert_allclose(resize(x, (3, 2))[0, :, :, 0], np.tile([0, 4], (3, 1)), rtol=1e-6)


def test_conv_block_against_scipy():
    block = ConvBlock(2, 3, 3, nnx.Rngs(0), dtype=jnp.float32)
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 2)).astype(np.float32)
    kernel = np.asarray(block.convolve.kernel[...])
    y = np.stack([sum(correlate2d(x[0, ..., i], kernel[..., i, o], "same") for i in range(2)) for o in range(3)], -1)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    assert_allclose(block(x)[0], np.maximum(y, 0), rtol=1e-3, atol=1e-4)


def test_parameters_are_counted_by_hand():
    def counted(name, **fields):
        sizes = jax.tree.map(jnp.size, build(name, (4, 6), 3, channels=8, **fields)[0])
        return {part: sum(jax.tree.leaves(tree)) for part, tree in sizes.items()}

    norm = 2 * 8
    decoder = {
        "pooled": 4 * (6 * 8 + norm),
        "context": 9 * (6 + 4 * 8) * 8 + norm,
        "lateral": 4 * 8 + norm,
        "smooth": 9 * 8 * 8 + norm,
        "fuse": 9 * (2 * 8) * 8 + norm,
    }
    classify = 8 * 3 + 3
    auxiliary = (9 * 6 * 5 + 10) + (9 * 5 * 5 + 10) + (5 * 3 + 3)  # on the last of two levels, width 6
    upernet = counted("upernet", auxiliary=5)
    assert upernet == {"decoder": sum(decoder.values()), "classify": classify, "auxiliary": auxiliary}
    assert sum(upernet.values()) == 5376
    fcn = (9 * (4 + 6) * 8 + norm) + (9 * 8 * 8 + norm)
    assert counted("fcn") == {"decoder": fcn, "classify": classify}


CASES = [("fcn", {}), ("upernet", {"auxiliary": 4})]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), CASES, ids=["fcn", "upernet"])
@pytest.mark.parametrize("case", [ONE, FOUR], ids=["one", "four"])
def test_any_levels_any_grid(name, fields, case):
    params, apply = build(name, case["widths"], 5, channels=8, **fields)
    levels = pyramid(**case)
    predictions = apply(params, levels)
    assert set(predictions) == {"logits"} | ({"auxiliary"} if name == "upernet" else set())
    for logits in predictions.values():
        assert logits.shape == (2, *SIZE, 5)
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()
    # the same parameters serve another grid, and an image is seen by itself
    smaller = [level[:1, 1:] for level in levels] if case is ONE else levels
    assert jax.eval_shape(lambda: apply(params, smaller, None, False, (9, 9)))["logits"].shape[1:] == (9, 9, 5)
    other = apply(params, with_another_second_row(levels))["logits"]
    assert_allclose(other[0], predictions["logits"][0], rtol=1e-5, atol=1e-6)
    assert np.abs(other[1] - predictions["logits"][1]).max() > 1e-3
    # every level reaches the logits, one alone the auxiliary ones
    _, pull = jax.vjp(lambda x: apply(params, x), levels)
    for output in predictions:
        weight = {k: v * (k == output) for k, v in predictions.items()}
        reached = [bool(np.abs(x).max() > 0) for x in pull(weight)[0]]
        assert reached == [output == "logits" or i == min(2, len(levels) - 1) for i in range(len(levels))]


def test_upernet_tells_the_finest_map_what_the_coarser_levels_saw():
    params, apply = build("upernet", FOUR["widths"], 5, channels=8, auxiliary=4)
    params["decoder"]["fuse"]["convolve"]["kernel"][:, :, 8:] = 0  # only the finest map is read
    levels = pyramid(**FOUR)
    weight = np.random.default_rng(1).normal(size=(2, *SIZE, 5))
    slope = jax.grad(lambda x: jnp.sum(apply(params, x)["logits"] * weight))(levels)
    assert all(np.abs(x).max() > 0 for x in slope)


def test_logits_are_enlarged_from_the_finest_grid():
    params, apply = build("fcn", FOUR["widths"], 5, channels=8)
    levels = pyramid(**FOUR)
    native = apply(params, levels, None, False, FOUR["grids"][0])["logits"]
    assert_allclose(apply(params, levels)["logits"], resize(native, SIZE), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_activations_may_be_bfloat16():
    full, apply = build("upernet", FOUR["widths"], 5, channels=8, auxiliary=4)
    half, apply_half = build("upernet", FOUR["widths"], 5, channels=8, auxiliary=4, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half)} == {np.dtype("float32")}
    levels = pyramid(**FOUR)
    wanted, got = apply(full, levels)["logits"], apply_half(half, [x.astype(jnp.bfloat16) for x in levels])["logits"]
    assert got.dtype == np.float32
    assert 0 < np.abs(got - wanted).max() < 0.1 * np.std(wanted) + 0.02


def test_dropout_drops_whole_channels_in_training_only():
    params, apply = build("fcn", ONE["widths"], 5, channels=8, dropout=0.5)
    levels, key = pyramid(**ONE), jax.random.key(0)
    grid = ONE["grids"][0]
    still = apply(params, levels, key, False, grid)["logits"]
    assert_array_equal(apply(params, levels, None, True, grid)["logits"], still)
    # with 8 outputs that copy the channels, a dropped one is 0 at all pixels of its image and others are doubled
    params, apply = build("fcn", ONE["widths"], 8, channels=8, dropout=0.5)
    params["classify"] = {"kernel": np.eye(8, dtype=np.float32), "bias": np.zeros(8, np.float32)}
    features = np.asarray(apply(params, levels, None, False, grid)["logits"])
    dropped = np.asarray(apply(params, levels, key, True, grid)["logits"])
    kept = (dropped != 0).any(axis=(1, 2), keepdims=True)
    assert 0 < kept.sum() < kept.size
    assert_allclose(dropped, 2 * features * kept, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), CASES, ids=["fcn", "upernet"])
def test_learns_four_images_by_heart(name, fields):
    params, apply = build(name, (6,), 3, channels=16, **fields)
    y = np.random.default_rng(0).integers(0, 3, (4, 5, 5))
    levels = pyramid((6,), ((5, 5),), rows=4)
    at_grid = lambda p, x: apply(p, x, None, False, (5, 5))  # noqa: E731

    def nats(predictions):
        return -jnp.take_along_axis(jax.nn.log_softmax(predictions["logits"]), y[..., None], -1).mean()

    losses = fit(at_grid, params, levels, nats, 60, 2e-2)
    assert losses[0] > 0.9 * np.log(3)
    assert losses[-1] < 0.05


def test_values_out_of_range():
    with pytest.raises(ConfigError, match=r'head.decoder = "unet" does not exist: did you mean "upernet"'):
        DenseConfig(decoder="unet")
    with pytest.raises(ConfigError, match=r"head.dropout = 1.0"):
        build("fcn", (4,), 3, dropout=1.0)
    with pytest.raises(ConfigError, match=r"head.channels = 0"):
        build("upernet", (4,), 3, channels=0)
