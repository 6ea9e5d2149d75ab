"""Masked pre-training of a small dense encoder on simulated aerial scenes: what the fine-tuning configs start from.

python -m experiments.prepare  --simulate 1000 --out data/simulated_unlabelled --size 96 --gsd 1 --seed 1 --sensors rgb
python -m experiments.pretrain --config configs/dense_simulated.py --workdir runs/dense_simulated

Run for 700 of its 1500 steps; what it is worth on a task is measured in docs/results.md: nothing that would stand.
"""

from ml_collections import ConfigDict

from configs import common
from configs.finetune.common import encoder


def get_config() -> ConfigDict:
    """RingMoE's backbone without routed experts, masked L1 on aerial RGB."""
    config = common.ringmoe(width=32, depths=(2, 2, 2, 2))
    config.model = encoder(("rgb",), 96)
    config.objectives = dict(rgb=dict(name="masked_l1", sensor="rgb"))
    config.data.streams = common.streams(("rgb",), "data/simulated_unlabelled", crop_scale=(0.4, 1.0))
    config.data.update(image_size=96, batch_size=16, mask_unit=8, rotate=True)
    config.optimizer.update(learning_rate=2e-3, warmup_steps=100)
    config.train.update(steps=1500, checkpoint_every=500, evaluate_every=500, keep_checkpoints=1)
    return config
