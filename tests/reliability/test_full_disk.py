"""Every verb runs out of room: it ends with one line, nothing that was saved is lost, and with room it goes on.

What it writes to is a small file system in memory; where none can be mounted (it takes root), no file may grow beyond
a limit. `make test-all` fills one for every verb; `python -m tests.reliability.test_full_disk` fills three, and prints
the table of docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ringmoe_jax.run import Run
from tests.helpers.every_verb import LIMIT, VERBS, finish, folder_for, inputs, is_whole, start

SHARES = (0.0, 0.5, 0.95)  # of the room that a verb needs
PAGE = 4096  # bytes: of a file system in memory
REASONS = ("No space left on device", "File too large")


@dataclasses.dataclass(frozen=True)
class Room:
    """A folder that can hold so much, and how a program is kept to it, and freed."""

    folder: Path
    limited: Callable[[], None] | None
    enlarge: Callable[[], None]


@contextlib.contextmanager
def room(folder: Path, size: int, largest: int) -> Iterator[Room]:
    """A folder for `size` bytes or, where nothing can be mounted, for files of at most `largest`."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={max(PAGE, size // PAGE * PAGE)}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield Room(folder, functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (largest,) * 2), lambda: None)
        return
    try:
        more = ["mount", "-o", "remount,size=256m", str(folder)]
        yield Room(folder, None, functools.partial(subprocess.run, more, check=True))
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def inside(folder: Path) -> dict[str, bytes]:
    """Files by their path in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def needs(verb: str, base: Path) -> tuple[object, int, int, int]:
    """What a verb gives; the bytes that lie there before, those that it adds, and those of its largest file."""
    parent = base / f"{verb}-whole"
    parent.mkdir()
    out = folder_for(verb, base, parent / "out")
    before = sum(map(len, inside(parent).values()))
    finish(verb, base, out)
    sizes = [len(content) for content in inside(parent).values()]
    return VERBS[verb].gives(out), before, sum(sizes) - before, max(sizes)


def filled(verb: str, base: Path, needed: tuple[object, int, int, int], share: float) -> str:
    """Runs a verb in a share of the room that it needs, then with enough.

    Returns:
        The line that it ended with; "" where it had room enough after all.

    Raises:
        AssertionError: it ended otherwise, or something was lost.
    """
    wanted, before, adds, largest = needed
    with room(base / f"{verb}-{share}", int(1.05 * before + share * adds), int(share * largest)) as small:
        out = folder_for(verb, base, small.folder / "out")
        had, output = inside(small.folder), base / "full.txt"
        status = start(verb, base, out, output, small.limited).wait(LIMIT)
        said = output.read_text().splitlines()
        if status == 0:
            assert is_whole(verb, out, wanted), f"{verb} says that it ended well, and did not"
            return ""
        errors = [line for line in said if line.startswith("error: ")]
        assert status == 1, (verb, share, status, said[-5:])
        assert errors == said[-1:], (verb, share, said[-20:])
        assert any(reason in said[-1] for reason in REASONS), (verb, share, said[-1])
        assert not any("Traceback" in line or "details in" in line for line in said), (verb, share, said[-20:])
        kept = inside(small.folder)
        assert {name: kept.get(name) for name in had} == had, f"{verb}: what was there is not there as it was"
        if (out / "checkpoints").is_dir() and any(name.isdigit() for name in names(out / "checkpoints")):
            Run.open(out)
        small.enlarge()
        if not is_whole(verb, out, wanted):
            finish(verb, base, out)
        assert is_whole(verb, out, wanted), f"{verb} does not go on as if nothing had been"
        return said[-1]


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("full")
    inputs(base)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_one_line_and_loses_nothing(base, verb):
    assert filled(verb, base, needs(verb, base), 0.5)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        inputs(Path(folder))
        print("| verb | bytes | file systems | of them too small | one line, nothing lost, the same in the end |")
        print("|---|---|---|---|---|", flush=True)
        for name in sys.argv[1:] or VERBS:
            needed = needs(name, Path(folder))
            lines, bad = [], []
            for share in SHARES:
                try:
                    lines.append(filled(name, Path(folder), needed, share))
                except AssertionError as error:
                    bad.append(f"{name}, {share:.0%}: {error}")
            small = [line for line in lines if line]
            counted = f"{needed[2]:,} | {len(SHARES)} | {len(small) + len(bad)} | {len(small)}"
            print(f"| {name} | {counted} |", *sorted(set(small)), *bad, sep="\n", flush=True)
