"""The script as a user runs it: start, kill at a random step, resume exactly, and be told what is wrong."""

import contextlib
import dataclasses
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import pretrain as verb
from experiments.run import cli, pretrain
from experiments.run.dry_run import dry_run
from ringmoe_jax import run as runs
from ringmoe_jax.data_config import ViewsConfig
from ringmoe_jax.errors import ConfigError, UserError
from ringmoe_jax.parallel.mesh import MeshConfig, make
from ringmoe_jax.run import PretrainConfig
from ringmoe_jax.training.checkpoint import Checkpointer
from tests.helpers import quick, tiny_data

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
from ml_collections import ConfigDict
from configs import common

def get_config():
    config = common.ringmoe(width=8, depths=(2,), head_width=4)
    config.model.update(sensors=("rgb", "slc_dual"), image_size=16, window=2, dtype="float32", remat="none")
    config.objectives = ConfigDict(dict(
        rgb=dict(name="masked_l1", sensor="rgb"), slc_dual=dict(name="total_power", sensor="slc_dual"),
        balance=dict(name="balance"),
    ))
    config.data.streams = ConfigDict(dict(
        rgb=dict(directory="{tiny}", sensors=("rgb",), split="train", crop_scale=(0.2, 0.5), weight=1.0),
        slc=dict(directory="{tiny}", sensors=("slc_dual",), split="train", crop_scale=(1.0, 1.0), weight=1.0),
    ))
    config.data.update(image_size=16, batch_size=4, mask_unit=4)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=2)
    config.train.update(steps=40, log_every=1, checkpoint_every=5, evaluate_every=20)
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_data.write(folder / "tiny", "rgb", "slc_dual", train=13)
    path = folder / "config.py"
    path.write_text(CONFIG.replace("{tiny}", str(folder / "tiny")))
    return path


def start(config, workdir, *more):
    command = [sys.executable, "-m", "experiments.pretrain", "--config", str(config), "--workdir", str(workdir)]
    environment = os.environ | {"XLA_FLAGS": quick.FLAGS}
    cache = f"--compilation-cache={quick.CACHE}"
    return subprocess.Popen(
        [*command, cache, *more], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )


def finish(process):
    output = process.communicate(timeout=240)[0]
    return process.returncode, output


