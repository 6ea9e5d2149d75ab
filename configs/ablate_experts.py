"""A smaller reference run's mixture against dense twins, its objectives against others, and under a released teacher.

    python -m experiments.ablate --config configs/ablate_experts.py --out runs/experts --studies experts targets
    python -m experiments.ablate --config configs/ablate_experts.py --out runs/experts --studies teacher

Every run is `configs/reference.py` at width 64 and depths (2, 2) with 250 steps, 96,000 views: the time of a choice,
not of a result. Validation tiles are scored. `teacher` wants `runs/galileo_nano`: `experiments.convert encoder.pt
--source galileo --sensors rgb --model patch=8 --dataset data/eurosat --out runs/galileo_nano` (docs/weights.md). What
came out: docs/reference.md.
"""

from ml_collections import ConfigDict

from configs import reference

DENSE = dict(specialised=0, collaborative=0, shared=True)
TEACHER = "runs/galileo_nano"


def get_config() -> ConfigDict:
    """Three studies; all arms of one share data, views, steps and seeds."""
    base = reference.get_config()
    base.model.update(width=64, depths=(2, 2))
    base.train.update(steps=250, log_every=50, checkpoint_every=250, evaluate_every=0)
    common = dict(config=base, features="stages", split="validation")
    studies = dict(
        experts=dict(common, baseline="mixture", arms=arms_experts(base)),
        targets=dict(common, baseline="views", arms=arms_targets()),
        teacher=dict(common, baseline="views", arms=arms_teacher(base)),
    )
    return ConfigDict(dict(studies=studies))


def arms_experts(base: ConfigDict) -> dict:
    """Four experts of which a token passes one beside the shared one, and layers without a choice.

    `equal_compute` passes a token through as many hidden units, `equal_parameters` has as many in all.
    """
    vicreg = dict(vicreg=base.objectives.vicreg.to_dict())
    dense = lambda ratio: dict(objectives=vicreg, override=dict(model=dict(hidden_ratio=ratio, moe=DENSE)))  # noqa: E731
    each, routed = base.model.hidden_ratio, base.model.moe.collaborative
    return dict(mixture=dict(), equal_compute=dense(2 * each), equal_parameters=dense((routed + 1) * each))


def arms_targets() -> dict:
    """How embeddings are kept from being all alike."""
    sigreg = dict(sigreg=dict(name="sigreg", streams=("rgb",)), balance=dict(name="balance", scale=0.5))
    return dict(views=dict(), sigreg=dict(objectives=sigreg))


def arms_teacher(base: ConfigDict) -> dict:
    """The recipe, and the recipe under Galileo nano; the weight was not tuned."""
    relations = dict(name="relation_matching", sensor="rgb", scale=10.0)
    return dict(
        views=dict(),
        taught=dict(objectives=base.objectives.to_dict() | dict(relations=relations), override=dict(teacher=TEACHER)),
    )
