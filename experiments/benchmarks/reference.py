"""What a recipe is worth after some minutes on this machine: its features by nearest neighbours, and its speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.benchmarks import gpu, train
from experiments.reports import leaderboard
from experiments.run.evaluate import evaluate
from experiments.run.pretrain import pretrain
from ringmoe_jax.run import PretrainConfig
from ringmoe_jax.run.evaluation import TRAINED
from ringmoe_jax.training import metrics

TRIAL = 10  # steps that say how long one takes


def measure(values: Mapping[str, Any], minutes: float, workdir: str, setting: gpu.Setting) -> dict[str, Any]:
    """Trains a configuration for some minutes, learning-rate schedule and all, and scores it on validation tiles.

    A short run first says how many steps fit. The minutes are those of train steps: compilation, validation,
    checkpoints and scoring come on top.

    Args:
        values: of a configuration file, with its overrides.
        minutes: of training.
        workdir: an empty folder for the two runs.
        setting: how the best product of this machine is measured, in float32; MFU refers to it.

    Returns:
        "steps", "views" (images that the model was shown), "minutes" (as they were), "images_per_second", "mfu" (of
        the products of the dense twin's step), "split", and "knn5" and "knn20": {kind of features: accuracy}.
    """
    config = PretrainConfig.of(values).complete()
    peak = gpu.peak(setting, {}, dtype="float32")["flops"]
    _, trial = _trained(config, TRIAL, f"{workdir}/trial")
    steps = max(TRIAL, int(TRIAL * minutes / trial))
    print(f"\none step takes {60 * trial / TRIAL:.3g} s: {steps} steps in {minutes:g} minutes", flush=True)
    folder = f"{workdir}/run"
    views, taken = _trained(config, steps, folder)
    flops = steps * train.model_flops(train.dense_backbone(config))
    split = "validation"  # test tiles are for finished recipes
    evaluation = evaluate(folder, protocol="knn", features="stages", split=split, brief=True)
    scores: dict[str, dict[str, float]] = {}
    for row in evaluation.probes:
        if row.encoder == TRAINED:
            scores.setdefault(row.protocol, {})[row.shown] = row.score.value
    return {
        "steps": steps,
        "views": views,
        "minutes": taken,
        "images_per_second": views / (60 * taken),
        "mfu": flops / (60 * taken) / peak,
        "split": split,
        **scores,
    }


def _trained(config: Mapping[str, Any], steps: int, workdir: str) -> tuple[int, float]:
    """Images that a run of so many steps was shown, and its minutes, without checkpoints and validation on the way."""
    every = dict(steps=steps, log_every=max(1, min(50, steps // 5)), checkpoint_every=steps, evaluate_every=0)
    pretrain({**config, "train": {**config["train"], **every}}, workdir)
    return leaderboard.effort(metrics.read(workdir))
