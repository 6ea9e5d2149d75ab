"""Semantic segmentation: a class for every pixel, by a light fully convolutional head.

    python -m experiments.prepare  --simulate 500 --out data/simulated_1m --size 96 --gsd 1 --sensors rgb ndsm
    python -m experiments.finetune --config configs/finetune/segmentation.py --workdir runs/segmentation

Measured (docs/results.md): mIoU 0.801 [0.792, 0.810] on held-out scenes, constant answer 0.020.
"""

from configs.finetune import common


def get_config():
    """Land cover of simulated scenes."""
    config = common.base(dict(name="segmentation", target="land_cover"))
    config.head = dict(name="fcn", channels=64)
    return config
