"""scikit-learn's handwritten digits as a TFDS builder that needs no download."""

from effnetv2_jax.data.sources.digits.digits_dataset_builder import Digits

__all__ = ["Digits"]
