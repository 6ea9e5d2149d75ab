"""Every family of tasks, from the files of a public sample to scores on ground that training did not see.

The samples are small: this says that all parts learn together, not how well a model of this kind can do.
"""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from ml_collections import ConfigDict
from scipy.spatial import cKDTree
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from configs import dense_simulated
from configs.finetune import common as finetuning
from experiments.run import finetune, score
from experiments.run.pretrain import pretrain
from ringmoe_jax import run as runs
from tests.helpers import real_sets

pytestmark = pytest.mark.skipif(not real_sets.REAL.is_dir(), reason=f"no real data in {real_sets.REAL}")


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setattr(runs, "make_mesh", lambda config: None)


# ---- Configurations -----------------------------------------------------------------------------------


def small(task, directory, size, *, sensors=("rgb",), steps, batch, **model) -> ConfigDict:
    """Two stages of the small encoder, from scratch; crops of half the area and more."""
    config = finetuning.base(task, directory=directory, sensors=sensors, size=size)
    config.model.update(depths=(2, 2), **model)
    config.data.batch_size = batch
    config.data.streams.data.crop_scale = (0.5, 1.0)
    config.optimizer.warmup_steps = min(50, steps // 5)
    config.train.update(steps=steps, checkpoint_every=steps, log_every=50)
    return config


def harvey(directory: str, steps: int = 800) -> ConfigDict:
    task = dict(name="classification", target="damage", smoothing=0.1)
    return small(task, directory, 64, window=8, steps=steps, batch=16)


def harvey_pretrain(directory: str, steps: int = 800) -> ConfigDict:
    """Masked pre-training of the encoder of `harvey` on its training chips."""
    config = dense_simulated.get_config()
    config.model.update(finetuning.encoder(("rgb",), 64), window=8, depths=(2, 2))
    config.data.streams.rgb.update(directory=directory, crop_scale=(0.3, 1.0))
    config.data.update(image_size=64, batch_size=16, mask_unit=8)
    config.optimizer.warmup_steps = min(50, steps // 5)
    config.train.update(steps=steps, log_every=100, checkpoint_every=steps, evaluate_every=0)
    return config


def neon_trees(directory: str, steps: int = 250) -> ConfigDict:
    """Two images teach little of a third site: more than nothing, but less than a regular grid of boxes says."""
    config = small(dict(name="detection", target="boxes"), directory, 96, steps=steps, batch=8)
    config.head = dict(name="fcos", channels=32, depth=2, groups=8)
    return config


def slovenia(directory: str, steps: int = 200) -> ConfigDict:
    task = dict(name="segmentation", target="land_cover")
    config = small(task, directory, 20, sensors=("s2_13",), steps=steps, batch=8, patch=1, window=5)
    config.data.streams.data.crop_scale = (1.0, 1.0)
    config.head = dict(name="fcn", channels=64, dropout=0.1)
    return config


def levir(directory: str, steps: int = 150) -> ConfigDict:
    """Changed pixels, a sixth of all, count five times."""
    config = small(dict(name="change", target="change"), directory, 96, steps=steps, batch=8)
    config.head = dict(name="change_difference", decoder="fcn", channels=64, dropout=0.1)
    config.objectives = dict(change=dict(name="cross_entropy", label="change", class_weights=(1.0, 5.0)))
    return config


def wpafb(directory: str, steps: int = 120) -> ConfigDict:
    """Association by centres: vehicles move by up to twice their length from frame to frame."""
    tracker = dict(distance="centre", high=0.3, low=0.1, birth=0.3, speed=8.0, acceleration=1.0)
    task = dict(name="tracking", target="vehicles", distance=real_sets.VEHICLE, tracker=tracker)
    config = small(task, directory, 96, sensors=("grey_video",), steps=steps, batch=2)
    config.modules = (real_sets.__name__,)
    config.head = dict(name="fcos", channels=32, depth=2, groups=8, finer=1)
    return config


def zurich(directory: str, steps: int = 250) -> ConfigDict:
    """Errors below 10 m count by their squares: the score is the root mean square, and most ground has no height."""
    task = dict(name="height", target="ndsm")
    config = small(task, directory, 48, sensors=("rgb", "ndsm"), steps=steps, batch=8, patch=2)
    config.data.streams.data.crop_scale = (1.0, 1.0)
    config.head = dict(name="height", decoder="fcn", channels=64, bins=32, max_height=25.0)
    config.objectives = dict(height=dict(name="height_regression", sensor="ndsm", beta=10.0))
    return config


# ---- Data ---------------------------------------------------------------------------------------------


def stored(directory: str) -> dict[str, list[dict]]:
    """Stored examples by split."""
    builder = tfds.builder_from_directory(directory)
    return {split: list(builder.as_dataset(split=split).as_numpy_iterator()) for split in builder.info.splits}


@pytest.mark.parametrize(
    ("make", "sizes", "side"),
    [
        (real_sets.neon_trees, (46, 4), 200),
        (real_sets.levir, (20, 4), 128),
        (real_sets.slovenia, (15, 10), 20),
        (real_sets.wpafb, (45, 10), 96),
        (real_sets.zurich, (130, 12), 48),
    ],
)
def test_no_tile_of_one_split_shows_ground_of_the_other(make, sizes, side, tmp_path):
    train, held = stored(make(tmp_path / "data")).values()
    assert (len(train), len(held)) == sizes
    places = [[example["id"].decode().rsplit("/", 2) for example in split] for split in (train, held)]
    for name, left, top in places[0]:
        for other, other_left, other_top in places[1]:
            shift = np.array([int(left) - int(other_left), int(top) - int(other_top)])
            assert name != other or (np.abs(shift) >= side).any()


def test_no_chip_of_one_split_shows_ground_of_the_other(tmp_path):
    train, held = stored(real_sets.harvey(tmp_path / "data")).values()
    assert (len(train), len(held)) == (745, 300)
    assert np.bincount([example["labels"]["damage"] for example in held]).tolist() == [150, 150]
    train, held = (np.array([(e["latitude"], e["longitude"]) for e in split]) for split in (train, held))
    metres = 111_320 * np.array([1, np.cos(np.radians(29.8))])
    assert cKDTree(train * metres).query(held * metres)[0].min() > 89  # coordinates are stored as float32


# ---- Training -----------------------------------------------------------------------------------------


def histograms(examples: list[dict]) -> np.ndarray:
    """[N, 48] counts of 16 levels of red, green and blue."""
    chips = [example["sensors"]["rgb"]["pixels"][0].reshape(-1, 3) for example in examples]
    return np.array([np.concatenate([np.histogram(band, 16, (0, 256))[0] for band in chip.T]) for chip in chips])


@pytest.mark.slow
def test_chips_are_told_apart_as_well_as_by_their_colours(tmp_path):
    """Single runs scatter: of seeds 0 to 3 0.927, 0.937, 0.913 and 0.843; 0.857 of seed 0 as tests compile it."""
    directory = real_sets.harvey(tmp_path / "data")
    train, held = stored(directory).values()
    known, truth = (np.array([example["labels"]["damage"] for example in split]) for split in (train, held))
    colours = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    colours.fit(histograms(train), known)
    baseline = (colours.predict(histograms(held)) == truth).mean()
    assert baseline == pytest.approx(0.88, abs=0.02)
    result = finetune.finetune(harvey(directory).to_dict(), str(tmp_path / "run"))
    assert result.scores["accuracy"].value > 0.8
    assert result.blocks == 32


@pytest.mark.slow
def test_an_encoder_pretrained_on_the_chips_starts_there(tmp_path):
    directory = real_sets.harvey(tmp_path / "data")
    pretrain(harvey_pretrain(directory, steps=40).to_dict(), str(tmp_path / "pretrained"))
    config = harvey(directory, steps=60)
    config.init_from = str(tmp_path / "pretrained")
    result = finetune.finetune(config.to_dict(), str(tmp_path / "run"))
    assert result.encoder.step == 40
    assert result.scores["accuracy"].value > 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric", "gain"),
    [
        (neon_trees, "AP50", 0.02),
        (slovenia, "mIoU", 0.15),
        (levir, "F1", 0.15),
        (wpafb, "HOTA", 0.1),
        (zurich, "RMSE", -0.2),
    ],
)
def test_a_task_says_more_than_the_best_constant_answer(task, metric, gain, tmp_path):
    directory = getattr(real_sets, task.__name__)(tmp_path / "data")
    result = finetune.finetune(task(directory).to_dict(), str(tmp_path / "run"))
    score.show(result)
    model, constant = (scores[metric].value for scores in (result.scores, result.constant))
    assert (model - constant) * np.sign(gain) > abs(gain)
