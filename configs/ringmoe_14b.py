"""RingMoE at width 448: 14.7B parameters without decoders. Not run on hardware of that size yet.

    python -m experiments.pretrain --config configs/ringmoe_14b.py --workdir runs/14b

Fill data/<sensor> first, with `python -m experiments.prepare --source <folder> --out data/<sensor>`.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """The released recipe at width 448."""
    return common.ringmoe(width=448, depths=(2, 2, 18, 2))
