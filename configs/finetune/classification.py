"""Scene classification from two sensors: one class an image, by a linear layer on pooled features.

    python -m experiments.prepare  --simulate 1200 --out data/simulated_sentinel --size 96 --sensors s2_12 s1_grd
    python -m experiments.finetune --config configs/finetune/classification.py --workdir runs/classification

Measured (docs/results.md): accuracy 0.950 [0.921, 0.979] on held-out scenes, constant answer 0.783.
"""

from configs.finetune import common


def get_config():
    """Whether a simulated scene shows a town, a coast, both or neither; Sentinel-like optical and radar images."""
    config = common.base(
        dict(name="classification", target="setting"),
        directory="data/simulated_sentinel",
        sensors=("s2_12", "s1_grd"),
        size=48,
    )
    config.model.depths = (2, 2)
    config.head = dict(name="linear", pool="max")  # a few houses make a town
    config.data.batch_size = 16
    config.optimizer.update(learning_rate=1e-3, warmup_fraction=1 / 9)
    config.train.steps = 900
    return config
