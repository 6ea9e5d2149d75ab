"""SkySense with 136 M parameters: aerial images of 1.25 m with Sentinel-2 and Sentinel-1 series.

    python -m experiments.pretrain --config configs/skysense_small.py --workdir runs/skysense_small

Not run. A location is 8 x 8 pixels of 1.25 m (NAIP, or aerial images resampled to it), so the high-resolution encoder
has two stages; fill data/places with `experiments.prepare`.
"""

from ml_collections import ConfigDict

from configs import common

SENSORS = ("rgb", "s2_10", "s1_grd")


def get_config() -> ConfigDict:
    """Two stages of 192 and 384 channels, ViTs and fusion of 384 (ViT-S)."""
    config = common.skysense(SENSORS, high_resolution="rgb")
    blocks = dict(width=384, depth=12, heads=6, hidden_ratio=4, drop_path=0.1, remat="full")
    config.model.update(image_size=256, width=192, depths=(4, 8), head_width=32, frame=blocks, fusion=blocks)
    config.model.update(frame_size=32, drop_path=0.1, geo_context=dict(regions=4096, prototypes=32))
    config.pretext.update(image_outputs=16_384, tokens=256)
    config.data.update(
        batch_size=64,
        sizes=dict(rgb=256, s2_10=32, s1_grd=32),
        frames=dict(s2_10=8, s1_grd=4),
    )
    config.data.views.update(grid="s2_10", local=2, local_sensor="rgb", local_size=64)
    config.data.views.photometric = ConfigDict(dict(rgb=common.STRONG, s2_10=common.LIGHT, s1_grd=common.LIGHT))
    config.optimizer.update(learning_rate=5e-4, min_learning_rate=1e-6, warmup_steps=5000, clip_norm=3.0)
    config.train.update(steps=200_000)
    return config
