"""One stem for any bands against stems of fixed ones: Sentinel-2 tiles without B05, B06 and B8A, which come at the end.

    python -m experiments.prepare --source tiles --sensors s2_12 --tile 64 --stride 64 --out data/tiles
    python -m experiments.pretrain --config configs/any_sensor.py:physics --workdir runs/any/physics
    python -m experiments.pretrain --config configs/any_sensor.py:fixed --workdir runs/any/fixed
    python -m experiments.bands --checkpoint runs/any/physics --beside runs/any/fixed

`fixed_twelve` and `fixed_four` (blue, green, red, near infrared) are trained on just the bands that they are shown at
the end. Masked modelling by a small mixture of experts; what came out: docs/any_sensor.md.
"""

from ml_collections import ConfigDict

from configs import common

TWELVE = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
NINE = tuple(band for band in TWELVE if band not in ("B05", "B06", "B8A"))
FOUR = ("B02", "B03", "B04", "B08")
CHOICES = {
    "physics": dict(stem="physics", bands=NINE, band_dropout=0.3),
    "physics_whole": dict(stem="physics", bands=NINE, band_dropout=0.0),
    "fixed": dict(stem="linear", bands=NINE),
    "fixed_twelve": dict(stem="linear", bands=TWELVE),
    "fixed_four": dict(stem="linear", bands=FOUR),
}


def get_config(choice: str = "physics") -> ConfigDict:
    """A stem and the bands that it is trained on."""
    asked = dict(CHOICES[choice])
    config = common.ringmoe(width=32, depths=(2, 2), head_width=16)
    config.data.bands = ConfigDict(dict(s2_12=asked.pop("bands")))
    config.model.update(sensors=("s2_12",), image_size=64, window=8, decoder="pyramid", pre_norm=True, **asked)
    config.model.update(dtype="float32", remat="none", unroll=True, hidden_ratio=2)
    config.model.moe = dict(specialised=2, collaborative=2, engine="dropless")
    config.objectives = common.masked(s2_12="masked_l1")
    config.data.streams = common.streams(("s2_12",), "data/tiles", crop_scale=(0.4, 1.0))
    config.data.update(reader="device", image_size=64, batch_size=16, mask_unit=8, rotate=True)
    config.optimizer = dict(learning_rate=2e-3, warmup_fraction=0.05)
    config.train.update(steps=700, log_every=50, checkpoint_every=700, seed=0)
    del config.train.evaluate_every
    return config
