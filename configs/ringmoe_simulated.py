"""RingMoE on simulated scenes of four sensors, small and trained to the end: what pruning and merging are measured on.

    python -m experiments.prepare  --simulate 1500 --out data/simulated_four --size 48 --gsd 10 \
        --sensors rgb s2_12 s1_grd slc_dual
    python -m experiments.pretrain --config configs/ringmoe_simulated.py --workdir runs/simulated

2.3 M parameters without decoders, 0.17 M when merged. Training took 40 minutes beside other work, at 130
images/s with less of it; what compression makes of it is in docs/results.md.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """All router groups over four modalities, three stages, masked reconstruction."""
    losses = dict(rgb="masked_l1", s2_12="masked_l1", s1_grd="masked_l1", slc_dual="log_total_power")
    config = common.ringmoe(width=16, depths=(2, 4, 2), head_width=16)
    config.model.update(sensors=tuple(losses), image_size=48, window=6, power_input=True)
    config.model.update(dtype="float32", remat="none", unroll=True)
    config.objectives = common.masked(**losses)
    config.data.streams = common.streams(tuple(losses), "data/simulated_four", crop_scale=(0.5, 1.0))
    config.data.update(image_size=48, batch_size=8, mask_unit=8, rotate=True)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=100)
    config.train.update(steps=4000, checkpoint_every=500, evaluate_every=500, keep_checkpoints=1)
    return config
