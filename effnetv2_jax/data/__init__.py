"""The rooms that import TensorFlow: data sets, preprocessing, the pipeline of a stage."""

import os

from effnetv2_jax.postponed import postponed
from effnetv2_jax.quiet import hush_tensorflow, without

# Before TensorFlow is imported: no start-up chatter, and none of oneDNN's warnings about integer
# operations, which is all that an input pipeline would ask of it.
hush_tensorflow(2)
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# TensorFlow imports all of Keras for this module alone, and does as well without. That takes
# seconds, which nobody needs to wait for before `tf.keras` is used.
# Likewise the parts of its public face, `tf.linalg` and forty others: most nobody asks for here.
with without("keras.src.optimizers"), postponed(r"tensorflow\._api\.v2\.\w+"):
    import tensorflow  # noqa: F401
