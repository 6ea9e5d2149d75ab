"""RingMoE at width 96: 373M parameters without decoders. Not run on hardware of that size yet.

    python -m experiments.pretrain --config configs/ringmoe_tiny.py --workdir runs/tiny

Fill data/<sensor> first, with `python -m experiments.prepare --source <folder> --out data/<sensor>`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The released recipe at width 96."""
    return common.ringmoe(width=96, depths=(2, 2, 6, 2))
