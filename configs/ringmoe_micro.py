"""RingMoE at width 16 on the sample data: the whole method on a laptop CPU.

    python -m experiments.prepare --sample --out data/sample
    python -m experiments.pretrain --config configs/ringmoe_micro.py --workdir runs/micro
    python -m experiments.pretrain --config configs/ringmoe_micro.py --workdir runs/optical --sensors rgb s2_12

Measured on 2 cores: 65 images/s after 44 s of compilation, so about 4 minutes by arithmetic; masked loss on
validation tiles falls clearly below trivial predictors for every sensor, see docs/results.md.
12.8 M parameters with decoders. The paper's geometry at a third of its scale: 64 px images, 4 windows a side
in the first stage, 6 of 10 cells hidden.
"""

from ml_collections import ConfigDict

from configs import common

SENTINEL = ("s2_12", "s1_grd", "slc_dual")


def get_config() -> ConfigDict:
    """The model, its objectives and the sample data."""
    config = common.ringmoe(width=16, depths=(2, 2, 6, 2), head_width=16)
    config.model.update(sensors=("rgb", *SENTINEL), image_size=64, window=4, power_input=True)
    config.model.update(dtype="float32", remat="none", unroll=True)
    config.objectives = common.masked(
        rgb="masked_l1", s2_12="masked_l1", s1_grd="masked_l1", slc_dual="log_total_power"
    )
    config.data.streams = common.streams(("rgb",), "data/sample/aerial")
    config.data.streams.update(common.streams(SENTINEL, "data/sample/sentinel", crop_scale=(0.4, 1.0)))
    config.data.update(image_size=64, batch_size=4, mask_unit=8, rotate=True)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=40)
    config.train.update(steps=800, log_every=20, checkpoint_every=200, evaluate_every=100)
    return config
