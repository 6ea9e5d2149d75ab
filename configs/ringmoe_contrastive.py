"""Beyond both papers: RingMoE's backbone, trained with SkySense's objectives.

    python -m experiments.pretrain --config configs/ringmoe_contrastive.py --workdir runs/ringmoe_contrastive

Two views of real Sentinel-1/2 pairs, pixel, object and image level a sensor, and their alignment; model, experts and
balance loss are those of `ringmoe_micro` but for two stages instead of four.
60 steps were run on 2 cores, 125 images/s of the first view; the loss falls, the balance loss is 8.01 of 8. Not
compared with masked modelling.
"""

from ml_collections import ConfigDict

from configs import common, ringmoe_micro, skysense_micro


def get_config() -> ConfigDict:
    """`ringmoe_micro` without masks, on `skysense_micro`'s views."""
    config, other = ringmoe_micro.get_config(), skysense_micro.get_config()
    config.model.update(sensors=skysense_micro.SENSORS, image_size=32, depths=(2, 2))
    config.pretext, config.data = other.pretext, other.data
    config.data.image_size = 32
    config.objectives = common.contrastive_objectives(skysense_micro.SENSORS)
    config.objectives.balance = common.BALANCE
    config.train.steps = 400
    return config
