"""What the benchmarks time is what they say: the layer equals the dense reference, and PyTorch's equals ours."""

import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments import benchmark
from experiments.benchmarks import balance, before, experts, gpu, moe, probing, reading, stem, train
from experiments.run import cli
from input_pipeline.dataset import open_dataset
from ringmoe_jax import clock
from ringmoe_jax import run as runs
from ringmoe_jax.contracts import validate
from ringmoe_jax.data_config import DataConfig, StreamConfig
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.evaluate.probes import PENALTIES
from ringmoe_jax.moe import routing, table
from ringmoe_jax.moe.experts import Experts
from ringmoe_jax.run import PretrainConfig
from ringmoe_jax.training.loop import count_images
from tests.helpers import tiny, tiny_data, tiny_runs

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


def test_products_alone_have_the_loads_that_the_layer_meets():
    point = dataclasses.replace(TINY, popularity="zipf")
    given = moe.inputs(point)
    (logits,) = routing.logits(jnp.asarray(given.x), [jnp.asarray(given.router)])
    allowed = table.collaborative(1, point.experts)
    choice = routing.route(logits + given.scores, jnp.zeros(point.tokens, jnp.int32), allowed, k=point.top_k)
    met = np.bincount(np.asarray(choice.experts).ravel(), minlength=point.experts)
    assert moe.loads(given, point.top_k) == met.tolist()
    nothing = jnp.zeros((1, 2, 4)), jnp.zeros((1, 4)), jnp.zeros((1, 4, 2))
    each = [Experts(*nothing, jnp.full((1, 2), number)) for number in (0.0, 1.0, 2.0)]
    assert_allclose(moe.alone([1, 0, 2], jnp.ones((3, 2)), each)[:, 0], [0, 2, 2])


def test_clock_takes_turns_and_leaves_the_warm_up_out():
    order = []
    seconds = clock.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, repeats=2, warmup=1)
    assert "".join(order) == "ababab"
    assert set(seconds) == {"a", "b"}
    order.clear()
    clock.interleaved({name: lambda name=name: order.append(name) for name in "ab"}, repeats=1, warmup=0, calls=3)
    assert "".join(order) == "aaabbb"
    assert clock.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_probes_are_timed_beside_a_peer_and_side_by_side(capsys):
    asked = "--suite probe --tiles 40 --features 6 --classes 3 --repeats 1 --json"
    with pytest.raises(SystemExit) as ended:
        benchmark.main(asked.split())
    assert ended.value.code == 0
    said = capsys.readouterr().out.splitlines()
    found = json.loads(said[-1])
    assert set(found["seconds"]) == {
        probing.PATH, probing.PEER, probing.PRODUCTS, probing.TURNS, probing.TOGETHER
    }  # fmt: skip
    assert found["ratio"][probing.PEER] == found["seconds"][probing.PEER] / found["seconds"][probing.PATH]
    assert found["evaluations"] > len(PENALTIES)
    features = probing.tiles(5000, 6, 3).features
    assert np.linalg.eigvalsh(np.cov(features.T)).max() > 2  # some directions say most, as of an encoder


