"""Multi-label scene classification: any number of classes an image, from several sensors of a place.

    python -m experiments.prepare  --simulate 500 --out data/simulated --size 96 --sensors rgb s2_12 s1_grd
    python -m experiments.finetune --config configs/finetune/multilabel.py --workdir runs/multilabel

Not run to its end; its task, head and loss are tested on small scenes.
"""

from configs.finetune import common


def get_config():
    """Classes that are in a simulated scene, from aerial and Sentinel-like images."""
    return common.base(
        dict(name="multilabel", target="present"), directory="data/simulated", sensors=("rgb", "s2_12", "s1_grd")
    )
