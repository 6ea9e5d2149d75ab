"""Semantic segmentation: a class for every pixel, by UPerNet."""

from configs.finetune import common


def get_config():
    """Land cover of simulated scenes."""
    config = common.base(dict(name="segmentation", target="land_cover"))
    config.head = dict(name="fcn", channels=64, dropout=0.1)
    return config
