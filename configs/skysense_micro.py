"""SkySense with 64-wide encoders on real Sentinel-1/2 pairs: all its ideas on a laptop CPU.

    python -m experiments.prepare --sample --out data/sample
    python -m experiments.pretrain --config configs/skysense_micro.py --workdir runs/skysense

`make demo-skysense` runs both and writes the report; how long it takes and what its features are worth is in
docs/results.md. 0.5 M parameters with prototypes.
"""

from ml_collections import ConfigDict

from configs import common

SENSORS = ("s2_12", "s1_grd")


def get_config() -> ConfigDict:
    """The configuration that `make demo-skysense` runs."""
    config = common.skysense(SENSORS)
    blocks = dict(width=64, depth=2, heads=4, drop_path=0.0, remat="none", unroll=True)
    config.model.update(width=16, depths=(1, 1, 1), norm_every=0, drop_path=0.0, dtype="float32", remat="none")
    config.model.update(frame=blocks, frame_size=16, fusion=blocks, modality_dropout=0.2)
    config.model.geo_context = dict(regions=64, prototypes=8)
    config.pretext.update(momentum=0.99, temperature=0.05, warmup_temperature=0.03, warmup_steps=100)
    config.pretext.update(image_outputs=256, local_outputs=256, hidden=128, bottleneck=64, clusters=4, tokens=64)
    config.pretext.prototype_momentum = 0.9
    config.data.streams.all.directory = "data/sample/sentinel"
    config.data.update(image_size=16, batch_size=16)
    config.data.views.update(grid="s2_12", photometric=dict(s2_12=dict(gain=0.1), s1_grd=dict(gain=0.1)))
    config.optimizer.update(learning_rate=2e-3, warmup_steps=40, clip_norm=1.0)
    config.train.update(steps=400, log_every=20, checkpoint_every=200, evaluate_every=100)
    return config
