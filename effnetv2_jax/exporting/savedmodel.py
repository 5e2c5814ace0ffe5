"""TensorFlow's SavedModel, by ``jax2tf``: also from the bytes of image files to named classes."""

import pathlib

from effnetv2_jax.exporting.program import LABELS_FILE, Program
from effnetv2_jax.exporting.stablehlo import PLATFORMS

TOP = 5
"""The number of classes that the signature ``jpeg`` returns per image, if there are as many."""


def write(program: Program, path: pathlib.Path) -> None:
    """Writes the program as the signature ``serving_default``, {images} → {logits}.

    If the program takes uint8 images, the signature ``jpeg`` takes the bytes of image files, string
    [batch], and prepares them as an evaluation does. It returns ``logits``, and the likeliest
    ``classes``, int32 [batch, TOP], with their ``names`` and ``probabilities``.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    from effnetv2_jax.data.images import eval_image

    batch = "batch" if program.batch_size is None else str(program.batch_size)
    converted = jax2tf.convert(
        program.logits,
        polymorphic_shapes=[f"({batch}, ...)"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    spec = tf.TensorSpec(program.shape, program.dtype, "images")
    # A function that both signatures call, so that the weights are there once.
    logits = tf.function(converted, autograph=False, input_signature=[spec])
    module = tf.Module()
    default = tf.function(
        lambda images: {"logits": logits(images)}, autograph=False, input_signature=[spec]
    )
    signatures = {"serving_default": default}

    if program.dtype == "uint8":
        names = tf.constant([name.encode(errors="surrogateescape") for name in program.class_names])
        pixels = tf.TensorSpec(program.shape[1:], tf.uint8)

        def prepare(content: tf.Tensor) -> tf.Tensor:
            return eval_image(content, program.image_size, program.preprocessing)

        def jpeg(contents: tf.Tensor) -> dict[str, tf.Tensor]:
            images = tf.map_fn(prepare, contents, fn_output_signature=pixels)
            found = logits(images)
            top = min(TOP, len(program.class_names))
            probabilities, classes = tf.math.top_k(tf.nn.softmax(found), top)
            return {
                "logits": found,
                "probabilities": probabilities,
                "classes": classes,
                "names": tf.gather(names, classes),
            }

        spec = tf.TensorSpec(program.shape[:1], tf.string, "contents")
        signatures["jpeg"] = tf.function(jpeg, autograph=False, input_signature=[spec])

    for name, function in signatures.items():
        setattr(module, name, function)
    tf.saved_model.save(module, str(path), signatures=signatures)
    # TensorFlow's own place for files that its programs do not read.
    extra = path / "assets.extra"
    extra.mkdir()
    (extra / LABELS_FILE).write_bytes(program.labels)
