"""Every verb is killed at random moments, and started again: what it gives then is what it gives when nobody kills it.

`make test-all` kills every verb once; `python -m tests.reliability.test_kills 20 5` kills pretrain 20 times and the
others 5 times, and prints the table of docs/reliability.md.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.every_verb import VERBS, finish, folder_for, inputs, is_whole, start


def killed(verb: str, base: Path, count: int) -> Iterator[tuple[float, bool, bool]]:
    """Kills a verb `count` times, each time anew, and starts it again.

    Yields:
        After which share of its time it was killed, whether it had ended before, and whether it gave the same at last.
    """
    out = folder_for(verb, base, base / f"{verb}-0")
    started = time.monotonic()
    finish(verb, base, out)
    seconds, wanted = time.monotonic() - started, VERBS[verb].gives(out)
    for number in range(1, count + 1):
        share = random.Random(f"{verb} {number}").uniform(0.3, 1.0)  # before that it imports
        out = folder_for(verb, base, base / f"{verb}-{number}")
        process = start(verb, base, out, base / "killed.txt")
        time.sleep(share * seconds)
        ended = process.poll() is not None
        process.kill()
        process.wait()
        if not is_whole(verb, out, wanted):  # else it may refuse to write there again
            finish(verb, base, out)
        yield share, ended, is_whole(verb, out, wanted)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("kills")
    inputs(base)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_verb_gives_the_same_in_the_end(base, verb):
    ((_, _, same),) = killed(verb, base, 1)
    assert same


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        inputs(Path(folder))
        print("| verb | kills | of them after its end | the same in the end |\n|---|---|---|---|")
        for name in VERBS:
            found = list(killed(name, Path(folder), int(sys.argv[1 if name == "pretrain" else 2])))
            after, same = (sum(row[i] for row in found) for i in (1, 2))
            print(f"| {name} | {len(found)} | {after} | {same} |", flush=True)
