"""SkySense on a real Sentinel-2 series: no collapse, and features that tell the land cover of single locations."""

import datetime
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import common as configs
from configs import skysense_micro
from experiments.run import pretrain
from input_pipeline.builder import write_dataset
from input_pipeline.evaluation import EvalBatches
from input_pipeline.schema import MAP, Image, LabelInfo, Metadata, Sample, SensorInfo
from ringmoe_jax import sensors
from ringmoe_jax.evaluate import baselines, probes
from ringmoe_jax.evaluate.rank import rankme
from ringmoe_jax.run import Run
from ringmoe_jax.training import metrics

SLOVENIA = Path(__file__).resolve().parents[3] / "shared/data/multimodal/eolearn_slovenia"
DATES = ("2015-07-11", "2015-07-31", "2015-08-20", "2015-08-30", "2015-09-09")  # the second and third are cloudy
STORED = (4, 1, 0, 3, 2)  # where the file holds them
BORDER = 64  # columns left of it train; four columns between the splits belong to neither
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SLOVENIA.is_dir(), reason="the Slovenian Sentinel-2 series is not at hand"),
]


def write(directory: Path, size: int, stride: int) -> None:
    """Tiles of size x size pixels with all five dates and land cover, split by columns."""
    pixels = np.load(SLOVENIA / "REFERENCE_SCENES.npy")[list(STORED)]
    pixels = np.round(pixels * 10_000).astype(np.uint16)
    cover = np.load(SLOVENIA / "TestEOPatch/mask_timeless/LULC.npy")[..., 0].astype(np.int16)
    days = np.array([(datetime.date.fromisoformat(d) - datetime.date(1970, 1, 1)).days for d in DATES])

    def tiles(left: int, right: int):
        for top in range(0, pixels.shape[1] - size + 1, stride):
            for column in range(left, right - size + 1, stride):
                at = (slice(top, top + size), slice(column, column + size))
                image = Image(pixels[(slice(None), *at)], time=days)
                yield Sample(f"{top}/{column}", {"s2_13": image}, 45.87, 14.56, {"cover": cover[at]})

    metadata = Metadata(
        "slovenia",
        {"s2_13": SensorInfo.of(sensors.get("s2_13"), (len(DATES), size, size), 10)},
        "one place",
        "CC-BY-4.0",
        "",
        labels={"cover": LabelInfo(MAP, tuple(f"class {i}" for i in range(cover.max() + 1)), "LULC", "s2_13")},
    )
    write_dataset(directory, {"train": tiles(0, BORDER), "validation": tiles(BORDER + 4, 100)}, metadata)


def locations(directory: Path, split: str, encoders: dict) -> dict[str, probes.Split]:
    """Features of every location with a class, by encoder; blocks of 8 x 8 locations stay together."""
    rows = {name: [] for name in encoders}
    labels, groups = [], []
    batches = EvalBatches(directory, ("s2_13",), split=split, image_size=16, batch_size=4)
    for number, batch in enumerate(batches):
        real = batch["real"]
        cover = batch["labels"]["cover"][real]
        block = np.arange(16) // 8
        place = (np.arange(len(cover))[:, None, None] * 2 + block[:, None]) * 2 + block + number * 100
        for name, encoder in encoders.items():
            features = np.asarray(encoder(batch))[real]
            rows[name].append(features.reshape(-1, features.shape[-1]))
        labels.append(np.where(cover > 0, cover, -1).reshape(-1))
        groups.append(place.reshape(-1))
    labels, groups = np.concatenate(labels), np.concatenate(groups)
    return {k: probes.Split(np.concatenate(v), labels, groups).where(labels >= 0) for k, v in rows.items()}


def test_locations_of_a_series_do_not_collapse_and_tell_land_cover(tmp_path):
    write(tmp_path / "crops", 32, 8)
    write(tmp_path / "tiles", 16, 16)
    config = skysense_micro.get_config()
    config.model.sensors = ("s2_13",)
    config.objectives = configs.contrastive_objectives(("s2_13", "fused"))
    config.data.streams.all.update(directory=str(tmp_path / "crops"), sensors=("s2_13",))
    config.data.update(frames=dict(s2_13=3))
    config.data.views.update(grid="s2_13", photometric={"s2_13": dict(gain=0.1)})
    config.train.update(steps=300, evaluate_every=0, log_every=50, checkpoint_every=300)
    pretrain.pretrain(config.to_dict(), str(tmp_path / "run"))

    trained = Run.open(str(tmp_path / "run"))
    model, fresh = trained.parts.model, baselines.random_params(trained.parts.model)
    width = trained.config.model["fusion"]["width"]  # without what the prototypes add: all is one region
    fused = jax.jit(lambda params, batch: model.apply(params, {"sensors": batch["sensors"]})["fused"][..., :width])

    def bands(batch):
        return np.moveaxis(batch["sensors"]["s2_13"]["pixels"], 1, 3).reshape(*batch["labels"]["cover"].shape, -1)

    shown = ("sensors", "labels", "real")
    encoders = {
        "pre-trained": lambda batch: fused(trained.params, {k: batch[k] for k in shown}),
        "random weights": lambda batch: fused(fresh, {k: batch[k] for k in shown}),
        "bands of all dates": bands,
    }
    train, test = (locations(tmp_path / "tiles", split, encoders) for split in ("train", "validation"))
    names = tuple(f"class {i}" for i in range(9))
    scores = {}
    for name in encoders:
        found = probes.probe(train[name], test[name], names, ("knn20",))[0]
        scores[name] = next(iter(found.scores.values()))
        score, rank = scores[name], rankme(test[name].features)
        print(f"{name:<20} knn20 {score.value:.3f} ({score.low:.3f} to {score.high:.3f}), RankMe {rank:.1f}")

    # 1 would be a collapse. Random weights fill more directions, with noise; the probes say what they are worth.
    assert rankme(test["pre-trained"].features) > 2
    last = [record for record in metrics.read(tmp_path / "run") if "fused_pixel/usage" in record][-1]
    for stream in ("s2_13", "fused"):
        assert last[f"{stream}_pixel/usage"] > 0.9
        assert 0.1 < last[f"{stream}_pixel/teacher_entropy"] < 0.98
    # The bands themselves, of all dates, are ahead after so few steps: see docs/results.md.
    assert scores["pre-trained"].value > scores["random weights"].value
