"""The 1,000 classes of ImageNet-1k (ILSVRC 2012) in the order of their labels.

``imagenet_classes.txt`` has one a line: the WordNet id, a tab, a name. The ids are in TFDS's order,
which is that of every published network. A name is the first lemma of the synset in WordNet 3.0
(https://wordnet.princeton.edu), with spaces; where two classes would have the same, something that
tells them apart follows in brackets: another lemma, or the one of the synset above.
"""

import functools
import pathlib

_FILE = pathlib.Path(__file__).with_name("imagenet_classes.txt")


def imagenet_names() -> tuple[str, ...]:
    """Of each class what a person calls it; all are different."""
    return _columns()[1]


def imagenet_ids() -> tuple[str, ...]:
    """Of each class its WordNet id, such as ``n02123045``."""
    return _columns()[0]


@functools.cache
def _columns() -> tuple[tuple[str, ...], tuple[str, ...]]:
    rows = [line.split("\t") for line in _FILE.read_text(encoding="utf-8").splitlines()]
    ids, names = zip(*rows, strict=True)
    return ids, names
