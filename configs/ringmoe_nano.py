"""RingMoE at width 48: 93M parameters without decoders. Not run on hardware of that size yet.

    python -m experiments.pretrain --config configs/ringmoe_nano.py --workdir runs/nano

Fill data/<sensor> first, with `python -m experiments.prepare --source <folder> --out data/<sensor>`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The released recipe at width 48."""
    return common.ringmoe(width=48, depths=(2, 2, 6, 2), head_width=16)
