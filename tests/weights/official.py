"""An EfficientNet in plain TensorFlow, whose variables have the official code's names.

Written from what the official code does (layer names are counted within a block, the stem's and
head's are not), not from our tables: it makes checkpoints of both kinds, and their logits.
"""

import itertools
import pathlib

import numpy as np
import tensorflow as tf

from tests.golden.drawn import draw

IMAGE = np.random.default_rng(0).normal(size=(1, 48, 35, 3)).astype(np.float32)


class Network:
    """A network that draws a variable when it first needs it.

    Args:
        name: The beginning of graph names.
        objects: Uses TensorFlow 2's paths of attributes instead of TensorFlow 1's names.
    """

    def __init__(self, name: str, *, objects: bool = False):
        self._root = "" if objects else f"{name}/"
        self._objects = objects
        self.variables: dict[str, np.ndarray] = {}

    def _get(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return self.variables.setdefault(self._root + name, draw(self._root + name, shape))

    def _conv(self, x, name, size, filters, stride=1, bias=False):
        kernel = self._get(f"{name}/kernel", (size, size, x.shape[-1], filters))
        x = tf.nn.conv2d(x, kernel, stride, "SAME")
        return x + self._get(f"{name}/bias", (filters,)) if bias else x

    def _depthwise(self, x, name, size, stride):
        kernel = self._get(f"{name}/depthwise_kernel", (size, size, x.shape[-1], 1))
        return tf.nn.depthwise_conv2d(x, kernel, (1, stride, stride, 1), "SAME")

    def _norm(self, x, name):
        gamma, beta, mean, variance = (
            self._get(f"{name}/{part}", (x.shape[-1],))
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    def _block(self, x, number, op, size, stride, expand, filters, has_se):
        root = f"_blocks/{number}/" if self._objects else f"blocks_{number}/"
        convs = map("conv2d{}".format, itertools.chain([""], map("_{}".format, itertools.count(1))))
        norms = map("_{}".format, itertools.count(1))
        norms = map("tpu_batch_normalization{}".format, itertools.chain([""], norms))

        def conv(attribute):
            return root + (attribute if self._objects else next(convs))

        def norm(attribute):
            return root + (attribute if self._objects else next(norms))

        inputs, inside = x, x.shape[-1] * expand
        if op == "fused":
            if expand != 1:
                x = self._conv(x, conv("_expand_conv"), size, inside, stride)
                x = tf.nn.silu(self._norm(x, norm("_norm0")))
                size = stride = 1
            x = self._conv(x, conv("_project_conv"), size, filters, stride)
            x = self._norm(x, norm("_norm1"))
            x = tf.nn.silu(x) if expand == 1 else x
        else:
            if expand != 1:
                x = self._conv(x, conv("_expand_conv"), 1, inside)
                x = tf.nn.silu(self._norm(x, norm("_norm0")))
            middle = "_depthwise_conv" if self._objects else "depthwise_conv2d"
            x = self._depthwise(x, root + middle, size, stride)
            x = tf.nn.silu(self._norm(x, norm("_norm1")))
            if has_se:
                first, second = (
                    ("_se/_se_reduce", "_se/_se_expand")
                    if self._objects
                    else ("se/conv2d", "se/conv2d_1")
                )
                y = tf.reduce_mean(x, (1, 2), keepdims=True)
                squeezed = max(1, int(inputs.shape[-1] * 0.25))
                y = tf.nn.silu(self._conv(y, root + first, 1, squeezed, bias=True))
                x = x * tf.sigmoid(self._conv(y, root + second, 1, inside, bias=True))
            x = self._norm(self._conv(x, conv("_project_conv"), 1, filters), norm("_norm2"))
        return x + inputs if inputs.shape == x.shape else x

    def __call__(self, image, blocks, stem_filters, head_filters, classes):
        """Returns logits [batch, classes].

        Args:
            image: The images [batch, height, width, 3].
            blocks: The groups as (repeats, op, kernel size, stride, expansion, filters, SE).
            stem_filters: The number of output channels of the first convolution.
            head_filters: The number of output channels of the last convolution.
            classes: The number of classes.
        """
        of = self._objects
        x = self._conv(image, "_stem/_conv_stem" if of else "stem/conv2d", 3, stem_filters, 2)
        x = tf.nn.silu(self._norm(x, "_stem/_norm" if of else "stem/tpu_batch_normalization"))
        number = 0
        for repeats, op, size, stride, expand, filters, has_se in blocks:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                x = self._block(x, number, op, size, step, expand, filters, has_se)
                number += 1
        x = self._conv(x, "_head/_conv_head" if of else "head/conv2d", 1, head_filters)
        x = tf.nn.silu(self._norm(x, "_head/_norm" if of else "head/tpu_batch_normalization"))
        x = tf.reduce_mean(x, (1, 2))
        dense = "_fc" if of else "head/dense"
        kernel = self._get(f"{dense}/kernel", (head_filters, classes))
        return (x @ kernel + self._get(f"{dense}/bias", (classes,))).numpy()


def save_graph(prefix: pathlib.Path, variables: dict[str, np.ndarray]) -> None:
    """Writes a checkpoint as TensorFlow 1's Saver does, of variables with these names."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = {
            name: tf.compat.v1.get_variable(name, initializer=tf.constant(value), use_resource=True)
            for name, value in variables.items()
        }
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(made).save(session, str(prefix), write_meta_graph=False)


def save_objects(prefix: pathlib.Path, variables: dict[str, np.ndarray], **others) -> None:
    """Writes an object graph as TensorFlow 2 does, of objects with these paths of attributes."""
    root = tf.train.Checkpoint(**others)
    for path, value in variables.items():
        *folders, last = path.split("/")
        place = root
        for folder in folders:
            if not hasattr(place, folder):
                setattr(place, folder, tf.Module())
            place = getattr(place, folder)
        setattr(place, last, tf.Variable(value))
    root.write(str(prefix))
