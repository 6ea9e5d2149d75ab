"""Plans a run on machines that you need not own: does a step fit, what does it cost, what bounds it?

python -m experiments.plan --config configs/ringmoe.py:14b --topology v5p:4x4x8 \\
    --config.mesh.fsdp=32 --config.mesh.expert=4 --config.data.batch_size=128
python -m experiments.plan --config configs/ringmoe.py:14b --topology h100:64 --fit --json

The training step of `experiments.pretrain` is compiled for the topology ahead of time. That needs the compilers in
requirements-plan.txt; without them the part that needs no compiler is printed.
"""

from __future__ import annotations

import argparse
import json

from experiments.run import cli


@cli.entry_point
def main() -> int:
    """Runs the command; returns its exit status: 2 where the step does not fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_config(parser)
    parser.add_argument("--topology", required=True, help="machine, for example v5p:4x4x8, h100:64, gpu:8:80GB, cpu:8")
    parser.add_argument("--fit", action="store_true", help="look for a mesh and a recomputation that fit")
    parser.add_argument("--tries", type=int, default=6, help="most compilations of --fit")
    parser.add_argument("--full", action="store_true", help="compile for TPUs with all optimisations, as training does")
    parser.add_argument("--json", action="store_true", help="all figures as one JSON object on the last line")
    arguments, overrides = parser.parse_known_args()
    from ringmoe_jax.planning import plan as planning
    from ringmoe_jax.planning import topology as topologies
    from ringmoe_jax.planning.report import describe, to_json
    from ringmoe_jax.run import PretrainConfig

    topology = topologies.parse(arguments.topology)
    topologies.start(topology)
    config = PretrainConfig.of(cli.read_config(arguments.config, overrides, arguments.sensors))
    if arguments.fit:
        plan = planning.fit(config, topology, arguments.tries, full=arguments.full)
    else:
        plan = planning.place(config, topology)
        plan = plan if plan.fits is False else planning.compiled(plan, full=arguments.full)
    print("\n".join(describe(plan)))
    if plan.fits is False:
        print("\n--fit looks for a mesh and a recomputation that fit")
    if arguments.json:
        print(json.dumps(to_json(plan)))
    return 2 if plan.fits is False else 0


if __name__ == "__main__":
    main()
