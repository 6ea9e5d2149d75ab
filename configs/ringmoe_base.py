"""RingMoE at width 128: 1.21B parameters without decoders. Not run on hardware of that size yet.

    python -m experiments.pretrain --config configs/ringmoe_base.py --workdir runs/base

Fill data/<sensor> first, with `python -m experiments.prepare --source <folder> --out data/<sensor>`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The released recipe at width 128."""
    return common.ringmoe(width=128, depths=(2, 2, 18, 2))
