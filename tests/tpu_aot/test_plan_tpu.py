"""Programs for TPUs and GPUs that are not there: really compiled, where their compilers are installed."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.parallel import mesh as meshes
from ringmoe_jax.parallel.mesh import MeshConfig
from ringmoe_jax.planning import ahead, topology
from ringmoe_jax.planning import plan as planning
from ringmoe_jax.planning.ahead import Refused
from ringmoe_jax.planning.report import bounds, describe
from ringmoe_jax.run import PretrainConfig
from ringmoe_jax.training.state import TrainState
from tests.helpers import tiny_plans as plan_config
from tests.helpers.tiny_plans import exchanges


def needs(module: str):
    found = importlib.util.find_spec(module) is not None
    return pytest.mark.skipif(not found, reason=f"needs {module}: pip install -r requirements-plan.txt")


def compile_for(name: str, **options):
    chosen = topology.parse(name)
    topology.start(chosen)
    return planning.compiled(planning.place(PretrainConfig.of(plan_config.values(**options)), chosen))


@needs("libtpu")
@pytest.mark.slow
def test_expert_exchange_on_tpus_does_not_grow_with_the_mesh():
    eight = compile_for("v5e:2x4", batch=8, data=2, expert=4)
    sixteen = compile_for("v5e:4x4", batch=16, data=4, expert=4)
    # 2 directions x (forward, backward) x 2 blocks, two buffers of 40 rows of 8 bfloat16.
    assert exchanges(eight) == (8, 2 * 2 * 2 * (40 + 40) * 8 * 2)
    assert exchanges(sixteen) == exchanges(eight)
    assert eight.compiled.cost.unknown_loops == 0
    assert eight.fits
    assert set(bounds(eight)) == {"compute", "memory", "interconnect"}
    assert describe(eight)[0].startswith("fits: ")


@needs("libtpu")
def test_a_program_that_is_too_large_for_a_tpu_is_refused():
    chosen = topology.parse("v5e:2x2")
    mesh = meshes.make(MeshConfig(), topology.devices(chosen))
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), {}, {}, {})
    batch = {"x": jax.ShapeDtypeStruct((2**16, 2**20), jnp.float32)}  # 64 GiB a device
    answer = ahead.compile_step(jax.jit(lambda state, batch: batch["x"].sum()), state, batch, mesh, {})
    assert isinstance(answer, Refused)
    assert answer.total == pytest.approx(64 * 2**30, rel=0.1)
    assert "15.75G" in answer.reason


@needs("libtpu")
@pytest.mark.parametrize("name", ["v6e:16x16", "v5e:16x16", "v5p:4x8x8", "v4:4x8x8", "tpu7x:4x4x8"])
def test_an_axis_may_be_a_part_of_a_side_of_the_torus(name):
    chosen = topology.parse(name)
    mesh = meshes.make(MeshConfig(data=1, fsdp=64, expert=4), topology.devices(chosen))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 64, "expert": 4}
    assert len({device.id for device in mesh.devices.flat}) == chosen.count == 256


@needs("libtpu")
def test_a_topology_that_no_tpu_has():
    with pytest.raises(ConfigError, match='the compiler refuses the topology "v5e:3x5"'):
        topology.devices(topology.parse("v5e:3x5"))


@needs("jax_cuda13_plugin")
@pytest.mark.slow
def test_a_step_for_absent_gpus():
    plan = compile_for("h100:8", batch=8, data=2, expert=4)
    assert exchanges(plan)[0] == 8
    assert plan.compiled.cost.flops > 0
    assert plan.fits
