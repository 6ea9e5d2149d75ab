"""RingMoE as its code was released, where ours departs; docs/ringmoe.md has every choice beside the paper's and ours.

    python -m experiments.pretrain --config configs/ringmoe_released.py:nano --workdir runs/released

Tokens are served by modality, which goes on one device; on several set `--config.model.moe.by_modality=False`. Not run
at the sizes of the paper.
"""

from ml_collections import ConfigDict

from configs import ringmoe

CHOICES = ringmoe.CHOICES


def get_config(size: str) -> ConfigDict:
    """The recipe at a size, see `configs/ringmoe.py`."""
    return released(ringmoe.get_config(size))


def released(config: ConfigDict) -> ConfigDict:
    """A configuration of RingMoE with the released code's choices in place of ours; it is changed and returned.

    There are as many token groups as images of a sensor, as on the released code's 32 ranks. Objectives named
    `total_power` are scaled by their tiles; the released file of all modalities has `masked_l1` there.
    """
    config.model.update(norm_gain=1.0, epsilon=1e-6, merge_epsilon=1e-4, decoder_kernel="uniform")
    gates = dict(normalise_gates=True, after_drops=True, rounds=True, router_kernel="uniform")
    config.model.moe.update(by_modality=True, groups=config.data.batch_size, balance_groups=True, **gates)
    for objective in config.objectives.values():
        if objective.name == "total_power":
            objective.limits, config.data.tile_power = "tile", True
    config.optimizer.update(rate_scale=1 / 512, cosine_from_start=True, bias_correction=False)
    return config