def records(workdir):
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(config, tmp_path_factory):
    """Folder of a run of the command in this process, on one device, and what it said."""
    workdir, said = tmp_path_factory.mktemp("uninterrupted"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(runs, "make_mesh", lambda config: None)
        patch.setattr(cli, "start", lambda *_, **__: None)
        patch.setattr(sys, "argv", ["pretrain", "--config", str(config), "--workdir", str(workdir)])
        with pytest.raises(SystemExit) as ended:
            verb.main()
    assert ended.value.code == 0
    return workdir, said.getvalue()


@pytest.fixture(scope="module")
def program(config, tmp_path_factory):
    """Folder of a run of a program of its own, with which others are compared bit for bit."""
    workdir = tmp_path_factory.mktemp("program")
    code, output = finish(start(config, workdir))
    assert code == 0, output
    return workdir


def test_it_says_what_it_does_and_learns(uninterrupted):
    workdir, output = uninterrupted
    for wanted in ("parameters  ", "images/s, input wait", "validation", "checkpoints and metrics are in"):
        assert wanted in output
    losses = [r["loss"] for r in records(workdir) if "loss" in r]
    assert len(losses) == 40
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert list((workdir / "tensorboard").glob("events.*"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_killed_at_a_random_step_and_started_again(config, program, tmp_path, seed):
    target = random.Random(seed).randint(12, 36)  # the checkpoint of step 10 waited for that of step 5
    process = start(config, tmp_path, "--config.train.steps=40")
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.time() + 240
    while time.time() < deadline and process.poll() is None:
        if metrics.exists() and f'"step": {target}' in metrics.read_text():
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    code, output = finish(start(config, tmp_path))
    assert code == 0, output
    assert "resuming" in output
    assert records(tmp_path)[-1]["step"] == 40
    ours = [r for r in records(tmp_path) if "loss" in r]
    reference = {r["step"]: r for r in records(program) if "loss" in r}
    assert len(ours) == 40
    for record in ours:
        assert record == reference[record["step"]]  # bit for bit
    assert records(tmp_path)[-1] == records(program)[-1]  # validation


@pytest.mark.slow
def test_asked_to_stop_it_saves_and_goes_on_later(config, tmp_path):
    process = start(config, tmp_path, "--config.train.steps=100000")
    for line in process.stdout:
        if line.startswith("step"):
            break
    os.kill(process.pid, signal.SIGTERM)
    code, output = finish(process)
    assert code == 0
    assert "as asked; the same command goes on from here" in output
    assert any((tmp_path / "checkpoints").iterdir())


def test_another_model_does_not_resume(config, uninterrupted, monkeypatch):
    monkeypatch.setattr(runs, "make_mesh", lambda config: None)
    other = cli.read_config(str(config), ["--config.model.moe.top_k=2", "--config.train.steps=50"])
    with pytest.raises(ConfigError) as error:
        pretrain.pretrain(other, str(uninterrupted[0]))
    assert str(error.value) == (
        "config.model.moe.top_k is 2, but the checkpoint was made with 1: "
        "set it back to resume, or choose a new --workdir"
    )


def test_a_configuration_that_states_its_defaults_resumes(config, uninterrupted, capsys, monkeypatch):
    """As older ones did; a value that is not the default is told apart."""
    monkeypatch.setattr(runs, "make_mesh", lambda config: None)
    values = cli.read_config(str(config))
    fuller = values | {"pretext": {"name": "masked"}, "optimizer": values["optimizer"] | {"clip_norm": 5.0}}
    fuller["model"] = values["model"] | {"patch": 4, "moe": {"top_k": 1, "engine": "capacity"}}
    assert pretrain.pretrain(fuller, str(uninterrupted[0])).step == 40
    assert "resuming" in capsys.readouterr().out
    fuller["optimizer"]["clip_norm"] = 4.0
    with pytest.raises(ConfigError, match=r"config.optimizer.clip_norm is 4.0, but the checkpoint was made with 5.0"):
        pretrain.pretrain(fuller, str(uninterrupted[0]))


def test_a_record_that_states_fewer_keys_resumes(config, uninterrupted, capsys, monkeypatch):
    """A run that was written before a record held every default."""
    monkeypatch.setattr(runs, "make_mesh", lambda config: None)
    record = Checkpointer.record
    monkeypatch.setattr(
        Checkpointer, "record", lambda self, step=None: record(self, step) | {"config": cli.read_config(str(config))}
    )
    assert pretrain.pretrain(cli.read_config(str(config)), str(uninterrupted[0])).step == 40
    assert "resuming" in capsys.readouterr().out


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(config, program):
    before = records(program)
    code, output = finish(start(config, program))
    assert code == 0, output
    assert records(program) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.optimizer.learning_rte=1"],
            'config.optimizer.learning_rte does not exist: did you mean "learning_rate"?',
        ),
        (["--config.train.steps=many"], "config.train.steps = 'many' is a str, wanted a int"),
        (["--config.data.mask_ration=1"], 'config.data.mask_ration does not exist: did you mean "mask_ratio"?'),
        (["--config.optmizer.clip_norm=1"], 'config.optmizer does not exist: did you mean "optimizer"?'),
        (["--config.model.moe.engin=dense"], 'config.model.moe.engin does not exist: did you mean "engine"?'),
        (["--config.pretext.name=maskd"], 'config.pretext.name = "maskd" does not exist: did you mean "masked"?'),
        (
            ["--config.objectives.rbg.scale=2"],
            "config.objectives.rbg has no name of an objective: give one, or name an entry that is there: "
            'did you mean "rgb"?',
        ),
        (
            ["--config.data.streams.rbg.directory=x"],
            "config.data.streams.rbg.sensors is missing: set it to a tuple[str, ...], or name an entry that is there: "
            'did you mean "rgb"?',
        ),
        (["--config.objectives.rgb.scal=2"], 'config.objectives.rgb.scal does not exist: did you mean "scale"?'),
        (
            ["--config.model.name=None"],
            'config.model.name = "None" does not exist: (known: galileo, presto, ringmoe, skysense, swinv2, vit)',
        ),
        (["--config.train.steps"], 'unknown argument "--config.train.steps": wanted --config.<key>=<value>'),
        (["--steps=3"], 'unknown argument "--steps=3"'),
    ],
)
def test_misspelt_arguments(config, arguments, message):
    with pytest.raises(ConfigError) as error:
        PretrainConfig.of(cli.read_config(str(config), arguments)).complete()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(config, tmp_path, capsys):
    values = cli.read_config(str(config), ["--config.data.batch_size=8", "--config.mesh.fsdp=2"])
    dry_run(values, str(tmp_path / "run"))
    hosts, mesh, device, *streams, checkpoint = capsys.readouterr().out.splitlines()
    assert hosts.endswith(", 8 x cpu")
    assert mesh == "mesh        data 4 x fsdp 2 x expert 1"
    assert "MiB of parameters" in device
    assert "stream      rgb: 13 samples of" in streams[0]
    assert "8 a step: host 0 rows 0 to 7; " in streams[1]
    assert checkpoint == f"checkpoint  none: starts anew in {tmp_path / 'run'}"
    assert not (tmp_path / "run").exists()


def test_validation_splits_over_the_devices_whatever_the_mixing(config):
    """12 images a stream do not split over 8 devices; the 24 of a step do, as 16 and 8, with views as without."""
    data = PretrainConfig.of(cli.read_config(str(config))).data
    mixed = dataclasses.replace(data, mixing="temperature", batch_size=12, views=ViewsConfig())
    for batch in pretrain.validation_batches(mixed, make(MeshConfig())):
        rows = [
            len(entry["pixels"]) for view in (batch["sensors"], batch["views"]["second"]) for entry in view.values()
        ]
        assert sorted(rows) == [8, 8, 16, 16]


def test_image_sizes_must_agree(config):
    with pytest.raises(
        ConfigError, match=r"image_size = 32, but data shows \"rgb\" at 16 pixels: set config.data.image_size"
    ):
        PretrainConfig.of(cli.read_config(str(config), ["--config.model.image_size=32"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.data.streams.rgb.directory=/nowhere"], "/nowhere"),
        (
            ["--config.data.streams.rgb.sensors=('s2_12',)"],
            'config.model.sensors has "rgb", which no stream reads: take the sensor out everywhere with '
            "--sensors slc_dual, or add a stream",
        ),
        (
            ["--config.model.sensors=('rgb',)", "--config.objectives.slc_dual=None"],
            'config.data.streams.slc reads "slc_dual", which config.model.sensors lacks: take the sensor out '
            "everywhere with --sensors rgb, or add it there",
        ),
        (["--config.mesh.data=3"], "mesh data=3 x fsdp=1 x expert=1 does not fit 8 devices"),
        (
            ["--config.optimizer.warmup_steps=500", "--config.data.batch_size=8"],
            "optimizer.warmup_steps = 500 must be less than train.steps = 40",
        ),
    ],
)
def test_bad_runs_end_with_one_line(config, tmp_path, arguments, message):
    with pytest.raises(UserError) as error:
        pretrain.pretrain(cli.read_config(str(config), arguments), str(tmp_path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
