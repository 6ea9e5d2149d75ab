"""RingMoE at the sizes of the paper, and smaller ones: an embedding width sizes the model.

    python -m experiments.pretrain --config configs/ringmoe.py:14b --workdir runs/14b
    python -m experiments.plan     --config configs/ringmoe.py:14b --topology v5p:4x4x8

Fill data/<sensor> first, with `python -m experiments.prepare --source <folder> --out data/<sensor>`. Parameters without
decoders: nano 93 M, tiny 373 M, base 1.21 B, large 2.71 B, 14b 14.7 B. Not run on hardware of those sizes yet; planned,
see docs/benchmarks.md.
"""

from ml_collections import ConfigDict

from configs import common

CHOICES = {
    "nano": dict(width=48, depths=(2, 2, 6, 2), head_width=16),
    "tiny": dict(width=96, depths=(2, 2, 6, 2)),
    "base": dict(width=128, depths=(2, 2, 18, 2)),
    "large": dict(width=192, depths=(2, 2, 18, 2)),
    "14b": dict(width=448, depths=(2, 2, 18, 2)),
}


def get_config(size: str) -> ConfigDict:
    """The released recipe at a size."""
    return common.ringmoe(**CHOICES[size])
