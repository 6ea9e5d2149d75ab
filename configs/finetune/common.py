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
        patch=4,
        window=6,
        head_width=16,
        cosine_attention=True,
        drop_path=0.0,
        dtype="float32",
        remat="none",
        moe=dict(specialised=0, collaborative=0, shared=True),
    )


def base(
    task: dict, *, directory: str = "data/simulated_1m", sensors: tuple[str, ...] = ("rgb",), size: int = 96
) -> ConfigDict:
    """A task on one data set; everything about the encoder, its adaptation and the training is a default.

    Set `config.init_from` to a pre-training run to start from it; as it stands, the small encoder of
    `configs/dense_simulated.py` is trained from scratch, which a laptop can.

    Args:
        task: `name`, `target` and further fields.
        directory: data set.
        sensors: what the encoder is shown, and a sensor that is the truth.
        size: rows and columns of an image in pixels.
    """
    shown = tuple(name for name in sensors if name != task["target"])
    return ConfigDict(
        dict(
            task=task,
            head=dict(),
            neck=dict(streams=(), fusion="concat", modality_dropout=0.0),
            init_from="",
            weights="checkpoint",
            statistics="checkpoint",
            model=encoder(shown, size),
            override=dict(moe=dict(engine="dropless")),  # what is said of an image hangs on no other image
            adaptation=dict(method="full", rank=8, alpha=16.0, targets=r"(query|value)/kernel$", hidden=8, also=""),
            objectives=dict(),
            modules=(),
            data=dict(
                streams=dict(
                    data=dict(
                        directory=directory,
                        sensors=sensors,
                        split="train",
                        crop_scale=(1.0, 1.0),
                        crop_ratio=(1.0, 1.0),
                        fraction=1.0,
                        fraction_label="",
                        weight=1.0,
                    )
                ),
                bands=dict(),
                image_size=size,
                sizes=dict(),
                frames=dict(),
                batch_size=8,
                mask_unit=0,
                flip=True,
                rotate=True,
                statistics="dataset",
                max_bad_records=0,
                shuffle_seed=0,
                prefetch=2,
            ),
            optimizer=dict(
                learning_rate=2e-3,
                min_learning_rate=1e-6,
                warmup_learning_rate=1e-6,
                warmup_steps=None,
                warmup_fraction=1 / 6,
                weight_decay=0.05,
                clip_norm=5.0,
                layer_decay=1.0,
            ),
            train=dict(
                steps=600,
                accumulate=1,
                log_every=20,
                checkpoint_every=200,
                keep_checkpoints=1,
                evaluate_every=0,
                seed=0,
            ),
            mesh=dict(data=-1, fsdp=1, expert=1),
        )
    )
