"""The weights that come with the library, trained on for 150 steps with images of another scale, without labels.

    python -m experiments.convert reference --out runs/reference
    python -m experiments.pretrain --config configs/adapt.py --workdir runs/adapted
    python -m experiments.evaluate --checkpoint runs/adapted --features stages --beside runs/reference

The sample's aerial images of 0.1 m by default; `--config.data.streams.rgb.directory=data/mine` are yours. What it is
worth: docs/reference.md.
"""

from ml_collections import ConfigDict

from configs import common, reference


def get_config() -> ConfigDict:
    """What differs from `configs/reference.py`."""
    config = reference.get_config()
    config.model = ConfigDict()  # that of the run it begins with
    config.update(init_from="runs/reference", statistics="dataset")
    config.data.streams = common.streams(("rgb",), "data/sample/aerial", crop_scale=(0.5, 1.0))
    config.data.batch_size = 32
    config.optimizer.learning_rate = 5e-4
    config.train.update(steps=150, log_every=10, checkpoint_every=150, evaluate_every=150)
    return config
