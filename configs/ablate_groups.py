"""What each kind of expert is worth: the demo's mixture, and one of its three kinds alone at equal compute.

    python -m experiments.prepare --sample --out data/sample
    python -m experiments.ablate --config configs/ablate_groups.py --out runs/groups

Every run is `configs/demo.py`: four sensors, 300 steps, masked pixels of validation tiles and probes scored. What came
out: docs/results.md.
"""

from ml_collections import ConfigDict

from configs import demo

RATIO = 4  # hidden units over width of an expert, as in the demo
NONE = dict(specialised=0, collaborative=0, shared=False)


def get_config() -> ConfigDict:
    """One study; all arms share data, steps and seeds, and a token passes through as many hidden units in each."""
    base = demo.get_config()
    base.model.hidden_ratio = RATIO
    base.train.update(log_every=50, checkpoint_every=300, evaluate_every=0)
    moe, passed = base.model.moe.to_dict(), 3 * RATIO  # a specialised, a collaborative and the shared expert
    alone = lambda **kind: dict(override=dict(model=dict(hidden_ratio=passed, moe=moe | NONE | kind)))  # noqa: E731
    losses = {name: loss for name, loss in base.objectives.to_dict().items() if name != "balance"}
    arms = dict(
        all=dict(),
        specialised=alone(specialised=4),
        collaborative=alone(collaborative=4),
        shared=alone(shared=True) | dict(objectives=losses),
    )
    return ConfigDict(dict(studies=dict(groups=dict(config=base, baseline="all", arms=arms))))
