"""Heights above ground by adaptive bins; the truth is a sensor, "ndsm", whose no-data and crops the pipeline knows."""

from configs.finetune import common


def get_config():
    """Heights of buildings and trees in simulated scenes."""
    config = common.base(dict(name="height", target="ndsm"), sensors=("rgb", "ndsm"))
    config.head = dict(name="height", decoder="fcn", channels=64, bins=32, max_height=40.0, residual=False)
    return config
