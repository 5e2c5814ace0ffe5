"""Data sets, augmentation and the input pipeline, all of it in TensorFlow."""

import os

from effnetv2_jax.runtime.extras import hush_tensorflow, need

need("train", __name__)
# Before TensorFlow is imported: no start-up messages. oneDNN would only add warnings, because an
# input pipeline computes with integers.
hush_tensorflow(2)
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
