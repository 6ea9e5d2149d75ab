"""One stem for any bands against stems of fixed ones: Sentinel-2 tiles without B05, B06 and B8A, which come at the end.

    python -m experiments.prepare --source tiles --sensors s2_12 --tile 64 --stride 64 --out data/tiles
    python -m experiments.pretrain --config configs/any_sensor.py:physics --workdir runs/any/physics
    python -m experiments.pretrain --config configs/any_sensor.py:fixed --workdir runs/any/fixed
    python -m experiments.bands --checkpoint runs/any/physics --beside runs/any/fixed

`fixed_twelve`, `fixed_four` (blue, green, red, near infrared) and `fixed_three` (blue, green, red) are trained on just
the bands that they are shown at the end. Masked modelling by a small mixture of experts. `skysense_physics` and the
like are encoders of a SkySense instead, which two views of a tile teach. What came out: docs/any_sensor.md.
"""

from ml_collections import ConfigDict

from configs import common, skysense_micro

TWELVE = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
NINE = tuple(band for band in TWELVE if band not in ("B05", "B06", "B8A"))
FOUR = ("B02", "B03", "B04", "B08")
THREE = FOUR[:3]
SENSOR = "s2_12"
SKYSENSE = "skysense_"  # before a choice
STEMS = {
    "physics": dict(stem="physics", bands=NINE, band_dropout=0.3),
    "physics_whole": dict(stem="physics", bands=NINE, band_dropout=0.0),
    "fixed": dict(stem="linear", bands=NINE),
    "fixed_twelve": dict(stem="linear", bands=TWELVE),
    "fixed_four": dict(stem="linear", bands=FOUR),
    "fixed_three": dict(stem="linear", bands=THREE),
}
CHOICES = STEMS | {SKYSENSE + name: stem for name, stem in STEMS.items()}


def get_config(choice: str = "physics") -> ConfigDict:
    """A stem and the bands that it is trained on."""
    asked = dict(CHOICES[choice])
    bands = asked.pop("bands")
    config = _skysense() if choice.startswith(SKYSENSE) else _ringmoe()
    config.model.update(asked)
    config.data.bands = ConfigDict({SENSOR: bands})
    config.data.update(reader="device", batch_size=16, rotate=True)
    config.train.update(log_every=50, seed=0)
    del config.train.evaluate_every
    return config


def _ringmoe() -> ConfigDict:
    config = common.ringmoe(width=32, depths=(2, 2), head_width=16)
    config.model.update(sensors=(SENSOR,), image_size=64, window=8, decoder="pyramid", pre_norm=True)
    config.model.update(dtype="float32", remat="none", unroll=True, hidden_ratio=2)
    config.model.moe = dict(specialised=2, collaborative=2, engine="dropless")
    config.objectives = common.masked(s2_12="masked_l1")
    config.data.streams = common.streams((SENSOR,), "data/tiles", crop_scale=(0.4, 1.0))
    config.data.update(image_size=64, mask_unit=8)
    config.optimizer = dict(learning_rate=2e-3, warmup_fraction=0.05)
    config.train.update(steps=700, checkpoint_every=700)
    return config


def _skysense() -> ConfigDict:
    config = skysense_micro.get_config()
    config.model.update(sensors=(SENSOR,), frame_size=32, modality_dropout=0.0)
    del config.model.geo_context  # nobody knows where the tiles are
    config.objectives = common.contrastive_objectives((SENSOR,))
    config.data.streams = common.streams((SENSOR,), "data/tiles", crop_scale=(0.3, 1.0))
    config.data.image_size = 32
    config.data.views.photometric = dict(s2_12=dict(gain=0.1))
    config.train.update(steps=400, checkpoint_every=400)
    return config
