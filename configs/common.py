"""What the RingMoE configurations share. One dial sizes the model: the embedding width."""

from __future__ import annotations

from ml_collections import ConfigDict


def ringmoe(width: int, depths: tuple[int, ...], *, head_width: int = 32) -> ConfigDict:
    """The released RingMoE recipe at an embedding width.

    Sensors, geometry, mixture, objectives and optimiser are those of the released configuration, except
    where `ringmoe_jax` documents "our choice". `data` points at folders that a user fills with
    `experiments.prepare --source`.

    Args:
        width: D of the first stage.
        depths: blocks of the four stages.
        head_width: D of one attention head; must divide `width`.
    """
    config = ConfigDict()
    config.model = ConfigDict(
        dict(
            name="ringmoe",
            sensors=("rgb", "slc_quad", "sar_amplitude", "ms4"),
            width=width,
            depths=depths,
            image_size=192,
            patch=4,
            window=12,
            head_width=head_width,
            cosine_attention=False,
            power_input=False,
            drop_path=0.0,
            dtype="bfloat16",
            remat="full",
            moe=dict(
                specialised=4,
                collaborative=4,
                shared=True,
                top_k=1,
                capacity_factor=1.2,
                eval_capacity_factor=2.0,
                normalise_gates=False,
                engine="capacity",
                priority=False,
                groups=0,
            ),
        )
    )
    config.modules = ()  # modules of your own that register sensors
    config.pretext = "masked"
    config.objectives = ConfigDict(
        dict(
            rgb=dict(name="masked_l1", sensor="rgb", scale=1.0),
            slc_quad=dict(name="total_power", sensor="slc_quad", scale=1.0),
            sar_amplitude=dict(name="masked_l1", sensor="sar_amplitude", scale=1.0),
            ms4=dict(name="masked_l1", sensor="ms4", scale=1.0),
            balance=dict(name="balance", scale=4e-3),
        )
    )
    config.data = ConfigDict(
        dict(
            streams={
                sensor: dict(
                    directory=f"data/{sensor}", sensors=(sensor,), split="train", crop_scale=(0.2, 0.5), weight=1.0
                )
                for sensor in config.model.sensors
            },
            bands=dict(),
            image_size=192,
            batch_size=32,
            mixing="zip",
            temperature=1.0,
            mask_unit=32,
            mask_ratio=0.6,
            flip=True,
            rotate=False,
            statistics="dataset",
            max_bad_records=16,
            shuffle_seed=2022,
            prefetch=2,
        )
    )
    config.optimizer = ConfigDict(
        dict(
            learning_rate=2.5e-4,
            min_learning_rate=5e-7,
            warmup_learning_rate=1e-6,
            warmup_steps=200,
            weight_decay=0.05,
            clip_norm=5.0,
        )
    )
    config.train = ConfigDict(
        dict(
            steps=100_000,
            accumulate=1,
            log_every=50,
            checkpoint_every=1000,
            keep_checkpoints=2,
            evaluate_every=1000,
            seed=2022,
        )
    )
    config.mesh = ConfigDict(dict(data=-1, fsdp=1, expert=1))
    return config
