"""What a network sees in images that somebody names."""

from effnetv2_jax.runtime.quiet import hush_tensorflow

# What cannot be decoded is named by us, in one line, and not by every layer of TensorFlow.
hush_tensorflow(3)
