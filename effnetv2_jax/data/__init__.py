"""The rooms that import TensorFlow: data sets, preprocessing, the pipeline of a stage."""

import os

# Before TensorFlow is imported: no start-up chatter, and none of oneDNN's warnings about integer
# operations, which is all that an input pipeline would ask of it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
