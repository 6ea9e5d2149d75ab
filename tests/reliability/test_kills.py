"""Every verb is killed at random moments, and started again: what it gives then is what it gives when nobody kills it.

`make test-all` kills every verb once; `python -m tests.reliability.test_kills 20 5` kills pretrain 20 times and the
others 5 times, and prints the table of docs/reliability.md. `--processes 2 --verbs pretrain evaluate` kills one of two
processes, which the other has to name before it ends.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.every_verb import LIMIT, VERBS, finish, folder_for, inputs, is_whole, start

NAMED = 60  # seconds after which the other processes have named one that was killed
TOLD = f" named by the other within {NAMED} s | slowest, s |"


class Kill(NamedTuple):
    """A verb that was killed, and started again.

    Attributes:
        share: of its time, after which it was killed.
        ended: whether it had ended before, or had nothing left to do: all other processes ended with status 0.
        named: whether all other processes ended with a line of theirs.
        seconds: until they had ended; 0 of a process by itself.
        same: whether it gave the same at last.
    """

    share: float
    ended: bool
    named: bool
    seconds: float
    same: bool


def killed(verb: str, base: Path, count: int, processes: int = 1) -> Iterator[Kill]:
    """Kills a verb, or one of its processes, `count` times, each time anew, and starts it again."""
    out = folder_for(verb, base, base / f"{verb}-0")
    started = time.monotonic()
    finish(verb, base, out, processes)
    seconds, wanted = time.monotonic() - started, VERBS[verb].gives(out)
    for number in range(1, count + 1):
        chance = random.Random(f"{verb} {number}")
        share, victim = chance.uniform(0.3, 1.0), chance.randrange(processes)  # before that it imports
        out = folder_for(verb, base, base / f"{verb}-{number}")
        job = start(verb, base, out, processes)
        time.sleep(share * seconds)
        ended = any(process.poll() is not None for process in job.processes)
        job.processes[victim].kill()
        began = time.monotonic()
        statuses = job.finish(LIMIT)
        seconds_after = time.monotonic() - began if processes > 1 else 0.0
        others = [number for number in range(processes) if number != victim]
        ended |= processes > 1 and not any(statuses[other] for other in others)
        named = all(statuses[other] == 1 and f"error: process {victim} of" in job.said(other) for other in others)
        if not (named or ended):
            for other in others:
                print(statuses[other], *job.said(other).splitlines()[-5:], sep="\n", file=sys.stderr, flush=True)
        if not is_whole(verb, out, wanted):  # else it may refuse to write there again
            finish(verb, base, out, processes)
        yield Kill(share, ended, named, seconds_after, is_whole(verb, out, wanted))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("kills")
    inputs(base)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_killed_verb_gives_the_same_in_the_end(base, verb):
    (kill,) = killed(verb, base, 1)
    assert kill.same


@pytest.mark.slow
def test_one_of_two_processes_is_killed(base):
    (kill,) = killed("pretrain", base, 1, processes=2)
    assert kill.same
    assert kill.ended or (kill.named and kill.seconds < NAMED)


def rows(kills: int, others: int, processes: int, verbs: Sequence[str]) -> Iterator[str]:
    """The tables of docs/reliability.md."""
    several = processes > 1
    yield "| verb | kills | of them after its end |" + several * TOLD + " the same in the end |"
    yield "|---|---|---|" + several * "---|---|" + "---|"
    with tempfile.TemporaryDirectory() as folder:
        inputs(Path(folder), verbs)
        for name in verbs:
            found = []
            for kill in killed(name, Path(folder), kills if name == "pretrain" else others, processes):
                found.append(kill)
                print(name, kill, file=sys.stderr, flush=True)
            going = [kill for kill in found if not kill.ended]
            told = f" {sum(kill.named and kill.seconds < NAMED for kill in going)} of {len(going)} |"
            told += f" {max((kill.seconds for kill in going), default=0):.0f} |"
            same = sum(kill.same for kill in found)
            yield f"| {name} | {len(found)} | {len(found) - len(going)} |" + several * told + f" {same} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, help="of pretrain")
    parser.add_argument("others", type=int, help="kills of each of the other verbs")
    parser.add_argument("--processes", type=int, default=1, help="of a job; one of them is killed")
    parser.add_argument("--verbs", nargs="+", default=[*VERBS], choices=VERBS)
    for row in rows(*vars(parser.parse_args()).values()):
        print(row, flush=True)
