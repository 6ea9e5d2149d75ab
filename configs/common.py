"""What the configurations of RingMoE and of SkySense share."""

from __future__ import annotations

import itertools

from ml_collections import ConfigDict

LEVELS = ("pixel", "object", "image")  # of SkySense's multi-granularity contrastive learning
SENSORS = ("rgb", "slc_quad", "sar_amplitude", "ms4")  # of the released RingMoE configuration
STRONG = dict(gain=0.2, blur=0.5, solarise=0.2)  # disturbance of high-resolution images (our choice)
LIGHT = dict(gain=0.05, blur=0.0, solarise=0.0)  # of series (our choice)


def _base(sensors: tuple[str, ...]) -> ConfigDict:
    """Data, optimiser and training of the released RingMoE configuration, one stream a sensor."""
    config = ConfigDict()
    config.modules = ()  # modules of your own that register sensors
    config.data = ConfigDict(
        dict(
            streams={
                sensor: dict(
                    directory=f"data/{sensor}", sensors=(sensor,), split="train", crop_scale=(0.2, 0.5), weight=1.0
                )
                for sensor in sensors
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


def ringmoe(width: int, depths: tuple[int, ...], *, head_width: int = 32) -> ConfigDict:
    """The released RingMoE recipe at an embedding width, the one dial that sizes the model.

    Sensors, geometry, mixture, objectives and optimiser are those of the released configuration, except
    where `ringmoe_jax` documents "our choice". `data` points at folders that a user fills with
    `experiments.prepare --source`.

    Args:
        width: D of the first stage.
        depths: blocks of the four stages.
        head_width: D of one attention head; must divide `width`.
    """
    config = _base(SENSORS)
    config.model = ConfigDict(
        dict(
            name="ringmoe",
            sensors=SENSORS,
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
    config.pretext = ConfigDict(dict(name="masked"))
    config.pruning = ConfigDict(dict(every=0, least=0.1, groups=("specialised", "collaborative")))
    config.objectives = ConfigDict(
        dict(
            rgb=dict(name="masked_l1", sensor="rgb", scale=1.0),
            slc_quad=dict(name="total_power", sensor="slc_quad", scale=1.0),
            sar_amplitude=dict(name="masked_l1", sensor="sar_amplitude", scale=1.0),
            ms4=dict(name="masked_l1", sensor="ms4", scale=1.0),
            balance=dict(name="balance", scale=4e-3),
        )
    )
    return config


def skysense(
    sensors: tuple[str, ...], *, high_resolution: str = "", streams: tuple[str, ...] | None = None, levels=LEVELS
) -> ConfigDict:
    """SkySense's recipe; sizes of the model are those of the paper.

    All objectives have weight 1, see `ringmoe_jax.pretext.contrastive` for what the paper leaves open. `data` names
    one folder of co-registered tiles that a user fills with `experiments.prepare`.

    Args:
        sensors: of one place; all but `high_resolution` are series.
        high_resolution: the one that SwinV2 encodes, "" for none.
        streams: features that two views are compared by; default all sensors and "fused".
        levels: of each.
    """
    config = _base(sensors)
    config.model = ConfigDict(
        dict(
            name="skysense",
            sensors=sensors,
            high_resolution=high_resolution,
            image_size=512,
            patch=4,
            width=352,
            depths=(2, 2, 18, 2),
            window=8,
            head_width=44,
            norm_every=6,
            drop_path=0.2,
            frame=dict(width=1024, depth=24, heads=16, hidden_ratio=4, drop_path=0.3, remat="full"),
            frame_patch=4,
            frame_size=64,
            fusion=dict(width=1024, depth=24, heads=16, hidden_ratio=4, drop_path=0.3, remat="full"),
            dated=(),
            modality_dropout=0.1,
            geo_context=dict(regions=4096, prototypes=100, grid="mercator", zoom=9),
            moe=dict(specialised=0, collaborative=0, shared=True),
            dtype="bfloat16",
            remat="full",
        )
    )
    config.pretext = ConfigDict(
        dict(
            name="contrastive",
            momentum=0.996,
            targets="sinkhorn",
            temperature=0.07,
            warmup_temperature=0.04,
            warmup_steps=30_000,
            image_outputs=65_536,
            local_outputs=8192,
            hidden=2048,
            bottleneck=256,
            clusters=8,
            tokens=256,
            prototype_momentum=0.99,
        )
    )
    config.objectives = contrastive_objectives(streams or (*sensors, "fused"), levels)
    config.data.streams = ConfigDict(
        dict(all=dict(directory="data/places", sensors=sensors, split="train", crop_scale=(0.3, 1.0), weight=1.0))
    )
    views = dict(grid="", overlap=0.25, local=0, local_sensor="", local_size=0, date_jitter=5, photometric={})
    config.data.update(mask_unit=0, rotate=True, sizes={}, frames={}, views=ConfigDict(views))
    return config


def contrastive_objectives(streams: tuple[str, ...], levels: tuple[str, ...] = LEVELS) -> ConfigDict:
    """L_FGCL of every stream, all weights 1, and L_align of every pair of sensors, 0.1 (our choice)."""
    terms = {
        f"{stream}_{level}": dict(name="self_distillation", stream=stream, level=level, scale=1.0)
        for stream in streams
        for level in levels
    }
    for a, b in itertools.combinations([stream for stream in streams if stream != "fused"], 2):
        terms[f"align_{a}_{b}"] = dict(name="alignment", sensors=(a, b), projected=True, temperature=0.07, scale=0.1)
    return ConfigDict(terms)
