"""Horizontal boxes by FCOS.

    python -m experiments.prepare  --simulate 500 --out data/simulated_1m --size 96 --gsd 1 --sensors rgb ndsm
    python -m experiments.finetune --config configs/finetune/detection.py --workdir runs/detection

Measured (docs/results.md): AP50 0.953 [0.932, 0.970] on held-out scenes.
"""

from configs.finetune import common


def get_config():
    """Vehicles and ships of simulated scenes."""
    config = common.base(dict(name="detection", target="boxes"))
    config.head = dict(name="fcos", channels=32, depth=2, groups=8, finer=1)
    return config
