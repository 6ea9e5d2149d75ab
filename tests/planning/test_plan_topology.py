"""Names of machines: what they mean, and what is said about those that do not exist."""

import pytest

from ringmoe_jax.errors import ConfigError
from ringmoe_jax.planning import topology
from ringmoe_jax.planning.chips import CHIPS, GIB


@pytest.mark.parametrize(
    ("name", "count", "memory"),
    [
        ("v5e:16x16", 256, 15.75 * GIB),
        ("v5p:4x4x8", 128, 95.73 * GIB),
        ("v6e:2x4", 8, 31.24 * GIB),
        ("tpu7x:4x4x4", 128, 94.74 * GIB),  # two devices a chip
        ("h100:64", 64, 0.75 * 80e9),
        ("h100:64:96GiB", 64, 0.75 * 96 * GIB),
        ("gpu:16:40GB", 16, 0.75 * 40e9),
        ("cpu:8", 8, 0),
    ],
)
def test_names(name, count, memory):
    parsed = topology.parse(name)
    assert parsed.count == count
    assert parsed.memory == pytest.approx(memory)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5x:4x4", 'no chip "v5x": did you mean "v5p"?'),
        ("v5p:4x4", 'got "4x4" after "v5p:", wanted NxNxN'),
        ("v5e:4x4x4", "wanted NxN;"),
        ("v5e", 'got "" after "v5e:"'),
        ("v5e:0x4", 'got "0x4"'),
        ("h100:8x8", 'got "8x8" after "h100:", wanted a number of devices'),
        ("h100:12", "more than 8 GPUs come in hosts of 8, got 12"),
        ("gpu:8:80", 'got the memory "80", wanted for example "80GB"'),
        ("v5e:4x4:16GB", "a TPU's memory is known"),
    ],
)
def test_names_that_make_no_sense(name, message):
    with pytest.raises(ConfigError) as error:
        topology.parse(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_peaks_are_complete_and_plausible():
    for chip in CHIPS.values():
        if chip.flops:
            assert 1e14 < chip.flops < 1e16
            assert chip.limit <= 1.01 * chip.memory
            assert chip.memory < chip.bandwidth  # a second is more than enough to read all
            assert chip.network < chip.interconnect < chip.bandwidth


@pytest.mark.parametrize(("name", "module"), [("v5e:2x2", "libtpu"), ("h100:8", "cuda")])
def test_a_missing_compiler_is_named_with_its_remedy(monkeypatch, name, module):
    from jax.experimental import topologies

    def fail(*_, **__):
        raise RuntimeError("no such platform")

    monkeypatch.setattr(topologies, "get_topology_desc", fail)
    monkeypatch.setattr(topology, "_installed", lambda _: False)
    with pytest.raises(ConfigError) as error:
        topology.devices(topology.parse(name))
    assert str(error.value) == f"compiling for {name} needs {module}: pip install -r requirements-plan.txt"
