"""What the configurations of RingMoE and of SkySense share: the released recipes, as differences from the defaults."""

from __future__ import annotations

import itertools

from ml_collections import ConfigDict

LEVELS = ("pixel", "object", "image")  # of SkySense's multi-granularity contrastive learning
SENSORS = ("rgb", "slc_quad", "sar_amplitude", "ms4")  # of the released RingMoE configuration
BALANCE = dict(name="balance")
STRONG = dict(gain=0.2, blur=0.5, solarise=0.2)  # disturbance of high-resolution images (our choice)
LIGHT = dict(gain=0.05)  # of series (our choice)


def ringmoe(width: int, depths: tuple[int, ...], *, head_width: int = 32) -> ConfigDict:
    """The released RingMoE recipe at an embedding width, the one dial that sizes the model.

    Sensors, geometry, mixture, objectives and optimiser are those of the released configuration, except where
    docs/ringmoe.md says so, see `ringmoe_released`. `data` points at folders that a user fills with
    `experiments.prepare --source`.

    Args:
        width: D of the first stage.
        depths: blocks of the four stages.
        head_width: D of one attention head; must divide `width`.
    """
    config = _base()
    config.model = ConfigDict(dict(name="ringmoe", sensors=SENSORS, width=width, depths=depths, head_width=head_width))
    config.model.update(dtype="bfloat16", remat="full", moe={})
    config.objectives = masked(rgb="masked_l1", slc_quad="total_power", sar_amplitude="masked_l1", ms4="masked_l1")
    config.data.update(streams=streams(SENSORS, "data/{sensor}"), image_size=192, rotate=False)
    return config


def skysense(
    sensors: tuple[str, ...],
    *,
    high_resolution: str = "",
    streams: tuple[str, ...] | None = None,
    levels: tuple[str, ...] = LEVELS,
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
    config = _base()
    blocks = dict(remat="full")
    config.model = ConfigDict(dict(name="skysense", sensors=sensors, high_resolution=high_resolution))
    config.model.update(frame=blocks, fusion=blocks, geo_context={})
    config.model.modality_dropout = 0.1  # our choice
    config.model.update(dtype="bfloat16", remat="full")
    config.pretext = ConfigDict(dict(name="contrastive", warmup_steps=30_000, tokens=256))
    config.objectives = contrastive_objectives(streams or (*sensors, "fused"), levels)
    places = dict(directory="data/places", sensors=sensors, crop_scale=(0.3, 1.0))
    config.data.update(streams=dict(all=places), image_size=192, mask_unit=0, views=dict(date_jitter=5))
    return config


def _base() -> ConfigDict:
    """Data and training of the released RingMoE configuration; its optimiser is the default but for the warm-up."""
    return ConfigDict(
        dict(
            data=dict(batch_size=32, max_bad_records=16, shuffle_seed=2022),
            optimizer=dict(warmup_steps=200),
            train=dict(steps=100_000, log_every=50, checkpoint_every=1000, evaluate_every=1000, seed=2022),
            mesh={},
        )
    )


def streams(sensors: tuple[str, ...], directory: str, **fields) -> ConfigDict:
    """One stream a sensor.

    Args:
        sensors: of the streams, which have their names.
        directory: of the data set; "{sensor}" in it becomes the name.
        fields: further ones of `ringmoe_jax.data_config.StreamConfig`, the same for all.
    """
    return ConfigDict(
        {name: dict(directory=directory.format(sensor=name), sensors=(name,)) | fields for name in sensors}
    )


def masked(**losses: str) -> ConfigDict:
    """One masked loss a sensor, {sensor: name of its objective}, and the balance loss of the released configuration."""
    return ConfigDict(
        {sensor: dict(name=name, sensor=sensor) for sensor, name in losses.items()} | {"balance": BALANCE}
    )


def contrastive_objectives(streams: tuple[str, ...], levels: tuple[str, ...] = LEVELS) -> ConfigDict:
    """L_FGCL of every stream, all weights 1, and L_align of every pair of sensors, 0.1 (our choice)."""
    terms = {
        f"{stream}_{level}": dict(name="self_distillation", stream=stream, level=level)
        for stream in streams
        for level in levels
    }
    for a, b in itertools.combinations([stream for stream in streams if stream != "fused"], 2):
        terms[f"align_{a}_{b}"] = dict(name="alignment", sensors=(a, b), projected=True, temperature=0.07, scale=0.1)
    return ConfigDict(terms)
