"""The reference recipe's mixture against dense twins, and its objectives against others, on EuroSAT without labels.

    python -m experiments.ablate --config configs/ablate_experts.py --out runs/experts
    python -m experiments.ablate --config configs/ablate_experts.py --out runs/experts --studies experts --seeds 0 1

Every run is `configs/reference.py` with 400 steps, 154,000 views: the time of a choice, not of a result. Validation
tiles are scored. Not run yet.
"""

from ml_collections import ConfigDict

from configs import reference

DENSE = dict(specialised=0, collaborative=0, shared=True)


def get_config() -> ConfigDict:
    """Two studies; all arms share data, views, steps and seeds."""
    base = reference.get_config()
    base.train.update(steps=400, log_every=50, checkpoint_every=400, evaluate_every=0)
    common = dict(config=base, features="stages", split="validation")
    return ConfigDict(
        dict(
            studies=dict(
                experts=dict(common, baseline="mixture", arms=arms_experts(base)),
                targets=dict(common, baseline="views", arms=arms_targets()),
            )
        )
    )


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
