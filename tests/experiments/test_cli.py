"""The command line that every verb shares: configuration files and their arguments, overrides, and what is refused."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.run import cli
from ringmoe_jax.errors import ConfigError
from ringmoe_jax.run import FinetuneConfig, PretrainConfig

ROOT = Path(__file__).parent.parent.parent
MICRO = "configs/ringmoe_micro.py"


def message(path, *overrides, sensors=()):
    with pytest.raises(ConfigError) as error:
        cli.read_config(path, overrides, sensors)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_takes_an_argument():
    values = cli.read_config("configs/ringmoe.py:large", ["--config.model.depths=(1, 1)"])
    assert (values["model"]["width"], values["model"]["depths"]) == (192, (1, 1))


def test_wrong_files_and_arguments(tmp_path):
    assert message("configs/ringmoe.py:lrage").startswith(
        'configs/ringmoe.py has no size "lrage": did you mean "large"? (known: 14b, base, large, nano, tiny)'
    )
    assert message("configs/ringmoe.py").startswith(
        "configs/ringmoe.py wants its size, say configs/ringmoe.py:<size>: (known: "
    )
    assert message(f"{MICRO}:large") == f"{MICRO}:large: get_config of this file takes no argument, say {MICRO}"
    assert message("configs/ringmoe_mico.py").startswith(
        'no configuration file "configs/ringmoe_mico.py": did you mean "configs/ringmoe_micro.py"?'
    )
    assert 'did you mean "configs/finetune/height.py"' in message("configs/finetune/heigth.py")
    (tmp_path / "empty.py").write_text("")
    assert "has no function get_config" in message(str(tmp_path / "empty.py"))


def test_an_argument_with_a_default_may_be_left_out(tmp_path):
    (tmp_path / "own.py").write_text("def get_config(size='small'):\n    return {'model': {'size': size}}\n")
    assert cli.read_config(str(tmp_path / "own.py")) == {"model": {"size": "small"}}
    assert cli.read_config(f"{tmp_path / 'own.py'}:any") == {"model": {"size": "any"}}


def test_overrides_add_what_the_file_does_not_state():
    values = cli.read_config(MICRO, ["--config.mesh.fsdp=2", "--config.pruning.every=5", "--config.model.patch=2"])
    config = PretrainConfig.of(values)
    assert (config.mesh.fsdp, config.pruning.every, config.complete()["model"]["patch"]) == (2, 5, 2)


def test_two_groups_of_one_object_are_changed_apart(tmp_path):
    values = cli.read_config("configs/skysense_micro.py", ["--config.model.frame.width=32"])
    assert (values["model"]["frame"]["width"], values["model"]["fusion"]["width"]) == (32, 64)


def test_a_value_is_no_group():
    assert message(MICRO, "--config.train.steps.log=3") == (
        "config.train.steps.log does not exist: config.train.steps is the value 800, not a group"
    )


def test_none_takes_an_entry_out():
    values = cli.read_config(
        MICRO, ["--config.data.streams.slc_dual=None", "--config.objectives.slc_dual=None", "--config.data.rotate=None"]
    )
    assert set(values["data"]["streams"]) == {"rgb", "s2_12", "s1_grd"}
    assert set(values["objectives"]) == {"rgb", "s2_12", "s1_grd", "balance"}
    assert "rotate" not in values["data"]


def test_none_of_what_is_not_stated():
    assert message(MICRO, "--config.data.streams.slc_daul=None").startswith(
        "config.data.streams.slc_daul = None takes out what is stated, but config.data.streams states no slc_daul: "
        'did you mean "slc_dual"?'
    )
    assert 'config states no dat: did you mean "data"?' in message(MICRO, "--config.dat.streams.rgb=None")


def test_only_two_sensors():
    values = cli.read_config(MICRO, sensors=["rgb", "s2_12"])
    assert values["model"]["sensors"] == ("rgb", "s2_12")
    assert set(values["data"]["streams"]) == {"rgb", "s2_12"}
    assert set(values["objectives"]) == {"rgb", "s2_12", "balance"}
    assert list(PretrainConfig.of(values).sensors) == ["rgb", "s2_12"]


def test_one_sensor_of_views():
    """A stream of both keeps one; alignment of the two goes, and so does what is said of the other."""
    values = cli.read_config("configs/skysense_micro.py", sensors=["s2_12"])
    assert values["data"]["streams"]["all"]["sensors"] == ("s2_12",)
    assert values["data"]["views"]["photometric"] == {"s2_12": {"gain": 0.1}}
    levels = ("pixel", "object", "image")
    assert set(values["objectives"]) == {f"{stream}_{level}" for stream in ("s2_12", "fused") for level in levels}
    PretrainConfig.of(values).complete()


def test_what_else_names_a_sensor_is_said():
    values = cli.read_config("configs/skysense_micro.py", sensors=["s1_grd"])
    with pytest.raises(ConfigError, match=r"data.views.grid = 's2_12': wanted .* a sensor that every stream reads"):
        PretrainConfig.of(values)


def test_the_truth_of_a_task_stays():
    values = cli.read_config("configs/finetune/height.py", sensors=["rgb"])
    assert values["data"]["streams"]["data"]["sensors"] == ("rgb", "ndsm")
    assert FinetuneConfig.of(values).model["sensors"] == ("rgb",)
    assert "--sensors ndsm: the configuration has no sensor" in message("configs/finetune/height.py", sensors=["ndsm"])


def test_an_unknown_sensor():
    assert message(MICRO, sensors=["s2_21"]).startswith(
        '--sensors s2_21: the configuration has no sensor "s2_21": did you mean "s2_12"?'
    )


def test_a_value_where_sensors_are_looked_for():
    for key in ("model", "data", "data.streams", "data.streams.rgb", "data.views", "objectives.rgb"):
        said = message(MICRO, f"--config.{key}=3", sensors=["s2_12"])
        assert said == f"config.{key} = 3: wanted a group of keys"


def test_a_verb_reads_its_command_line(tmp_path):
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir")
    arguments = f"--workdir runs/x --config {MICRO} --sensors rgb --config.train.steps=9 --compilation-cache="
    given, values = cli.read_run(parser, arguments.split())
    assert (given.workdir, values["train"]["steps"], values["model"]["sensors"]) == ("runs/x", 9, ("rgb",))
    assert "--config.data.streams.rgb=None" in parser.format_help()


VERB = """
import argparse, sys
sys.modules["tensorflow"] = sys.modules["jax"] = None
from experiments import compress, evaluate, predict
from experiments.run import cli

