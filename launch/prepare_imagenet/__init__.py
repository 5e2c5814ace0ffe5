"""A program that makes TFDS's files from ImageNet's tar files (docs/imagenet.md)."""

from effnetv2_jax.runtime.extras import hush_tensorflow, need_for_program

need_for_program("train")
hush_tensorflow(2)
