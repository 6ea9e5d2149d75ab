"""SkySense on a real place: aerial image, Sentinel-2 and Sentinel-1 series, from their files to a checkpoint."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import skysense_micro
from experiments import prepare
from experiments.run import pretrain
from ringmoe_jax.contracts import NO_TIME
from ringmoe_jax.run import Run
from ringmoe_jax.training.checkpoint import Checkpointer

PLACE = Path(__file__).resolve().parents[3] / "shared/data/multimodal/treesatai_ts"
SENSORS = ("rgbn", "s2_10", "s1_grd")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PLACE.is_dir(), reason="the TreeSatAI-Time-Series sample is not at hand"),
]


def values(data: Path) -> dict:
    """`skysense_micro` with an image of 8 x 8 pixels a location and series; crops of 4 x 4 of the 6 x 6 locations."""
    config = skysense_micro.get_config()
    config.model.update(sensors=SENSORS, high_resolution="rgbn", image_size=32, depths=(1, 1), width=16, window=4)
    config.model.update(head_width=8, frame_size=4)
    levels = dict(rgbn="pixel", s2_10="image", s1_grd="object", fused="pixel")
    config.objectives = {
        stream: dict(name="self_distillation", stream=stream, level=level) for stream, level in levels.items()
    } | {"align": dict(name="alignment", sensors=("rgbn", "s2_10"), projected=True)}
    config.data.streams.all.update(directory=str(data), sensors=SENSORS)
    config.data.update(image_size=4, batch_size=jax.device_count(), sizes=dict(rgbn=32), frames=dict(s2_10=3, s1_grd=2))
    config.data.views.update(grid="s2_10", local=1, local_sensor="rgbn", local_size=16)
    config.data.views.photometric = {"rgbn": dict(gain=0.2, blur=0.5, solarise=0.2)}
    config.optimizer.warmup_steps = 0
    config.train.update(steps=3, evaluate_every=0, log_every=1)
    return config.to_dict()


def test_a_triple_trains_and_its_checkpoint_sees_every_part(tmp_path):
    source = ["--source", str(PLACE), "--dataset", "treesatai_ts", "--out", str(tmp_path / "data")]
    prepare.main.__wrapped__(source)
    config = values(tmp_path / "data")
    state = pretrain.pretrain(config, str(tmp_path / "run"))
    assert int(state.step) == int(state.pretext["step"]) == 3
    assert (
        float(state.pretext["geo_context"]["visits"].sum()) == 3 * jax.device_count()
    )  # every image came with its place
    losses = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in losses)

    trained = Run.open(str(tmp_path / "run"))
    kept = Checkpointer.open(tmp_path / "run").restore_model()[1]["teacher"]
    np.testing.assert_array_equal(trained.params["fusion"]["token"], kept["fusion"]["token"])
    batch = next(pretrain.train_batches(trained.config.data))
    shown = batch["sensors"]
    assert (shown["s2_10"]["time"] != NO_TIME).all()
    assert (np.diff(shown["s2_10"]["time"]) >= 0).all()
    whole = jax.jit(trained.parts.model.apply)(trained.params, {"sensors": shown})
    assert whole["fused"].shape[1:] == (4, 4, 128)
    assert whole["stages"]["rgbn"][0].shape[1:] == (1, 8, 8, 16)
    alone = jax.jit(trained.parts.model.apply)(trained.params, {"sensors": {"s1_grd": shown["s1_grd"]}})
    np.testing.assert_allclose(alone["tokens"]["s1_grd"], whole["tokens"]["s1_grd"], atol=1e-5)
    assert np.abs(np.asarray(alone["fused"] - whole["fused"])).max() > 1e-4
    assert np.abs(np.asarray(whole["context"]["rgbn"])).max() > 0  # one encoder reads its region's prototypes too
