"""SkySense at the size of the paper: SwinV2-H, two ViT-L, a fusion of 24 layers, 4096 regions of 100 prototypes.

    python -m experiments.plan --config configs/skysense_huge.py --topology v5p:4x4x8

Not trained: 2.1 B parameters and their teacher want a pod. Planned, see docs/benchmarks.md.
"""

from ml_collections import ConfigDict

from configs import common

SENSORS = ("rgb", "s2_10", "s1_grd")


def get_config() -> ConfigDict:
    """High-resolution crops of 512 px with series of 20 and 10 dates, batches of 240 in the paper, 256 here."""
    config = common.skysense(SENSORS, high_resolution="rgb")
    config.data.update(
        batch_size=256,
        sizes=dict(rgb=512, s2_10=16, s1_grd=16),
        frames=dict(s2_10=20, s1_grd=10),
    )
    config.data.views.update(grid="s2_10", local=2, local_sensor="rgb", local_size=128)
    config.data.views.photometric = ConfigDict(dict(rgb=common.STRONG, s2_10=common.LIGHT, s1_grd=common.LIGHT))
    config.optimizer.update(learning_rate=1e-4, min_learning_rate=1e-6, warmup_steps=10_000, clip_norm=3.0)
    config.train.update(steps=875_000)
    config.mesh.update(data=-1, fsdp=8, expert=1)
    return config
