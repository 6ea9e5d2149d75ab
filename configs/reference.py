"""The reference run: a small RingMoE on 16,200 tiles without labels, for 2 cores or a GPU.

    python -m experiments.prepare --dataset eurosat_rgb --source EuroSAT_RGB.zip --splits spatial --out data/eurosat
    python -m experiments.pretrain --config configs/reference.py --workdir runs/reference
    python -m experiments.evaluate --checkpoint runs/reference --features stages

Many crops of one place are to have like embeddings, and those of all places are to be spread (VICReg, multi-crop); a
convolutional stem, norms before branches, embeddings of all stages, places in other light. Every layer has a shared
expert and four collaborative ones, each half as wide as a dense feed-forward layer, so that a token passes as many
parameters; routers decide from the start (temperature) and are kept from choosing the same expert by a balance weight
that VICReg's losses do not drown. Data lie in the device's memory, so a GPU needs no TensorFlow. What the features are
worth, and what was tried and did not help: docs/reference.md.
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    """What the run trains; `train.steps` sets how long."""
    config = common.ringmoe(width=96, depths=(2, 4))
    config.model.update(sensors=("rgb",), image_size=64, patch=8, window=8, stem="convolutional", pre_norm=True)
    config.model.update(dtype="float32", remat="none", unroll=True, hidden_ratio=2)
    config.model.moe = dict(specialised=0, collaborative=4, router=dict(name="softmax_top_k", temperature=0.1))
    config.pretext = ConfigDict(dict(name="joint_embedding", hidden=512, outputs=256, all_stages=True))
    config.objectives = ConfigDict(dict(vicreg=dict(name="vicreg", streams=("rgb",), joint=True)))
    config.objectives.balance = dict(name="balance", scale=0.5)
    config.data.streams = common.streams(("rgb",), "data/eurosat", crop_scale=(0.5, 1.0))
    config.data.update(reader="device", image_size=64, batch_size=64, mask_unit=0, rotate=True, max_bad_records=0)
    config.data.views = dict(sizes=dict(rgb=48), overlap=0.0, local=4, local_sensor="rgb", local_size=32)
    config.data.views.photometric = dict(rgb=dict(gain=0.05, illumination=0.1, offset=0.05, blur=0.3))
    config.optimizer = ConfigDict(dict(learning_rate=1.5e-3, warmup_fraction=0.08, clip_norm=3.0))
    config.train.update(steps=2500, log_every=50, checkpoint_every=500, evaluate_every=500, seed=0)
    return config
