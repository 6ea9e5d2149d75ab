"""Files are whole or absent, only what is ours is replaced, and what cannot be read is one line."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ringmoe_jax import files
from ringmoe_jax.errors import UserError

ROOT = Path(__file__).parents[1]


def refused(function, *arguments, **options) -> str:
    with pytest.raises(UserError) as error:
        function(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def publish(directory, text="data", overwrite=False):
    with files.draft_folder(directory, overwrite=overwrite) as draft:
        (draft / "one.txt").write_text(text)


def beside(path):
    return {entry.name for entry in path.parent.iterdir()} - {path.name}


# Whose a folder is ----------------------------------------------------------------------------------------------------


def test_a_folder_is_replaced_only_as_we_left_it(tmp_path):
    out = tmp_path / "out"
    publish(out)
    assert "is not empty" in refused(publish, out, "new")
    publish(out, "new", overwrite=True)
    assert (out / "one.txt").read_text() == "new"
    (out / "thesis.txt").write_text("mine")
    assert "holds thesis.txt, which was not written by this command" in refused(publish, out, "newer", overwrite=True)
    (out / "thesis.txt").unlink()
    (out / "one.txt").write_text("changed by hand")
    assert "one.txt was changed since it was written" in refused(publish, out, "newer", overwrite=True)
    assert (out / "one.txt").read_text() == "changed by hand"
    assert not beside(out)


def test_a_folder_of_others_is_never_replaced(tmp_path):
    out = tmp_path / "documents"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "thesis.txt").write_text("mine")
    assert "holds deep/thesis.txt" in refused(publish, out, overwrite=True)
    assert (out / "deep" / "thesis.txt").read_text() == "mine"
    assert "is a file" in refused(publish, out / "deep" / "thesis.txt", overwrite=True)
    assert "cannot be written" in refused(publish, out / "deep" / "thesis.txt" / "below")


def test_files_that_are_added_later_are_ours_too(tmp_path):
    publish(tmp_path / "out")
    (tmp_path / "out" / "two.txt").write_text("2")
    files.seal(tmp_path / "out", ["two.txt"])
    publish(tmp_path / "out", "new", overwrite=True)
    assert not (tmp_path / "out" / "two.txt").exists()


def test_every_damaged_byte_of_what_is_described_is_seen(tmp_path):
    publish(tmp_path / "out", "a text")
    content = (tmp_path / "out" / "one.txt").read_bytes()
    manifest = files.read_manifest(tmp_path / "out")
    for i in range(len(content)):
        damaged = bytearray(content)
        damaged[i] ^= 1
        (tmp_path / "out" / "one.txt").write_bytes(damaged)
        assert "is not what was written" in refused(files.checked_bytes, tmp_path / "out", "one.txt", manifest)
    (tmp_path / "out" / "one.txt").write_bytes(content)
    assert files.checked_bytes(tmp_path / "out", "one.txt", manifest) == content


# Drafts ---------------------------------------------------------------------------------------------------------------


def test_what_fails_leaves_nothing(tmp_path):
    publish(tmp_path / "out", "old")

    def fail(draft):
        draft.write_text("half")
        raise RuntimeError

    with pytest.raises(RuntimeError), files.draft_folder(tmp_path / "out", overwrite=True) as draft:
        fail(draft / "one.txt")
    assert (tmp_path / "out" / "one.txt").read_text() == "old"
    with pytest.raises(RuntimeError), files.replaced(tmp_path / "file.txt") as draft:
        fail(draft)
    assert beside(tmp_path / "out") == set()


KILLED = """
import os, signal, sys
from pathlib import Path
from ringmoe_jax import files
out = Path(sys.argv[1])
with files.draft_folder(out, overwrite=True) as draft:
    (draft / "one.txt").write_text("new")
    if sys.argv[2] == "while writing":
        os.kill(os.getpid(), signal.SIGKILL)
    rename = Path.rename
    def killed(self, target):
        done = rename(self, target)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = killed
"""


@pytest.mark.parametrize("when", ["while writing", "between the names"])
def test_a_killed_writer_loses_nothing_and_leaves_nothing_for_long(tmp_path, when):
    out = tmp_path / "out"
    publish(out, "old")
    died = subprocess.run([sys.executable, "-c", KILLED, str(out), when], cwd=ROOT, check=False)
    assert died.returncode == -signal.SIGKILL
    kept = out if out.exists() else tmp_path / ".out.old"
    assert (kept / "one.txt").read_text() == "old"
    publish(out, "newest", overwrite=True)
    assert (out / "one.txt").read_text() == "newest"
    assert not beside(out)


def test_two_writers_of_one_folder(tmp_path):
    with files.draft_folder(tmp_path / "out") as draft:
        (draft / "one.txt").write_text("first")
        assert "is being written by another process" in refused(publish, tmp_path / "out")
    assert (tmp_path / "out" / "one.txt").read_text() == "first"


def test_a_full_disk_is_one_line_and_what_was_there_stays(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    files.write_text(path, "old")

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_text", full)
    assert "cannot be written (No space left on device): make room" in refused(files.write_text, path, "new")
    assert "cannot be written (No space left on device)" in refused(publish, tmp_path / "out")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert beside(path) == set()


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("höhe".encode("latin-1"), "is not UTF-8 (byte 0xf6 at 1; Latin-1 or Windows-1252?)"),
        ("a".encode("utf-16"), "is UTF-16"),
    ],
)
def test_text_in_other_encodings(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    assert message in refused(files.read_text, tmp_path / "a.txt", "a list")


def test_text_with_a_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes("höhe".encode("utf-8-sig"))
    assert files.read_text(tmp_path / "a.txt", "a list") == "höhe"


def test_what_is_no_file_never_blocks(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refused(files.read_bytes, tmp_path / "pipe", "a list")
    assert "is no file" in refused(files.read_bytes, tmp_path, "a list")
    assert "cannot be read" in refused(files.read_bytes, tmp_path / "nowhere", "a list")
    (tmp_path / "large").write_bytes(bytes(9))
    assert "has 9 bytes: wanted a list of at most 8" in refused(files.read_bytes, tmp_path / "large", "a list", 8)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, ""])
def test_json_that_is_none(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert "wanted a table (JSON)" in refused(files.read_json, tmp_path / "a.json", "a table")


@pytest.mark.parametrize("path", ["gs://bucket/data", "s3://x", "file:///x"])
def test_remote_paths_are_refused(path):
    assert f"{path}: wanted a local path" in refused(files.check_local, path)
