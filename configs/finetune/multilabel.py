"""Multi-label scene classification: any number of classes an image, from several sensors of a place."""

from configs.finetune import common


def get_config():
    """Classes that are in a simulated scene, from aerial and Sentinel-like images."""
    return common.base(
        dict(name="multilabel", target="present"), directory="data/simulated", sensors=("rgb", "s2_12", "s1_grd")
    )