@cli.entry_point
def main():
    arguments, values = cli.read_run(argparse.ArgumentParser())

main()
"""


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [("--help", 0, "--sensors rgb s2_12"), ("--config configs/ringmoe.py:lrage", 1, 'did you mean "large"?')],
)
def test_help_and_mistakes_answer_without_jax(arguments, status, said):
    command = [sys.executable, "-c", VERB, *arguments.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error", [ValueError("first\nsecond"), MemoryError(), RecursionError("x" * 1000), KeyError("k")]
)
def test_any_other_exception_is_one_line_with_its_details_in_a_file(capsys, error):
    @cli.entry_point
    def main():
        raise error

    with pytest.raises(SystemExit, match="1"):
        main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {type(error).__name__}")
    assert len(line) < 400
    details = Path(line.rpartition("(details in ")[2].removesuffix(")"))
    assert "Traceback (most recent call last)" in details.read_text()
    details.unlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return {\n", r"config.py, line 2: SyntaxError: "),
        ("def get_config():\n    x = 1\n    return widht\n", r"config.py, line 3: NameError: name 'widht' is not"),
        ("import configs.no_such_file\n", r"config.py, line 1: ModuleNotFoundError: No module named 'configs.no_such"),
        ("def get_config():\n    return 3\n", r"get_config of .*config.py returned int, wanted an ml_collections"),
    ],
)
def test_code_of_a_configuration_that_fails_is_one_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("config.py").write_text(text)
    for path in ("config.py", str(tmp_path / "config.py")):
        with pytest.raises(ConfigError, match=message) as error:
            cli.read_config(path)
        assert "\n" not in str(error.value)
