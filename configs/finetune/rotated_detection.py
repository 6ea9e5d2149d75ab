"""Rotated boxes by FCOS with an angle."""

from configs.finetune import detection


def get_config():
    """Oriented vehicles and ships of simulated scenes."""
    config = detection.get_config()
    config.task.update(target="oriented", rotated=True)
    return config
