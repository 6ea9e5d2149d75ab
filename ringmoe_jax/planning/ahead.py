"""A training step without data and without the machine: shapes, bytes per device, work, compilation ahead of time."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ringmoe_jax.objectives import Objective
from ringmoe_jax.parallel import hlo
from ringmoe_jax.parallel.mesh import batch_sharding
from ringmoe_jax.parallel.sharding import placed
from ringmoe_jax.pretext import Pretext
from ringmoe_jax.sensors import COMPLEX, Sensor
from ringmoe_jax.training.state import TrainState, state_shardings


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one sensor in a step.

    Attributes:
        rows: over all devices.
        dates: T.
        size: pixels along one side.
        mask_unit: side of a mask cell in pixels; 0 for no masks.
        view: whether it belongs to a view, and so says which ground it shows.
        power: whether those of complex sensors say the power of their tile.
    """

    rows: int
    dates: int
    size: int
    mask_unit: int = 0
    view: bool = False
    power: bool = False


def batch_shapes(
    sensors: Mapping[str, Sensor], images: Mapping[str, Images], views: Mapping[str, Mapping[str, Images]] | None = None
) -> dict:
    """Shapes and dtypes of a batch, see `ringmoe_jax.contracts`.

    Args:
        sensors: of the model.
        images: by sensor.
        views: further views, {view: images by sensor}.
    """

    def entries(shown: Mapping[str, Images]) -> dict:
        return {name: _entry_shapes(sensors[name], image) for name, image in shown.items()}

    batch = {"sensors": entries(images)}
    return batch | ({"views": {view: entries(shown) for view, shown in views.items()}} if views else {})


def _entry_shapes(sensor: Sensor, image: Images) -> dict:
    shape, b, t, size = jax.ShapeDtypeStruct, image.rows, image.dates, image.size
    cells = size // image.mask_unit if image.mask_unit else 0
    mask = {"mask": shape((b, cells, cells), jnp.bool_)} if cells else {}
    ground = {"ground": shape((b, 2, 3), jnp.float32)} if image.view else {}
    power = {"power": shape((b, t, 2), jnp.float32)} if image.power and sensor.resampling == COMPLEX else {}
    return (
        {
            "pixels": shape((b, t, size, size, sensor.channels), jnp.float32),
            "valid": shape((b, t, size, size), jnp.bool_),
            "time": shape((b, t), jnp.int32),
            "location": shape((b, 2), jnp.float32),
            "gsd": shape((b,), jnp.float32),
        }
        | mask
        | ground
        | power
    )


def bytes_per_device(tree, shardings) -> int:
    """Bytes of the largest share of a tree of shapes on one device, without padding."""
    sizes = jax.tree.map(lambda s, where: math.prod(where.shard_shape(s.shape)) * s.dtype.itemsize, tree, shardings)
    return sum(jax.tree.leaves(sizes))


def kept_bytes(pretext: Pretext, objectives: Mapping[str, Objective], state: TrainState, batches) -> float:
    """Bytes that the forward pass keeps for the backward pass, for each further row of a batch.

    What JAX would keep under the model's recomputation policy, by shapes alone. Buffers that live within one layer
    are not in it.

    Args:
        pretext: forward passes, of a model without a mesh.
        objectives: terms of the loss.
        state: shapes.
        batches: shapes of two batches, the second with one row more.
    """

    def residuals(params, pretext_state, batch):
        def loss(params):
            outputs, _ = pretext.apply(params, pretext_state, batch, key=jax.random.key(0), train=True)
            return sum(objective(outputs, batch)[0] for objective in objectives.values())

        return jax.tree.leaves(jax.vjp(loss, params)[1])

    def total(batch) -> int:
        leaves = jax.eval_shape(residuals, state.params, state.pretext, batch)
        return sum(math.prod(s.shape) * s.dtype.itemsize for s in leaves)

    first, second = map(total, batches)
    return second - first


def live_bytes(function, *arguments) -> int:
    """Most bytes of arguments and values that a function as it is written keeps at once, closures left out.

    A compiler that joins operations needs less. Needs no compiler; see `count_flops`.
    """
    return _jaxpr_live(jax.make_jaxpr(function)(*arguments).jaxpr)


