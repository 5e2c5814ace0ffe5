"""The classes that a network finds likeliest for images named on a command line."""

from effnetv2_jax.runtime.extras import hush_tensorflow

# The program names an undecodable image in one line. TensorFlow would log its own errors as well.
hush_tensorflow(3)
