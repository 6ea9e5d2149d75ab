"""Trains any task on a pre-trained encoder, or goes on where a stopped run left off, and scores it.

python -m experiments.finetune --config configs/finetune/segmentation.py --workdir runs/seg
python -m experiments.finetune --config ... --workdir ... --config.init_from=runs/micro --config.adaptation.method=lora
python -m experiments.finetune --config ... --workdir ... --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments import common, downstream, scoring
from experiments.downstream import CHECKPOINT, DownstreamConfig, Encoder, Parts, Subject
from experiments.fitting import fit
from experiments.tables import plain
from input_pipeline.reader import BatchIterator, train_batches
from ringmoe_jax.errors import TrainingError
from ringmoe_jax.evaluate import seeds
from ringmoe_jax.models import count
from ringmoe_jax.models.downstream import DECODER, ENCODER
from ringmoe_jax.training import optimizer
from ringmoe_jax.training.state import TrainState, create

SECTIONS = ("task", "head", "neck", "adaptation", "objectives", "model", "override", "data", "optimizer")


def finetune(values: Mapping[str, Any], workdir: str) -> dict[str, Any]:
    """Runs a configuration to its last step and scores the result.

    Args:
        values: nested dict of a configuration file.
        workdir: folder of the run; a checkpoint found there is resumed, exactly.

    Returns:
        What `experiments.scoring` wrote to `<workdir>/report/task.json`.

    Raises:
        UserError: bad configuration, data or checkpoint; nothing that was saved is lost.
    """
    config = DownstreamConfig.of(values)
    values = config.complete()

    # ---- Devices, encoder and data ----------------------------------------------------------------
    mesh = common.make_mesh(config.mesh)
    shards = mesh.size if mesh else 1
    encoder = Encoder.of(config)
    dataset = downstream.open_data(config, encoder)
    data = train_batches(
        downstream.with_bands(config.data, encoder),
        host=jax.process_index(),
        hosts=jax.process_count(),
        multiple_of=shards * config.train.accumulate,
    )

    # ---- Model, objectives, optimiser -------------------------------------------------------------
    statistics = downstream.statistics_of(config, encoder, data.statistics)
    subject = Subject.of(config, dataset)
    parts = downstream.build(config, encoder, subject, statistics, mesh)
    rule = optimizer.build(config.optimizer, config.train.steps)
    rate = optimizer.schedule(config.optimizer, config.train.steps)
    state = create(parts.model, parts.pretext, rule, seed=config.train.seed, mesh=mesh)
    if config.init_from and config.weights == CHECKPOINT:
        state = downstream.fill(state, common.load(config.init_from).params)
    describe(config, encoder, parts, state, data)

    # ---- Train and score --------------------------------------------------------------------------
    state = fit(
        workdir,
        state,
        scoring.Checked(data, parts),
        pretext=parts.pretext,
        objectives=parts.objectives,
        optimizer=rule,
        learning_rate=rate,
        train=config.train,
        record={
            "config": values,
            "statistics": {name: s.to_json() for name, s in parts.statistics.items()},
            "encoder": encoder.to_json(),
            "subject": subject.to_json(),
        },
        sections=SECTIONS,
        complete=complete,
        mesh=mesh,
    )
    if int(state.step) < config.train.steps:
        raise TrainingError(f"{workdir} was stopped as asked: the same command goes on from there, and scores it")
    return scoring.score(scoring.Adapted.load(workdir), workdir)


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of fine-tuning with every default filled in."""
    return DownstreamConfig.of(values).complete()


def several(values: Mapping[str, Any], workdir: str, runs: Sequence[int]) -> dict[str, Any]:
    """The same configuration with several seeds, each in `<workdir>/seed<n>`; means and intervals over seeds.

    Raises:
        UserError: see `finetune`.
    """
    results = []
    for seed in runs:
        own = complete(values)
        own["train"]["seed"] = seed
        own["data"]["shuffle_seed"] = seed
        results.append(finetune(own, str(Path(workdir) / f"seed{seed}")))
    names = list(results[0]["scores"])
    known = lambda value: float("nan") if value is None else value  # noqa: E731
    values_of = {name: [known(r["scores"][name]["value"]) for r in results] for name in names}
    summary = {name: dataclasses.asdict(seeds.mean(of)) for name, of in values_of.items()}
    joined = {"seeds": list(runs), "task": results[0]["task"], "scores": summary, "runs": results}
    (Path(workdir) / scoring.SEEDS).write_text(json.dumps(plain(joined), indent=1) + "\n")
    return joined


def describe(config: DownstreamConfig, encoder: Encoder, parts: Parts, state: TrainState, data: BatchIterator) -> None:
    """Prints what is about to be trained, on what, from which data."""
    (name,) = data.datasets
    source = f"{config.init_from} at step {encoder.step}" if config.init_from else "new"
    fresh = ", but fresh weights" if config.init_from and config.weights != CHECKPOINT else ""
    frozen = count(state.pretext)
    print(f"devices     {len(jax.devices())} x {jax.devices()[0].device_kind}")
    print(f"encoder     {encoder.model['name']} of {source}{fresh}; shown {', '.join(parts.sensors)}")
    print(f"parameters  {count(state.params):,} trained, {frozen:,} frozen")
    for part in (ENCODER, "lora", DECODER):
        if part in state.params:
            print(f"            {count(state.params[part]):>14,} {part}")
    target = parts.target
    print(
        f"task        {config.task['name']} of {target.name}" + (f": {', '.join(target.names)}" if target.names else "")
    )
    print(f"data        {data.samples[name]} samples of {data.datasets[name].directory}, {data.sizes[name]} a step")
    for label, objective in parts.objectives.items():
        print(f"objective   {label}: {objective}")


@common.entry_point
def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="folder of the run: checkpoints, metrics, pictures")
    parser.add_argument("--seeds", nargs="+", type=int, help="one run a seed, in sub-folders; mean and interval")
    arguments, values = common.read_run(parser)
    if arguments.seeds:
        scoring.show_seeds(several(values, arguments.workdir, arguments.seeds))
    else:
        scoring.show(finetune(values, arguments.workdir))
        print(f"\nnumbers and pictures are in {arguments.workdir}/report; next:")
        print(f"    python -m experiments.report --workdir {arguments.workdir}")
    return 0


if __name__ == "__main__":
    main()
