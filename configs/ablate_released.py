"""Our choices against those of RingMoE's released code, on the sample data.

    python -m experiments.prepare --sample --out data/sample
    python -m experiments.ablate --config configs/ablate_released.py --out runs/ablation_released --seeds 0 1

Every run trains one block of the micro model on 32 pixels of Sentinel-1 and -2, 200 steps. All arms share the learning
rate: the released one, 1/512 of ours, trains nothing in so few steps. What came out: docs/ringmoe.md.
"""

from ml_collections import ConfigDict

from configs import common, ringmoe_micro, ringmoe_released


def get_config() -> ConfigDict:
    """One study; an arm is one group of choices, `released` is all of them."""
    base = ringmoe_micro.get_config()
    losses = dict(s2_12="masked_l1", s1_grd="masked_l1")
    base.model.update(sensors=tuple(losses), depths=(1,), image_size=32, patch=8)
    base.objectives = common.masked(**losses)
    base.data.streams = {name: base.data.streams[name] for name in losses}
    base.data.update(image_size=32, batch_size=8, reader="device")
    base.optimizer.update(warmup_steps=20)
    base.train.update(steps=200, log_every=50, checkpoint_every=200, evaluate_every=200)
    return ConfigDict(dict(studies=dict(released=dict(config=base, baseline="ours", arms=arms(base)))))


def arms(base: ConfigDict) -> dict:
    """What differs from ours, by group."""
    released = ringmoe_released.released(base.copy_and_resolve_references())
    model, moe = released.model.to_dict(), released.model.moe.to_dict()
    of = lambda values, *names: {name: values[name] for name in names}  # noqa: E731
    optimizer = of(released.optimizer, "cosine_from_start", "bias_correction")
    models = dict(
        gains=of(model, "norm_gain"),
        kernels=of(model, "decoder_kernel") | dict(moe=of(moe, "router_kernel")),
        gates=dict(moe=of(moe, "normalise_gates", "after_drops")),
        service=dict(moe=of(moe, "by_modality", "groups", "balance_groups")),
        released=model,
    )
    overrides = {name: dict(model=changes) for name, changes in models.items()}
    overrides["optimiser"] = dict(optimizer=optimizer)
    overrides["released"]["optimizer"] = optimizer
    return dict(ours=dict()) | {name: dict(override=changes) for name, changes in overrides.items()}
