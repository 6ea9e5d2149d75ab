"""SkySense as the paper has it, at a size for one accelerator, and with experts in its fusion.

    python -m experiments.pretrain --config configs/skysense.py:small --workdir runs/skysense_small
    python -m experiments.plan     --config configs/skysense.py:huge --topology v5p:4x4x8
    python -m experiments.pretrain --config configs/skysense.py:moe --workdir runs/skysense_moe

small   136 M parameters: aerial images of 1.25 m with Sentinel-2 and Sentinel-1 series. Fill data/places with
        `experiments.prepare`. Not run.
huge    the paper's: SwinV2-H, two ViT-L, a fusion of 24 layers, 4096 regions of 100 prototypes. 2.1 B parameters and
        their teacher want a pod. Not run; planned, see docs/benchmarks.md.
released  huge with the ways of the released modules, where ours differ; docs/skysense.md names them. Not run.
moe     beyond the paper: `skysense_micro` with RingMoE's experts in the feed-forward layers of the fusion; routers know
        which sensor a token is from. 60 steps were run on 2 cores, 33 images/s; the loss falls, the balance loss is
        4.02 of 4. Not compared with the dense fusion.
"""

from ml_collections import ConfigDict

from configs import common, skysense_micro

SENSORS = ("rgb", "s2_10", "s1_grd")


def small() -> ConfigDict:
    """Two stages of 192 and 384 channels, for a location is 8 x 8 pixels of 1.25 m; ViTs and fusion of 384 (ViT-S)."""
    config = _with_aerial_images(size=256, series=32, frames=dict(s2_10=8, s1_grd=4), local_size=64)
    blocks = dict(width=384, depth=12, heads=6, drop_path=0.1)
    config.model.update(image_size=256, width=192, depths=(4, 8), head_width=32, frame=blocks, fusion=blocks)
    config.model.update(frame_size=32, drop_path=0.1, geo_context=dict(prototypes=32))
    config.pretext.update(image_outputs=16_384)
    config.data.batch_size = 64
    config.optimizer.update(learning_rate=5e-4, warmup_steps=5000)
    config.train.steps = 200_000
    return config


def huge() -> ConfigDict:
    """High-resolution crops of 512 px with series of 20 and 10 dates, batches of 240 in the paper, 256 here."""
    config = _with_aerial_images(size=512, series=16, frames=dict(s2_10=20, s1_grd=10), local_size=128)
    config.data.batch_size = 256
    config.optimizer.update(learning_rate=1e-4, warmup_steps=10_000)
    config.train.steps = 875_000
    config.mesh.fsdp = 8
    return config


def released() -> ConfigDict:
    """The paper's sizes, and GELU, windows, positions, dates, initial gains and dropped branches as in its code."""
    config = huge()
    config.model.update(exact_gelu=True, shift_thin=False, pad_windows=True, frame_resize="sampled", dated=("s2_10",))
    config.model.update(norm_gain=1.0, drop_before_norm=True)
    for blocks in (config.model.frame, config.model.fusion):
        blocks.update(exact_gelu=True, drop_attention=False)
    return config


def moe() -> ConfigDict:
    """Two own experts a sensor, two common ones and the shared one, under the balance loss."""
    config = skysense_micro.get_config()
    config.model.moe = dict(specialised=2, collaborative=2, engine="dropless")
    config.objectives.balance = common.BALANCE
    return config


CHOICES = {"small": small, "huge": huge, "released": released, "moe": moe}


def get_config(variant: str) -> ConfigDict:
    """One of the variants above."""
    return CHOICES[variant]()


def _with_aerial_images(size: int, series: int, frames: dict[str, int], local_size: int) -> ConfigDict:
    """The recipe on `size` px of aerial images, on `series` px of Sentinel-2 and Sentinel-1, and two local crops."""
    config = common.skysense(SENSORS, high_resolution="rgb")
    config.data.update(sizes=dict(rgb=size, s2_10=series, s1_grd=series), frames=frames)
    config.data.views.update(grid="s2_10", local=2, local_sensor="rgb", local_size=local_size)
    config.data.views.photometric = dict(rgb=common.STRONG, s2_10=common.LIGHT, s1_grd=common.LIGHT)
    config.optimizer.update(min_learning_rate=1e-6, clip_norm=3.0)
    return config
