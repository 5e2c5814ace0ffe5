"""Data sets, augmentation and the input pipeline, all of it in TensorFlow."""

from effnetv2_jax.runtime.extras import hush_tensorflow, need

need("train", __name__)
hush_tensorflow(2)
