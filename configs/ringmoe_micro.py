"""RingMoE at width 16 on the sample data: the whole method on a laptop CPU.

    python -m experiments.prepare --sample --out data/sample
    python -m experiments.pretrain --config configs/ringmoe_micro.py --workdir runs/micro

Measured on 2 cores: 65 images/s after 44 s of compilation, so about 4 minutes by arithmetic; masked loss on
validation tiles falls clearly below trivial predictors for every sensor, see docs/benchmarks.md.
12.8 M parameters with decoders. The paper's geometry at a third of its scale: 64 px images, 4 windows a side
in the first stage, 6 of 10 cells hidden.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The configuration that `make demo` runs."""
    config = common.ringmoe(width=16, depths=(2, 2, 6, 2), head_width=16)
    config.model.update(
        sensors=("rgb", "s2_12", "s1_grd", "slc_dual"),
        image_size=64,
        window=4,
        dtype="float32",
        remat="none",
        power_input=True,
    )
    config.objectives = ConfigDict(
        dict(
            rgb=dict(name="masked_l1", sensor="rgb", scale=1.0),
            s2_12=dict(name="masked_l1", sensor="s2_12", scale=1.0),
            s1_grd=dict(name="masked_l1", sensor="s1_grd", scale=1.0),
            slc_dual=dict(name="log_total_power", sensor="slc_dual", scale=1.0),
            balance=dict(name="balance", scale=4e-3),
        )
    )
    sentinel = dict(directory="data/sample/sentinel", split="train", crop_scale=(0.4, 1.0), weight=1.0)
    config.data.streams = ConfigDict(
        dict(
            rgb=dict(
                directory="data/sample/aerial", sensors=("rgb",), split="train", crop_scale=(0.2, 0.5), weight=1.0
            ),
            s2_12=sentinel | dict(sensors=("s2_12",)),
            s1_grd=sentinel | dict(sensors=("s1_grd",)),
            slc_dual=sentinel | dict(sensors=("slc_dual",)),
        )
    )
    config.data.update(image_size=64, batch_size=4, mask_unit=8, rotate=True)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=40)
    config.train.update(steps=800, log_every=20, checkpoint_every=200, evaluate_every=100)
    return config
