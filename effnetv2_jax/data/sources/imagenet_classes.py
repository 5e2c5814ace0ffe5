"""The 1,000 classes of ImageNet-1k (ILSVRC 2012) in the order of their labels.

``imagenet_classes.txt`` has one per line: the WordNet id, a tab, a name. The ids are in the order
of TFDS and of every published network. A name is the first lemma of the synset in WordNet 3.0
(https://wordnet.princeton.edu), with spaces. If two classes would have the same name, another lemma
or the one of the synset above follows in brackets.
"""

import functools
import pathlib

_FILE = pathlib.Path(__file__).with_name("imagenet_classes.txt")


@functools.cache
def _columns() -> tuple[tuple[str, ...], ...]:
    rows = (line.split("\t") for line in _FILE.read_text(encoding="utf-8").splitlines())
    return tuple(zip(*rows, strict=True))


def imagenet_names() -> tuple[str, ...]:
    """Returns the name of each class in plain words. All are different."""
    return _columns()[1]


def imagenet_ids() -> tuple[str, ...]:
    """Returns the WordNet id of each class, such as ``n02123045``."""
    return _columns()[0]
