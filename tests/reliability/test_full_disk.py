"""Every verb runs out of room: it ends with one line, nothing that was saved is lost, and with room it goes on.

What it writes to is a small file system in memory; where none can be mounted (it takes root), no file may grow beyond
a limit. `make test-all` fills one for every verb; `python -m tests.reliability.test_full_disk` fills three, and prints
the table of docs/reliability.md.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from ringmoe_jax.run import Run
from tests.helpers.every_verb import VERBS, folder_for, inputs, is_whole

SHARES = (0.0, 0.5, 0.95)  # of the room that a verb needs
PAGE = 4096  # bytes: of a file system in memory
REASONS = ("No space left on device", "File too large")


@contextlib.contextmanager
def room(folder: Path, size: int, largest: int) -> Iterator[Callable[[], None]]:
    """Makes a folder for `size` bytes or, where nothing can be mounted, for files of at most `largest`.

    Yields:
        What makes it large enough.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={max(PAGE, size // PAGE * PAGE)}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
        try:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    try:
        yield lambda: subprocess.run(["mount", "-o", "remount,size=256m", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def call(verb: str, base: Path, out: Path) -> tuple[int, list[str]]:
    """Calls a verb in this process: its exit status, and the lines that it wrote as errors."""
    said = io.StringIO()
    main = importlib.import_module(f"experiments.{verb}").main
    arguments = list(map(str, VERBS[verb].arguments(base, out)))
    with (
        mock.patch.object(sys, "argv", [verb, *arguments]),  # what verbs that train read
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
        pytest.raises(SystemExit) as ended,
    ):
        main(*[arguments] * len(inspect.signature(main).parameters))
    return ended.value.code or 0, said.getvalue().splitlines()


def inside(folder: Path) -> dict[str, bytes]:
    """Files by their path in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pages(contents: Iterable[bytes]) -> int:
    """Bytes that files take in whole pages."""
    return sum(-(-len(content) // PAGE) * PAGE for content in contents)


def needs(verb: str, base: Path) -> tuple[object, int, int, int]:
    """What a verb gives; the bytes that lie there before, those that it adds, and those of its largest file."""
    parent = base / f"{verb}-whole"
    parent.mkdir()
    out = folder_for(verb, base, parent / "out")
    before = pages(inside(parent).values())
    status, said = call(verb, base, out)
    assert status == 0, said
    written = inside(parent).values()
    return VERBS[verb].gives(out), before, pages(written) - before, max(map(len, written))


def filled(verb: str, base: Path, needed: tuple[object, int, int, int], share: float) -> str:
    """Runs a verb in a share of the room that it needs, then with enough.

    Returns:
        The line that it ended with; "" where it had room enough after all.

    Raises:
        AssertionError: it ended otherwise, or something was lost.
    """
    wanted, before, adds, largest = needed
    folder = base / f"{verb}-{share}"
    with room(folder, int(before + share * adds), int(share * largest)) as enlarge:
        out = folder_for(verb, base, folder / "out")
        had = inside(folder)
        status, said = call(verb, base, out)
        if status == 0:
            assert is_whole(verb, out, wanted), f"{verb} says that it ended well, and did not"
            return ""
        errors = [line for line in said if line.startswith("error: ")]
        assert status == 1, said[-5:]
        assert errors == said[-1:], said[-20:]
        assert any(reason in said[-1] for reason in REASONS), said[-1]
        assert not any("Traceback" in line or "details in" in line for line in said), said[-20:]
        kept = inside(folder)
        assert {name: kept.get(name) for name in had} == had, f"{verb}: what was there is not there as it was"
        if any(path.name.isdigit() for path in out.glob("checkpoints/*")):
            Run.open(out)
        enlarge()
        if not is_whole(verb, out, wanted):
            again, why = call(verb, base, out)
            assert again == 0, f"{verb} does not go on: {why[-1:]}"
        assert is_whole(verb, out, wanted), f"{verb} does not go on as if nothing had been"
        return said[-1]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("full")
    inputs(base)
    return base


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_is_one_line_and_loses_nothing(base, verb):
    assert filled(verb, base, needs(verb, base), 0.5)


def report(base: Path, verbs: list[str]) -> None:
    """Prints a row for every verb, and the lines that it ended with."""
    print("| verb | bytes | file systems | too small | one line, nothing lost, the same in the end |")
    print("|---|---|---|---|---|", flush=True)
    for verb in verbs:
        needed, lines, bad = needs(verb, base), [], []
        for share in SHARES:
            try:
                lines.append(filled(verb, base, needed, share))
            except AssertionError as error:
                bad.append(f"{verb}, {share:.0%}: {error}")
        small = [line for line in lines if line]
        print(f"| {verb} | {needed[2]:,} | {len(SHARES)} | {len(small) + len(bad)} | {len(small)} |")
        print(*sorted(set(small)), *bad, sep="\n", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        inputs(Path(folder))
        report(Path(folder), sys.argv[1:] or list(VERBS))
