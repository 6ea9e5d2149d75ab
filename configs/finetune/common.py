"""What the configurations of all tasks share."""

from __future__ import annotations

from ml_collections import ConfigDict


def encoder(sensors: tuple[str, ...], size: int) -> dict:
    """RingMoE's backbone with one dense expert a block, small enough for a laptop: 2.3 M parameters."""
    return dict(
        name="ringmoe",
        sensors=sensors,
        width=32,
        depths=(2, 2, 2, 2),
        image_size=size,
        window=6,
        head_width=16,
        cosine_attention=True,
        unroll=True,
        moe=dict(specialised=0, collaborative=0),
    )


def base(
    task: dict, *, directory: str = "data/simulated_1m", sensors: tuple[str, ...] = ("rgb",), size: int = 96
) -> ConfigDict:
    """A task on one data set; adaptation, head, losses and the rest are defaults, see `ringmoe_jax.run.FinetuneConfig`.

    Set `config.init_from` to a pre-training run to start from it; as it stands, the small encoder of
    `configs/dense_simulated.py` is trained from scratch, which a laptop can.

    Args:
        task: `name`, `target` and further fields.
        directory: data set.
        sensors: what the encoder is shown, and a sensor that is the truth.
        size: rows and columns of an image in pixels.
    """
    stream = dict(directory=directory, sensors=sensors, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    return ConfigDict(
        dict(
            task=task,
            model=encoder(tuple(name for name in sensors if name != task["target"]), size),
            override=dict(moe=dict(engine="dropless")),  # what is said of an image hangs on no other image
            data=dict(streams=dict(data=stream), image_size=size, batch_size=8, mask_unit=0),
            optimizer=dict(learning_rate=2e-3, min_learning_rate=1e-6, warmup_fraction=1 / 6),
            train=dict(steps=600, log_every=20, keep_checkpoints=1),
        )
    )
