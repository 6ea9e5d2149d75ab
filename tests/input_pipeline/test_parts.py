"""A data set that several workers write part by part is the one that a single program streams, byte for byte."""

import csv
import filecmp
import functools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_pipeline import parts
from input_pipeline.builder import write_dataset
from input_pipeline.dataset import open_dataset
from input_pipeline.encode import BandStatistics
from input_pipeline.parts import Workers
from input_pipeline.places import Places, Report
from ringmoe_jax.errors import DataError
from tests.helpers.tiny_data import metadata, names, samples

META = metadata("rgb")
read_places = []  # of the last write


def read(prefix, report, broken, keys):
    """Place i gives i modulo 4 samples, and says something of itself."""
    for key in keys:
        read_places.append(key)
        report.note(["are odd" if key % 2 else "are even"], f"{prefix}{key}")
        for sample in samples(key % 4, META, f"{prefix}{key}/"):
            yield sample
            if key in broken:
                raise DataError(f"{prefix}{key}.tif cannot be read")


def places(report=None, broken=(), count=11):
    """Places of two splits, which give 15 and 6 samples."""
    read_places.clear()
    report = Report() if report is None else report
    lengths = {"train": count, "validation": 4}
    found = {
        split: Places(range(n), functools.partial(read, split, report, broken), report, str)
        for split, n in lengths.items()
    }
    return found | {"train": found["train"].watched(META.labels)}


def elsewhere(order):
    """Workers that take the tasks in some order, each in a program of its own: it gets a copy of the task."""

    def each(task, count, folder):
        message = pickle.dumps(task)
        for number in order(list(range(count))):
            pickle.loads(message)(number)

    return Workers(each)


def assert_same(one, other):
    assert names(one) == names(other)
    _, different, odd = filecmp.cmpfiles(one, other, names(one), shallow=False)
    assert (different, odd) == ([], [])


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """What one program writes without parts, and what it reports."""
    report, out = Report(), tmp_path_factory.mktemp("streamed") / "d"
    write_dataset(out, places(report), META, shards=3)
    return out, report.lines(META.labels)


@pytest.mark.parametrize(
    "workers",
    [
        Workers(),
        elsewhere(lambda tasks: tasks[::-1]),
        elsewhere(lambda tasks: tasks + tasks[2:5]),  # as runners do where they doubt that a worker lives
        elsewhere(lambda tasks: np.random.default_rng(0).permutation(tasks).tolist()),
    ],
)
def test_who_writes_changes_no_byte_and_no_note(tmp_path, streamed, workers):
    out, lines = streamed
    report = Report()
    write_dataset(tmp_path / "d", places(report), META, shards=3, workers=workers)
    assert_same(out, tmp_path / "d")
    assert report.lines(META.labels) == lines
    assert names(tmp_path) == ["d"]


def test_sizes_of_parts_change_no_byte(tmp_path, streamed, monkeypatch):
    monkeypatch.setattr(parts, "divided", functools.partial(parts.divided, parts=4))
    assert len(parts.divided(places())) == 4
    write_dataset(tmp_path / "d", places(), META, shards=3, workers=Workers())
    assert_same(streamed[0], tmp_path / "d")


def test_writing_twice_gives_the_same_bytes(tmp_path, streamed):
    write_dataset(tmp_path / "d", places(), META, shards=3)
    assert_same(streamed[0], tmp_path / "d")


@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(1, 20))
def test_every_place_is_in_one_part(counts, most):
    splits = {f"s{i}": Places(range(count), None) for i, count in enumerate(counts)}
    found = parts.divided(splits, most)
    assert [(s, i) for s, a, b in found for i in range(a, b)] == [(s, i) for s, p in splits.items() for i in p.keys]
    assert len(found) <= most + len(counts)


@given(st.lists(st.integers(0, 6), max_size=6), st.integers(0, 2**32 - 1))
def test_merged_statistics_are_those_of_all_values(counts, seed):
    rng = np.random.default_rng(seed)
    values = [rng.normal(100, 3, (count, 2)) for count in counts]
    merged = BandStatistics(2)
    for some in values:
        merged.merge(BandStatistics.of(some))
    together = np.concatenate([np.zeros((0, 2)), *values])
    assert merged.count == len(together)
    if len(together):
        np.testing.assert_allclose(merged.mean, together.mean(0))
        np.testing.assert_allclose(merged.squares, ((together - together.mean(0)) ** 2).sum(0), atol=1e-9)


