"""What the benchmarks time is what they say: the layer equals the dense reference, and PyTorch's equals ours."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments import benchmark
from experiments.benchmarks import moe, train
from experiments.run import cli
from ringmoe_jax import clock
from ringmoe_jax import run as runs
from ringmoe_jax.contracts import validate
from ringmoe_jax.run import PretrainConfig
from ringmoe_jax.training.loop import count_images

TINY = moe.Point(tokens=64, width=8, experts=4, top_k=2)


@pytest.mark.parametrize("popularity", ["even", "zipf"])
def test_dropless_layer_equals_the_dense_engine(popularity):
    found = moe.programs(dataclasses.replace(TINY, popularity=popularity), ("dense", "dropless"))
    (reference, arguments), (dropless, _) = found["dense"], found["dropless"]
    jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=1e-4, atol=1e-3), reference(*arguments), dropless(*arguments))


def test_peers_compute_the_same_layer():
    pytest.importorskip("torch", reason="PyTorch is not installed: its layer cannot be compared")
    from experiments.benchmarks import torch_moe

    program, arguments = moe.programs(TINY, ("dropless",))["dropless"]
    _, (d_x, d_router, d_experts) = program(*arguments)
    peers = torch_moe.jobs(TINY, moe.inputs(TINY))
    for name in ("torch loop", "torch grouped_mm"):
        gradients = [g.detach().numpy() for g in peers[name]()]
        assert_allclose(gradients[0], d_x, rtol=1e-3, atol=1e-3)
        assert_allclose(gradients[1], d_router, rtol=1e-3, atol=1e-3)
        wi = gradients[2] if name == "torch grouped_mm" else np.stack(gradients[2::4])
        assert_allclose(wi, d_experts.wi, rtol=1e-3, atol=1e-3)


def test_clock_takes_turns_and_leaves_the_warm_up_out():
    order = []
    seconds = clock.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, repeats=2, warmup=1)
    assert "".join(order) == "ababab"
    assert set(seconds) == {"a", "b"}
    assert clock.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_the_dense_backbone_has_the_active_arithmetic_of_the_mixture():
    """Each token meets one specialised, one collaborative and the shared expert: three FFNs' hidden units."""
    config = PretrainConfig.of(cli.read_config("configs/ringmoe_micro.py")).complete()
    dense = PretrainConfig.of(train.dense_backbone(config))
    params = jax.eval_shape(runs.pretraining(dense, {}).model.init, jax.random.key(0))
    ffn = params["backbone"]["stages"]["stage0"]["blocks"]["run0"]["ffn"]
    assert ffn["shared"]["wi"]["kernel"].shape == (2, 16, 3 * 4 * 16)
    assert set(ffn) == {"shared"}
    assert config["model"]["moe"]["specialised"] == 4  # the given configuration is left alone


def test_random_batch_keeps_the_contract():
    config = PretrainConfig.of(cli.read_config("configs/ringmoe_micro.py"))
    batch = train.random_batch(config, 0)
    validate(batch, config.sensors)
    assert count_images(batch) == 16
    share = batch["sensors"]["rgb"]["mask"].mean(axis=(1, 2))
    assert_allclose(share, round(0.6 * 64) / 64)


def test_command_prints_ratios_and_json(capsys):
    arguments = "--suite moe --tokens 64 --widths 8 --experts 4 --top-k 1 --dtypes float32 --routing even --repeats 1"
    with pytest.raises(SystemExit) as stop:
        benchmark.main([*arguments.split(), "--json"])
    assert not stop.value.code
    lines = capsys.readouterr().out.strip().splitlines()
    found = json.loads(lines[-1])
    assert found["suite"] == "moe"
    assert found["points"][0]["ratio"]["dropless"] > 0
    assert any(line.startswith("geometric mean, float32 even") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--suite mo", '--suite "mo" does not exist: wanted one of moe, train, input'),
        ("--suite moe --widths wide", '"wide": wanted whole numbers, separated by commas'),
        ("--suite moe --routing zip", '"zip": wanted even or zipf'),
        ("--suite moe --repeat_s 3", 'unknown argument "--repeat_s"'),
        ("--suite moe --experts 4 --top-k 8", "top-8 routing, but modality 0 may choose 4 of 4 experts"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments.split())
    assert stop.value.code in (1, 2)  # 2: argparse
    assert message in capsys.readouterr().err
