"""From files to batches: multi-sensor TFRecords (TFDS), augmentation and mixing, by tf.data or on the device.

config.py     what training reads
schema.py     what a stored sample and its metadata are
builder.py    writes a data set, streaming and atomically
encode.py     samples to records, statistics of all of them
places.py     what a source hands over: places that can be read one by one, a report
parts.py      writes a data set part by part, for several workers
beam.py       Apache Beam as these workers; nothing else imports it
sample.py     the default sample data, from two packages on PyPI
synthetic/    simulated scenes with known truth
catalog/      public data sets as distributed: one table, an entry each
layouts/      readers of the layouts that the entries name: class folders, masks, boxes, tracks, cubes
folder.py     a user's own GeoTIFF, PNG and NPY files, with labels (folder_images, folder_labels, folder_masks)
treesatai.py  TreeSatAI-Time-Series, as distributed: aerial image, Sentinel-2 and Sentinel-1 series
ssl4eo.py     SSL4EO-S12, as distributed: Sentinel-1 and Sentinel-2 series
example.py    what a record holds, decoded without TensorFlow
records.py    random access to records: index, checksums, broken records
subset.py     a fixed share of a split, for training with few labels
order.py      which record comes when: epochs, hosts, mixing
rules.py      what every reader agrees on: windows, physics, how views are drawn
augment.py    crops, flips and resizing that respect physics
views.py      which ground, dates and disturbance an image shows: one view or two
masking.py    which cells the encoder does not see
dataset.py    opens a data set and checks it against the sensor table
reader.py     batches for training, with exact resume; chooses a reader
tf_reader.py  the reader "tf": records as they are needed, through the graph of pipeline.py
device/       the reader "device": whole splits in device memory, batches in jitted JAX, no TensorFlow
evaluation.py batches for evaluation, every sample once
scenes.py     scenes of any size, by strips and windows in physical units
blending.py   overlapping windows and one map of them
maps.py       drafts that survive being killed; cloud-optimised GeoTIFF, GeoParquet
"""

import os

# Read when TensorFlow is first imported: no chatter, and plain kernels, the same on every CPU.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
