"""What a pre-training would do on the processes and devices that were started, without a step and without a file."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import jax

from experiments.run.fit import new_shapes
from experiments.run.pretrain import open_parts
from input_pipeline.reader import BatchIterator
from ringmoe_jax.parallel import mesh as meshes
from ringmoe_jax.parallel import processes
from ringmoe_jax.planning.ahead import bytes_per_device
from ringmoe_jax.planning.plan import batch_shapes, rows_of
from ringmoe_jax.planning.report import MIB
from ringmoe_jax.run import PretrainConfig
from ringmoe_jax.training.checkpoint import Checkpointer, versions
from ringmoe_jax.training.state import state_shardings

SHOWN = 4  # hosts whose rows are printed


def dry_run(values: Mapping, workdir: str) -> None:
    """Opens on every process what training opens, and prints hosts, mesh, bytes of a device and what a host reads.

    Args:
        values: nested dict of a configuration file.
        workdir: folder of the run; is looked at, not written.

    Raises:
        UserError: what training would end with before its first step.
    """
    config, data, parts = open_parts(values, workdir)
    processes.agree({"config": config.complete(), "versions": versions(), "data": data.get_state()}, "run")
    hosts = processes.exchange(f"{socket.gethostname()}, {len(jax.local_devices())} x {jax.devices()[0].device_kind}")
    mesh = meshes.make(config.mesh)
    print(f"hosts       {len(hosts)}: {'; '.join(hosts)}")
    print(f"mesh        {' x '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}")
    state = new_shapes(parts, config)
    placed = state_shardings(state, mesh)
    batch = batch_shapes(config, rows_of(config, mesh.size))
    parameters, everything = bytes_per_device(state.params, placed.params), bytes_per_device(state, placed)
    images = bytes_per_device(batch, jax.tree.map(lambda _: meshes.batch_sharding(mesh), batch))
    print(f"a device    {_mib(parameters)} of parameters, {_mib(everything - parameters)} of further state, ", end="")
    print(f"{_mib(images)} of images; what a step needs beside them says experiments.plan")
    for name in data.datasets:
        _show_stream(config, data, name, len(hosts))
    step = Checkpointer.open(workdir).newest_whole() if Checkpointer.exists(workdir) else None
    print(f"checkpoint  {'none: starts anew' if step is None else f'goes on from step {step}'} in {workdir}")


def _show_stream(config: PretrainConfig, data: BatchIterator, name: str, hosts: int) -> None:
    dataset, rows, split = data.datasets[name], data.sizes[name], config.data.streams[name].split
    stored = dataset.nbytes(split)
    each = stored / dataset.size(split)
    print(f"stream      {name}: {data.samples[name]:,} samples of {dataset.directory}/{split}, {_mib(stored)}")
    blocks = [f"host {host} rows {host * rows} to {(host + 1) * rows - 1}" for host in range(hosts)]
    more = [f"{hosts - SHOWN} more"] if hosts > SHOWN else []
    print(f"            {rows * hosts} a step: {', '.join(blocks[:SHOWN] + more)}; {_mib(rows * each)} a step and host")


def _mib(size: float) -> str:
    return f"{size / MIB:,.3g} MiB"
