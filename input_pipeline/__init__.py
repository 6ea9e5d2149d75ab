"""From files to batches: multi-sensor TFRecords (TFDS), tf.data, augmentation and mixing.

config.py     what training reads
schema.py     what a stored sample and its metadata are
builder.py    writes a data set, streaming and atomically
sample.py     the default sample data, from two packages on PyPI
synthetic/    simulated scenes with known truth
folder.py     a user's own GeoTIFF, PNG and NPY files
records.py    random access to records: index, checksums, broken records
order.py      which record comes when: epochs, hosts, mixing
augment.py    crops, flips and resizing that respect physics
masking.py    which cells the encoder does not see
dataset.py    opens a data set and checks it against the sensor table
reader.py     batches for training, with exact resume, and for evaluation
"""

import os

# Read when TensorFlow is first imported: no chatter, and plain kernels, the same on every CPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
