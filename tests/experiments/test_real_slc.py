"""Trains on real single-look complex quad-pol data (uncalibrated X-band, Rotterdam), where it is at hand."""

from pathlib import Path

import jax
import numpy as np
import pytest

from configs import common as configs
from experiments.run import pretrain
from input_pipeline import folder
from ringmoe_jax.training import metrics

ROTTERDAM = Path(__file__).parents[3] / "shared/data/slc/spacenet6_rotterdam_quadpol"


@pytest.mark.slow
@pytest.mark.skipif(not ROTTERDAM.is_dir(), reason=f"no single-look data at {ROTTERDAM.name}")
def test_pretraining_on_real_single_look_data(tmp_path):
    source = tmp_path / "in" / "slc_quad"
    source.mkdir(parents=True)
    for p in ("HH", "HV", "VH", "VV"):
        (source / f"rotterdam_{p}.tif").symlink_to(ROTTERDAM / f"sar_{p.lower()}.tif")
    folder.prepare(tmp_path / "in", tmp_path / "slc", sensors=["slc_quad"], tile=48, stride=16, check_units=False)

    config = configs.ringmoe(width=8, depths=(2,), head_width=4)
    config.model.update(sensors=("slc_quad",), image_size=32, window=4, dtype="float32", remat="none")
    config.objectives = {
        "power": {"name": "total_power", "sensor": "slc_quad", "clip": 1e8},
        "balance": {"name": "balance"},
    }
    stream = dict(directory=str(tmp_path / "slc"), sensors=("slc_quad",), split="train", crop_scale=(1.0, 1.0))
    config.data.streams = {"slc": stream}
    config.data.update(image_size=32, batch_size=jax.device_count(), mask_unit=8)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=5)
    config.train.update(steps=60, log_every=1, checkpoint_every=60, evaluate_every=60)
    pretrain.pretrain(config.to_dict(), str(tmp_path / "run"))

    # One urban scene, nearly all speckle: what can be learnt in a minute is the level, not yet the structure.
    losses = [r["loss/power"] for r in metrics.read(tmp_path / "run") if "loss/power" in r]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:3])
