"""The rooms that import TensorFlow: data sets, preprocessing, the pipeline of a stage."""

import os

from effnetv2_jax.runtime.extras import need
from effnetv2_jax.runtime.quiet import hush_tensorflow

need("train", __name__)
# Before TensorFlow is imported: no start-up chatter, and none of oneDNN's warnings about integer
# operations, which is all that an input pipeline would ask of it.
hush_tensorflow(2)
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
