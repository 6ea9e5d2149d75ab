"""Horizontal boxes by FCOS."""

from configs.finetune import common


def get_config():
    """Vehicles and ships of simulated scenes."""
    config = common.base(dict(name="detection", target="boxes", rotated=False))
    config.head = dict(name="fcos", channels=32, depth=2, groups=8, finer=1, coarser=0)
    return config
