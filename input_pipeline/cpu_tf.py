"""TensorFlow and its data sets as the input pipeline uses them: without a hand on any accelerator, and without Keras.

Every module that needs them imports them from here: `from input_pipeline.cpu_tf import tf, tfds`.
"""

import os

# TensorFlow imports all of Keras, scikit-learn with it, unless the old Keras is asked for: 3 of 8 seconds, in every
# process. The variable is read once more where `tf.keras` is first used, which is after it is taken back.
_KERAS = "TF_USE_LEGACY_KERAS"
_UNSET = _KERAS not in os.environ
os.environ.setdefault(_KERAS, "1")
import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402

if _UNSET:
    del os.environ[_KERAS]

tf.config.set_visible_devices([], "GPU")

__all__ = ["tf", "tfds"]
