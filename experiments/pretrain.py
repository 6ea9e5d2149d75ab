"""Pre-trains a model, or goes on where a stopped run left off.

python -m experiments.pretrain --config configs/ringmoe_micro.py --workdir runs/micro
python -m experiments.pretrain --config ... --workdir ... --config.optimizer.learning_rate=1e-4
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from experiments import common
from experiments.common import ExperimentConfig, Parts
from experiments.fitting import fit, with_experts_left
from input_pipeline.evaluation import EvalBatches
from input_pipeline.reader import BatchIterator, train_batches
from ringmoe_jax.compress.online import Evaluate, counted
from ringmoe_jax.models import count
from ringmoe_jax.pretext import Pretext
from ringmoe_jax.sensors import Statistics
from ringmoe_jax.training import loop, optimizer, step
from ringmoe_jax.training.state import TrainState, create

VALIDATION_BATCHES = 4


def pretrain(values: Mapping, workdir: str) -> TrainState:
    """Runs a configuration to its last step.

    Args:
        values: nested dict of a configuration file.
        workdir: folder of the run; a checkpoint found there is resumed, exactly.

    Raises:
        UserError: bad configuration, data or checkpoint; nothing that was saved is lost.
    """
    config = ExperimentConfig.of(values)
    values = config.complete()
    common.check_streams(config)
    if config.pruning.every:
        values = with_experts_left(values, workdir)
        config = ExperimentConfig.of(values)

    # ---- Devices and data -------------------------------------------------------------------------
    mesh = common.make_mesh(config.mesh)
    shards = mesh.size if mesh else 1
    data = train_batches(
        config.data, host=jax.process_index(), hosts=jax.process_count(), multiple_of=shards * config.train.accumulate
    )

    # ---- Model, objectives, optimiser -------------------------------------------------------------
    parts = build(config, data.statistics, mesh)
    rule = optimizer.build(config.optimizer, config.train.steps)
    rate = optimizer.schedule(config.optimizer, config.train.steps)
    state = create(parts.model, parts.pretext, rule, seed=config.train.seed, mesh=mesh)
    describe(parts, state, data)
    batches = _validation_batches(config) if config.train.evaluate_every else []

    def rebuild(model: dict[str, Any]) -> tuple[Pretext, Evaluate]:
        smaller = build(dataclasses.replace(config, model=model), data.statistics, mesh)
        return smaller.pretext, validation(smaller, batches)

    # ---- Train ------------------------------------------------------------------------------------
    return fit(
        workdir,
        state,
        data,
        pretext=parts.pretext,
        objectives=parts.objectives,
        optimizer=rule,
        learning_rate=rate,
        train=config.train,
        record={"config": values, "statistics": {name: s.to_json() for name, s in parts.statistics.items()}},
        sections=("model", "pretext", "objectives", "data", "optimizer", "pruning"),
        complete=complete,
        evaluate=validation(parts, batches),
        mesh=mesh,
        pruning=config.pruning,
        rebuild=rebuild,
    )


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of pre-training with every default filled in."""
    return ExperimentConfig.of(values).complete()


def build(config: ExperimentConfig, statistics: Mapping[str, Statistics], mesh=None) -> Parts:
    """As `common.build`; where experts may go, the pretext task counts who chooses them."""
    parts = common.build(config, statistics, mesh)
    if not config.pruning.every:
        return parts
    return dataclasses.replace(parts, pretext=counted(parts.pretext, config.model, config.pruning))


def validation(parts: Parts, batches: Sequence[Mapping]) -> Evaluate:
    """Builds the pass over validation batches."""
    evaluate_batch = step.make_eval_step(parts.pretext, parts.objectives, parts.mesh)

    def evaluate(state: TrainState) -> dict[str, float]:
        sums = [jax.device_get(evaluate_batch(state, loop.place(batch, parts.mesh))) for batch in batches]
        return step.mean_losses(sums, parts.objectives)

    return evaluate


def _validation_batches(config: ExperimentConfig) -> list[dict]:
    """The same batches every time: whole tiles side by side, or the first drawn views where training sees views."""
    data, hosts = config.data, jax.process_count()
    if data.views:
        streams = {name: dataclasses.replace(stream, split="validation") for name, stream in data.streams.items()}
        drawn = train_batches(dataclasses.replace(data, streams=streams), host=jax.process_index(), hosts=hosts)
        batches = [next(drawn) for _ in range(VALIDATION_BATCHES)]
        drawn.close()
        return [{"sensors": batch["sensors"], "views": batch["views"]} for batch in batches]
    readers = [
        EvalBatches(
            stream.directory,
            stream.sensors,
            split="validation",
            image_size=data.image_size,
            sizes=data.sizes,
            frames=data.frames,
            batch_size=data.batch_size // hosts,
            bands=data.bands,
            mask_unit=data.mask_unit,
            mask_ratio=data.mask_ratio,
            seed=data.shuffle_seed,
            host=jax.process_index(),
            hosts=hosts,
            max_bad_records=data.max_bad_records,
        )
        for stream in data.streams.values()
    ]
    parts = [[batch for batch, _ in zip(reader, range(VALIDATION_BATCHES), strict=False)] for reader in readers]
    return [
        {"sensors": {name: entry for batch in side_by_side for name, entry in batch["sensors"].items()}}
        for side_by_side in zip(*parts, strict=False)
    ]


def describe(parts: Parts, state: TrainState, data: BatchIterator) -> None:
    """Prints what is about to be trained, on what, from which data."""
    devices = jax.devices()
    print(
        f"devices     {len(devices)} x {devices[0].device_kind}"
        + (f", mesh {dict(parts.mesh.shape)}" if parts.mesh else "")
    )
    print(f"parameters  {count(state.params):,} in all")
    for name, part in sorted(state.params.items(), key=lambda item: -count(item[1])):
        print(f"            {count(part):>14,} {name}")
    for name, dataset in data.datasets.items():
        sensors = ", ".join(f"{s} ({len(x.bands)} bands, {x.unit})" for s, x in dataset.sensors.items())
        print(f"stream      {name}: {data.sizes[name]} images a step of {sensors} from {dataset.directory}")
    for label, objective in parts.objectives.items():
        print(f"objective   {label}: {objective}")


@common.entry_point
def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="folder of the run: checkpoints, metrics, pictures")
    arguments, values = common.read_run(parser)
    pretrain(values, arguments.workdir)
    print(f"\ncheckpoints and metrics are in {arguments.workdir}; next:")
    print(f"    python -m experiments.evaluate --checkpoint {arguments.workdir}")
    return 0


if __name__ == "__main__":
    main()