def test_a_generated_stem_is_timed_over_a_fixed_one(capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main("--suite stem --tiny --repeats 1 --json".split())
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    (point,) = found["points"]
    assert point["ratio"] == point["seconds"][stem.PHYSICS] / point["seconds"][stem.FIXED]
    assert found["geometric_mean"] == pytest.approx(point["ratio"])
    jobs = stem.jobs(stem.POINTS[0])
    (loss, gradients), (fixed, of_fixed) = jobs[stem.PHYSICS](), jobs[stem.FIXED]()
    assert np.isfinite([loss, fixed]).all()
    assert len(jax.tree.leaves(gradients)) > len(jax.tree.leaves(of_fixed)) == 4  # kernel, bias, and those of the norm


def test_another_checkout_takes_turns_with_ours(tmp_path, capsys):
    """This one serves as both; a job that fails there, and a folder that is no checkout, are said in a line."""
    root = Path(__file__).parents[2]
    with pytest.raises(SystemExit) as ended:
        benchmark.main(f"--suite stem --tiny --repeats 1 --json --before {root}".split())
    assert ended.value.code == 0
    (point,) = json.loads(capsys.readouterr().out.splitlines()[-1])["points"]
    both = {stem.FIXED, stem.PHYSICS}
    assert set(point["seconds"]) == both | {name + before.SUFFIX for name in both}
    assert all(seconds > 0 for seconds in point["seconds"].values())
    with before.Version(str(root)) as version:
        with pytest.raises(ConfigError, match=r"--before .*: TypeError: .* unexpected keyword argument 'colour'"):
            version.jobs("stem", {"colour": 1})
        made = version.jobs("moe", dataclasses.asdict(TINY))
        assert {"dropless" + before.SUFFIX, moe.DENSE + before.SUFFIX} <= set(made)
        made["dropless" + before.SUFFIX]()
    for arguments, said in (
        (f"--suite stem --before {tmp_path}", f"--before {tmp_path} is no checkout: git worktree add"),
        ("--suite probe --before .", "--before is for the suites moe, train, stem, not for probe"),
    ):
        with pytest.raises(SystemExit):
            benchmark.main(arguments.split())
        assert said in capsys.readouterr().err


def test_the_twin_in_pytorch_takes_the_same_batch_and_both_ways_learn_alike():
    pytest.importorskip("torch", reason="PyTorch is not installed: its step cannot be taken")
    changes = [f"--config.{key}" for key in ("model.width=8", "model.head_width=8", "data.batch_size=1")]
    config = PretrainConfig.of(cli.read_config("configs/demo.py", changes))
    jobs = train.torch_jobs(config, train.random_batch(config, 0))
    losses = {name: [job() for _ in range(3)] for name, job in jobs.items()}
    assert_allclose(losses["torch loop"], losses["torch grouped_mm"], rtol=1e-4)
    assert losses["torch loop"][-1] < losses["torch loop"][0]


def test_the_dense_backbone_has_the_active_arithmetic_of_the_mixture():
    """Each token meets one specialised, one collaborative and the shared expert: three FFNs' hidden units."""
    config = PretrainConfig.of(cli.read_config("configs/ringmoe_micro.py")).complete()
    dense = PretrainConfig.of(train.dense_backbone(config))
    params = jax.eval_shape(runs.pretraining(dense, {}).model.init, jax.random.key(0))
    ffn = params["backbone"]["stages"]["stage0"]["blocks"]["run0"]["ffn"]
    assert ffn["shared"]["wi"]["kernel"].shape == (2, 16, 3 * 4 * 16)
    assert set(ffn) == {"shared"}
    assert config["model"]["moe"]["specialised"] == 4  # the given configuration is left alone


@pytest.mark.slow
def test_a_layer_without_help_is_uneven_and_biases_even_it_out(monkeypatch):
    monkeypatch.setattr(balance, "ARMS", {name: balance.ARMS[name] for name in ("nothing", "biases, 0.01")})
    monkeypatch.setattr(balance, "SETTINGS", {"spread": balance.Setting(0.5, 1.0)})
    (arms,) = balance.measure(150, seeds=2).values()
    found = {name: curves["max_load"][:, -20:].mean() for name, curves in arms.items()}
    assert found["nothing"] > 1.5 > found["biases, 0.01"] >= 1


def test_random_batch_keeps_the_contract():
    config = PretrainConfig.of(cli.read_config("configs/ringmoe_micro.py"))
    batch = train.random_batch(config, 0)
    validate(batch, config.sensors)
    assert count_images(batch) == 16
    small = {"rgb": {"pixels": np.zeros((4, 3, 2, 2, 3))}}
    assert count_images(batch | {"views": {"second": batch["sensors"], "local0": small}}) == 16 + 16 + 12
    share = batch["sensors"]["rgb"]["mask"].mean(axis=(1, 2))
    assert_allclose(share, round(0.6 * 64) / 64)


def test_random_batch_has_views_dates_and_ground():
    config = PretrainConfig.of(cli.read_config("configs/skysense_micro.py"))
    batch = train.random_batch(config, 0)
    validate(batch, config.sensors)
    for entries in (batch["sensors"], batch["views"]["second"]):
        assert set(entries) == {"s2_12", "s1_grd"}
        assert_allclose(entries["s2_12"]["ground"][0], [[1, 0, 0], [0, 1, 0]])
        assert entries["s1_grd"]["time"].dtype == np.int32


def test_model_flops_leave_recomputation_out():
    config = cli.read_config("configs/ringmoe_micro.py", ["--config.model.depths=(1,)"])
    once = train.model_flops(config)
    assert once > 0
    assert train.model_flops(train.with_remat(config, "full")) == once
    assert train.with_remat({"remat": "full", "frame": {"remat": "full"}, "width": 8}, "none") == {
        "remat": "none",
        "frame": {"remat": "none"},
        "width": 8,
    }


def test_reference_of_the_values_equals_plain_numpy():
    case = experts.Case(6, 4, (6, 0, 5, 1))
    (chosen, tokens, gates, weights, upstream), (outputs, gradients) = experts.reference(case)
    assert chosen.shape == (6, 2)
    assert np.bincount(chosen.ravel(), minlength=4).tolist() == [6, 0, 5, 1]
    gelu = lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # noqa: E731
    wi, bi, wo, bo = weights
    wanted = np.zeros_like(tokens)
    for n in range(6):
        for e, gate in zip(chosen[n], gates[n], strict=True):
            wanted[n] += gate * (gelu(tokens[n] @ wi[e] + bi[e]) @ wo[e] + bo[e])
    assert_allclose(outputs, wanted, rtol=1e-6)
    assert gradients[0].dtype == np.float64
    each = np.einsum("nk,nke->ne", gates, np.eye(4)[chosen])  # d loss / d bo = sum over tokens of gate * upstream
    assert_allclose(gradients[2].bo, each.T @ upstream, rtol=1e-12)


def test_values_of_an_engine_that_is_wrong_are_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(experts, "engines", lambda: ("ragged", "nonsense"))
    monkeypatch.setattr(experts, "MODES", (("float32", "highest", 2e-5), ("bfloat16", "default", 1e-6)))
    found = experts.values(experts.CASES[1:], threads=1)
    full, half = found["errors"]
    assert full["error"]["ragged"] < 2e-5
    assert 1e-3 < half["error"]["ragged"] < 3e-2
    texts = {what.rpartition(", ")[2] + " " + what.split(", ")[3]: text for what, text in found["failures"].items()}
    assert texts.keys() == {"nonsense float32", "ragged bfloat16", "nonsense bfloat16"}
    assert texts["nonsense float32"].startswith('ConfigError: model.moe.engine = "nonsense" does not exist')
    assert "wanted 1e-06 at most" in texts["ragged bfloat16"]
    assert "limit 2e-05" in capsys.readouterr().out


def test_largest_error_is_that_of_the_worst_array_and_nan_is_none():
    wanted = (np.array([1.0, -4.0]), np.array([2.0]))
    assert experts.largest_error((np.array([1.0, -3.0]), np.array([2.0])), wanted) == 0.25
    assert np.isnan(experts.largest_error((np.array([np.nan, -4.0]), np.array([2.0])), wanted))


def test_parts_go_on_without_one_that_fails_and_stop_with_the_time(monkeypatch):
    parts = {
        "peak": lambda setting, found: {"flops": 1.0},
        "values": lambda setting, found: 1 / 0,
        "experts": lambda setting, found: {"seen": found["peak"], "failures": {"ragged": "no kernel"}},
        "train": lambda setting, found: time.sleep(0.2) or {},
        "export": lambda setting, found: {},
    }
    monkeypatch.setattr(gpu, "PARTS", parts)
    found = gpu.measure(dataclasses.replace(gpu.TINY, minutes=0.1 / 60))
    assert found["failures"] == {"values": "ZeroDivisionError: division by zero", "experts: ragged": "no kernel"}
    assert found["experts"] == {"seen": {"flops": 1.0}}
    assert list(found["skipped"]) == ["export"]
    assert set(found["minutes"]) == {"peak", "values", "experts", "train"}


def test_fractions_need_the_peak(capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main("--suite gpu --tiny --parts train --json".split())
    assert stop.value.code == 1
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["failures"]["train"].endswith("the peak was not measured: add peak to --parts, before this one")


@pytest.mark.slow
def test_gpu_suite_measures_every_part(capsys):
    with pytest.raises(SystemExit) as stop:
        benchmark.main("--suite gpu --tiny --repeats 1 --threads 2 --minutes 30 --json".split())
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["failures"] == found["skipped"] == {}
    assert not stop.value.code
    assert set(found) >= set(gpu.PARTS)
    assert {point["direction"] for point in found["experts"]["points"]} == {"forward", "forward and backward"}
    assert set(found["experts"]["points"][0]["ratio"]) >= {"capacity", "blocks", "ragged", "dense layer"}
    seconds, train_step = found["train"]["seconds"], found["train"]
    assert set(seconds) == {"capacity", "blocks", "dense backbone"}
    flops = train_step["model_flops"] / (seconds["blocks"] * found["peak"]["flops"])
    assert train_step["mfu"]["blocks"] == pytest.approx(flops)
    assert train_step["images"] == 16
    assert found["export"]["errors"]["cpu"] < 1e-5
    assert found["skysense"]["first_loss"]["skysense"] > 0


RECIPE = """
from configs import reference

def get_config():
    config = reference.get_config()
    config.model.update(width=8, depths=(1,), image_size=16, patch=4, window=4, head_width=4)
    config.pretext.update(hidden=8, outputs=8)
    config.data.streams.rgb.directory = DIRECTORY
    config.data.update(image_size=16, batch_size=8)
    config.data.views.update(sizes=dict(rgb=16), local=1, local_size=8)
    return config
"""


@pytest.mark.slow
def test_reference_suite_trains_for_its_minutes_and_scores_validation_tiles(tmp_path, capsys):
    tiny_data.write(tmp_path / "data", "rgb", train=24)
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE.replace("DIRECTORY", repr(str(tmp_path / "data"))))
    with pytest.raises(SystemExit) as stop:
        benchmark.main(f"--suite reference --config {recipe} --tiny --minutes 0.02 --json".split())
    assert not stop.value.code
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["views"] == found["steps"] * 8 * 3  # images of three views
    assert found["images_per_second"] == pytest.approx(found["views"] / (60 * found["minutes"]))
    assert found["split"] == "validation"
    assert found["mfu"] > 0
    assert set(found["knn5"]) == set(found["knn20"]) >= {"rgb", "rgb, stage 1", "rgb, all stages and their spread"}


@pytest.mark.slow
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


@pytest.mark.slow
def test_scene_suite_times_a_prediction_against_its_computing(tmp_path, capsys):
    model = tiny.RINGMOE | dict(sensors=("s2_12", "s1_grd"), depths=(1,))
    run = tiny_runs.pretraining(tmp_path / "run", model)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(f"--suite scene --checkpoint {run} --megapixels 0.004 --repeats 2 --json".split())
    assert not stop.value.code
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["windows"] == 8 * 8  # 63 px, every 8 of which a window of 16 px begins
    assert found["ratio"] == pytest.approx(found["seconds"]["predict"] / found["seconds"]["compute alone"])
    assert found["seconds_a_megapixel"]["predict"] == pytest.approx(found["seconds"]["predict"] / 63**2 * 1e6)
    assert set(found["shares"]) == {"reading", "computing", "writing", "waiting"}
    assert all(0 < share <= 1 for share in found["shares"].values())


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """The configuration of 12 tiles of rgb, 8 px, read 4 at a time."""
    folder = tiny_data.write(tmp_path_factory.mktemp("tiles") / "tiny", "rgb")
    stream = StreamConfig(directory=str(folder), sensors=("rgb",), split="train")
    return DataConfig(streams={"rgb": stream}, image_size=8, batch_size=4, mask_unit=2)


def test_both_readers_are_measured_in_the_same_units(tiles):
    found = reading.measure(tiles, batches=3)
    assert list(found) == ["records alone", "tf", "device"]
    size = open_dataset(tiles.streams["rgb"].directory, ("rgb",)).nbytes("train") / 12 / 1e6
    for rate in found.values():
        assert rate.megabytes / rate.records == pytest.approx(size)
        assert rate.megabytes_a_core / rate.records_a_core == pytest.approx(size)
        assert rate.images == pytest.approx(rate.records)  # one sensor
        assert rate.records_a_core > 0


def test_what_a_host_needs_by_hand(tiles):
    """A record of 8 x 8 pixels of three bytes and one for what was observed: 256 bytes, where there is no data yet."""
    absent = dataclasses.replace(tiles.streams["rgb"], directory="no/such/folder")
    data = dataclasses.replace(tiles, streams={"rgb": absent}, batch_size=8)
    assert reading.needs(data, hosts=2, seconds=0.5) == pytest.approx((8, 8 * 256 / 1e6))


def test_a_slow_store_gives_the_same_later_and_reading_ahead_hides_it(tiles):
    usual = open_dataset(tiles.streams["rgb"].directory, ("rgb",))
    with reading.slow(0.2):
        late = open_dataset(tiles.streams["rgb"].directory, ("rgb",)).records("train", 0)
        started = time.perf_counter()
        payloads = late.read(range(12))
        assert 0.2 < time.perf_counter() - started < 12 * 0.2  # all are asked for at once
    assert payloads == usual.records("train", 0).read(range(12))
    waits = reading.stalls(tiles, seconds=1.0, delay=0.2, steps=2)
    assert waits["when asked for"] > 0.2
    assert waits["read ahead"] < waits["when asked for"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--suite mo", f'--suite "mo" does not exist: wanted one of {", ".join(benchmark.SUITES)}'),
        ("--suite moe --widths wide", '"wide": wanted whole numbers, separated by commas'),
        ("--suite moe --routing zip", '"zip": wanted even or zipf'),
        ("--suite moe --repeat_s 3", 'unknown argument "--repeat_s"'),
        ("--suite gpu --parts peek", '--parts "peek" does not exist: wanted some of peak, values, experts'),
        ("--suite scene --checkpoint runs/seg --pixels 3", 'unknown argument "--pixels"'),
        ("--suite gpu --config.model.width=8", 'unknown argument "--config.model.width=8"'),
        ("--suite moe --experts 4 --top-k 8", "top-8 routing, but modality 0 may choose 4 of 4 experts"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(arguments.split())
    assert stop.value.code in (1, 2)  # 2: argparse
    assert message in capsys.readouterr().err
