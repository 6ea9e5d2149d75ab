"""TensorFlow as the input pipeline uses it: without a hand on any accelerator.

Every module that needs TensorFlow imports it from here: `from input_pipeline.cpu_tf import tf`.
"""

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
