import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringmoe_jax import contracts as batches
from ringmoe_jax import sensors
from ringmoe_jax.evaluate import reconstruction
from ringmoe_jax.models import Model
from ringmoe_jax.objectives import Balance, MaskedL1
from ringmoe_jax.sensors import Statistics

STATISTICS = Statistics((1.0, 2.0), (0.5, 4.0), "test")


def model(guess):
    """A "network" whose decoder always says `guess`."""

    def apply(params, batch, *, key=None, train=False):
        entry = batch["sensors"]["s1_grd"]
        mask = batches.cells_to_pixels(entry["mask"], *entry["valid"].shape[2:])[:, None]
        image = batches.standardise(entry["pixels"], entry["valid"], STATISTICS)
        return {
            "standardised": {"s1_grd": image},
            "heads": {"s1_grd": {"pixels": jnp.full_like(image, guess)}},
            "pixel_mask": {"s1_grd": entry["valid"] & mask},
            "pooled": {"s1_grd": image.mean(axis=(1, 2, 3))},
            "stages": {},
            "sensors": {"s1_grd": sensors.get("s1_grd")},
            "statistics": {"s1_grd": STATISTICS},
            "routing": {},
        }

    return Model(lambda key: {}, apply)


def batch_of(values, valid=None, hidden=(1, 1)):
    """[B, 4, 4] values of VV; VH is twice that. One of the 2 x 2 cells is hidden."""
    values = np.asarray(values, np.float32)
    mask = np.zeros((len(values), 2, 2), bool)
    mask[:, hidden[0], hidden[1]] = True
    pixels = np.stack([values, 2 * values], axis=-1)[:, None]
    valid = np.ones(pixels.shape[:-1], bool) if valid is None else valid
    return {"sensors": {"s1_grd": {"pixels": pixels, "valid": valid, "mask": mask}}}


def inspect(guess, batch, mean=(0.0, 0.0)):
    objectives = {"s1": MaskedL1(sensor="s1_grd")}
    return jax.device_get(reconstruction.inspector(model(guess), objectives)({}, batch, {"s1": np.float32(mean)}))[
        "sums"
    ]["s1"]


def test_predictors_by_hand():
    tile = np.zeros((4, 4))
    tile[:2, :2] = 12.0  # 4 of the 12 visible pixels: mean 4, median 0
    tile[2:, 2:] = 6.0  # what is hidden
    sums = inspect(0.0, batch_of([tile]), mean=(1.0, 2.0))
    assert sums["weight"].tolist() == [4.0]
    # Standardised: VV (6 - 1) / 0.5 = 10, VH (12 - 2) / 4 = 2.5.
    # Visible means 4 and 8 become 6 and 1.5, medians 0 and 0 become -2 and -0.5.
    by_hand = {
        "model": (10 + 2.5) / 2,
        "image mean": ((10 - 6) + (2.5 - 1.5)) / 2,
        "image median": ((10 + 2) + (2.5 + 0.5)) / 2,
        "training mean": ((10 - 1) + (2.5 - 2)) / 2,
    }
    for name, loss in by_hand.items():
        assert sums[name] == pytest.approx([4 * loss]), name


def test_hidden_and_invalid_pixels_do_not_help_the_trivial_predictors():
    tile = np.arange(16.0).reshape(4, 4)
    plain = inspect(0.0, batch_of([tile]))
    hidden = tile.copy()
    hidden[2:, 2:] += 100
    changed = inspect(0.0, batch_of([hidden]))
    assert changed["image mean"] > plain["image mean"] + 300  # its guess did not move

    valid = np.ones((1, 1, 4, 4), bool)
    valid[0, 0, 0, 0] = valid[0, 0, 3, 3] = False
    wild = tile.copy()
    wild[0, 0], wild[3, 3] = np.nan, 1e9
    clean, dirty = inspect(0.0, batch_of([tile], valid)), inspect(0.0, batch_of([wild], valid))
    assert clean["weight"] == dirty["weight"] == 3
    for name in ("model", *reconstruction.TRIVIAL):
        assert np.isfinite(dirty[name]).all()
        assert clean[name] == pytest.approx(dirty[name]), name


def test_a_tile_without_visible_pixels_falls_back_to_the_training_mean():
    valid = np.zeros((1, 1, 4, 4), bool)
    valid[0, 0, 2:, 2:] = True  # only what is hidden was observed
    sums = inspect(0.0, batch_of([np.ones((4, 4))], valid), mean=(3.0, 4.0))
    assert sums["image mean"] == sums["image median"] == sums["training mean"]


def test_training_mean_is_over_valid_pixels_of_all_batches():
    valid = np.ones((1, 1, 4, 4), bool)
    valid[0, 0, :, 1:] = False
    parts = [batch_of([np.full((4, 4), 2.0)]), batch_of([np.full((4, 4), 7.0)], valid)]
    means = reconstruction.training_means(model(0.0), {"s1": MaskedL1(sensor="s1_grd")}, {}, parts)
    raw = (16 * 2.0 + 4 * 7.0) / 20
    np.testing.assert_allclose(means["s1"], [(raw - 1) / 0.5, (2 * raw - 2) / 4], rtol=1e-6)


def test_comparison_is_paired_and_names_the_best_trivial_predictor():
    generator = np.random.default_rng(0)
    difficulty = generator.gamma(2.0, 5.0, size=200)  # tiles differ much more than predictors do
    weight = generator.integers(1, 9, size=200).astype(float)
    sums = {
        "model": weight * (difficulty - 0.2),
        "image mean": weight * difficulty,
        "image median": weight * (difficulty + 1),
        "training mean": weight * (difficulty + 2),
        "weight": weight,
    }
    result = reconstruction.compare(sums, np.arange(200), resamples=200)
    assert result.best == "image mean"
    assert result.losses["model"].value == pytest.approx((weight @ (difficulty - 0.2)) / weight.sum())
    assert result.losses["model"].high > result.losses["image mean"].low  # unpaired, they overlap
    assert dataclasses.astuple(result.difference) == pytest.approx((-0.2, -0.2, -0.2))
    assert (result.tiles, result.blocks) == (200, 200)


def test_filled_up_tiles_do_not_count():
    sums = {name: np.array([4.0, 0.0]) for name in ("model", *reconstruction.TRIVIAL)} | {
        "weight": np.array([2.0, 0.0])
    }
    result = reconstruction.compare(sums, np.arange(2), resamples=5)
    assert (result.tiles, result.losses["model"].value) == (1, 2.0)


def test_only_reconstructions_are_compared():
    objectives = {"a": MaskedL1(sensor="rgb"), "b": Balance()}
    assert list(reconstruction.reconstructions(objectives)) == ["a"]


def test_masks_that_hide_nothing_keep_the_shape():
    shown = reconstruction.unmasked(batch_of([np.ones((4, 4))] * 3), 2)["sensors"]["s1_grd"]
    assert shown["mask"].shape == (3, 2, 2)
    assert not shown["mask"].any()
