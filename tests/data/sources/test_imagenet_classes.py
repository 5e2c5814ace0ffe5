"""The names of ImageNet's classes: complete, different, and in the order of labels."""

import pytest
import tensorflow_datasets as tfds

from effnetv2_jax.data.sources.imagenet_classes import imagenet_ids, imagenet_names

# From torchvision's list, spread over all of it.
KNOWN = {
    0: "tench", 1: "goldfish", 100: "black swan", 207: "golden retriever", 254: "pug",
    281: "tabby", 282: "tiger cat", 285: "Egyptian cat", 388: "giant panda", 404: "airliner",
    463: "bucket", 504: "coffee mug", 559: "folding chair", 657: "missile", 701: "parachute",
    752: "racket", 812: "space shuttle", 849: "teapot", 882: "vacuum", 920: "traffic light",
    954: "banana", 967: "espresso", 980: "volcano", 999: "toilet tissue",
}  # fmt: skip


def test_there_is_a_name_of_its_own_for_each_class():
    names = imagenet_names()
    assert len(names) == len(set(names)) == 1000
    assert all(name and name == name.strip() and "\t" not in name for name in names)


@pytest.mark.parametrize("label", KNOWN)
def test_names_are_in_the_order_of_labels(label):
    assert imagenet_names()[label] == KNOWN[label]


def test_ids_are_tfdss():
    path = tfds.core.tfds_path("datasets/imagenet2012/labels.txt")
    assert list(imagenet_ids()) == path.read_text().split()


def test_classes_that_share_their_first_lemma_are_told_apart():
    names = dict(zip(imagenet_ids(), imagenet_names(), strict=True))
    assert names["n02012849"] == "crane (wading bird)"
    assert names["n03126707"] == "crane (lifting device)"
    assert names["n03710637"] == "maillot (tights)"
    assert names["n03710721"] == "maillot (tank suit)"
