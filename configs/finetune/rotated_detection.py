"""Rotated boxes by FCOS with an angle.

    python -m experiments.prepare  --simulate 500 --out data/simulated_1m --size 96 --gsd 1 --sensors rgb ndsm
    python -m experiments.finetune --config configs/finetune/rotated_detection.py --workdir runs/rotated

Measured (docs/results.md): AP50 0.980 [0.965, 0.989] on held-out scenes.
"""

from configs.finetune import detection


def get_config():
    """Oriented vehicles and ships of simulated scenes."""
    config = detection.get_config()
    config.task.update(target="oriented", rotated=True)
    return config
