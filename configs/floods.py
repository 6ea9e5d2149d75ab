"""The reference recipe on pairs of Sentinel-1 and -2 pictures before and after floods (OMBRIA), without masks.

    python -m experiments.prepare --dataset ombria --source OMBRIA --tile 64 --out data/ombria
    python -m experiments.pretrain --config configs/floods.py --workdir runs/floods
    python -m experiments.few_labels --config data/ombria/finetune_flood.py --out runs/floods_few \
        --config.init_from=runs/floods --of scenes --fractions 0.1 1

Views of a place in both sensors are to have like embeddings, and those of all places are to be spread: radar and optics
are positives of each other. A view shows both dates, so that nothing asks the encoder to overlook a flood. What it is
worth with a tenth of the masks: docs/reference.md.
"""

from ml_collections import ConfigDict

from configs import reference

SENSORS = ("s2_8bit", "s1_8bit")


def get_config() -> ConfigDict:
    """What differs from `configs/reference.py`."""
    config = reference.get_config()
    config.model.update(sensors=SENSORS, width=64, depths=(2, 2))
    config.model.moe.update(specialised=2, collaborative=2)
    config.objectives.vicreg.streams = SENSORS
    places = dict(directory="data/ombria", split="train", sensors=SENSORS, crop_scale=(0.5, 1.0))
    config.data.streams = ConfigDict(dict(places=places))
    config.data.batch_size = 32
    optical, radar = dict(gain=0.05, illumination=0.1, offset=0.05, blur=0.3), dict(illumination=0.1, blur=0.1)
    sizes = dict.fromkeys(SENSORS, 48)
    config.data.views = dict(sizes=sizes, overlap=0.0, local=2, local_sensor="s2_8bit", local_size=32)
    config.data.views.photometric = dict(s2_8bit=optical, s1_8bit=radar)
    config.train.update(steps=1500)
    return config
