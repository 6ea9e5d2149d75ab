"""Where metrics go when there is no room for them."""

import pytest
import tensorflow as tf
from tensorboard.summary.writer import event_file_writer

from ringmoe_jax.errors import DataError
from ringmoe_jax.training.metrics import MetricsWriter


def test_a_full_disk_is_said_alike_whoever_writes(tmp_path, monkeypatch):
    full = tf.errors.ResourceExhaustedError(None, None, "events; No space left on device")

    def refuse(*arguments):
        raise full

    writer = MetricsWriter(tmp_path)
    monkeypatch.setattr(event_file_writer.EventFileWriter, "add_event", refuse)
    with pytest.raises(DataError, match=r"tensorboard cannot be written \(events; No space left on device\)"):
        writer.write(1, {"loss": 1.0})
    monkeypatch.setattr(event_file_writer, "EventFileWriter", refuse)
    with pytest.raises(DataError, match="No space left"):
        MetricsWriter(tmp_path)
    (tmp_path / "metrics.tmp").mkdir()
    with pytest.raises(DataError, match=r"metrics\.jsonl cannot be written"):
        MetricsWriter(tmp_path)
