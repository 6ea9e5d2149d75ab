"""Records are read by position; a broken one is named, and only it is lost."""

import logging
import shutil
import struct

import numpy as np
import pytest

from input_pipeline import records
from input_pipeline.cpu_tf import tf
from input_pipeline.dataset import open_dataset
from input_pipeline.evaluation import EvalBatches
from input_pipeline.reader import train_batches
from ringmoe_jax.data_config import DataConfig, StreamConfig
from ringmoe_jax.errors import DataError

SHARDS = 4  # of 3 records each


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of `tiny` that a test may break."""
    return shutil.copytree(tiny, tmp_path / "tiny")


def shard(directory, number):
    return directory / f"tiny-train.tfrecord-{number:05d}-of-{SHARDS:05d}"


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def read_all(directory, max_bad):
    opened = open_dataset(directory, ["rgb"]).records("train", max_bad)
    return opened, opened.read(range(12))


def test_files_are_tfrecords_and_equal_what_tensorflow_reads(tiny):
    _, payloads = read_all(tiny, 0)
    files = [str(shard(tiny, i)) for i in range(SHARDS)]
    assert payloads == list(tf.data.TFRecordDataset(files).as_numpy_iterator())


def test_any_order(tiny):
    opened, payloads = read_all(tiny, 0)
    order = [11, 0, 5, 5, 3]
    assert opened.read(order) == [payloads[i] for i in order]


def test_masked_crc_is_tensorflows(tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "f")) as writer:
        writer.write(b"some bytes")
    content = (tmp_path / "f").read_bytes()
    assert struct.unpack("<I", content[8:12])[0] == records.masked_crc(content[:8])
    assert struct.unpack("<I", content[-4:])[0] == records.masked_crc(b"some bytes")


def frame_bytes(directory):
    """Bytes of one record with its frame: every record of `tiny` is as long as its id allows."""
    return [n + 16 for n in np.load(directory / "index.npz")["train-1"]]


@pytest.mark.parametrize(
    ("offset", "reason"),
    [(3, "header's checksum"), (9, "header's checksum"), (200, "payload's checksum"), (-1, "payload's checksum")],
)
def test_flipped_byte_costs_one_record(copy, offset, reason):
    sizes = frame_bytes(copy)
    start = sizes[0]  # of the second record
    flip(shard(copy, 1), start + (offset if offset >= 0 else sizes[1] + offset))
    opened, payloads = read_all(copy, 1)
    assert [i for i, p in enumerate(payloads) if p is None] == [4]
    assert list(opened.bad) == [4]
    assert f"{shard(copy, 1).name} record 1" in opened.bad[4]
    assert reason in opened.bad[4]


def test_truncated_file_costs_its_end(copy, caplog):
    path = shard(copy, 2)
    path.write_bytes(path.read_bytes()[: frame_bytes(copy)[0] + 100])
    with caplog.at_level(logging.WARNING):
        opened, payloads = read_all(copy, 2)
    assert [i for i, p in enumerate(payloads) if p is None] == [7, 8]
    assert "found 1 of 3 records by scanning" in caplog.text
    assert f"{path.name} record 1" in opened.bad[7]


@pytest.mark.parametrize("how", ["empty", "missing"])
def test_lost_shard_costs_its_records(copy, how):
    path = shard(copy, 0)
    path.unlink() if how == "missing" else path.write_bytes(b"")
    opened, payloads = read_all(copy, 3)
    assert [i for i, p in enumerate(payloads) if p is None] == [0, 1, 2]
    assert path.name in opened.bad[0]


def test_garbage_with_right_checksums_is_broken(copy):
    """A whole frame that is no Example of ours: the index is stale and is rebuilt."""
    with tf.io.TFRecordWriter(str(shard(copy, 3))) as writer:
        for payload in (b"\xff garbage", tf.train.Example().SerializeToString(), b""):
            writer.write(payload)
    opened, payloads = read_all(copy, 3)
    assert payloads[9:] == [None] * 3
    assert "not a tf.train.Example" in opened.bad[9]
    assert "sensors/rgb/pixels holds 0 bytes, wanted 192" in opened.bad[10]


def test_index_is_rebuilt_when_absent(copy, caplog):
    (copy / "index.npz").unlink()
    _, payloads = read_all(copy, 0)
    assert None not in payloads
    assert "index missing, found 3 of 3 records" in caplog.text


def test_limit_names_the_records(copy):
    flip(shard(copy, 0), 100)
    flip(shard(copy, 3), 100)
    with pytest.raises(
        DataError, match=r"2 broken records, 1 allowed.*00000-of-00004 record 0.*00003-of-00004 record 0"
    ):
        read_all(copy, 1)


def batches(directory, max_bad, count):
    config = DataConfig(
        {"a": StreamConfig(str(directory), ("rgb",))}, image_size=8, batch_size=4, mask_unit=4, max_bad_records=max_bad
    )
    iterator = train_batches(config)
    return iterator, [next(iterator) for _ in range(count)]


def test_training_skips_the_broken_record_and_nothing_else(copy):
    _, whole = batches(copy, 0, 3)
    flip(shard(copy, 1), 100)  # record 3
    iterator, broken = batches(copy, 1, 3)
    before = np.concatenate([b["index"] for b in whole])
    after = np.concatenate([b["index"] for b in broken])
    assert sorted(before) == list(range(12))
    at = int(np.flatnonzero(before == 3)[0])
    assert (after != before).nonzero()[0].tolist() == [at]
    assert after[at] == before[(at + 1) % 12]  # the next one of the epoch's order
    assert iterator.bad_records == 1
    again = np.concatenate([b["index"] for b in batches(copy, 1, 3)[1]])
    np.testing.assert_array_equal(after, again)


def test_too_many_broken_records_raise_one_line(copy):
    flip(shard(copy, 1), 100)
    with pytest.raises(DataError, match=r"1 broken records, 0 allowed \(max_bad_records\)") as error:
        batches(copy, 0, 3)
    assert "\n" not in str(error.value)


def test_all_broken_raises_and_does_not_hang(copy):
    for number in range(SHARDS):
        shard(copy, number).write_bytes(b"")
    with pytest.raises(DataError, match=r"every record is broken.*and 7 more"):
        batches(copy, 100, 1)


def test_all_broken_raises_where_another_thread_found_the_last_one(copy):
    """Else the data would seem to have come to its end."""
    for number in range(SHARDS):
        shard(copy, number).write_bytes(b"")
    opened = open_dataset(copy, ["rgb"]).records("train", 100)
    for _ in range(2):
        with pytest.raises(DataError, match=r"every record is broken.*and 7 more"):
            opened.read_or_next([iter(range(12)), iter(range(12))])


def test_evaluation_leaves_a_broken_record_out(copy):
    path = copy / "tiny-validation.tfrecord-00001-of-00003"
    flip(path, 100)
    (batch,) = EvalBatches(copy, ["rgb"], image_size=8, batch_size=4, max_bad_records=1)
    assert batch["real"].tolist() == [True, False, True, False]
    assert batch["index"].tolist() == [0, -1, 2, -1]
    with pytest.raises(DataError, match="00001-of-00003 record 0"):
        list(EvalBatches(copy, ["rgb"], image_size=8, batch_size=4))
