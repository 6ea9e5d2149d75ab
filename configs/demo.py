"""RingMoE at width 32 on the sample data: the whole method on a laptop CPU in minutes, as `make demo` runs it.

    python -m experiments.prepare --sample --out data/sample
    python -m experiments.pretrain --config configs/demo.py --workdir runs/demo
    python -m experiments.pretrain --config configs/demo.py --workdir runs/optical --sensors rgb s2_12

Two stages of patches of 4 pixels, so that a token of the last one stands for 8 x 8 pixels, a cell of the mask, and a
reconstruction looks like the image (configs/ringmoe_micro.py has the paper's four stages). Routers of temperature 0.1
decide within hundreds of steps (our choice). What it reaches and how long it takes: docs/benchmarks.md.
"""

from ml_collections import ConfigDict

from configs import common

SENTINEL = ("s2_12", "s1_grd", "slc_dual")


def get_config() -> ConfigDict:
    """The configuration that `make demo` runs."""
    config = common.ringmoe(width=32, depths=(2, 4), head_width=16)
    config.model.update(sensors=("rgb", *SENTINEL), image_size=64, window=4, power_input=True)
    config.model.update(dtype="float32", remat="none")
    config.model.moe = dict(router=dict(name="softmax_top_k", temperature=0.1))
    config.objectives = common.masked(
        rgb="masked_l1", s2_12="masked_l1", s1_grd="masked_l1", slc_dual="log_total_power"
    )
    config.data.streams = common.streams(("rgb",), "data/sample/aerial")
    config.data.streams.update(common.streams(SENTINEL, "data/sample/sentinel", crop_scale=(0.4, 1.0)))
    config.data.update(reader="device", image_size=64, batch_size=4, mask_unit=8, rotate=True)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=40)
    config.train.update(steps=300, log_every=20, checkpoint_every=150, evaluate_every=150)
    return config
