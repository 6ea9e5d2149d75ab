"""Plans a run on machines that need not be there: does a step fit, what does it cost, which mesh fits?

The training step of a pre-training is compiled for the topology ahead of time. That needs the compilers of
requirements-plan.txt; without them the part that needs no compiler is worked out.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping

import jax

from ringmoe_jax import run as runs
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.models import count
from ringmoe_jax.parallel import mesh as meshes
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.planning import ahead
from ringmoe_jax.planning import topology as topologies
from ringmoe_jax.planning.report import GIB, Plan, setting, verdict
from ringmoe_jax.planning.topology import Topology
from ringmoe_jax.run import Parts, PretrainConfig
from ringmoe_jax.training import optimizer
from ringmoe_jax.training import state as states
from ringmoe_jax.training.state import TrainState, state_shardings
from ringmoe_jax.training.step import make_train_step

MOST_COMPILATIONS = 6
REMAT = ("none", "dots", "full")  # from least to most recomputation


# ---- Making a plan ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What does not depend on the mesh.

    Attributes:
        state: shapes of the training state.
        flops: of a step as it is written, over all devices.
        kept_per_row: bytes kept for the backward pass for each row of a batch.
    """

    state: TrainState
    flops: float
    kept_per_row: float


def measure(config: PretrainConfig) -> Shapes:
    """Traces a step without a mesh and without a compiler."""
    parts = runs.pretraining(config, {})
    rule = optimizer.build(config.optimizer, config.train.steps)
    state = states.shapes(parts.model, parts.pretext, rule)
    sensors = rows_of(config, 1)
    step = _train_step(config, parts, accumulate=1)
    flops = ahead.count_flops(step, state, batch_shapes(config, sensors))
    batches = [batch_shapes(config, dict.fromkeys(sensors, rows)) for rows in (1, 2)]
    return Shapes(state, flops, ahead.kept_bytes(parts.pretext, parts.objectives, state, batches))


def place(config: PretrainConfig, topology: Topology, shapes: Shapes | None = None) -> Plan:
    """Checks a configuration against a topology and works out what needs no compiler.

    Raises:
        ConfigError: mesh, batch or experts do not divide over the devices.
    """
    mesh = meshes.abstract(config.mesh, topology.count)
    rows = rows_of(config, topology.count)
    shapes = shapes or measure(config)
    where = state_shardings(shapes.state, mesh)
    batch = batch_shapes(config, rows)
    parameters = ahead.bytes_per_device(shapes.state.params, where.params)
    return Plan(
        config=config,
        topology=topology,
        mesh=dict(mesh.shape),
        rows=rows,
        parameters=count(shapes.state.params),
        flops=shapes.flops,
        parameter_bytes=parameters,
        optimizer_bytes=ahead.bytes_per_device(shapes.state, where) - parameters,
        batch_bytes=ahead.bytes_per_device(batch, jax.tree.map(lambda _: meshes.batch_sharding(mesh), batch)),
        kept_bytes=shapes.kept_per_row * config.data.batch_size / topology.count / config.train.accumulate,
    )


def compiled(plan: Plan, *, full: bool = False) -> Plan:
    """Asks the compiler, with the effort of training where `full`; the plan says why where there is none."""
    config = plan.config
    try:
        devices = topologies.devices(plan.topology)
    except ConfigError as error:
        return dataclasses.replace(plan, refusal=str(error))
    mesh = meshes.make(config.mesh, devices)
    parts = runs.pretraining(config, {}, mesh)
    rule = optimizer.build(config.optimizer, config.train.steps)
    state = states.shapes(parts.model, parts.pretext, rule)
    step = _train_step(config, parts, accumulate=config.train.accumulate)
    options = topologies.compiler_options(plan.topology, full=full)
    answer = ahead.compile_step(step, state, batch_shapes(config, plan.rows), mesh, options)
    return dataclasses.replace(plan, compiled=answer)


