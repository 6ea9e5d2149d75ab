"""Held-out likelihood: the fitted noise is the best in closed form, the score the mean nats by hand."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats

from ringmoe_jax import objectives, sensors
from ringmoe_jax.contracts import standardise
from ringmoe_jax.errors import DataError
from ringmoe_jax.evaluate import likelihood
from ringmoe_jax.objectives import radar

S1 = sensors.get("s1_grd")
DB = 10 / np.log(10)


def tiles(pixels, head, says, name="s1_grd", valid=None):
    """Outputs and batch of N tiles [N, 1, H, W, C] whose decoder says a constant."""
    pixels = np.float32(pixels)
    valid = np.ones(pixels.shape[:-1], bool) if valid is None else valid
    sensor = sensors.get(name)
    outputs = {
        "heads": {name: {head: np.broadcast_to(np.float32(says), (*pixels.shape[:-1], len(says)))}},
        "standardised": {name: standardise(pixels, valid, sensor.statistics)},
        "pixel_mask": {name: valid},
        "sensors": {name: sensor},
        "statistics": {name: sensor.statistics},
    }
    return outputs, {"sensors": {name: {"pixels": pixels, "valid": valid}}}


def summed(objective, outputs, batch):
    @jax.jit
    def run(outputs, batch):
        target, finite = objective.usable(outputs, batch)
        mask = finite & objective.grid(outputs["pixel_mask"][objective.sensor])
        nats = likelihood.sums(objective, outputs, objective.prediction(outputs), target, mask)
        return {"nats": nats, "weight": mask.sum(axis=(1, 2, 3))}

    return jax.device_get(run(outputs, batch))


def errors(n=12, seed=0):
    """Pixels in dB of two bands, whose standardised values are Laplacian with a scale of 0.7."""
    x = np.random.default_rng(seed).laplace(scale=0.7, size=(n, 1, 8, 8, 2))
    return x * S1.statistics.std + S1.statistics.mean, x


STEP = {
    cls: np.log(np.divide(*cls.noises[1::-1])) for cls in (objectives.MaskedL1, objectives.Speckle, objectives.Wishart)
}


@pytest.mark.parametrize(
    ("cls", "best", "density"),
    [
        (objectives.MaskedL1, lambda x: np.mean(abs(x)), stats.laplace),
        (objectives.MaskedL2, lambda x: np.sqrt(np.mean(x**2)), stats.norm),
    ],
)
def test_noise_and_score_in_closed_form(cls, best, density):
    train, x = errors()
    test = S1.statistics.mean + 1.5 * (errors(seed=1)[0] - S1.statistics.mean)  # other errors than in training
    term = cls(sensor="s1_grd")
    sums = [summed(term, *tiles(pixels, "pixels", [0.0, 0.0])) for pixels in (train, test)]
    assert sums[0]["nats"].shape == (12, 64)
    result = likelihood.held_out(term, *sums, np.arange(12), resamples=200)
    assert abs(np.log(result.noise / best(x))) < STEP[objectives.MaskedL1]  # neighbours of the grid
    nats = -density(0, result.noise * np.asarray(S1.statistics.std)).logpdf(test - S1.statistics.mean).sum(axis=-1)
    assert_allclose(result.nats.value, nats.mean(), rtol=1e-4)
    assert result.nats.low < result.nats.value < result.nats.high
    spread = nats.mean(axis=(1, 2, 3)).std() / np.sqrt(12)
    assert_allclose(result.nats.high - result.nats.low, 3.9 * spread, rtol=0.4)
    assert (result.tiles, result.at_border) == (12, False)


def test_looks_are_fitted_on_training_tiles():
    """True power and 4.4 looks: the likelihood finds the looks."""
    mean = radar.mean_power(S1, S1.statistics)
    intensity = np.random.default_rng(0).gamma(4.4, mean / 4.4, size=(16, 1, 16, 16, 2))
    term = objectives.Speckle(sensor="s1_grd", looks=1.0)  # whatever it was trained with
    sums = summed(term, *tiles(DB * np.log(intensity), "power", [0.0, 0.0]))
    result = likelihood.held_out(term, sums, sums, np.arange(16), resamples=50)
    assert abs(np.log(result.noise / 4.4)) < STEP[objectives.Speckle]
    exact = (
        -stats.loggamma(result.noise, loc=DB * np.log(mean / result.noise), scale=DB)
        .logpdf(DB * np.log(intensity))
        .sum(axis=-1)
        .mean()
    )
    assert_allclose(result.nats.value, exact, rtol=1e-4)
    entropy = sum(stats.loggamma(4.4, scale=DB).entropy() for _ in "ab")
    assert_allclose(result.nats.value, entropy, rtol=0.02)  # nobody can do better on average


def test_the_true_density_wins():
    """Pixels of speckle in dB: its likelihood is below the best normal and the best Laplacian one."""
    mean = radar.mean_power(S1, S1.statistics)
    dB = DB * np.log(np.random.default_rng(0).gamma(1.5, mean / 1.5, size=(16, 1, 16, 16, 2)))
    centre = (dB.mean(axis=(0, 1, 2, 3)) - S1.statistics.mean) / S1.statistics.std
    scores = {}
    for cls, head, says in (
        (objectives.Speckle, "power", [0.0, 0.0]),
        (objectives.MaskedL1, "pixels", centre),
        (objectives.MaskedL2, "pixels", centre),
    ):
        term = cls(sensor="s1_grd")
        sums = summed(term, *tiles(dB, head, says))
        scores[cls.__name__] = likelihood.held_out(term, sums, sums, np.arange(16), resamples=50).nats.value
    assert scores["Speckle"] < min(scores["MaskedL1"], scores["MaskedL2"]) - 0.05


@pytest.mark.parametrize("cls", [objectives.ComplexGaussian, objectives.Wishart])
def test_the_factor_of_the_power_is_fitted(cls):
    """Pixels of three times the power that was predicted; both state one density of independent polarisations."""
    term = cls(sensor="slc_dual") if cls is objectives.ComplexGaussian else cls(sensor="slc_dual", window=2)
    scale = np.sqrt(3.0) * 0.129
    pixels = np.random.default_rng(0).normal(scale=scale, size=(16, 1, 16, 16, 4))
    says = [0.0] * (2 if cls is objectives.ComplexGaussian else 4)
    sums = summed(term, *tiles(pixels, term.head, says, name="slc_dual"))
    result = likelihood.held_out(term, sums, sums, np.arange(16), resamples=50)
    assert abs(np.log(result.noise / 3)) < STEP[objectives.Wishart]
    sigma = 0.129 * np.sqrt(result.noise)
    assert_allclose(result.nats.value, -stats.norm(scale=sigma).logpdf(pixels).sum(axis=-1).mean(), rtol=1e-3)


def test_pixels_and_tiles_that_do_not_count():
    pixels, x = errors()
    valid = np.random.default_rng(2).random(pixels.shape[:-1]) < 0.5
    valid[3] = False
    term = objectives.MaskedL1(sensor="s1_grd")
    clean = summed(term, *tiles(pixels, "pixels", [0.0, 0.0], valid=valid))
    dirty = summed(term, *tiles(np.where(valid[..., None], pixels, np.nan), "pixels", [0.0, 0.0], valid=valid))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert clean["weight"][3] == 0
    assert not clean["nats"][3].any()
    result = likelihood.held_out(term, clean, clean, np.arange(12), resamples=50)
    assert result.tiles == 11
    logpdf = stats.laplace(scale=result.noise * np.asarray(S1.statistics.std)).logpdf(x * S1.statistics.std)
    assert_allclose(result.nats.value, -logpdf.sum(axis=-1)[valid].mean(), rtol=1e-4)  # by pixel, not by tile


def test_a_best_value_at_the_end_of_the_grid_is_said():
    term = objectives.MaskedL1(sensor="s1_grd")
    for scale, noise in ((1e-4, term.noises[0]), (100.0, term.noises[-1])):
        pixels = S1.statistics.mean + scale * errors()[1] * S1.statistics.std
        sums = summed(term, *tiles(pixels, "pixels", [0.0, 0.0]))
        result = likelihood.held_out(term, sums, sums, np.arange(12), resamples=20)
        assert (result.noise, result.at_border) == (noise, True)


def test_blocks_of_tiles_widen_the_interval():
    rng = np.random.default_rng(0)
    nats = np.repeat(rng.normal(size=20), 10)[:, None] + np.zeros(64)
    sums = {"nats": nats, "weight": np.ones(200)}
    term = objectives.MaskedL1(sensor="s1_grd")
    alone, blocks = (likelihood.held_out(term, sums, sums, g) for g in (np.arange(200), np.arange(200) // 10))
    assert alone.nats.value == blocks.nats.value
    assert blocks.nats.high - blocks.nats.low > 2.5 * (alone.nats.high - alone.nats.low)


@pytest.mark.parametrize("tiles", [0, 3])
def test_nothing_to_score_is_said(tiles):
    sums = {"nats": np.zeros((tiles, 64)), "weight": np.zeros(tiles)}
    with pytest.raises(DataError, match='MaskedL1 of "s1_grd": no validation tile has a hidden valid pixel'):
        likelihood.held_out(objectives.MaskedL1(sensor="s1_grd"), sums, sums, np.arange(tiles))
