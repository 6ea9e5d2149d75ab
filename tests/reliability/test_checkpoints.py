"""Damaged checkpoints: every flipped bit is noticed, a line names the file, and the one before it is taken."""

import random
import shutil

import jax
import pytest
from numpy.testing import assert_array_equal

from ringmoe_jax import files
from ringmoe_jax.errors import DataError
from ringmoe_jax.training.checkpoint import Checkpointer
from tests.helpers.tiny_checkpoints import save, state

# The checksums, and what Orbax adds when all else is written: nobody reads them.
NOT_SEALED = (files.MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(folder, 1, 2)
    return folder


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "run")


def parts(run, step=2):
    """The files of a checkpoint that hold anything, its checksums aside."""
    inside = sorted(path for path in (run / "checkpoints" / str(step)).rglob("*") if path.is_file())
    return [path for path in inside if path.stat().st_size and path.name not in NOT_SEALED]


def flip(path, seed=0):
    content = bytearray(path.read_bytes())
    bit = random.Random(seed).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_every_file_is_sealed_once_it_is_complete(saved):
    for step in (1, 2):
        known = files.read_manifest(saved / "checkpoints" / str(step))
        here = saved / "checkpoints" / str(step)
        inside = (path for path in here.rglob("*") if path.is_file())
        assert set(known) == {
            p.relative_to(here).as_posix() for p in inside if p.name not in NOT_SEALED or p.parent != here
        }


def test_any_flipped_bit_is_noticed_and_the_one_before_is_taken(saved, tmp_path, capsys):
    for number, _ in enumerate(parts(saved)):
        run = shutil.copytree(saved, tmp_path / str(number))
        broken = parts(run)[number]
        flip(broken, number)
        checkpointer = Checkpointer.open(run)
        assert checkpointer.record()["step"] == 1, broken
        assert_array_equal(checkpointer.restore_model()[0]["kernel"], state(1).params["kernel"])
        assert capsys.readouterr().out.splitlines()[0] == (
            f"checkpoint 2 is damaged, the one before it is taken: {broken} is not what was written (its checksum "
            "differs from checksums.json)"
        )
        with pytest.raises(DataError, match=r"checkpoint 2 is damaged: .*checksum differs.*; others: 1"):
            checkpointer.record(2)
        checkpointer.close()


def test_what_is_not_sealed_is_not_needed(run):
    for path in (run / "checkpoints" / "2").iterdir():
        if path.name in NOT_SEALED and path.name != files.MANIFEST and path.stat().st_size:
            path.write_bytes(b"\0" + path.read_bytes()[1:])
    checkpointer = Checkpointer.open(run)
    assert checkpointer.record()["step"] == 2
    assert_array_equal(checkpointer.restore_model()[0]["kernel"], state(2).params["kernel"])


def test_a_file_that_is_missing_is_named(run):
    gone = parts(run)[0]
    gone.unlink()
    with pytest.raises(DataError, match=f"checkpoint 2 is damaged: {gone} cannot be read"):
        Checkpointer.open(run).record(2)


def test_nothing_whole_is_left(run):
    for step in (1, 2):
        flip(parts(run, step)[0])
    with pytest.raises(DataError, match=r"no checkpoint in .* is whole, see above: copy the run again"):
        Checkpointer.open(run).record()


def test_training_goes_on_from_the_one_before_and_keeps_what_is_damaged(run):
    flip(parts(run)[0])
    checkpointer = Checkpointer(run, keep=3)
    step = checkpointer.newest_whole()
    restored = checkpointer.restore(jax.eval_shape(lambda: state(1)), step)
    assert_array_equal(restored.params["kernel"], state(1).params["kernel"])
    checkpointer.set_aside_after(step)
    checkpointer.save(2, state(2), {"config": {}})
    checkpointer.wait()
    assert checkpointer.newest_whole() == 2
    checkpointer.close()
    assert [path.name.split("-")[0] for path in (run / "damaged").iterdir()] == ["2"]
    assert_array_equal(Checkpointer.open(run).restore_model()[0]["kernel"], state(2).params["kernel"])


def test_one_of_an_older_version_has_no_checksums_and_opens(run):
    for step in (1, 2):
        (run / "checkpoints" / str(step) / files.MANIFEST).unlink()
    assert Checkpointer.open(run).record()["step"] == 2


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "it.safetensors").touch()
    with pytest.raises(DataError, match=r"it.safetensors is a file: experiments.convert .* --out FOLDER makes a run"):
        Checkpointer.open(tmp_path / "it.safetensors")
