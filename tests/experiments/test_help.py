"""`--help` of every verb answers at once, and without TensorFlow."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
VERBS = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if "__main__" in path.read_text())
SECONDS = 2.0  # of the processor
SLOW = ("benchmark",)  # imports too much before it reads its command line; where it does not any more, it fails here
PROGRAM = "import runpy, sys; sys.modules['tensorflow'] = sys.modules['tensorflow_datasets'] = None; " + (
    "sys.argv = ['{verb}', '--help']; runpy.run_module('experiments.{verb}', run_name='__main__')"
)


def cases():
    unfinished = (pytest.mark.slow, pytest.mark.xfail(strict=True))
    return [pytest.param(verb, marks=unfinished if verb in SLOW else ()) for verb in VERBS]


def test_the_list_names_verbs():
    assert len(VERBS) >= 12
    assert set(SLOW) <= set(VERBS)


@pytest.mark.parametrize("verb", cases())
def test_help(verb):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [sys.executable, "-c", PROGRAM.format(verb=verb)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert done.returncode == 0, done.stderr
    assert re.match("usage: ", done.stdout)
    assert seconds < SECONDS
