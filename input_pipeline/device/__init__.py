"""The reader "device": whole splits in device memory, and crops and augmentation in one jitted JAX function.

boxes.py       which ground: boxes, and what they do to places and boxes of labels
resampling.py  images as products of two small matrices: crop, antialiasing, flip and native windows at once
values.py      stored values to the sensor's unit, and their disturbance
dates.py       which dates of a series, and how they move
looks.py       how training draws looks at a sample
samples.py     what a look shows of a sample: images, masks, labels
storage.py     records to arrays on the device
reader.py      batches for training and evaluation

No module imports TensorFlow. Functions are about one sample (`jax.vmap` makes batches of them) and are the twins of
`augment.py`, `views.py` and `pipeline.py`, by the same `rules.py`; given the same boxes, turns and dates they give the
same pixels.
"""