def _jaxpr_live(jaxpr) -> int:
    size = lambda v: math.prod(v.aval.shape) * v.aval.dtype.itemsize if hasattr(v.aval, "dtype") else 0  # noqa: E731
    is_value = lambda v: not hasattr(v, "val")  # noqa: E731  a literal has one
    last = {v: i for i, equation in enumerate(jaxpr.eqns) for v in filter(is_value, equation.invars)}
    last |= {v: len(jaxpr.eqns) for v in filter(is_value, jaxpr.outvars)}
    live = sum(map(size, jaxpr.invars))
    most = live
    for i, equation in enumerate(jaxpr.eqns):
        within = [_jaxpr_live(inner) for value in equation.params.values() for inner in _jaxprs(value)]
        given = sum(map(size, filter(is_value, equation.invars)))
        live += sum(map(size, equation.outvars))
        most = max(most, live, live + max(within, default=0) - given)
        gone = {v for v in (*equation.invars, *equation.outvars) if is_value(v) and last.get(v, i) <= i}
        live -= sum(map(size, gone - set(jaxpr.constvars)))
    return most


def count_flops(function, *arguments) -> float:
    """FLOPs of the products of a function as it is written, over all devices: 2 M N K each.

    Loops count by their length, once where it is not known; branches as their dearest; experts by an even load
    (`hlo.UNCOUNTED`); recomputation is in. Needs no compiler.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _jaxpr_flops(jaxpr) -> float:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation) -> float:
    name, params = equation.primitive.name, equation.params
    shapes = [getattr(v.aval, "shape", ()) for v in equation.invars]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][i] for i in contracted)
    if name in ("ragged_dot", "ragged_dot_general"):
        # Every row meets one matrix: rows x K x the columns of the right side.
        dims = params["ragged_dot_dimension_numbers"]
        (_, contracted), (_, batch) = dims.dot_dimension_numbers
        left_out = {*contracted, *batch, *dims.rhs_group_dimensions}
        return 2.0 * math.prod(shapes[0]) * math.prod(n for i, n in enumerate(shapes[1]) if i not in left_out)
    if name == "pallas_call":
        declared = params.get("cost_estimate")
        return float(declared.flops) if declared else 0.0
    inner = [_jaxpr_flops(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
    if name == "cond":
        return max(inner, default=0.0)
    if name == "while" and hlo.UNCOUNTED in str(equation.source_info.name_stack).split("/"):
        return 0.0
    times = params["length"] if name == "scan" else 1
    if name == "shard_map":
        times = math.prod(params["mesh"].shape[axis] for axis in params["manual_axes"])
    return times * sum(inner)


def _jaxprs(value) -> list:
    """The programs in a parameter of an equation."""
    items = value if isinstance(value, (tuple, list)) else (value,)
    items = [getattr(item, "jaxpr", item) for item in items]
    return [item for item in items if hasattr(item, "eqns")]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a step, per device.

    Attributes:
        seconds: lowering and compilation.
        arguments: bytes of state and batch.
        outputs: bytes of what is returned and does not take the place of an argument.
        temporaries: bytes of gradients, activations and the rest.
        code: bytes of the program itself.
        cost: products and collectives.
    """

    seconds: float
    arguments: float
    outputs: float
    temporaries: float
    code: float
    cost: hlo.Cost

    @property
    def total(self) -> float:
        """Bytes that the step needs."""
        return self.arguments + self.outputs + self.temporaries + self.code

    @property
    def traffic(self) -> float:
        """Bytes that must at least pass the memory: arguments are read, results written, temporaries both."""
        return 2 * self.arguments + self.outputs + 2 * self.temporaries


@dataclasses.dataclass(frozen=True)
class Refused:
    """The compiler found that the step does not fit.

    Attributes:
        seconds: until it gave up.
        total: bytes per device that it would need; 0 where it did not say.
        reason: its words, one line.
    """

    seconds: float
    total: float
    reason: str


def compile_step(step, state: TrainState, batch: Mapping, mesh, options: Mapping[str, str | int]) -> Compiled | Refused:
    """Compiles a step of `make_train_step` for a mesh whose devices need not exist.

    Args:
        step: with that mesh.
        state: shapes.
        batch: shapes.
        mesh: of `topology.devices`.
        options: of the compiler.
    """
    started = time.perf_counter()
    where = state_shardings(state, mesh)
    rows = jax.tree.map(lambda _: batch_sharding(mesh), batch)
    lowered = step.lower(placed(state, where), placed(batch, rows))
    try:
        compiled = lowered.compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())
        if "RESOURCE_EXHAUSTED" not in text:
            raise
        sizes = [float(n) * 1024 ** " KMGT".index(unit) for n, unit in re.findall(r"\(?([\d.]+)([KMGT])", text)]
        return Refused(time.perf_counter() - started, max(sizes[:1], default=0.0), text[:300])
    seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    return Compiled(
        seconds,
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.generated_code_size_in_bytes,
        hlo.analyse(compiled.as_text()),
    )
