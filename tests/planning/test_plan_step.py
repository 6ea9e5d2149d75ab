"""Plans of the real training step on fake devices: what is in them, what is exchanged, what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from experiments import plan as verb
from input_pipeline.reader import train_batches
from ringmoe_jax import contracts as contract
from ringmoe_jax import sensors
from ringmoe_jax.data_config import DataConfig, StreamConfig
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.parallel import hlo
from ringmoe_jax.parallel.hlo import Collective
from ringmoe_jax.planning import ahead, topology
from ringmoe_jax.planning import plan as planning
from ringmoe_jax.planning.chips import CHIPS
from ringmoe_jax.planning.report import bounds, describe, link_seconds, to_json
from ringmoe_jax.run import PretrainConfig
from tests.helpers import tiny_data
from tests.helpers import tiny_plans as plan_config
from tests.helpers.tiny_plans import exchanges


def make(name: str, compiled: bool = True, **options):
    plan = planning.place(PretrainConfig.of(plan_config.values(**options)), topology.parse(name))
    return planning.compiled(plan) if compiled else plan


@pytest.fixture(scope="module", autouse=True)
def measured_once():
    """Shapes hang on neither mesh nor topology: a step is traced once a configuration."""
    kept, measure = {}, planning.measure

    def remembered(config):
        key = repr(dataclasses.replace(config, mesh=None))
        if key not in kept:
            kept[key] = measure(config)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "measure", remembered)
        yield


@pytest.fixture(scope="module")
def eight():
    return make("cpu:8", batch=8, fsdp=2, expert=4)


def test_the_batch_is_what_the_pipeline_gives(tmp_path):
    tiny_data.write(tmp_path / "tiny", "rgb", "slc_dual", train=5, size=8)
    streams = {
        name: StreamConfig(str(tmp_path / "tiny"), (name,), crop_scale=(1.0, 1.0)) for name in ("rgb", "slc_dual")
    }
    for unit in (0, 4):
        reader = train_batches(DataConfig(streams, image_size=8, batch_size=2, mask_unit=unit))
        real = next(reader)
        reader.close()
        table = {name: sensors.get(name) for name in streams}
        described = ahead.batch_shapes(table, dict.fromkeys(streams, ahead.Images(2, 1, 8, unit)))
        contract.validate(described, table)
        kinds = jax.tree.map(lambda x: (tuple(x.shape), np.dtype(x.dtype)), (real, described))
        assert kinds[0] == kinds[1]


@pytest.mark.slow
def test_bytes_by_kind_agree_with_the_compiler(eight):
    assert eight.parameters == sum(x.size for x in jax.tree.leaves(planning.measure(eight.config).state.params))
    # AdamW holds two numbers a parameter; steps and counts are a few bytes more.
    assert 0 <= eight.optimizer_bytes - 2 * eight.parameter_bytes < 64
    # The program takes the state and those images that the loss looks at: not their dates and places.
    unused = sum(rows // 8 * (4 + 8) for rows in eight.rows.values())
    assert eight.compiled.arguments == eight.resident - unused
    assert eight.compiled.temporaries > 0
    assert eight.fits is None  # nobody knows a CPU's share of the memory


@pytest.mark.slow
def test_the_state_is_donated(eight):
    assert eight.compiled.outputs < 10_000 < eight.parameter_bytes


@pytest.mark.slow
def test_products_of_eight_devices_are_those_of_the_step(eight):
    assert eight.compiled.cost.unknown_loops == 0
    assert 8 * eight.compiled.cost.flops == pytest.approx(eight.flops, rel=0.25)


@pytest.mark.slow
def test_rows_go_to_their_experts_and_back_in_every_block(eight):
    # 2 directions x (forward, backward) x 2 blocks, each as large as the buffers of all experts:
    # 16 tokens x 2 sensors per device, capacity factor 1.2.
    times, payload = exchanges(eight)
    assert times == 2 * 2 * 2
    specialised, collaborative = 8 * 5, 4 * 10  # experts x rows: ceil(1.2 * 16 / 4), ceil(1.2 * 32 / 4)
    assert (
        payload == 2 * 2 * 2 * (specialised + collaborative) * 8 * 4
    )  # D = 8; on the CPU, XLA sends bfloat16 as float32


@pytest.mark.slow
def test_expert_exchange_does_not_grow_with_the_mesh(eight):
    """Twice the devices on the expert axis: a device sends the same buffers, but for its own share of them."""
    four = make("cpu:4", batch=4, fsdp=2, expert=2)
    assert exchanges(four) == exchanges(eight)


@pytest.mark.slow
def test_expert_exchange_does_not_grow_with_the_data_axis():
    assert exchanges(make("cpu:4", batch=4, data=1, expert=4)) == exchanges(make("cpu:8", batch=8, data=2, expert=4))


def test_what_is_known_without_a_compiler(monkeypatch):
    def missing(_):
        raise ConfigError("compiling for v5e:2x4 needs libtpu: pip install -r requirements-plan.txt")

    monkeypatch.setattr(topology, "devices", missing)
    plan = make("v5e:2x4", width=64, fsdp=8)
    assert plan.compiled is None
    assert plan.fits is None
    text = "\n".join(describe(plan))
    assert text.splitlines()[0].startswith("not compiled: about 0.00 of 15.75 GiB per device, by estimate")
    assert text.splitlines()[-1] == "compiling for v5e:2x4 needs libtpu: pip install -r requirements-plan.txt"
    assert plan.flops > 0
    assert plan.kept_bytes > 0
    assert bounds(plan) == {}
    assert json.loads(json.dumps(to_json(plan)))["bytes"]["parameters"] == plan.parameter_bytes


@pytest.mark.slow
def test_recomputation_keeps_less():
    def kept(remat):
        values = plan_config.values()
        values["model"]["remat"] = remat
        return planning.measure(PretrainConfig.of(values)).kept_per_row

    assert 0 < kept("full") < kept("dots") < kept("none")


def test_shards_hold_less():
    whole, split = (make("v5e:2x4", False, width=64, **mesh) for mesh in ({}, dict(data=1, fsdp=2, expert=4)))
    assert 4 < whole.parameter_bytes / split.parameter_bytes <= 8


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("v5e:2x4", dict(data=3), "mesh data=3 x fsdp=1 x expert=1 does not fit 8 devices"),
        (
            "v5e:4x4",
            dict(batch=8),
            "config.data.batch_size = 8 does not split over 16 devices: wanted a multiple of 16",
        ),
        ("v5e:2x4", dict(width=64, expert=8), "do not divide over the 8 devices of the expert axis"),
    ],
)
def test_refusals_come_before_any_compilation(monkeypatch, name, options, message):
    monkeypatch.setattr(ahead, "compile_step", None)
    with pytest.raises(ConfigError) as error:
        make(name, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_state_that_is_too_large_is_not_compiled(capsys, tmp_path, monkeypatch):
    path = tmp_path / "config.py"
    head = "from tests.helpers import tiny_plans as plan_config\nfrom ml_collections import ConfigDict\n"
    path.write_text(head + "def get_config():\n    return ConfigDict(plan_config.values(width=64))\n")
    monkeypatch.setattr(planning, "compiled", None)
    monkeypatch.setattr("sys.argv", ["plan", "--config", str(path), "--topology", "gpu:8:0.001GB", "--json"])
    with pytest.raises(SystemExit) as end:
        verb.main()
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 2
    assert lines[0].startswith("does not fit: state and batch alone take 0.0")
    assert "--fit looks for a mesh and a recomputation that fit" in lines
    assert json.loads(lines[-1])["fits"] is False


@pytest.mark.slow
def test_fit_takes_the_first_that_the_compiler_agrees_to(monkeypatch, capsys):
    config = PretrainConfig.of(plan_config.values(batch=3, width=64))
    first = next(planning.candidates(config, topology.parse("gpu:8:80GB")))
    assert first.config.data.batch_size == 8  # the next that splits
    memory = first.resident + 1.1 * (first.estimate - first.resident)
    answers = []

    def compiler(plan, full):
        """Asks for a quarter more than estimated, beside what is resident."""
        temporaries = 1.25 * (plan.estimate - plan.resident)
        answer = ahead.Compiled(1.0, plan.resident, 0.0, temporaries, 0.0, hlo.Cost(0.0, (), 0))
        answers.append(dataclasses.replace(plan, compiled=answer))
        return answers[-1]

    monkeypatch.setattr(planning, "compiled", compiler)
    plan = planning.fit(config, topology.parse(f"gpu:8:{memory / 0.75 / 1e9:.12f}GB"))
    assert [answer.fits for answer in answers] == [False, True]  # the second estimate knows of the quarter
    assert answers[0].mesh == first.mesh
    assert plan is answers[1]
    assert plan.config.model["remat"] == "none"
    assert capsys.readouterr().out.count("tried   ") == 2
    monkeypatch.setattr(planning, "REMAT", ("full",))
    with pytest.raises(ConfigError, match=r"no mesh of gpu:8:0.00001GB fits"):
        planning.fit(config, topology.parse("gpu:8:0.00001GB"))


def test_links_between_hosts():
    chip = CHIPS["h100"]
    inside = Collective("all-gather", (), tuple(range(8)), 1, 7e9)
    assert link_seconds(inside, chip) == pytest.approx(7e9 / chip.interconnect)
    # Two hosts of eight gather 16 GB: 8 GB must enter each host, through eight network ports.
    across = Collective("all-gather", (), tuple(range(16)), 1, 15e9)
    assert link_seconds(across, chip) == pytest.approx(8e9 / 8 / chip.network)
    # Two of four share a host: of what a device sends to the other three, two parts leave.
    apart = Collective("all-to-all", (), (0, 1, 8, 9), 1, 3e9)
    assert link_seconds(apart, chip) == pytest.approx(2e9 / chip.network)
    assert link_seconds(across, CHIPS["v5p"]) == pytest.approx(15e9 / CHIPS["v5p"].interconnect)


def test_live_bytes_are_those_of_the_values_that_are_still_needed():
    """Three arrays of 4,000 bytes where the first is needed again, two where it is not."""
    x = jax.ShapeDtypeStruct((1000,), np.float32)
    assert ahead.live_bytes(lambda x: (2 * x) + 1, x) == 8000
    assert ahead.live_bytes(lambda x: (2 * x) + x, x) == 12000
    inner = jax.jit(lambda y: jax.lax.concatenate([y, y], 0).sum())  # 8,000 more inside
    assert 12000 <= ahead.live_bytes(lambda x: inner(2 * x), x) <= 12004  # the sum is 4
