"""Apache Beam shares the work: the same bytes from one process and from four, and after one of them was killed."""

import filecmp
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import input_pipeline
from experiments import prepare
from ringmoe_jax.errors import ConfigError, DataError
from tests.helpers.tiny_data import names

ROOT = Path(__file__).parents[2]
installed = pytest.mark.skipif(find_spec("apache_beam") is None, reason="needs requirements-beam.txt")
PROGRAM = """
import functools, os, signal, sys
from pathlib import Path

import places_of_test
from experiments.run import cli
from input_pipeline import beam
from input_pipeline.builder import write_dataset
from input_pipeline.parts import Workers
from input_pipeline.places import Places


@cli.entry_point
def main(out, workers, flag):
    read = functools.partial(places_of_test.read, flag)
    train, validation = (Places(range(n), functools.partial(read, split)) for n, split in ((11, "t"), (4, "v")))
    shared = Workers(beam.over(beam.LOCAL, int(workers), [])) if workers != "0" else None
    write_dataset(out, {"train": train, "validation": validation}, places_of_test.META, shards=3, workers=shared)


if __name__ == "__main__":
    main(*sys.argv[1:])
"""
PLACES = '''
import os, signal
from pathlib import Path

from tests.helpers.tiny_data import metadata, samples

META = metadata("rgb")


def read(flag, split, keys):
    """Place i gives i modulo 4 samples. Where there is no flag yet, the sixth sets it, and its process is killed."""
    for key in keys:
        if (split, key) == ("t", 5) and not Path(flag).exists():
            Path(flag).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield from samples(key % 4, META, f"{split}{key}/")
'''


def write(folder, out, workers, flag):
    """Runs the program, as a command is run; returns it once it is done."""
    for name, text in (("program.py", PROGRAM), ("places_of_test.py", PLACES)):
        (folder / name).write_text(text)
    command = [sys.executable, str(folder / "program.py"), str(folder / out), str(workers), str(folder / flag)]
    paths = os.pathsep.join([str(folder), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def differences(one, other):
    _, different, odd = filecmp.cmpfiles(one, other, names(one), shallow=False)
    return different + odd + sorted(set(names(one)) ^ set(names(other)))


@installed
@pytest.mark.slow
def test_one_process_or_four_and_one_of_them_killed(tmp_path):
    (tmp_path / "there").touch()
    assert write(tmp_path, "streamed", 0, "there").returncode == 0

    killed = write(tmp_path, "four", 4, "flag")
    assert killed.returncode == 1
    last = killed.stderr.strip().splitlines()[-1]
    assert last.startswith("error: a worker failed (one of its processes was killed"), last
    assert not (tmp_path / "four").exists()
    assert (tmp_path / ".four.parts").exists()

    again = write(tmp_path, "four", 4, "flag")
    assert again.returncode == 0, again.stderr
    assert not (tmp_path / ".four.parts").exists()
    assert differences(tmp_path / "streamed", tmp_path / "four") == []

    one = write(tmp_path, "one", 1, "there")
    assert one.returncode == 0, one.stderr
    assert differences(tmp_path / "streamed", tmp_path / "one") == []


@installed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("runner", "workers", "given", "message"),
    [
        ("DirectRunner", 2, ["--direct_num_workrs=3"], r'"direct_num_workrs" is unknown to Beam: did you mean'),
        ("FlinkRunner", 2, [], "--workers 2 is for processes of this machine: FlinkRunner takes its own"),
    ],
)
def test_options_are_not_passed_over(runner, workers, given, message):
    from input_pipeline import beam

    with pytest.raises(ConfigError, match=message):
        beam.options(runner, workers, given)


@installed
@pytest.mark.slow
def test_what_goes_wrong_in_a_worker_is_one_line(tmp_path):
    from input_pipeline import beam

    def task(number):
        raise OSError(f"no space for part {number}")

    with pytest.raises(DataError, match=r"a worker failed \(.*no space for part 0.*\): run the same command again"):
        beam.each(["--runner=FnApiRunner"], task, 1, tmp_path)


def test_without_beam_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "input_pipeline.beam", raising=False)
    monkeypatch.delattr(input_pipeline, "beam", raising=False)  # where another test imported it
    given = ["--simulate", "2", "--out", str(tmp_path / "d"), "--workers", "2"]
    with pytest.raises(ConfigError, match=r"workers need Apache Beam, which is not installed .*requirements-beam.txt"):
        prepare.prepare(given)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--sample", "--out", "d", "--workers", "2"], "--sample is written by one program"),
        (["--simulate", "2", "--out", "d", "--", "--region=x"], "--region=x after -- is an option of a pipeline"),
        (["--simulate", "2", "--out", "d", "--workers", "-1"], "--workers -1, --max-bad None: wanted 0 or more"),
    ],
)
def test_what_does_not_apply_is_refused(given, message, capsys):
    with pytest.raises(SystemExit):
        prepare.prepare(given)
    assert message in capsys.readouterr().err
