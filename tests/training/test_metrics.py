"""Where metrics go, and what is said when there is no room for them."""

import errno
import os
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from ringmoe_jax.errors import DataError
from ringmoe_jax.training.metrics import MetricsWriter


def test_tensorboard_reads_what_was_written_before_and_after_a_restart(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (1, 2):
        writer.write(step, {"loss": step / 2, "rate": 0.1})
    writer.close()
    killed = MetricsWriter(tmp_path, resume_step=2)
    killed.write(3, {"loss": 1.5})
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()  # not closed until then
    killed.close()
    assert set(found.Tags()["scalars"]) == {"loss", "rate"}
    assert [(event.step, event.value) for event in found.Scalars("loss")] == [(1, 0.5), (2, 1.0), (3, 1.5)]


def test_metrics_do_not_wait_for_tensorflow(tmp_path):
    code = (
        "import sys; from ringmoe_jax.training.metrics import MetricsWriter\n"
        f"MetricsWriter({str(tmp_path)!r}).write(1, {{'loss': 1.0}})\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_full_disk_is_said_alike_whoever_writes(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = MetricsWriter(tmp_path)
    monkeypatch.setattr(RecordWriter, "write", refuse)
    with pytest.raises(DataError, match=r"tensorboard cannot be written \(No space left on device\)"):
        writer.write(1, {"loss": 1.0})
    writer.close()
    (tmp_path / "metrics.tmp").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be written"):
        MetricsWriter(tmp_path)
