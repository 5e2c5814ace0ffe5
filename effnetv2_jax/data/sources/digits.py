"""The 1,797 digits of 13 writers that scikit-learn carries (Alpaydin & Kaynak 1998).

A TFDS builder that needs no download.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

NUM_TRAIN = 1437


class Digits(tfds.core.GeneratorBasedBuilder):
    """Images of 8 × 8 px in 17 grey levels, scaled to 0 … 255; labels 0 … 9.

    The first 1,437 examples are ``train``, the last 360 ``test``. scikit-learn keeps the order of
    the writers, so the split is fixed and the test digits are mostly by other writers.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8 by 8 pixels, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(i) for i in range(10)]),
                }
            ),
            supervised_keys=("image", "label"),
            # The order of the writers, so that a slice such as train[80%:] holds out whole writers.
            disable_shuffling=True,
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
        parts = {"train": slice(NUM_TRAIN), "test": slice(NUM_TRAIN, None)}
        return {
            name: self._generate_examples(images[part], digits.target[part])
            for name, part in parts.items()
        }

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": image, "label": int(label)}