def test_places_that_cannot_be_read_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"^train6.tif cannot be read$"):
        write_dataset(tmp_path / "d", places(broken=[6]), META, workers=Workers())
    assert not (tmp_path / "d").exists()
    with pytest.raises(DataError, match=r"3 places or more cannot be read, 2 allowed \(--max-bad\): .*train6.tif"):
        write_dataset(tmp_path / "e", places(broken=[5, 6, 7]), META, workers=Workers(max_bad=2))
    assert not (tmp_path / "e").exists()


def test_places_that_may_be_left_out_are_named_and_leave_nothing_behind(tmp_path):
    report = Report()
    write_dataset(tmp_path / "d", places(report, broken=[6]), META, workers=Workers(max_bad=1))
    rows = list(csv.DictReader((tmp_path / "d.left_out.csv").read_text().splitlines()))
    assert rows == [{"split": "train", "place": "6", "reason": "train6.tif cannot be read"}]
    assert any('1 places, "6" among them' in line for line in report.lines(META.labels))
    assert not any("train6" in line for line in report.lines(META.labels)[1:])
    assert open_dataset(tmp_path / "d", ["rgb"]).size("train") == 13

    others = [key for key in range(11) if key != 6]
    without = places() | {"train": Places(others, places()["train"].read)}
    write_dataset(tmp_path / "other" / "d", without, META)
    assert_same(tmp_path / "d", tmp_path / "other" / "d")


class Killed(BaseException):
    """What no program catches."""


def dying(after):
    def each(task, count, folder):
        for number in range(count):
            if number == after:
                (folder / "part-00099.records.x.draft").write_bytes(b"half of one")
                raise Killed
            task(number)

    return each


@pytest.mark.parametrize("command", ["the same", "another"])
def test_after_a_kill_the_same_command_keeps_what_is_there(tmp_path, streamed, command):
    with pytest.raises(Killed):
        write_dataset(tmp_path / "d", places(), META, shards=3, workers=Workers(dying(7), command="the same"))
    assert not (tmp_path / "d").exists()
    write_dataset(tmp_path / "d", places(), META, shards=3, workers=Workers(command=command))
    assert len(read_places) == (8 if command == "the same" else 15)
    assert_same(streamed[0], tmp_path / "d")
    assert names(tmp_path) == ["d"]


def test_a_place_that_was_mended_is_read_again(tmp_path, streamed):
    with pytest.raises(DataError, match=r"train6\.tif"):
        write_dataset(tmp_path / "d", places(broken=[6]), META, shards=3, workers=Workers())
    write_dataset(tmp_path / "d", places(), META, shards=3, workers=Workers())
    assert read_places == [6]
    assert_same(streamed[0], tmp_path / "d")
    assert names(tmp_path) == ["d"]


def test_a_part_that_was_damaged_is_named_and_written_again(tmp_path, streamed):
    def each(task, count, folder):
        for number in range(count):
            if isinstance(task, parts.Gathering) and number == 0:
                path = folder / "part-00003.records"
                path.write_bytes(path.read_bytes()[:-9])
            task(number)

    with pytest.raises(DataError, match=r"part-00003\.records record 2: the file ends before it: run the same"):
        write_dataset(tmp_path / "d", places(), META, shards=3, workers=Workers(each))
    write_dataset(tmp_path / "d", places(), META, shards=3, workers=Workers())
    assert read_places == [3]
    assert_same(streamed[0], tmp_path / "d")


def test_workers_that_do_nothing_are_noticed(tmp_path):
    with pytest.raises(DataError, match="was not written: do all workers see this folder"):
        write_dataset(tmp_path / "d", places(), META, workers=Workers(lambda *_: None))


def test_what_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(DataError, match='"train" is read in one piece: leave the workers out'):
        write_dataset(tmp_path / "d", {"train": samples(3, META)}, META, workers=Workers())
    empty = places() | {"validation": Places([0, 4], places()["validation"].read)}
    with pytest.raises(DataError, match='the split "validation" has no sample'):
        write_dataset(tmp_path / "d", empty, META, workers=Workers())
    twice = {"train": Places([1, 2, 1], places()["train"].read)}
    with pytest.raises(DataError, match='the id "train1/0" appears twice'):
        write_dataset(tmp_path / "d", twice, META, workers=Workers())
