"""Position tables at another image size, patches of another size: closed forms, what stays, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from ringmoe_jax import models, sensors
from ringmoe_jax.compress import Network
from ringmoe_jax.errors import ConfigError, DataError
from ringmoe_jax.models import resampling
from ringmoe_jax.models.resampling import fitted
from tests.helpers import tiny
from tests.helpers.parameters import stirred
from tests.helpers.tiny import RINGMOE, SKYSENSE


def offsets(window):
    """Relative row and column of every entry of a table, [(2 w - 1)^2, 2]."""
    steps = np.linspace(-1, 1, 2 * window - 1)
    return np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)


@pytest.mark.parametrize(("old", "new"), [(3, 5), (5, 3), (2, 7)])
def test_a_table_is_resampled_over_both_offsets(old, new):
    """A plane over the offsets stays one in the middle; the entry of no offset, the middle one, keeps its value."""
    plane = lambda window: (offsets(window) @ [2.0, -1.0])[None, :, None] + np.arange(4.0)  # noqa: E731
    got = fitted(plane(old).astype(np.float32), (1, (2 * new - 1) ** 2, 4), "encoder/x/relative_position_bias")
    side = 2 * new - 1
    square = got.reshape(side, side, 4)
    np.testing.assert_allclose(square[new - 1, new - 1], np.arange(4), atol=1e-5)
    assert (np.diff(square[..., 0], axis=0) >= -1e-5).all()
    assert (np.diff(square[..., 0], axis=1) <= 1e-5).all()


def test_a_class_token_keeps_its_position():
    table = np.random.default_rng(0).normal(size=(1 + 16, 3)).astype(np.float32)
    got = fitted(table, (1 + 4, 3), "positions")
    np.testing.assert_array_equal(got[0], table[0])
    assert got.shape == (5, 3)


def test_what_fits_is_not_touched():
    table = np.ones((2, 9, 4), np.float32)
    assert fitted(table, (2, 9, 4), "relative_position_bias") is table


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        ("encoder/kernel", (9, 4), (25, 4)),
        ("relative_position_bias", (9, 4), (25, 8)),
        ("relative_position_bias", (9, 4), (24, 4)),
        ("relative_position_bias", (2, 9, 4), (3, 25, 4)),
        ("positions", (16, 4), (5, 4)),
    ],
)
def test_other_shapes_are_refused_in_one_line(where, old, new):
    with pytest.raises(DataError, match=rf"checkpoint's {where} is .* the model wants") as error:
        fitted(np.zeros(old, np.float32), new, where)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "side"), [("ringmoe", 8), ("ringmoe", 32), ("skysense", 4), ("skysense", 16)])
def test_every_parameter_of_every_model_finds_its_shape(name, side):
    """Of shapes alone: a model of another image size takes all parameters of the checkpoint, tables resampled."""
    config = dict(ringmoe=tiny.RINGMOE | dict(window=4), skysense=tiny.SKYSENSE)[name]
    table = sensors.resolve(config["sensors"])
    build = lambda values: models.build(values, sensors=table, statistics={})  # noqa: E731
    size = dict(image_size=side) if "image_size" in config else dict(frame_size=side)
    old, new = build(config).shapes(), build(config | size).shapes()
    paths = jax.tree_util.tree_leaves_with_path(old)
    changed = 0
    for (path, before), after in zip(paths, jax.tree.leaves(new), strict=True):
        where = "/".join(str(key.key) for key in path)
        assert fitted(np.ones(before.shape, np.float32), after.shape, where).shape == after.shape
        changed += before.shape != after.shape
    assert changed


# ---- Patches ---------------------------------------------------------------------------------------


def enlarged(batch, factor, patch):
    """Pixels whose patches were enlarged one by one, bilinearly."""
    entries = {}
    for name, entry in batch["sensors"].items():
        b, t, h, w, c = entry["pixels"].shape
        squares = entry["pixels"].reshape(b, t, h // patch, patch, w // patch, patch, c)
        shape = (b, t, h // patch, patch * factor, w // patch, patch * factor, c)
        wide = jax.image.resize(squares, shape, "bilinear", antialias=False)
        entries[name] = {
            "pixels": wide.reshape(b, t, h * factor, w * factor, c),
            "valid": jnp.ones((b, t, h * factor, w * factor), bool),
        }
    return {"sensors": entries}


@pytest.mark.parametrize(("stem", "decoder"), [("linear", "last"), ("physics", "pyramid")])
def test_enlarged_patches_give_the_tokens_that_patches_gave(stem, decoder):
    model = RINGMOE | dict(stem=stem, decoder=decoder, depths=(1, 1))
    heads = {"rgb": {"pixels": 3}}
    built = models.build(model, heads=heads)
    network = Network(model, stirred(built.shapes()))
    finer = resampling.repatch(network, 8)
    assert (finer.model["patch"], finer.model["image_size"]) == (8, 32)
    shown = tiny.batch(model)
    before = jax.jit(built.apply)(network.params, shown)
    after = jax.jit(models.build(finer.model, heads=heads).apply)(finer.params, enlarged(shown, 2, 4))
    for name in model["sensors"]:
        assert_allclose(after["tokens"][name], before["tokens"][name], atol=1e-4)
    said, expected = after["heads"]["rgb"]["pixels"], before["heads"]["rgb"]["pixels"]
    assert said.shape == (2, 1, 32, 32, 3)
    side = 4 if decoder == "pyramid" else 8  # pixels that a decoder says of a token; the resize repeats their corners
    corners = said[:, :, :: 2 * side, :: 2 * side], expected[:, :, ::side, ::side]
    assert_allclose(*corners, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "patch", "message"),
    [
        (RINGMOE | dict(stem="convolutional"), 8, 'patches of model.name = "ringmoe" cannot be resized'),
        (SKYSENSE, 8, 'patches of model.name = "skysense" cannot be resized'),
        (RINGMOE, 0, "patch = 0: wanted pixels"),
    ],
)
def test_patches_that_cannot_be_resized(model, patch, message):
    with pytest.raises(ConfigError, match=message):
        resampling.repatch(Network(model, {}), patch)
