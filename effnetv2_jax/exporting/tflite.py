"""TFLite for LiteRT, by TensorFlow's converter: with float32, float16 or int8 weights."""

import pathlib
from collections.abc import Iterator

import numpy as np

from effnetv2_jax.exporting.program import Program


def write(
    program: Program, path: pathlib.Path, quantize: str, calibration: np.ndarray | None
) -> None:
    """Writes the program with built-in operations only, as the signature {images} → {logits}.

    Args:
        program: The program, whose batch size is a number.
        path: The file.
        quantize: ``none`` for float32; ``float16`` for weights of half the size; ``int8`` for int8
            weights and computation, between images and logits as in the other two.
        calibration: Images for int8, uint8 [number, size, size, 3], whose activations decide the
            range of each int8 tensor.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    logits = jax2tf.convert(program.logits, with_gradient=False)
    function = tf.function(
        lambda images: {"logits": logits(images)},
        autograph=False,
        input_signature=[tf.TensorSpec(program.shape, program.dtype, "images")],
    )
    module = tf.Module()
    module.function = function
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], module
    )
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":

        def examples() -> Iterator[list[np.ndarray]]:
            assert calibration is not None and program.batch_size is not None
            for begin in range(0, len(calibration) - program.batch_size + 1, program.batch_size):
                images = calibration[begin : begin + program.batch_size]
                yield [program.prepared(images)]

        converter.representative_dataset = examples
    path.write_bytes(converter.convert())
