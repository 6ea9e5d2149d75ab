"""The dropless engine for TPUs that are not there: its kernels do exact work, its rows travel by ragged all-to-all."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ringmoe_jax.moe import parallel
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.moe.routing import Routing
from ringmoe_jax.parallel import mesh as meshes
from ringmoe_jax.parallel.mesh import BATCH_AXES, EXPERT_AXIS, MeshConfig
from ringmoe_jax.planning import topology

N, D, F, E = 4096, 256, 512, 16  # per mesh
IDEAL = 3 * 2 * (2 * N * D * F)  # forward and two backward products, of two layers

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install -r requirements-plan.txt"
)


def compiled(name: str, mesh_config: MeshConfig, engine: str, exchange_factor: float = 0.0):
    """Forward and backward pass of one top-1 layer for absent devices."""
    chosen = topology.parse(name)
    topology.start(chosen)
    mesh = meshes.make(mesh_config, topology.devices(chosen))
    rows, experts = (NamedSharding(mesh, P(axes)) for axes in (BATCH_AXES, EXPERT_AXIS))
    shape = lambda s, where, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype, sharding=where)  # noqa: E731
    tokens = shape((N, D), rows, jnp.bfloat16)
    choice = Routing(shape((N, 1), rows, jnp.int32), shape((N, 1), rows), shape((N, E), rows))
    weights = Experts(*(shape(s, experts) for s in ((E, D, F), (E, F), (E, F, D), (E, D))))

    def loss(tokens, weights, choice):
        room = dict(groups=mesh.size, exchange_factor=exchange_factor)
        y, _ = parallel.run(engine, tokens, [choice], [weights], [1], **room, mesh=mesh)
        return jnp.sum(y.astype(jnp.float32) ** 2)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(tokens, weights, choice).compile()


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_megablox_does_exact_work(name):
    """No expert computes another's rows: biases add E / F and E / D, not a factor of E."""
    program = compiled(name, MeshConfig(4, 1, 1), "dropless")
    assert 0.9 * IDEAL / 4 < program.cost_analysis()["flops"] < 1.5 * IDEAL / 4
    assert "tpu_custom_call" in program.as_text()


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_rows_travel_by_ragged_all_to_all(name):
    text = compiled(name, MeshConfig(1, 1, 4), "dropless").as_text()
    assert text.count(" ragged-all-to-all(") + text.count(" ragged-all-to-all-start(") >= 4  # there and back, twice


@needs_libtpu
def test_limited_room_spares_the_worst_case():
    """Four devices: without, buffers of four even shares; with, of 1.25."""
    whole, limited = (compiled("v5p:2x2x1", MeshConfig(1, 1, 4), "dropless", factor) for factor in (0.0, 1.25))
    temporaries = [program.memory_analysis().temp_size_in_bytes for program in (whole, limited)]
    assert temporaries[1] < 0.5 * temporaries[0]
