"""RingMoE at width 32 on the sample data: the whole method on a laptop CPU in minutes, as `make demo` runs it.

    python -m experiments.prepare --sample --out data/sample
    python -m experiments.pretrain --config configs/demo.py --workdir runs/demo
    python -m experiments.pretrain --config configs/demo.py --workdir runs/optical --sensors rgb s2_12

Two stages of patches of 4 pixels, so that a token of the last one stands for 8 x 8 pixels, a cell of the mask, and a
reconstruction looks like the image (configs/ringmoe_micro.py has the paper's four stages). Routers of temperature 0.1
decide within hundreds of steps (our choice). What it reaches: docs/results.md; how long it takes: docs/benchmarks.md.
"""

from ml_collections import ConfigDict

from configs import ringmoe_micro


def get_config() -> ConfigDict:
    """What the demo changes of `ringmoe_micro`."""
    config = ringmoe_micro.get_config()
    config.model.update(width=32, depths=(2, 4))
    config.model.moe = dict(router=dict(name="softmax_top_k", temperature=0.1))
    config.data.reader = "device"
    config.train.update(steps=300, checkpoint_every=150, evaluate_every=150)
    return config