def rows_of(config: PretrainConfig, devices: int) -> dict[str, int]:
    """Images of each sensor in a step, over all devices. Streams share evenly, whatever their mixing.

    Raises:
        ConfigError: they do not split evenly over the devices.
    """
    size, unit = config.data.batch_size, devices * config.train.accumulate
    if size % unit:
        each = f"{devices} devices" + (f" x train.accumulate = {config.train.accumulate}" if unit > devices else "")
        raise ConfigError(
            f"config.data.batch_size = {size} does not split over {each}: wanted a multiple of {unit}, "
            f"for example --config.data.batch_size={-(-size // unit) * unit}"
        )
    return {sensor: size for stream in config.data.streams.values() for sensor in stream.sensors}


def batch_shapes(config: PretrainConfig, rows: Mapping[str, int]) -> dict:
    """Shapes of a batch. Series have as many dates as `data.frames` says, one where it does not."""
    data, views = config.data, config.data.views
    images = {
        name: ahead.Images(
            number,
            data.frames.get(name, 1),
            data.view_size(name),
            data.mask_unit,
            view=views is not None,
            power=data.tile_power,
        )
        for name, number in rows.items()
    }
    further = {}
    if views:
        further["second"] = images
        for i in range(views.local):
            small = dataclasses.replace(images[views.local_sensor], size=views.local_size)
            further[f"local{i}"] = {views.local_sensor: small}
    return ahead.batch_shapes(config.sensors, images, further)


def _train_step(config: PretrainConfig, parts: Parts, *, accumulate: int):
    rule = optimizer.build(config.optimizer, config.train.steps)
    rate = optimizer.schedule(config.optimizer, config.train.steps)
    return make_train_step(
        parts.pretext, parts.objectives, rule, rate, seed=config.train.seed, accumulate=accumulate, mesh=parts.mesh
    )


# ---- Looking for one that fits ----------------------------------------------------------------------


def fit(config: PretrainConfig, topology: Topology, most: int = MOST_COMPILATIONS, *, full: bool = False) -> Plan:
    """The first candidate that fits: little recomputation first, then few shards of the state (our choice).

    Estimates pass over most candidates; what the compiler asked for more than estimated is added to the
    next estimates. The batch stays as configured where it splits over the devices, else it grows until it does.

    Raises:
        ConfigError: none fits, or none did within `most` compilations.
    """
    if not topology.memory:
        raise ConfigError(f'topology "{topology.name}": the memory of its devices is unknown, so nothing can be fitted')
    least, error, tried = float("inf"), 1.0, 0
    for candidate in candidates(config, topology):
        estimate = candidate.resident + error * (candidate.estimate - candidate.resident)
        least = min(least, estimate)
        if estimate > topology.memory:
            continue
        if tried == most:
            raise ConfigError(f"nothing that fits {topology.name} was found in {most} compilations: raise --tries")
        tried += 1
        plan = compiled(candidate, full=full)
        print(f"tried   {setting(plan)}: estimated {estimate / GIB:.2f} GiB, {verdict(plan)}", flush=True)
        if plan.fits is not False:
            return plan
        if needed := getattr(plan.compiled, "total", 0.0):
            error = max(error, (needed - plan.resident) / (plan.estimate - plan.resident))
    raise ConfigError(
        f"no mesh of {topology.name} fits {config.data.batch_size} images a stream: the smallest needs about "
        f"{least / GIB:.2f} of {topology.memory / GIB:.2f} GiB per device; ask for more devices or a smaller batch"
    )


def candidates(config: PretrainConfig, topology: Topology) -> Iterator[Plan]:
    """Plans to try, best first."""
    unit = topology.count * config.train.accumulate
    data = dataclasses.replace(config.data, batch_size=-(-config.data.batch_size // unit) * unit)
    shards = sorted(_meshes(topology.count), key=lambda m: (m.fsdp * m.expert, -m.expert))
    for remat in REMAT if "remat" in config.model else (None,):
        model = config.model | ({"remat": remat} if remat else {})
        chosen = dataclasses.replace(config, model=model, data=data)
        shapes = measure(chosen)
        for mesh in shards:
            with contextlib.suppress(ConfigError):  # the experts do not divide over this mesh
                yield place(dataclasses.replace(chosen, mesh=mesh), topology, shapes)


def _meshes(devices: int) -> Iterator[MeshConfig]:
    for shards in (n for n in range(1, devices + 1) if devices % n == 0):
        for expert in (n for n in range(1, shards + 1) if shards % n == 0):
            yield MeshConfig(devices // shards, shards // expert, expert)
