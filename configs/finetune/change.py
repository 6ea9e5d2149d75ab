"""Change detection: what differs between the first and the last date, by a Siamese encoder.

    python -m experiments.prepare  --simulate 300 --out data/simulated_change --size 96 --gsd 1 --dates 2 --sensors rgb
    python -m experiments.finetune --config configs/finetune/change.py --workdir runs/change

Measured (docs/results.md): F1 0.954 [0.947, 0.960] on held-out scenes, change everywhere 0.358.
"""

from configs.finetune import common


def get_config():
    """Changed land cover of simulated scenes."""
    config = common.base(dict(name="change", target="change"), directory="data/simulated_change")
    config.head = dict(name="change_difference", channels=64)
    return config
